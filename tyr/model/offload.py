"""Keeping a model's blocks off the computing device: one at a time, with the next on its way.

The stock modules stay where they are, on torch's meta device; `Residency` lends a block its
parameters while the stream is there and reads the next block's on another thread. Embeddings, final
norm and vocabulary projection are never sent away. The paper holds whole models on its devices; the
idea of one block at a time is that of GPTQ's code. No arithmetic here: results are those of a model
that is wholly in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tyr.devices import new_stream, on_stream, pins_memory
from tyr.errors import ModelError
from tyr.page_locked import page_locked

State = dict[str, Tensor]


class Weights(Protocol):
    """Where parameters are when they are not on the computing device."""

    def read(self, names: Iterable[str]) -> State:
        """The named parameters on the computing device, in compute precision."""


class FileWeights:
    """Parameters in safetensors files.

    Args:
        files: file of every parameter.
        dtype: compute precision.
        device: computing device.
        owner: what must live as long as the files are read, if it would take them with it.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        *,
        dtype: torch.dtype,
        device: torch.device,
        owner: object = None,
    ) -> None:
        self._owner = owner
        self._files = files
        self._dtype = dtype
        self._device = device

    def read(self, names: Iterable[str]) -> State:
        """See `Weights.read`.

        Raises:
            ModelError: a file is missing or damaged.
        """
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> Tensor:
        # A handle per tensor, because what was read through one stays resident until it is closed.
        # Always a copy: the last bits of a product may depend on how its factors are aligned.
        file = self._files[name]
        try:
            with safe_open(file, framework="pt") as handle:
                stored = handle.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read {name} from {file}: {error}") from error
        tensor = torch.empty(stored.shape, dtype=self._dtype, device=self._device)
        return tensor.copy_(stored)


class HostWeights:
    """Parameters in host memory, page-locked so that copies to an accelerator need no detour.

    Args:
        tensors: every parameter by name, in compute precision; emptied, so that there are never
            two copies of the model.
        device: computing device, an accelerator.
    """

    def __init__(self, tensors: State, *, device: torch.device) -> None:
        self._device = device
        if not pins_memory(device):
            self._tensors = {name: tensors.pop(name) for name in list(tensors)}
            return
        names = list(tensors)
        rooms = page_locked([(tensors[name].shape, tensors[name].dtype) for name in names])
        self._tensors = {
            names[index]: room.copy_(tensors.pop(names[index])) for index, room in rooms
        }

    def read(self, names: Iterable[str]) -> State:
        """See `Weights.read`."""
        return {name: self._tensors[name].to(self._device) for name in names}


class Residency:
    """Which of the blocks has its parameters on the computing device.

    At most two have: the one that was asked for last, and the one after it, which may still be on
    its way. After the last block comes the first, because the next walk begins there.

    Args:
        blocks: the stock decoder blocks, on the meta device.
        prefix: name of the list of blocks, e.g. `model.layers`.
        weights: where the parameters are.
        device: computing device.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], *, prefix: str, weights: Weights, device: torch.device
    ) -> None:
        self._blocks = blocks
        self._prefix = prefix
        self._weights = weights
        self._device = device
        self._absent = [dict(block.named_parameters()) for block in blocks]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tyr-prefetch")
        self._stream: Any = new_stream(device)
        self._resident: int | None = None
        self._coming: tuple[int, Future[State]] | None = None

    def require(self, block: int) -> None:
        """Put a block's parameters in place, release those of another, fetch the next.

        Raises:
            ModelError: its weights cannot be read.
        """
        if block == self._resident:
            return
        self._release()
        self._put(block, self._take(block))
        following = (block + 1) % len(self._blocks)
        if following != block:
            self._coming = following, self._thread.submit(self._read, following)

    def _take(self, block: int) -> State:
        """The parameters of a block, from the other thread if it was asked for them."""
        if self._coming is not None:
            coming, future = self._coming
            self._coming = None
            if coming == block:
                return future.result()
            if not future.cancel():
                future.exception()  # waits: two blocks and no more
        return self._thread.submit(self._read, block).result()

    def _read(self, block: int) -> State:
        """A block's parameters by their names inside the block; runs on the other thread."""
        names = list(self._absent[block])
        with torch.no_grad(), self._beside_the_products():
            read = self._weights.read(f"{self._prefix}.{block}.{name}" for name in names)
        return dict(zip(names, read.values(), strict=True))

    @contextmanager
    def _beside_the_products(self) -> Iterator[None]:
        """Copies to the device run on a stream of their own and are complete at the end."""
        if self._stream is None:
            yield
            return
        with on_stream(self._device, self._stream):
            yield
            self._stream.synchronize()

    def _put(self, block: int, state: State) -> None:
        self._blocks[block].load_state_dict(state, assign=True)
        self._resident = block

    def _release(self) -> None:
        if self._resident is None:
            return
        if self._device.type != "cpu":
            # The memory goes back to the copying stream, which must not write there while products
            # with the old weights are still queued.
            torch.accelerator.synchronize(self._device)
        self._blocks[self._resident].load_state_dict(self._absent[self._resident], assign=True)
        self._resident = None
