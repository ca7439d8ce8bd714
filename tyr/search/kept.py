"""Structures kept on the computing device from one stage of the search to the next.

The levels that candidates have hardly change between stages and generations, so each structure is
read once instead of three times a generation: with nine levels of Llama-3.1-8B, 22 GB on the device
save the host some 15 GB of copying per generation. What a structure is, and the order of the trie's
walk, are not known here; losses are the same bits with and without. On a CPU it is opening files
that is saved: a race of stories260K, with small chunks, takes two thirds of the time.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Protocol

import torch

from tyr.devices import send
from tyr.model.sublayer import Structure
from tyr.sparsity import SublayerId
from tyr.supernet.store import Request, SupernetStore

# Walks after which a structure goes that none of them asked for: two generations of three stages.
PATIENCE = 6


class StructureSource(Protocol):
    """Where structures come from during a walk."""

    def read_ahead(
        self, requests: Sequence[Request], *, pin: bool = False
    ) -> Generator[dict[int, Structure], None, None]:
        """See `SupernetStore.read_ahead`."""


class KeptStructures:
    """A supernet that is read once, as far as the budget goes.

    Structures are kept in the order they come: what comes and goes in turns would else drive each
    other out before they are asked for again.

    Args:
        store: the supernet, complete.
        device: computing device.
        most_bytes: of weights kept there.
    """

    def __init__(self, store: SupernetStore, device: torch.device, *, most_bytes: int) -> None:
        self._store = store
        self._device = device
        self._most_bytes = most_bytes
        self._kept: dict[tuple[SublayerId, int], Structure] = {}
        self._asked: dict[tuple[SublayerId, int], int] = {}  # in which walk at last
        self._walk = 0

    @property
    def bytes_kept(self) -> int:
        """Size of the kept weights."""
        return sum(structure.weight.nbytes for structure in self._kept.values())

    def read_ahead(
        self, requests: Sequence[Request], *, pin: bool = False
    ) -> Generator[dict[int, Structure], None, None]:
        """See `SupernetStore.read_ahead`; kept weights are on the device already.

        Args:
            requests: sublayers with their levels, which must be named.
            pin: see there.
        """
        wanted = [(sublayer, sorted(set(levels or ()))) for sublayer, levels in requests]
        self._begin_walk([(sublayer, level) for sublayer, levels in wanted for level in levels])
        missing = [(s, [n for n in levels if (s, n) not in self._kept]) for s, levels in wanted]
        room = self._most_bytes - self.bytes_kept
        with closing(self._store.read_ahead([m for m in missing if m[1]], pin=pin)) as coming:
            for (sublayer, levels), (_, new) in zip(wanted, missing, strict=True):
                read = next(coming) if new else {}
                for level in new:
                    size = read[level].weight.nbytes
                    if size <= room:
                        weight = send(read[level].weight, self._device)
                        self._kept[sublayer, level] = Structure(read[level].kept, weight)
                        room -= size
                yield {n: self._kept.get((sublayer, n)) or read[n] for n in levels}

    def _begin_walk(self, wanted: Sequence[tuple[SublayerId, int]]) -> None:
        """Note what is asked for, and let go of what was not for long."""
        self._walk += 1
        self._asked.update(dict.fromkeys(wanted, self._walk))
        for key in [k for k in self._kept if self._asked[k] <= self._walk - PATIENCE]:
            del self._kept[key]
