"""The solve without decisions."""

import pytest
import torch

from mdeq_mm.deploy import FixedEvaluations, fixed_mode
from mdeq_mm.deploy.fixed_evaluations import affine_weights
from mdeq_mm.deq import (
    AndersonSolver,
    BroydenSolver,
    Equilibrium,
    EquilibriumLayer,
    PhantomGradient,
    PicardSolver,
    Unrolled,
)

from ..deq.toys import LinearCell, TanhCell

SOLVERS = [
    AndersonSolver(max_evals=6, tol=0, window=3),
    AndersonSolver(max_evals=4, tol=0, window=1, mixing=0.5),
    AndersonSolver(max_evals=9, tol=0, stop_mode='abs'),
    AndersonSolver(max_evals=6, tol=0, returns='evaluation'),
    PicardSolver(max_evals=5, tol=0),
]


def make_layer(cell, solver=SOLVERS[0]):
    return EquilibriumLayer(cell, solver, PhantomGradient()).eval()


@torch.no_grad()
def state_of(layer, mode, x):
    with layer.using(mode=mode):
        return layer((x,)).forward_pass.state


@pytest.mark.parametrize('solver', SOLVERS, ids=str)
def test_finds_what_the_solver_finds(solver):
    """With the same number of evaluations, and no tolerance."""
    torch.manual_seed(0)
    layer, x = make_layer(TanhCell()), torch.randn(3, 3, 4, 5, dtype=torch.float64)
    expected = state_of(layer.double(), Equilibrium(solver, PhantomGradient()), x)
    actual = state_of(layer, FixedEvaluations(solver), x)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


def test_returns_what_the_configured_solver_returns():
    layer = make_layer(TanhCell(), BroydenSolver(max_evals=7, returns='evaluation'))
    expected = AndersonSolver(max_evals=7, returns='evaluation')
    assert fixed_mode(layer).solver == expected


@pytest.mark.parametrize('solver', SOLVERS, ids=str)
def test_takes_all_evaluations(solver):
    cell = TanhCell()
    state_of(make_layer(cell), FixedEvaluations(solver), torch.zeros(2, 3, 4, 4))
    assert cell.n_rows == [2] * solver.max_evals


def test_takes_them_in_float32_whatever_the_layer_does():
    layer = make_layer(TanhCell())
    mode, x = FixedEvaluations(PicardSolver(max_evals=5)), torch.randn(2, 3, 4, 4)
    expected = state_of(layer, mode, x)
    layer.evaluation_dtype = 'bfloat16'
    assert torch.equal(state_of(layer, mode, x), expected)


def test_nan_stays_in_its_sample():
    torch.manual_seed(0)
    layer, x = make_layer(TanhCell()), torch.randn(3, 3, 4, 4)
    mode = FixedEvaluations(AndersonSolver(max_evals=6))
    expected = state_of(layer, mode, x)
    x[1] = torch.nan
    actual = state_of(layer, mode, x)
    torch.testing.assert_close(actual[::2], expected[::2])
    assert not actual[1].any()  # the start: no other iterate is better


def test_iterates_that_run_away_are_not_returned():
    layer = make_layer(LinearCell())
    with torch.no_grad():
        layer.cell.weight.fill_(-3.0)
        x = (torch.ones(1, 2), torch.ones(1, 2))
        mode = FixedEvaluations(PicardSolver(max_evals=8, damping=1))
        with layer.using(mode=mode):
            state = layer(x).forward_pass.state
    assert not state.any()


@pytest.mark.parametrize('ridge', [0.0, 1e-6])
@pytest.mark.parametrize('size', [1, 2, 6])
def test_weights_are_those_of_the_solver(size, ridge):
    torch.manual_seed(0)
    rows = torch.randn(3, size, 20, dtype=torch.float64)
    rows *= torch.logspace(0, -3, size, dtype=torch.float64)[:, None]
    gram = rows @ rows.mT
    expected = AndersonSolver(ridge=ridge).coefficients(gram, size - 1)
    torch.testing.assert_close(affine_weights(gram, ridge), expected)


@pytest.mark.parametrize('value', [0.0, torch.nan, torch.inf, -1.0])
def test_plain_step_where_nothing_can_be_solved(value):
    gram = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    gram[1].fill_(value)
    weights = affine_weights(gram, 1e-6)
    torch.testing.assert_close(weights[0], torch.full_like(weights[0], 1 / 3))
    assert weights[1].tolist() == [0, 0, 1]


class TestFixedMode:
    def test_anderson_stands_in_for_other_solvers(self):
        layer = make_layer(TanhCell(), BroydenSolver(max_evals=7, stop_mode='abs'))
        expected = AndersonSolver(max_evals=7, stop_mode='abs')
        assert fixed_mode(layer) == FixedEvaluations(expected)

    @pytest.mark.parametrize('name', [None, 'picard'])
    def test_settings_are_kept(self, name):
        layer = make_layer(TanhCell(), PicardSolver(max_evals=7, damping=0.3))
        expected = PicardSolver(max_evals=4, damping=0.3)
        assert fixed_mode(layer, name, 4) == FixedEvaluations(expected)

    def test_another_solver(self):
        layer = make_layer(TanhCell(), PicardSolver(max_evals=7, damping=0.3))
        expected = AndersonSolver(max_evals=7)
        assert fixed_mode(layer, 'anderson') == FixedEvaluations(expected)

    def test_unrolled_model_stays_unrolled(self):
        layer = make_layer(TanhCell())
        layer.mode = layer.unrolled
        assert fixed_mode(layer) == layer.unrolled
        assert fixed_mode(layer, evals=2) == Unrolled(2)
        with pytest.raises(ValueError, match="unrolled mode.*got 'picard'"):
            fixed_mode(layer, 'picard')

    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (dict(solver='broyden'), "solver must be one of .*got 'broyden'"),
            (dict(evals=0), 'evals must be an integer of at least 1 or None, got 0'),
        ],
    )
    def test_bad_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            fixed_mode(make_layer(TanhCell()), **options)

    def test_mode_refuses_other_solvers(self):
        with pytest.raises(TypeError, match='got BroydenSolver'):
            FixedEvaluations(BroydenSolver())
