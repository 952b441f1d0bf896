import torch
from torch import nn

from mdeq_mm.benchmark import count_saved_bytes, count_work
from mdeq_mm.deq import (
    BroydenSolver,
    ImplicitGradient,
    PhantomGradient,
    PicardSolver,
    ReducedFunction,
    Unrolled,
)

SPENT = BroydenSolver(max_evals=4, tol=0)
ADJOINT = ImplicitGradient(BroydenSolver(max_evals=3, tol=0))


class TestCountWork:
    def test_implicit_gradient(self, backbone, images):
        layer = backbone.equilibrium
        with layer.using(solver=SPENT, gradient=ADJOINT), count_work(layer) as work:
            outputs = backbone(images)
            assert (work.evaluations, work.products) == (4 + 1, 0)
            sum(out.sum() for out in outputs).backward()
        assert (work.evaluations, work.products) == (4 + 1, 3)

    def test_two_passes(self, backbone, images):
        layer = backbone.equilibrium
        with layer.using(solver=SPENT, gradient=ADJOINT), count_work(layer) as work:
            both = [*backbone(images), *backbone(images[:1])]
            sum(out.sum() for out in both).backward()
        assert (work.evaluations, work.products) == (10, 6)

    def test_without_an_adjoint_solve(self, backbone, images):
        layer = backbone.equilibrium
        for override, n_evals in (
            (dict(solver=SPENT, gradient=PhantomGradient(2)), 4 + 2),
            (dict(mode=Unrolled(3)), 3),
        ):
            with layer.using(**override), count_work(layer) as work:
                sum(out.sum() for out in backbone(images)).backward()
            assert (work.evaluations, work.products) == (n_evals, 0)

    def test_products_in_both_precisions(self, backbone, images):
        """Those in full precision begin when the last sample has come as far."""
        slope, calls = torch.tensor([[0.1], [0.9]]), []

        def f(z):
            calls.append(z)
            return slope * z + 1

        reduced = ReducedFunction(lambda z: f(z).bfloat16(), 2**-7)
        solver = PicardSolver(20, 1e-5, damping=1)
        adjoint = solver.solve(f, torch.zeros(2, 3), reduced=reduced)
        assert len(calls) > adjoint.n_evals.max() == len(adjoint.trace)
        layer = backbone.equilibrium
        with torch.no_grad(), count_work(layer) as work:
            layer.register_pass_hook(
                lambda _, done: done.adjoint_record.report(adjoint)
            )
            backbone(images)
        assert work.products == len(calls)

    def test_ends_with_the_context(self, backbone, images):
        layer = backbone.equilibrium
        with layer.using(solver=SPENT, gradient=ADJOINT):
            with count_work(layer) as work:
                outputs = backbone(images)
            sum(out.sum() for out in outputs).backward()
            backbone(images)
        assert (work.evaluations, work.products) == (5, 0)


class TestCountSavedBytes:
    def test_parameters_and_shared_memory(self):
        # A convolution saves its input, a ReLU its output: 2x3x8x8 and 2x4x8x8 floats.
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten())
        x = torch.rand(2, 3, 8, 8)
        with count_saved_bytes(model) as saved:
            y = model(x)
            (y * y).sum()  # the output once more, as a view
            assert saved == []
        assert saved == [4 * 2 * 64 * (3 + 4)]
