"""The one way these tests compare numbers.

Differences are relative to the largest magnitude expected. The default suits float64; anything
looser must say why, at the place where it is loosened.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOAT64 = 1e-8
FLOAT32 = 1e-5

Numbers = Tensor | float | Sequence[float]


def relative_error(actual: Numbers, expected: Numbers) -> float:
    """Largest difference over largest expected magnitude; NaN when anything is NaN."""
    left = torch.as_tensor(actual, dtype=torch.float64)
    right = torch.as_tensor(expected, dtype=torch.float64)
    assert left.shape == right.shape, f"shape {tuple(left.shape)} is not {tuple(right.shape)}"
    if left.numel() == 0:
        return 0.0
    scale = right.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float((left - right).abs().max() / scale)


def assert_close(
    actual: Numbers, expected: Numbers, *, tolerance: float = FLOAT64, reason: str = ""
) -> None:
    """Fail unless the relative error is within the tolerance.

    Args:
        actual: what the code gave.
        expected: what the slow way gave.
        tolerance: largest relative error.
        reason: why the tolerance is looser than float64 allows; needed when it is.
    """
    assert reason or tolerance <= FLOAT64, "a loosened tolerance needs its reason"
    error = relative_error(actual, expected)
    assert error <= tolerance, f"relative error {error:.3g} exceeds {tolerance:.3g}"
