"""Page-locked host memory for many tensors, out of few pieces.

torch rounds each piece that it locks up to a power of two and keeps it when it is freed. A piece
for every tensor would take up to twice their bytes: 44 GB for the 26 GB of a 13B model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

PIECE = 1 << 30  # bytes; larger tensors get a piece of their own
ALIGNMENT = 512  # bytes, that of torch's own allocations


def page_locked(
    wanted: Sequence[tuple[Sequence[int], torch.dtype]],
) -> Iterator[tuple[int, Tensor]]:
    """Uninitialised tensors, in an order that fills one piece after the other.

    A piece is locked when the first of its tensors is asked for, and freed with the last of them.

    Args:
        wanted: shape and dtype of each.

    Yields:
        Index into `wanted`, and the tensor.
    """
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in wanted]
    for members in pieces(sizes):
        room, start = _lock(sum(_aligned(sizes[index]) for index in members)), 0
        for index in members:
            shape, dtype = wanted[index]
            yield index, room[start : start + sizes[index]].view(dtype).view(*shape)
            start += _aligned(sizes[index])


def pieces(sizes: Sequence[int]) -> list[list[int]]:
    """Indices of the tensors in each piece: the largest first, each where it first fits.

    Args:
        sizes: bytes of each tensor.
    """
    found: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        size = _aligned(sizes[index])
        for number, left in enumerate(free):
            if size <= left:
                found[number].append(index)
                free[number] -= size
                break
        else:
            found.append([index])
            free.append(PIECE - size)
    return found


def page_locked_bytes(total: float) -> float:
    """What tensors of `total` bytes together take, counted upwards.

    A piece may be left up to an eighth empty, as three matrices of 270 MiB leave one of a GiB; the
    last piece has a power of two.
    """
    size = math.ceil(total)
    if size < PIECE:
        return float(1 << (size - 1).bit_length() if size else 0)
    return float(math.ceil(1.125 * size / PIECE) * PIECE)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _lock(size: int) -> Tensor:
    """(size,), uint8."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
