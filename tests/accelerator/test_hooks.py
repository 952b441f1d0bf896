"""Whole runs with every hook and metric on an accelerator."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from .. import pretended_accelerator

pytestmark = pytest.mark.cuda

SCHEDULE = dict(
    type='ImplicitGradientHook',
    pretrain_iters=2,
    phases=[
        dict(begin=0, gradient=dict(type='PhantomGradient', steps=2)),
        dict(begin=4),
    ],
)
EQUILIBRIUM = dict(type='ImplicitGradientHook')
JACOBIAN = dict(
    type='JacobianRegularizationHook',
    weight=0.1,
    freq=0.7,
    pretrain_weight=0.1,
    max_evals_delta=1,
)
TRAJECTORY = dict(type='TrajectorySupervisionHook', n_states=2, weight=0.5)
GUESS = dict(type='InitialGuessLossHook')
RANDOM_STATE = dict(type='RandomStateHook')
HOOKS = dict(
    schedule=[SCHEDULE],
    statistics=[EQUILIBRIUM],
    jacobian=[SCHEDULE, JACOBIAN],
    trajectory=[EQUILIBRIUM, TRAJECTORY],
    guess=[SCHEDULE, GUESS],
    random_state=[EQUILIBRIUM, RANDOM_STATE],
    all=[SCHEDULE, JACOBIAN, TRAJECTORY, GUESS, RANDOM_STATE],
)
METRICS = [
    dict(type='SpectralRadius', num_power_iters=3, krylov_dim=3),
    dict(type='SolverStatistics', curve_at=(1, 3)),
]
# Iterations of a run, images and evaluations of a solve: those of `make_runner`.
LENGTH, N_BATCHES, MAX_EVALS = 6, 3, 6


@pytest.fixture
def make(make_runner, device, default_device):
    """Makes a runner on a device, with every metric of the equilibrium."""

    def build(where, hooks, **kwargs):
        guess = dict(type='ProjectedGuess' if GUESS in hooks else 'ZeroGuess')
        with default_device(where):
            return make_runner(
                hooks,
                model=dict(type='Classifier', dropout=0.2, initial_guess=guess),
                val_evaluator=METRICS,
                length=LENGTH,
                **kwargs,
            )

    return build


@pytest.fixture
def train(default_device):
    """Trains on a device; returns the weights and the last scalars of the log."""

    def run(runner, where):
        with default_device(where):
            runner.train()
        scalars = {
            name: buffer.current() if buffer.data[1].size else None
            for name, buffer in runner.message_hub.log_scalars.items()
            if 'time' not in name
        }
        return runner.model.state_dict(), scalars

    return run


def places(reads):
    """Counts the reads by the file they are in.

    Those of the initialisation are left out: mmengine looks at every weight there.
    """
    files = (Path(read.file) for read in reads)
    return Counter(file.stem for file in files if file.parent.name != 'backbones')


@pytest.mark.parametrize('name', HOOKS)
class TestRuns:
    def test_values(self, make, train, device, name):
        """With the same random numbers, the weights and the log of the CPU."""
        state, scalars = train(make(device, HOOKS[name]), device)
        assert all(value.isfinite().all() for value in state.values())
        if device != pretended_accelerator.NAME:
            return  # its dropout masks are others
        expected, expected_scalars = train(make('cpu', HOOKS[name]), 'cpu')
        assert all(value.device.type == device for value in state.values())
        # Second derivatives are summed up in another order.
        error = 1e-3 if JACOBIAN in HOOKS[name] else 0
        for key, value in expected.items():
            torch.testing.assert_close(state[key].cpu(), value, rtol=error, atol=error)
        assert scalars.keys() == expected_scalars.keys()
        assert {'val/spectral_radius/max', 'val/solver/evals'} <= scalars.keys()
        for key, value in expected_scalars.items():
            assert scalars[key] == pytest.approx(value, rel=1e-6 + 10 * error), key


class TestReads:
    def test_statistics_once_a_log(self, make, train, device, reads):
        with reads() as found:
            train(make(device, [EQUILIBRIUM], log_interval=3), device)
        counts = places(found)
        # Forward and adjoint, each two times in six iterations.
        assert counts['solve_statistics'] == 2 * LENGTH // 3
        # Validation: the radius of each batch, and what each of two metrics keeps.
        n_val = 2 * N_BATCHES
        assert counts['jacobian'] == n_val
        assert counts['metrics'] == 2 * n_val
        assert counts['samples'] <= (2 * LENGTH + n_val) * MAX_EVALS // 3
        assert set(counts) <= {'solve_statistics', 'jacobian', 'metrics', 'samples'}

    @pytest.mark.parametrize('name', HOOKS)
    def test_none_besides_the_solves(self, make, train, device, reads, name):
        runner = make(device, HOOKS[name], log_interval=3)
        runner._val_loop = None
        with reads() as found:
            train(runner, device)
        counts = places(found)
        assert counts['samples'] <= 2 * LENGTH * (MAX_EVALS + 1) // 3
        assert counts['solve_statistics'] <= 2 * LENGTH // 3
        assert set(counts) <= {'samples', 'solve_statistics'}


def test_resuming(make, train, device, same, tmp_path):
    """A checkpoint of the device continues there as if nothing had happened."""
    hooks = HOOKS['all']
    expected, _ = train(make(device, hooks), device)
    folder = tmp_path / 'work_dir'
    resumed = make(device, hooks, resume=True, load_from=str(folder / 'iter_3.pth'))
    state, _ = train(resumed, device)
    assert resumed.iter == LENGTH
    for key, value in expected.items():
        same(state[key], value)
