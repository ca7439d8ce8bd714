"""Where hidden states live: on the computing device, in host memory, or in a file.

A run may hold more states than the device: the calibration text before a sublayer, the teacher on
the search text. Two byte budgets decide where each batch goes, first come first served; what fits
neither is mapped from a file that has no name, so the system removes it with the last reference,
also when the process is killed. The numbers are the same wherever they live. What the states mean
is not known here.

Letters: N sequences, T positions, C hidden width.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tyr.devices import pins_memory, send
from tyr.errors import StoreError
from tyr.page_locked import page_locked

Tier = Literal["device", "host", "file"]


class StatePool:
    """The byte budgets that all states of a model share.

    Args:
        device: where states are computed with.
        device_bytes: most bytes kept there; None: no limit.
        host_bytes: most bytes kept in host memory beside it, page-locked for an accelerator; on a
            CPU device both are the same memory.
        folder: where files go, on a disk rather than in memory; None: the system's temporary one.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        device_bytes: int | None = None,
        host_bytes: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.device = device
        self._free: dict[Tier, float] = {
            "device": math.inf if device_bytes is None else device_bytes,
            "host": math.inf if host_bytes is None else host_bytes,
            "file": math.inf,
        }
        self._folder = folder

    def batches(
        self, sizes: Sequence[int], shape: Sequence[int], dtype: torch.dtype
    ) -> HiddenStates:
        """Room for batches of `sizes` sequences, each of `shape` (T, C)."""
        return HiddenStates(self, [(size, *shape) for size in sizes], dtype)

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """One uninitialised tensor, for values that are picked out again row by row."""
        size = math.prod(shape) * dtype.itemsize
        tier = self.take(size)
        if tier == "host":  # not page-locked: what is picked is copied before it is sent
            tensor = torch.empty(*shape, dtype=dtype)
        else:
            [tensor] = self.allocate(tier, [tuple(shape)], dtype)
        weakref.finalize(tensor, self.give_back, tier, size)
        return tensor

    def take(self, size: int) -> Tier:
        """The first place with room for `size` bytes, which are then no longer free."""
        tier = next(place for place, free in self._free.items() if size <= free)
        self._free[tier] -= size
        return tier

    def give_back(self, tier: Tier, size: int) -> None:
        """Free `size` bytes of a place."""
        self._free[tier] += size

    def allocate(
        self, tier: Tier, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
    ) -> list[Tensor]:
        """Uninitialised tensors in a place; those of a call to `file` share one file.

        Raises:
            StoreError: the file does not fit on the disk.
        """
        if tier == "file":
            return MappedFile(shapes, dtype, self._folder).tensors
        if tier == "device":
            return [torch.empty(shape, dtype=dtype, device=self.device) for shape in shapes]
        if pins_memory(self.device):
            rooms = dict(page_locked([(shape, dtype) for shape in shapes]))
            return [rooms[index] for index in range(len(shapes))]
        return [torch.empty(shape, dtype=dtype) for shape in shapes]


class HiddenStates:
    """Batches of hidden states that are read and replaced one at a time.

    What is read is good until the batch is replaced: it may be the very memory that is kept.

    Args:
        pool: the budgets.
        shapes: of every batch, (n, T, C).
        dtype: of all.
    """

    def __init__(
        self, pool: StatePool, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        self._device = pool.device
        sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
        self._tiers = [pool.take(size) for size in sizes]
        for tier, size in zip(self._tiers, sizes, strict=True):
            weakref.finalize(self, pool.give_back, tier, size)
        self._values: list[Tensor | None] = [None] * len(shapes)
        for tier in ("host", "file"):
            chosen = [index for index, place in enumerate(self._tiers) if place == tier]
            rooms = pool.allocate(tier, [shapes[i] for i in chosen], dtype) if chosen else []
            for index, room in zip(chosen, rooms, strict=True):
                self._values[index] = room

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Where each batch lives."""
        return tuple(self._tiers)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Tensor:
        values = self._values[index]
        if values is None:
            raise RuntimeError(f"batch {index} of the hidden states was read before it was written")
        if self._tiers[index] != "file":
            return send(values, self._device)
        batch = values.to(self._device, copy=True)
        leave_memory(values)
        return batch

    def __setitem__(self, index: int, values: Tensor) -> None:
        if self._tiers[index] == "device":
            self._values[index] = values
            return
        room = self._values[index]
        assert room is not None
        room.copy_(values)
        if self._tiers[index] == "file":
            leave_memory(room)


class MappedFile:
    """A file without a name, mapped into memory.

    Args:
        shapes: of the tensors that share it.
        dtype: of all.
        folder: on the disk to use.

    Raises:
        StoreError: the disk is full or not writable.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, folder: Path | None
    ) -> None:
        counts = [math.prod(shape) for shape in shapes]
        starts = [0]
        for count in counts:  # on page borders, so that pages belong to one tensor
            pages = -(-count * dtype.itemsize // mmap.PAGESIZE)
            starts.append(starts[-1] + max(1, pages) * mmap.PAGESIZE)
        mapping = _map(starts[-1], folder)
        self.tensors = []
        for shape, count, start in zip(shapes, counts, starts[:-1], strict=True):
            flat = torch.frombuffer(mapping, dtype=dtype, count=count, offset=start)
            tensor = flat.view(shape)
            _MAPPINGS[tensor] = (mapping, start, max(1, count * dtype.itemsize))
            self.tensors.append(tensor)


# The mapping, start and length in bytes behind each mapped tensor.
_MAPPINGS: Any = WeakIdKeyDictionary()


def leave_memory(tensor: Tensor) -> None:
    """Take the pages of a mapped tensor out of the resident set; they stay in the file.

    Any other tensor is left as it is.
    """
    if tensor in _MAPPINGS and hasattr(mmap, "MADV_DONTNEED"):
        mapping, start, length = _MAPPINGS[tensor]
        mapping.madvise(mmap.MADV_DONTNEED, start, length)


def _map(size: int, folder: Path | None) -> mmap.mmap:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Reserved now: a disk that fills up later would kill the process instead of raising.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        where = folder or tempfile.gettempdir()
        raise StoreError(
            f"cannot keep {size / 1e9:.2f} GB of hidden states in {where}: {error}; free disk "
            f"space, or raise model.host_state_bytes or model.device_state_bytes"
        ) from error
