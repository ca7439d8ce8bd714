"""Dense linear algebra of Optimal Brain Surgeon pruning, as plain functions of tensors.

Orientation is the paper's: a weight is (d_in, d_out) and the Hessian H = XᵀX is (d_in, d_in)
(Section 2.2, Appendix A.1). The printed Eq. 5 is not used as printed; see
experiments/DEVIATIONS.md. Nothing here chooses what to prune, and nothing falls back to another
algorithm when a factorisation fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from tyr.devices import widest_float
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
    minor, wider = int(info.item()), widest_float(matrix.device)
    if minor != 0 and matrix.dtype != wider:
        wide, info = torch.linalg.cholesky_ex(matrix.to(wider))
        factor, minor = wide.to(matrix.dtype), int(info.item())
    if minor != 0:
        raise NumericsError(
            f"{name}: the calibration Hessian is not positive definite (leading minor "
            f"{minor} of {len(matrix)}); raise pruner.damping (try 0.01, or ten "
            f"times its present value) or calibrate on more tokens"
        )
    return cast(Tensor, factor)


def inverse(matrix: Tensor, *, name: str) -> Tensor:
    """Inverse of a positive definite (n, n) matrix through its Cholesky factor."""
    return torch.cholesky_inverse(cholesky(matrix, name=name))


def solve_nested(
    hessian: Tensor, gradient: Tensor, rows: Tensor, sizes: Sequence[int], *, name: str
) -> Iterator[tuple[Tensor, float]]:
    """Best weight on the first k of `rows` alone, H_kk⁻¹ G_k, for each k of `sizes`.

    The Cholesky factor of a leading block is the leading block of the factor, and so is its forward
    substitution: nested subsets share one factorisation, and each costs one back substitution.
    Solved from H itself, so free of the rounding that a long chain of downdates collects.

    Args:
        hessian: (d_in, d_in), damped.
        gradient: (d_in, d_out), the right-hand side G.
        rows: (n,), int64, input rows; those that stay longest come first.
        sizes: subset sizes, each at most n.
        name: sublayer, for messages.

    Yields:
        Weight (k, d_out), its rows in the order of `rows`, and tr(WᵀG_k), the share of the target's
        squared norm that it explains.

    Raises:
        NumericsError: H is not positive definite on `rows`.
    """
    factor = cholesky(hessian[rows][:, rows], name=name)
    half = torch.linalg.solve_triangular(factor, gradient[rows], upper=False)  # L⁻¹G
    for size in sizes:
        leading = half[:size]
        weight = torch.linalg.solve_triangular(factor[:size, :size].mT, leading, upper=True)
        yield weight, float(leading.square().sum())
