from dataclasses import replace

import numpy as np
import pytest
import torch

from mdeq_mm.deq import PhantomGradient, PreviousGuess, Unrolled
from mdeq_mm.visualization import examine, residual_maps


@torch.no_grad()
def run(layer, images):
    return layer(images).forward_pass


class TestExamine:
    def test_solve_is_that_of_the_pass(self, solving_layer, images, examined):
        forward_pass = run(solving_layer, images)
        solution = forward_pass.solution
        assert torch.equal(examined.solution.state, solution.state[1:])
        assert examined.solution.n_evals == solution.n_evals[1]
        torch.testing.assert_close(
            examined.traces[:, 0], solution.trace[: len(examined.traces), 1]
        )
        end = examined.steps[-1]
        for found, feature in zip(
            end.features, forward_pass.layout.unpack(solution.state)
        ):
            np.testing.assert_array_equal(found, feature[1])
        np.testing.assert_allclose(
            end.residual, residual_maps(forward_pass)[1], rtol=1e-5
        )

    def test_branches(self, examined, images):
        """f(z) = x + z / 2 in the first branch, from zero."""
        first, second = (image[1] for image in images)
        assert examined.branches == ['branch 0: 4 x 2x3', 'branch 1: 2 x 4x6']
        assert examined.traces.shape == (len(examined.traces), 3)
        torch.testing.assert_close(examined.traces[1, 1:], torch.tensor([1 / 3, 1.0]))
        *evaluations, end = [step.name for step in examined.steps]
        assert evaluations == [f'evaluation {number}' for number in (1, 2, 4, 8)]
        assert end == 'the result'
        np.testing.assert_allclose(examined.steps[0].features[1], second)
        np.testing.assert_allclose(examined.steps[1].features[0], 1.5 * first)
        assert examined.steps[0].residual.shape == (4, 6)

    def test_whole_is_made_of_the_branches(self, solving_layer, images):
        solver = replace(solving_layer.configured.solver, stop_mode='abs')
        with solving_layer.using(solver=solver):
            traces = examine(solving_layer, run(solving_layer, images)).traces
        torch.testing.assert_close(traces[:, 1:].square().sum(1).sqrt(), traces[:, 0])

    def test_linear_part(self, examined):
        assert examined.radius == pytest.approx(0.5, abs=1e-4)
        assert examined.adjoint.converged
        assert 4 < examined.adjoint.n_evals <= 20
        assert examined.adjoint.state.shape == examined.solution.state.shape

    def test_without_an_adjoint(self, solving_layer, images):
        with solving_layer.using(gradient=PhantomGradient()):
            forward_pass = run(solving_layer, images)
        examined = examine(solving_layer, forward_pass, linearize=True)
        assert examined.radius == pytest.approx(0.5, abs=1e-4)
        assert examined.adjoint is None

    def test_unrolled_pass(self, solving_layer, images, examined):
        with solving_layer.using(mode=Unrolled(2)):
            forward_pass = run(solving_layer, images)
        found = examine(solving_layer, forward_pass, sample=1)
        assert torch.equal(found.solution.state, examined.solution.state)
        assert found.radius is None
        assert found.adjoint is None

    def test_leaves_all_alone(self, solving_layer, images):
        """No draw of a random number, no call of a hook, no update of a guess."""
        with solving_layer.using(initial_guess=PreviousGuess()):
            forward_pass = run(solving_layer, images)
        before, seen = torch.get_rng_state(), []
        with solving_layer.register_pass_hook(lambda *args: seen.append(args)):
            examine(solving_layer, forward_pass)
        assert torch.equal(torch.get_rng_state(), before)
        assert not seen
        assert forward_pass.linearization is None
        assert all(p.grad is None for p in solving_layer.parameters())

    @pytest.mark.filterwarnings('ignore:The function whose fixed point')
    def test_breakdown(self, solving_layer, images):
        images[1][0, 0, 0, 0] = torch.nan
        found = examine(solving_layer, run(solving_layer, images), linearize=True)
        assert found.traces.isinf().any(1).all()
        assert found.solution.messages[0].startswith('broken down')

    def test_no_images(self, solving_layer):
        forward_pass = run(solving_layer, (torch.rand(2, 3), torch.rand(2, 5)))
        with pytest.raises(ValueError, match=r'\(B, C, H, W\), got \(\(3,\), \(5,\)\)'):
            examine(solving_layer, forward_pass)
