"""The norm in front of a sublayer and behind the last, in fewer passes over memory on a CPU."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


def apply_norm(norm: nn.Module, hidden: Tensor) -> Tensor:
    """What the stock norm gives: (B, T, C) -> (B, T, C).

    A root-mean-square norm in float32 on a CPU is computed here: the stock modules write the
    squares, the scaled states and the weighted ones each to new memory, which takes more than twice
    as long (experiments/LOG.md). Equal to them up to the order of a sum. All others are called.

    Args:
        norm: the stock module; one with `variance_epsilon` is a root-mean-square norm.
        hidden: residual stream.
    """
    epsilon = getattr(norm, "variance_epsilon", None)
    if epsilon is None or hidden.dtype != torch.float32 or hidden.device.type != "cpu":
        return cast(Tensor, norm(hidden))
    length: Tensor = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
    scale = length.square_().div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
    return (hidden * scale).mul_(cast(Tensor, norm.weight))
