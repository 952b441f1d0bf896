"""Functions with known fixed points, and a spy on their calls."""

import torch

BATCH_SIZE, SIZE = 8, 40


class Spy:
    """Calls a function and remembers at which states ``(B, N)`` it did.

    Args:
        f (Callable): The function.
        breaks (dict): By the number of a sample, the calls, counted from 1, in which
            the function returns ``bad`` for it. Defaults to None, in none.
        bad (float): Defaults to NaN.
    """

    def __init__(self, f, breaks=None, bad=float('nan')):
        self.f = f
        self.breaks = breaks or {}
        self.bad = bad
        self.states = []

    @property
    def n_calls(self):
        return len(self.states)

    @property
    def n_evals(self):
        """Evaluations summed over the samples."""
        return sum(len(z) for z in self.states)

    def __call__(self, z):
        return self.restricted(slice(None))(z)

    def restricted(self, rows):
        """The function for the samples of the given numbers, as a solver asks for."""

        def f(z):
            self.states.append(z.clone())
            fz = self.f(z) if rows == slice(None) else self.f(z, rows)
            numbers = torch.arange(BATCH_SIZE)[rows]
            for sample, calls in self.breaks.items():
                if self.n_calls in calls:
                    fz[numbers == sample] = self.bad
            return fz

        return f


def zeros(dtype=torch.float64):
    """Initial states of :func:`contraction`."""
    return torch.zeros(BATCH_SIZE, SIZE, dtype=dtype)


def contraction(dtype=torch.float64):
    """``s tanh(A z) + b``, with an ``s`` of its own for each of the samples.

    The first sample is the easiest by far.
    """
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    matrix = matrix / torch.linalg.matrix_norm(matrix, 2)
    scale = torch.linspace(0.05, 0.95, BATCH_SIZE, dtype=torch.float64).unsqueeze(1)
    shift = torch.randn(BATCH_SIZE, SIZE, generator=generator, dtype=torch.float64)
    matrix, scale, shift = matrix.to(dtype), scale.to(dtype), shift.to(dtype)
    return lambda z, rows=slice(None): (
        scale[rows] * torch.tanh(z @ matrix) + shift[rows]
    )


def linear(eigenvalues):
    """``A z + b`` of the given spectrum for three samples, and its fixed points."""
    generator = torch.Generator().manual_seed(2)
    eigenvalues = torch.as_tensor(eigenvalues, dtype=torch.float64)
    size = len(eigenvalues)
    basis, _ = torch.linalg.qr(
        torch.randn(size, size, generator=generator, dtype=torch.float64)
    )
    matrix = basis @ torch.diag(eigenvalues) @ basis.T
    shift = torch.randn(3, size, generator=generator, dtype=torch.float64)
    root = torch.linalg.solve(torch.eye(size) - matrix, shift.T).T
    return lambda z: z @ matrix.T + shift, root
