"""A supernet that another process of the run writes: this one only reads finished files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tyr.supernet.store import SupernetStore


class AttachedStore(SupernetStore):
    """Reads structures by their file names; knows nothing of the manifest and changes nothing.

    What is in it is for the writing process to say (`SupernetBuilder.build`). Processes share the
    directory through the file system.
    """

    def _load(self) -> None:
        """Leave the directory as it is."""

    def _write_manifest(self, entries: Mapping[str, dict[str, Any]]) -> None:
        raise RuntimeError(f"{self.directory} belongs to the first process")
