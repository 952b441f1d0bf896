from importlib.util import find_spec

import pytest
import torch
from torch import rand

from mdeq_mm.benchmark import (
    Problem,
    evaluations_to,
    has_torchdeq,
    measure_problem,
    own_solvers,
    residuals,
    torchdeq_solvers,
)

needs_torchdeq = pytest.mark.skipif(
    find_spec('torchdeq') is None, reason='torchdeq is not installed'
)


def test_own_solvers_spend_the_budget():
    problem = Problem(torch.cos, rand(1, 4), lambda: None)
    for solve in own_solvers(7).values():
        assert len(residuals(solve, problem)) == 7


def test_settings_of_own_solvers():
    found = own_solvers(7, memory=2, history_dtype='bfloat16')
    broyden = found['BroydenSolver'].__self__
    assert (broyden.memory, broyden.history_dtype) == (2, 'bfloat16')
    assert found['AndersonSolver'].__self__.history_dtype == 'bfloat16'
    default = own_solvers(7)['BroydenSolver'].__self__
    assert (default.memory, default.history_dtype) == (10, None)


def test_measure_problem():
    calls = []
    problem = Problem(torch.cos, rand(2, 4), lambda: calls.append('bare'))
    measured = measure_problem(problem, own_solvers(5), n_evals=5, repeats=2)
    assert len(calls) == 5 * (1 + 2)
    assert list(measured['solvers']) == list(own_solvers(5))
    for name, solver in measured['solvers'].items():
        assert solver['evaluations'] == 5
        assert len(measured['rounds'][name]) == 2
        assert solver['overhead'] == pytest.approx(
            solver['seconds'] / (5 * measured['bare'])
        )
        assert list(solver['evaluations_to']) == ['0.1', '0.01', '0.001', '0.0001']


def test_sample_that_does_not_get_there():
    slopes = torch.tensor([[0.5], [-0.99]])
    problem = Problem(lambda z: slopes * z + 1, torch.zeros(2, 3), lambda: None)
    picard = dict(own_solvers(9), AndersonSolver=None, BroydenSolver=None)
    solvers = {name: solve for name, solve in picard.items() if solve is not None}
    measured = measure_problem(problem, solvers, n_evals=9, repeats=1)
    trace = residuals(solvers['PicardSolver'], problem)
    assert None in evaluations_to(trace, 1e-4)
    assert measured['solvers']['PicardSolver']['evaluations_to']['0.0001'] is None


class TestTorchdeq:
    @needs_torchdeq
    def test_evaluates_as_often(self):
        problem = Problem(torch.cos, rand(2, 8), lambda: None)
        assert has_torchdeq()
        for solve in torchdeq_solvers(6).values():
            assert len(residuals(solve, problem)) == 6

    @needs_torchdeq
    def test_as_little_memory(self):
        matrix = torch.randn(40, 40) / 8
        x = torch.randn(2, 40)

        def count(memory):
            solve = torchdeq_solvers(60, memory)['torchdeq broyden']
            problem = Problem(lambda z: torch.tanh(z @ matrix) + x, 0 * x, None)
            return max(evaluations_to(residuals(solve, problem), 1e-5))

        assert count(2) > count(None)
