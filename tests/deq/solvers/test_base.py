"""What a new solver gets from its base class."""

from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
import torch

from mdeq_mm.deq import FixedPointSolver, MethodState, PicardSolver


class Undecorated(FixedPointSolver):
    def step(self, state, z, fz, g):
        return (z + fz) / 2


@dataclass(frozen=True)
class Decorated(FixedPointSolver):
    share: float = 0.5

    def step(self, state, z, fz, g):
        return z + self.share * g


@pytest.mark.parametrize('cls', [Undecorated, Decorated])
class TestNewSolver:
    def test_solves(self, cls):
        z0 = torch.zeros(2, 3)
        solution = cls(tol=1e-5).solve(torch.cos, z0)
        expected = PicardSolver(tol=1e-5, damping=0.5).solve(torch.cos, z0)
        assert solution.converged.all()
        assert torch.equal(solution.n_evals, expected.n_evals)
        torch.testing.assert_close(solution.state, expected.state)
        assert solution.inverse_jacobian is None

    def test_has_the_settings_of_all(self, cls):
        solver = cls(7, 0.1, 'abs', 2)
        assert solver == cls(max_evals=7, tol=0.1, stop_mode='abs', check_interval=2)
        assert replace(solver, max_evals=4).max_evals == 4
        assert repr(solver).startswith(
            f"{cls.__name__}(max_evals=7, tol=0.1, stop_mode='abs', check_interval=2"
        )
        assert solver != Undecorated() != Decorated()
        with pytest.raises(FrozenInstanceError):
            solver.tol = 0.0
        with pytest.raises(ValueError, match='max_evals must be .*, got 0'):
            cls(max_evals=0)

    def test_has_a_state_and_a_residual(self, cls):
        z, fz = torch.zeros(2, 3), torch.rand(2, 3)
        state = cls().init(z)
        assert type(state) is MethodState
        assert torch.equal(cls().residual(state, z, fz), fz)


def test_own_settings():
    assert Decorated(share=0.25) != Decorated()
    assert 'share=0.25' in repr(Decorated(share=0.25))


def test_defaults():
    assert Undecorated() == Undecorated(
        max_evals=30, tol=1e-3, stop_mode='rel', check_interval=None
    )


def test_a_solver_must_have_a_step():
    with pytest.raises(TypeError, match='step'):
        FixedPointSolver()


def test_state_with_required_attributes():
    """The base class has an attribute with a default, which is no argument."""

    @dataclass
    class State(MethodState):
        last: torch.Tensor
        number: int = 3

    state = State(torch.zeros(2, 3))
    assert (state.number, state.active) == (3, None)
