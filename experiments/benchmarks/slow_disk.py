"""Supernet stores on a disk that may be slow, read and written both ways, the waiting counted.

For `supernet_io.py`. The slow disk is a delay per byte, so it shows what overlaps, not what a real
disk does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tyr.model.sublayer import Structure
from tyr.sparsity import SublayerId
from tyr.supernet.store import Request, SupernetStore
from tyr.supernet.write_behind import WriteBehind


class Waiting:
    """Seconds that a stage stood still for files."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Count what is inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


class Disk(SupernetStore):
    """A store whose disk may be slow.

    Args:
        directory: as in `SupernetStore`.
        header: as in `SupernetStore`.
        bytes_per_second: what it manages; None adds no waiting.
    """

    def __init__(
        self, directory: Path, header: Mapping[str, Any], bytes_per_second: float | None
    ) -> None:
        self._rate = bytes_per_second
        super().__init__(directory, header)

    def write(
        self,
        sublayer: SublayerId,
        structures: Mapping[int, Structure],
        errors: Mapping[int, float],
    ) -> None:
        """As `SupernetStore.write`, at the speed of the disk."""
        super().write(sublayer, structures, errors)
        self._drag(structures)

    def read(
        self, sublayer: SublayerId, levels: Iterable[int] | None = None
    ) -> dict[int, Structure]:
        """As `SupernetStore.read`, at the speed of the disk."""
        structures = super().read(sublayer, levels)
        self._drag(structures)
        return structures

    def _drag(self, structures: Mapping[int, Structure]) -> None:
        if self._rate is not None:
            time.sleep(sum(s.weight.nbytes for s in structures.values()) / self._rate)


class AtOnce:
    """What `WriteBehind` replaced: write, then read back. Counts the waiting."""

    def __init__(self, store: SupernetStore, waiting: Waiting) -> None:
        self._store, self._waiting = store, waiting

    def write(self, sublayer: SublayerId, *content: Any) -> None:
        """Store a sublayer and read it again."""
        with self._waiting():
            self._store.write(sublayer, *content)
            next(self._store.read_ahead([(sublayer, None)]))

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is left to do."""


class Behind(WriteBehind):
    """`WriteBehind` that counts the waiting."""

    def __init__(self, store: SupernetStore, waiting: Waiting) -> None:
        super().__init__(store)
        self._waiting = waiting

    def _settle(self) -> None:
        with self._waiting():
            super()._settle()


class Feed:
    """Structures for an evaluator, read in turn or ahead, with the waiting counted.

    Args:
        store: where from.
        waiting: the count.
        ahead: whether the next sublayer is read meanwhile.
    """

    def __init__(self, store: SupernetStore, waiting: Waiting, *, ahead: bool) -> None:
        self._store, self._waiting, self._ahead = store, waiting, ahead

    def read_ahead(
        self, requests: Iterable[Request], *, pin: bool = False
    ) -> Iterator[dict[int, Structure]]:
        """See `SupernetStore.read_ahead`."""
        if self._ahead:
            coming = self._store.read_ahead(requests, pin=pin)
        else:  # each from a reader of its own, which has nothing to read ahead
            coming = (next(self._store.read_ahead([one], pin=pin)) for one in requests)
        while True:
            with self._waiting():
                structures = next(coming, None)
            if structures is None:
                return
            yield structures
