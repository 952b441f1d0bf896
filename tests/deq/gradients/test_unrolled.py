import pytest
import torch
from torch.autograd import gradcheck

from mdeq_mm.deq import Solution, UnrolledGradient


class TestUnrolledGradient:
    def test_value(self, problem):
        z = problem.z0
        for _ in range(4):
            z = problem.f(z)
        actual = UnrolledGradient(4).attach(problem.f, Solution.initial(problem.z0))
        assert torch.equal(actual, z)

    def test_gradcheck(self, problem):
        def unrolled(matrix, x):
            return UnrolledGradient(4).attach(
                lambda z: torch.tanh(z @ matrix.T) + x, Solution.initial(problem.z0)
            )

        assert gradcheck(unrolled, (problem.matrix, problem.x))

    def test_no_graph_under_no_grad(self, problem):
        with torch.no_grad():
            z = UnrolledGradient(4).attach(problem.f, Solution.initial(problem.z0))
        assert not z.requires_grad

    def test_wrong_num_layers(self):
        with pytest.raises(ValueError, match='num_layers must .* at least 1, got 0'):
            UnrolledGradient(0)
