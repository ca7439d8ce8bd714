"""Dense linear algebra of Optimal Brain Surgeon pruning, as plain functions of tensors.

Orientation is the paper's: a weight is (d_in, d_out) and the Hessian H = XᵀX is (d_in, d_in)
(Section 2.2, Appendix A.1). The printed Eq. 5 is not used as printed; see
experiments/DEVIATIONS.md. Nothing here chooses what to prune, and nothing falls back to another
algorithm when a factorisation fails.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from tyr.errors import NumericsError


def solve_dtype(device: torch.device) -> torch.dtype:
    """Precision of factorisations: float64 on CPU, float32 on accelerators."""
    return torch.float64 if device.type == "cpu" else torch.float32


def damping_amount(hessian: Tensor, damping: float) -> float:
    """The ridge λ = damping · mean(diag H) that keeps H invertible (GPTQ's convention).

    Args:
        hessian: (d_in, d_in).
        damping: dimensionless, e.g. 0.01.
    """
    return damping * float(hessian.diagonal().mean())


def add_to_diagonal(matrix: Tensor, amount: float) -> Tensor:
    """A copy of `matrix` with `amount` added to its diagonal."""
    damped = matrix.clone()
    damped.diagonal().add_(amount)
    return damped


def cholesky(matrix: Tensor, *, name: str) -> Tensor:
    """Lower Cholesky factor of a positive definite matrix.

    On accelerators a float32 factorisation that fails is tried once more in float64: the same
    algorithm with more digits.

    Args:
        matrix: (n, n), symmetric.
        name: sublayer, for the message.

    Raises:
        NumericsError: the matrix is not positive definite even so.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info.item() != 0 and matrix.dtype == torch.float32:
        wide, info = torch.linalg.cholesky_ex(matrix.double())
        factor = wide.to(matrix.dtype)
    if info.item() != 0:
        raise NumericsError(
            f"{name}: the calibration Hessian is not positive definite (leading minor "
            f"{int(info.item())} of {len(matrix)}); raise pruner.damping (try 0.01, or ten "
            f"times its present value) or calibrate on more tokens"
        )
    return cast(Tensor, factor)


def inverse(matrix: Tensor, *, name: str) -> Tensor:
    """Inverse of a positive definite (n, n) matrix through its Cholesky factor."""
    return torch.cholesky_inverse(cholesky(matrix, name=name))


def solve_kept(hessian: Tensor, gradient: Tensor, rows: Tensor, *, name: str) -> Tensor:
    """Best weight on the kept rows alone: H_kk⁻¹ G_k.

    Args:
        hessian: (d_in, d_in), damped.
        gradient: (d_in, d_out), the right-hand side G.
        rows: (k,), int64, kept input rows.

    Returns:
        (k, d_out): the least-squares weight of the kept rows, free of the rounding that a long
        chain of downdates collects.
    """
    factor = cholesky(hessian[rows][:, rows], name=name)
    return torch.cholesky_solve(gradient[rows], factor)


def remove_rows_(inverse: Tensor, weight: Tensor, rows: Tensor, *, name: str) -> None:
    """Optimal Brain Surgeon step for a group P of rows, in place.

    W ← W − H⁻¹[:,P] (H⁻¹[P,P])⁻¹ W[P] and H⁻¹ ← H⁻¹ − H⁻¹[:,P] (H⁻¹[P,P])⁻¹ H⁻¹[P,:]
    (the corrected Eq. 5 and the block form of Eq. 6). The removed rows become exact zeros.

    Args:
        inverse: (d_in, d_in), inverse Hessian of the rows still alive (zeros elsewhere).
        weight: (d_in, d_out).
        rows: (p,), int64, rows to remove; all alive.
    """
    columns = inverse[:, rows]  # (d_in, p)
    factor = cholesky(columns[rows], name=name)
    gain = torch.cholesky_solve(columns.mT, factor).mT  # (d_in, p) = H⁻¹[:,P] (H⁻¹[P,P])⁻¹
    weight.addmm_(gain, weight[rows], alpha=-1)
    inverse.addmm_(gain, columns.mT, alpha=-1)
    weight[rows] = 0
    inverse[rows] = 0
    inverse[:, rows] = 0
