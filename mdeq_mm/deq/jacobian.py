"""The size of the Jacobian of ``f`` at a state, from vector-Jacobian products alone."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_frobenius_norm(
    fz: Tensor, z: Tensor, num_vectors: int = 2, create_graph: bool = False
) -> Tensor:
    """Estimates ``||J||_F^2`` of each sample with Hutchinson's estimator.

    ``||J||_F^2 = tr(J J^T) = E ||v^T J||^2`` for Gaussian ``v`` (Bai et al.,
    "Stabilizing Equilibrium Models by Jacobian Regularization", section 4). The
    vectors come from the default generator of the device.

    Args:
        fz (Tensor): ``f(z)`` with its graph, ``(B, N)``. A sample of it must depend on
            the same sample of ``z`` alone.
        z (Tensor): Where ``f`` was evaluated, ``(B, N)``.
        num_vectors (int): Vectors to average over, at least 1; each costs one
            vector-Jacobian product. Defaults to 2.
        create_graph (bool): Whether the estimate can be differentiated. Defaults to
            False.

    Returns:
        Tensor: One estimate per sample, ``(B,)``.
    """
    estimates = []
    for _ in range(num_vectors):
        v = torch.randn_like(fz)
        (product,) = torch.autograd.grad(
            fz, z, v, retain_graph=True, create_graph=create_graph
        )
        estimates.append(product.square().sum(1))
    return torch.stack(estimates).mean(0)


def spectral_radius(
    fz: Tensor, z: Tensor, num_power_iters: int = 100, krylov_dim: int = 40
) -> Tensor:
    """Computes the largest modulus of an eigenvalue of ``J`` for each sample.

    Power iterations turn a random vector towards the dominant eigenvectors, and
    Arnoldi's method finds the eigenvalues in the Krylov space it then spans. A Rayleigh
    quotient after the power iterations alone would be wrong, not only imprecise, where
    the dominant eigenvalues are a complex pair. A plain iteration of ``f`` converges to
    the equilibrium nearby if the spectral radius is below 1.

    Args:
        fz (Tensor): ``f(z)`` with its graph, ``(B, N)``. A sample of it must depend on
            the same sample of ``z`` alone.
        z (Tensor): Where ``f`` was evaluated, ``(B, N)``.
        num_power_iters (int): Power iterations, not negative. Defaults to 100.
        krylov_dim (int): Dimension of the Krylov space, at least 1. Each power
            iteration and each dimension costs one vector-Jacobian product, and the
            space holds ``krylov_dim`` states per sample. Defaults to 40.

    Returns:
        Tensor: ``(B,)``; NaN where the Jacobian is not finite.
    """

    def product(v: Tensor) -> Tensor:
        return torch.autograd.grad(fz, z, v, retain_graph=True)[0]

    tiny = torch.finfo(fz.dtype).tiny
    with torch.no_grad():
        v = torch.nn.functional.normalize(torch.randn_like(fz), eps=tiny)
        for _ in range(num_power_iters):
            v = torch.nn.functional.normalize(product(v), eps=tiny)
        krylov_dim = min(krylov_dim, z.shape[1])
        basis = z.new_zeros(len(z), krylov_dim, z.shape[1])
        hessenberg = z.new_zeros(len(z), krylov_dim, krylov_dim)
        for k in range(krylov_dim):
            basis[:, k] = v
            spanned = basis[:, : k + 1]
            w = product(v)
            # Once leaves too much of the basis in it, in single precision.
            for _ in range(2):
                coefficients = spanned @ w.unsqueeze(2)
                hessenberg[:, : k + 1, k] += coefficients.squeeze(2)
                w = w - (coefficients.transpose(1, 2) @ spanned).squeeze(1)
            if k + 1 < krylov_dim:
                norm = torch.linalg.vector_norm(w, dim=1)
                # A space that is invariant has found its eigenvalues; what follows of
                # it is rounding noise, which must not be scaled up.
                scale = torch.linalg.vector_norm(hessenberg[:, :, k], dim=1)
                ended = norm <= 10 * torch.finfo(z.dtype).eps * scale
                norm = norm.masked_fill(ended, 0)
                hessenberg[:, k + 1, k] = norm
                v = w / norm.clamp_min(tiny).unsqueeze(1)
                v = v.masked_fill(ended.unsqueeze(1), 0)
        finite = hessenberg.isfinite().flatten(1).all(1)
        hessenberg = hessenberg.masked_fill(~finite.view(-1, 1, 1), 0)
        # On the CPU: small matrices, and not every device has a solver for them.
        radius = torch.linalg.eigvals(hessenberg.double().cpu()).abs().amax(1)
        radius = radius.to(device=z.device, dtype=z.dtype)
        return radius.masked_fill(~finite, torch.nan)
