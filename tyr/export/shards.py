"""Write and measure a sharded safetensors checkpoint in the Hugging Face layout.

Tensors are handed over one at a time and go to the disk at once, so a checkpoint of any size needs
the memory of one tensor. The sizes of a checkpoint are read from the file headers. Which tensors
there are is not decided here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tyr.errors import ConfigError, ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
COPY_BYTES = 1 << 24
MOST_HEADER_BYTES = 100_000_000  # of the format


def check_shard_bytes(max_shard_bytes: int) -> int:
    """The size itself; raise ConfigError unless it is positive."""
    if max_shard_bytes < 1:
        raise ConfigError(f"export.max_shard_bytes must be positive, got {max_shard_bytes}")
    return max_shard_bytes


class ShardWriter:
    """Writes tensors as they come and closes a shard whenever it is full.

    Args:
        directory: where the files go; exists.
        max_shard_bytes: a shard is closed before it would exceed this, unless one tensor does.
    """

    def __init__(self, directory: Path, *, max_shard_bytes: int) -> None:
        self._directory = directory
        self._limit = max_shard_bytes
        self._open: dict[str, Any] = {}
        self._open_bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one contiguous CPU tensor."""
        size = tensor.numel() * tensor.element_size()
        if self._open and self._open_bytes + size > self._limit:
            self._close_shard()
        with self._values().open("ab") as stream:
            stream.write(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
        self._open[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._open_bytes, self._open_bytes + size],
        }
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
        """Put the header, which comes first and is known last, before the values.

        `safetensors.torch.save_file` would hold the whole shard in memory, twice.
        """
        # The format key is what transformers checks before it reads a file.
        header = json.dumps({"__metadata__": {"format": "pt"}, **self._open}).encode()
        header += b" " * (-len(header) % 8)  # values begin aligned
        values = self._values()
        with self._part(len(self._shards)).open("wb") as shard:
            shard.write(len(header).to_bytes(8, "little") + header)
            with values.open("rb") as stream:
                shutil.copyfileobj(stream, shard, COPY_BYTES)
        values.unlink()
        self._shards.append(list(self._open))
        self._open, self._open_bytes = {}, 0

    def _values(self) -> Path:
        """The values of the open shard."""
        return self._directory / "values.partial"

    def _part(self, number: int) -> Path:
        return self._directory / f"part-{number:05d}.safetensors"


def stored_shapes(directory: Path) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Name, shape and size in bytes of every tensor in a checkpoint, from the headers alone.

    Raises:
        ModelError: a file is damaged.
    """
    for file in weight_files(directory):
        for name, entry in _header(file).items():
            start, end = entry["data_offsets"]
            yield name, tuple(entry["shape"]), end - start


def weight_files(directory: Path) -> list[Path]:
    """Files that the index names, or without one all safetensors files; none if there are none.

    Raises:
        ModelError: the index is damaged, or a file that it names is missing.
    """
    index = directory / INDEX
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: {error}") from error
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ModelError(
            f"{directory} lacks {len(missing)} of its {len(names)} weight files, e.g. "
            f"{missing[0]}: the export or download did not finish"
        )
    return [directory / name for name in names]


def _header(file: Path) -> dict[str, Any]:
    """Entry of every tensor. `safe_open` would map the file whole, which limits count as memory."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            entries: dict[str, Any] = json.loads(stream.read(min(size, MOST_HEADER_BYTES)))
        except ValueError as error:
            raise ModelError(f"{file} is damaged: it does not begin with a header") from error
    entries.pop("__metadata__", None)
    return entries


_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
