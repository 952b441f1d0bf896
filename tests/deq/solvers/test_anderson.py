import pytest
import torch

from mdeq_mm.deq import AndersonSolver, PicardSolver


class TestAndersonSolver:
    def test_full_window_solves_a_linear_system(self):
        """Without ridge it is equivalent to GMRES (Walker and Ni, 2011)."""
        matrix = torch.randn(6, 6, dtype=torch.float64) / 4
        shift = torch.randn(1, 6, dtype=torch.float64)
        solver = AndersonSolver(max_evals=20, tol=1e-10, window=7, ridge=0.0)
        solution = solver.solve(lambda z: z @ matrix.T + shift, torch.zeros_like(shift))
        assert solution.converged.all()
        assert solution.n_evals.item() <= 8

    def test_window_of_one_is_picard(self):
        matrix = torch.randn(6, 6, dtype=torch.float64) / 6
        shift = torch.randn(2, 6, dtype=torch.float64)

        def f(z):
            return z @ matrix.T + shift

        z0 = torch.zeros_like(shift)
        anderson = AndersonSolver(12, 0.0, window=1, mixing=0.6).solve(f, z0)
        picard = PicardSolver(12, 0.0, damping=0.6).solve(f, z0)
        torch.testing.assert_close(anderson.state, picard.state)
        torch.testing.assert_close(anderson.trace, picard.trace)

    def test_minimises_the_regularised_form(self):
        residuals = torch.randn(3, 4, 20, dtype=torch.float64)
        residuals *= torch.tensor([1, 1e-2, 1e-4, 1e-6]).view(1, 4, 1)
        gram = residuals @ residuals.mT
        solver = AndersonSolver(ridge=1e-3)
        alpha = solver.coefficients(gram, newest=3)
        torch.testing.assert_close(alpha.sum(1), torch.ones(3, dtype=torch.float64))
        # At the constrained minimum the gradient is the same in every coordinate.
        diagonal = gram.diagonal(dim1=1, dim2=2)
        gradient = (gram @ alpha.unsqueeze(2)).squeeze(2) + 1e-3 * diagonal * alpha
        torch.testing.assert_close(
            gradient, gradient[:, :1].expand_as(gradient), rtol=1e-6, atol=0
        )

    def test_iterates_are_those_of_the_definition(self):
        """Also after the newest residuals have taken the places of the oldest."""
        window, ridge, mixing, n_evals = 3, 1e-3, 0.8, 9
        matrix = torch.randn(6, 6, dtype=torch.float64) / 4
        shift = torch.randn(2, 6, dtype=torch.float64)

        def f(z):
            return torch.tanh(z @ matrix.T) + shift

        solver = AndersonSolver(n_evals, 0.0, window=window, ridge=ridge, mixing=mixing)
        numbers = range(1, n_evals + 1)
        solution = solver.solve(f, torch.zeros_like(shift), keep=numbers)

        visited, residuals = [torch.zeros_like(shift)], []
        while len(visited) < n_evals:
            residuals.append(f(visited[-1]) - visited[-1])
            g = torch.stack(residuals[-window:], 1)
            mixed = torch.stack(visited[-window:], 1) + mixing * g
            gram = g @ g.mT
            gram.diagonal(dim1=1, dim2=2).mul_(1 + ridge)
            alpha = torch.linalg.solve(gram, torch.ones_like(gram[:, 0]))
            alpha = alpha / alpha.sum(1, keepdim=True)
            visited.append((alpha.unsqueeze(1) @ mixed).squeeze(1))
        for number in numbers:
            torch.testing.assert_close(solution.iterates[number], visited[number - 1])

    def test_singular_system_falls_back_to_the_plain_step(self):
        gram = torch.ones(2, 3, 3, dtype=torch.float64)
        gram[1] = torch.eye(3)
        alpha = AndersonSolver(ridge=0.0).coefficients(gram, newest=1)
        assert alpha[0].tolist() == [0, 1, 0]
        torch.testing.assert_close(alpha[1], torch.full((3,), 1 / 3).double())

    def test_residual_is_written_where_it_is_kept(self):
        z, fz = torch.rand(2, 2, 5)
        solver = AndersonSolver(window=3)
        state = solver.init(z)
        for slot in (0, 1, 2, 0):
            g = solver.residual(state, z, fz)
            assert g.data_ptr() == state.g[:, slot].data_ptr()
            assert torch.equal(g, fz - z)
            z, fz = solver.step(state, z, fz, g), torch.rand(2, 5)

    @pytest.mark.parametrize(
        ('name', 'value'),
        [
            ('window', 0),
            ('ridge', -1.0),
            ('mixing', 0.0),
            ('mixing', 1.5),
            ('history_dtype', 'int8'),
        ],
    )
    def test_wrong_setting(self, name, value):
        with pytest.raises(ValueError, match=f'{name} must .*, got {value!r}'):
            AndersonSolver(**{name: value})
