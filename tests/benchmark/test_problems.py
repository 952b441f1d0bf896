import math

import torch

from mdeq_mm.benchmark import (
    Problem,
    equilibrium_problems,
    evaluations_to,
    residuals,
)
from mdeq_mm.deq import BroydenSolver, PicardSolver, Unrolled, VariationalDropout

SOLVER = BroydenSolver(max_evals=100, tol=1e-9, memory=100)


class TestEquilibriumProblems:
    def test_adjoint_is_that_of_the_cell(self, backbone, images):
        problems = equilibrium_problems(backbone, images)
        forward, adjoint = problems['forward'], problems['adjoint']
        with torch.no_grad():
            z = SOLVER.solve(forward.f, forward.start).state
            solution = SOLVER.solve(adjoint.f, adjoint.start)
            assert solution.converged.all()
            y, unit = solution.state, adjoint.start
            # y = J^T y + u, so y.(v - J v) = u.v; J v is taken from differences of f.
            v = 1e-5 * torch.randn_like(z)
            jv = (forward.f(z + v) - forward.f(z - v)) / 2
        torch.testing.assert_close((y * (v - jv)).sum(1), (unit * v).sum(1))
        norms = torch.linalg.vector_norm(unit, dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
        shape = (2, 8 * 64 + 16 * 16)
        assert forward.bare().shape == adjoint.bare().shape == shape

    def test_residuals_are_those_of_the_layer(self, backbone, images):
        solver = BroydenSolver(max_evals=12, tol=0)
        problem = equilibrium_problems(backbone, images)['forward']
        traces = []
        layer = backbone.equilibrium
        observing = layer.register_pass_hook(
            lambda _, p: traces.append(p.solution.trace)
        )
        with observing, layer.using(solver=solver), torch.no_grad():
            backbone(images)
        found = residuals(solver.solve, problem)
        torch.testing.assert_close(found, traces[0], rtol=1e-6, atol=0)

    def test_nothing_is_left_on_the_model(self, backbone, images):
        layer = backbone.equilibrium
        before = layer.mode
        equilibrium_problems(backbone, images)
        assert layer.mode == before
        assert all(p.grad is None for p in backbone.parameters())
        seen = []
        layer.register_pass_hook(lambda layer, forward_pass: seen.append(1))
        backbone(images)
        assert seen == [1]

    def test_unrolled_model_is_solved(self, backbone, images):
        layer = backbone.equilibrium
        with layer.using(mode=Unrolled(1)), torch.no_grad():
            problem = equilibrium_problems(backbone, images)['forward']
            one = problem.bare()  # f at the state the backbone returns
            assert not torch.allclose(one, problem.f(problem.start), rtol=1e-3)

    def test_every_evaluation_has_the_same_masks(self, backbone, images):
        for module in backbone.modules():
            if isinstance(module, VariationalDropout):
                module.p = 0.5
        problem = equilibrium_problems(backbone.train(), images)['forward']
        with torch.no_grad():
            assert torch.equal(problem.bare(), problem.bare())


class TestResiduals:
    def test_of_a_known_iteration(self):
        # z_k = 1 - 2^-k from zero: the residual of evaluation k is 1 / (2^k - 1).
        problem = Problem(lambda z: (z + 1) / 2, torch.zeros(2, 3), lambda: None)
        trace = residuals(PicardSolver(max_evals=8, tol=0, damping=1).solve, problem)
        expected = torch.tensor([1 / (2**k - 1) for k in range(1, 9)])
        torch.testing.assert_close(trace, expected.unsqueeze(1).expand(8, 2))
        assert evaluations_to(trace, 0.1) == [4, 4]
        assert evaluations_to(trace, 0.01) == evaluations_to(trace, 1 / 127) == [7, 7]

    def test_samples_count_on_their_own(self):
        trace = torch.tensor([[1.0, 0.1, 1.0], [0.2, 0.5, math.nan], [0.1, 0.01, 1.0]])
        assert evaluations_to(trace, 0.1) == [3, 1, None]
