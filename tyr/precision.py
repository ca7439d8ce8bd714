"""How exactly float32 matrix products are computed, for a stretch of code.

torch can round the factors of a float32 product to a shorter type and still add up in float32: to
bf16 on CPUs with matrix units, to TF32 or bf16 on GPUs. Residual streams, norms, softmax and sums
stay in float32, and float64 factorisations are not touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tyr.errors import ConfigError

PRECISIONS = ("highest", "high", "medium")  # torch's names


def check_matmul_precision(name: str, *, key: str) -> str:
    """The name, if torch has it.

    Raises:
        ConfigError: unknown name; `key` is where it was given.
    """
    if name not in PRECISIONS:
        raise ConfigError(f"{key} must be one of {', '.join(PRECISIONS)}, got {name!r}")
    return name


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Compute float32 products as torch.set_float32_matmul_precision(name) says; then as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
