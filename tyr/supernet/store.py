"""The supernet on disk: one safetensors file per sublayer and a manifest, read one at a time.

Only kept columns and their unit indices are stored, in the model's own precision: no zeros, no
pickle. A file gets its final name after it is complete, and the manifest names it after that, so
whatever moment a process dies at, the manifest lists finished sublayers only. Damage is found by
size and SHA-256, and only the damaged sublayer is forgotten; the manifest holds nothing else, so
that damage to it shows as well. Writing on another thread is write_behind.py's business.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tyr.errors import StoreError
from tyr.files import read_json, write_json
from tyr.model.sublayer import Structure
from tyr.sparsity import SublayerId

logger = logging.getLogger(__name__)

FORMAT = 2
MANIFEST = "manifest.json"

# A sublayer and the levels wanted of it; None means all.
Request = tuple[SublayerId, Iterable[int] | None]


class SupernetStore:
    """Structures of every sublayer at every level.

    Args:
        directory: created if missing.
        header: what the structures depend on (grid, seed, precision...), plain JSON values. A
            directory written under another header is emptied: its structures answer another
            question.
    """

    def __init__(self, directory: Path, header: Mapping[str, Any]) -> None:
        self.directory = directory
        self.header = json.loads(json.dumps(header))
        self._entries: dict[str, dict[str, Any]] = {}
        self._load()

    def __contains__(self, sublayer: SublayerId) -> bool:
        return sublayer.name in self._entries

    @property
    def bytes_on_disk(self) -> int:
        """Size of all structure files."""
        return sum(int(entry["bytes"]) for entry in self._entries.values())

    def path(self, sublayer: SublayerId) -> Path:
        """File of a sublayer."""
        return self.directory / f"{sublayer.name}.safetensors"

    def write(
        self,
        sublayer: SublayerId,
        structures: Mapping[int, Structure],
        errors: Mapping[int, float],
    ) -> None:
        """Store the structures of a sublayer, replacing earlier ones.

        Args:
            sublayer: whose.
            structures: level to structure, tensors on the CPU.
            errors: level to relative reconstruction error.

        Raises:
            StoreError: the disk is full or not writable; no half file is left behind.
        """
        path = self.path(sublayer)
        temporary = path.with_suffix(".tmp")
        tensors: dict[str, torch.Tensor] = {}
        for level, structure in structures.items():
            tensors[f"{level}.kept"] = structure.kept.to(torch.int32)
            tensors[f"{level}.weight"] = structure.weight
        recorded = {str(level): error for level, error in errors.items()}
        try:
            save_file(tensors, temporary, metadata={"errors": json.dumps(recorded)})
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            entry = {"bytes": temporary.stat().st_size, "sha256": _sha256(temporary)}
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(
                f"cannot write the structures of {sublayer.name} to {path}: {error}; free some "
                f"space or choose another run_dir, then continue with resume=true"
            ) from error
        self._write_manifest({**self._entries, sublayer.name: entry})

    def read(
        self, sublayer: SublayerId, levels: Iterable[int] | None = None
    ) -> dict[int, Structure]:
        """Structures of a sublayer, all levels or the given ones.

        Raises:
            StoreError: the file is missing or damaged.
        """
        with self._reading(sublayer) as tensors:
            stored = sorted({int(key.split(".")[0]) for key in tensors.keys()})  # noqa: SIM118
            wanted = stored if levels is None else sorted(set(levels))
            return {
                level: Structure(
                    tensors.get_tensor(f"{level}.kept").to(torch.int64),
                    tensors.get_tensor(f"{level}.weight"),
                )
                for level in wanted
            }

    @contextmanager
    def _reading(self, sublayer: SublayerId) -> Iterator[Any]:
        """The open file of a sublayer."""
        path = self.path(sublayer)
        try:
            with safe_open(path, framework="pt") as tensors:
                yield tensors
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"cannot read the structures of {sublayer.name} from {path}: {error}; "
                f"continue with resume=true, which rebuilds what is damaged"
            ) from error

    def read_ahead(
        self, requests: Iterable[Request], *, pin: bool = False
    ) -> Generator[dict[int, Structure], None, None]:
        """`read` each request in order, the next one on another thread meanwhile.

        `read` maps files, so the disk is waited for where a weight is first used; here every weight
        is copied off the disk by the reading thread. What two requests ask for is in memory.

        Args:
            requests: sublayers with the levels wanted.
            pin: copy into page-locked memory, from which an accelerator is fed several times
                faster.

        Raises:
            StoreError: when the sublayer's turn comes, as `read`.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="supernet-reader") as thread:
            coming: Future[dict[int, Structure]] | None = None
            for sublayer, levels in requests:
                after = thread.submit(self._fetch, sublayer, levels, pin)
                if coming is not None:
                    yield coming.result()
                coming = after
            if coming is not None:
                yield coming.result()

    def _fetch(
        self, sublayer: SublayerId, levels: Iterable[int] | None, pin: bool
    ) -> dict[int, Structure]:
        """`read`, with the weights in memory of their own."""
        return {
            level: Structure(
                structure.kept,
                structure.weight.pin_memory() if pin else structure.weight.clone(),
            )
            for level, structure in self.read(sublayer, levels).items()
        }

    def errors(self, sublayer: SublayerId) -> dict[int, float]:
        """Relative reconstruction errors recorded when the sublayer was written.

        Raises:
            StoreError: the file is missing or damaged.
        """
        with self._reading(sublayer) as tensors:
            recorded = json.loads(tensors.metadata()["errors"])
        return {int(level): float(error) for level, error in recorded.items()}

    def forget_damaged(self) -> list[str]:
        """Check every file against the manifest; forget and name those that do not match."""
        damaged = []
        for name, entry in self._entries.items():
            path = self.directory / f"{name}.safetensors"
            intact = path.is_file() and path.stat().st_size == entry["bytes"]
            if not (intact and _sha256(path) == entry["sha256"]):
                logger.warning("%s is missing or damaged: %s will be rebuilt", path, name)
                damaged.append(name)
        if damaged:
            self._write_manifest(
                {n: entry for n, entry in self._entries.items() if n not in damaged}
            )
        return damaged

    def delete(self) -> None:
        """Remove the whole directory."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self._entries = {}

    def _load(self) -> None:
        manifest = self.directory / MANIFEST
        known = read_json(manifest, self._known, without="this supernet will be rebuilt")
        if known is not None:
            self._entries = known
            return
        if self.directory.exists():
            self.delete()
        self._write_manifest({})

    def _known(self, content: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
        """Entries of a manifest; None when it answers another question."""
        if content["format"] == FORMAT and content["header"] == self.header:
            return _usable(content["sublayers"])
        logger.warning(
            "%s belongs to other settings: starting it afresh", self.directory / MANIFEST
        )
        return None

    def _write_manifest(self, entries: Mapping[str, dict[str, Any]]) -> None:
        """Replace the manifest; what it names is in the store."""
        ordered = dict(sorted(entries.items()))  # in stream order, also after a rebuild
        content = {"format": FORMAT, "header": self.header, "sublayers": ordered}
        write_json(self.directory / MANIFEST, content, sync=True)
        self._entries = ordered


def _usable(entries: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Entries of a manifest, without those that damage has left no size or digest."""
    usable = {}
    for name, entry in entries.items():
        if isinstance(entry.get("bytes"), int) and isinstance(entry.get("sha256"), str):
            usable[name] = entry
        else:
            logger.warning("the manifest says too little of %s: it will be rebuilt", name)
    return usable


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
