"""Write and measure a sharded safetensors checkpoint in the Hugging Face layout.

Tensors are handed over one at a time and leave memory with their shard, so a checkpoint of any size
needs about one shard of memory. The sizes of a checkpoint are read from the file headers. Which
tensors there are is not decided here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tyr.errors import ConfigError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def check_shard_bytes(max_shard_bytes: int) -> int:
    """The size itself; raise ConfigError unless it is positive."""
    if max_shard_bytes < 1:
        raise ConfigError(f"export.max_shard_bytes must be positive, got {max_shard_bytes}")
    return max_shard_bytes


class ShardWriter:
    """Collects tensors and writes them out whenever a shard is full.

    Args:
        directory: where the files go; exists.
        max_shard_bytes: a shard is closed before it would exceed this, unless one tensor does.
    """

    def __init__(self, directory: Path, *, max_shard_bytes: int) -> None:
        self._directory = directory
        self._limit = max_shard_bytes
        self._open: dict[str, Tensor] = {}
        self._open_bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one contiguous CPU tensor."""
        size = tensor.numel() * tensor.element_size()
        if self._open and self._open_bytes + size > self._limit:
            self._close_shard()
        self._open[name] = tensor
        self._open_bytes += size
        self._total_bytes += size

    def finish(self) -> None:
        """Write what is left, give the files their final names and write the index."""
        self._close_shard()
        count = len(self._shards)
        if count == 1:
            self._part(0).rename(self._directory / SINGLE)
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._part(number).rename(self._directory / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        (self._directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def _close_shard(self) -> None:
        # The format key is what transformers checks before it reads a file.
        save_file(self._open, self._part(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._open))
        self._open, self._open_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self._directory / f"part-{number:05d}.safetensors"


def stored_shapes(directory: Path) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Name, shape and size in bytes of every tensor in a checkpoint, from the headers alone."""
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            names: Any = handle.keys()
            for name in names:
                view = handle.get_slice(name)
                shape = tuple(view.get_shape())
                yield name, shape, math.prod(shape) * _ITEM_BYTES[view.get_dtype()]


_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
