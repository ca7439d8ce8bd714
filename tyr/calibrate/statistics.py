"""Second-moment statistics of a sublayer's features over the calibration text.

H = XᵀX (Section 2.2) and, for the corrected target, the cross moments with the dense stream.
Products of a batch are formed in float32 (half-precision inputs on accelerators multiply as they
are and return float32) and added up in float32 or better; sums run in batch order, so a repeated
run is bit-identical.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tyr.devices import wide_mm
from tyr.linalg import solve_dtype
from tyr.processes import Processes


@dataclass(frozen=True)
class Statistics:
    """Moments of the features X̂ of one sublayer on the pruned stream.

    Args:
        hessian: (d_in, d_in), X̂ᵀX̂, undamped.
        cross: (d_in, d_in), X̂ᵀX with the dense stream's features X, or None.
        residual: (d_in, C), X̂ᵀ(r − r̂) with the streams' hidden states, or None.
        num_tokens: positions summed over.
    """

    hessian: Tensor
    cross: Tensor | None
    residual: Tensor | None
    num_tokens: int


# Width of the strips that `gram` is made of. Smaller ones save more multiplications (the limit is
# half) but are slower at each: on a CPU, 448 of 1,792 saves 37 %. An accelerator needs wider ones
# to have work for all its units.
STRIP = 448
WIDE_STRIP = 2048


def strip_width(device_type: str) -> int:
    """Width of the strips on a device."""
    return STRIP if device_type == "cpu" else WIDE_STRIP


def gram(features: Tensor) -> Tensor:
    """XᵀX over tokens: (N, d) -> (d, d), float32, exactly symmetric."""
    width = features.shape[1]
    total = features.new_zeros(width, width, dtype=torch.float32)
    add_gram(total, features)
    mirror(total)
    return total


def add_gram(total: Tensor, features: Tensor) -> None:
    """Add XᵀX to `total` (d, d), of X (N, d), strip by strip from the diagonal to the right edge.

    What is left of the strips is for `mirror`, once after the last batch: at d = 14,336 the rest
    of a batch of 8,192 tokens would take an accelerator as long as the product.
    """
    for start, stop in _strips(total):
        product = cross_gram(features[:, start:stop], features[:, start:])
        total[start:stop, start:].add_(product)


def mirror(total: Tensor) -> None:
    """Complete what `add_gram` has added up, so that it is exactly symmetric."""
    for start, stop in _strips(total):
        total[stop:, start:stop] = total[start:stop, stop:].mT
        square = total[start:stop, start:stop]  # an accelerator may sum its halves in two orders
        square.copy_(square.triu() + square.triu(1).mT)


def _strips(total: Tensor) -> Iterator[tuple[int, int]]:
    """First row of every strip and the row after its last."""
    width, strip = len(total), strip_width(total.device.type)
    return ((start, min(start + strip, width)) for start in range(0, width, strip))


def cross_gram(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ·right over tokens: (N, a), (N, b) -> (a, b), float32. See `wide_mm`."""
    return wide_mm(left.mT, right)


def collect(
    pruned: Iterable[tuple[Tensor, Tensor]], dense: Iterable[tuple[Tensor, Tensor]] | None
) -> Statistics:
    """Accumulate the moments over aligned batches of the pruned and (if given) the dense stream.

    Args:
        pruned: (hidden (B, T, C), features (B, T, d_in)) per batch.
        dense: the same of the dense stream, or None when the target does not need it.

    Raises:
        ValueError: no batch, or the streams have different numbers of batches.
    """
    hessian = cross = residual = None
    num_tokens = 0
    pairs: Iterable[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]]
    pairs = zip(pruned, dense, strict=True) if dense is not None else ((b, None) for b in pruned)
    for (hidden, features), other in pairs:
        flat = features.flatten(0, 1)  # (B·T, d_in)
        num_tokens += len(flat)
        if hessian is None:
            width, dtype = flat.shape[1], solve_dtype(flat.device)
            hessian = flat.new_zeros(width, width, dtype=dtype)
        add_gram(hessian, flat)
        if other is not None:
            dense_hidden, dense_features = other
            cross = _add(cross, cross_gram(flat, dense_features.flatten(0, 1)))
            residual = _add(residual, cross_gram(flat, (dense_hidden - hidden).flatten(0, 1)))
    if hessian is None:
        raise ValueError("statistics need at least one batch")
    mirror(hessian)
    return Statistics(hessian, cross, residual, num_tokens)


def add_up(statistics: Statistics, processes: Processes) -> Statistics:
    """The statistics of all processes' sequences, of each process's own; sums in place."""
    for moment in (statistics.hessian, statistics.cross, statistics.residual):
        if moment is not None:
            processes.add_up(moment)
    return replace(statistics, num_tokens=sum(processes.gather(statistics.num_tokens)))


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    wide = part.to(solve_dtype(part.device))
    return wide if total is None else total.add_(wide)
