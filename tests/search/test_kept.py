from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.search.test_population import WHOLE, evaluator, offspring
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Structure
from tyr.search.kept import PATIENCE, KeptStructures
from tyr.sparsity import LevelGrid, SublayerId
from tyr.supernet.store import Request, SupernetStore

CPU = torch.device("cpu")
PLENTY = 1 << 30


class CountedStore:
    """A store that tells what is read from it."""

    def __init__(self, store: SupernetStore) -> None:
        self.read: list[tuple[SublayerId, int]] = []
        self._store = store

    def read_ahead(
        self, requests: Iterable[Request], *, pin: bool = False
    ) -> Generator[dict[int, Structure], None, None]:
        requests = list(requests)
        self.read += [(sublayer, level) for sublayer, levels in requests for level in levels or ()]
        return self._store.read_ahead(requests, pin=pin)


def kept_of(store: SupernetStore, most_bytes: int) -> tuple[KeptStructures, CountedStore]:
    counted: Any = CountedStore(store)
    return KeptStructures(counted, CPU, most_bytes=most_bytes), counted


@pytest.mark.parametrize("most_bytes", [0, 3000, PLENTY])
def test_losses_are_the_same_bits_whatever_is_kept(
    decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor, most_bytes: int
) -> None:
    kept, counted = kept_of(store, most_bytes)
    with_kept = evaluator(decoder, kept, text)
    without = evaluator(decoder, store, text)
    for seed in (0, 0, 1):
        candidates = offspring(grid, 6, seed=seed)
        assert with_kept.evaluate(candidates, WHOLE) == without.evaluate(candidates, WHOLE)
        assert kept.bytes_kept <= most_bytes
    twice = len(counted.read) - len(set(counted.read))
    assert (twice == 0) == (most_bytes == PLENTY)


def test_what_the_budget_holds_is_not_read_again(store: SupernetStore, grid: LevelGrid) -> None:
    requests: list[Request] = [(SublayerId(0, "attn"), [0, 1]), (SublayerId(0, "ffn"), [0])]
    first = next(store.read_ahead(requests[:1]))[0].weight.nbytes
    kept, counted = kept_of(store, first)
    for _ in range(3):
        walk = list(kept.read_ahead(requests))
        assert [list(levels) for levels in walk] == [[0, 1], [0]]
        for levels, (sublayer, _) in zip(walk, requests, strict=True):
            for level, structure in store.read(sublayer, levels).items():
                assert torch.equal(levels[level].weight, structure.weight)
                assert torch.equal(levels[level].kept, structure.kept)
    assert kept.bytes_kept == first
    assert counted.read.count((SublayerId(0, "attn"), 0)) == 1
    assert counted.read.count((SublayerId(0, "ffn"), 0)) == 3


def test_what_no_walk_asks_for_any_more_makes_room(store: SupernetStore) -> None:
    kept, _ = kept_of(store, PLENTY)
    sublayer = SublayerId(0, "ffn")
    list(kept.read_ahead([(sublayer, [0, 1])]))
    both = kept.bytes_kept
    for _ in range(PATIENCE - 1):
        list(kept.read_ahead([(sublayer, [0])]))
        assert kept.bytes_kept == both
    list(kept.read_ahead([(sublayer, [0])]))
    assert 0 < kept.bytes_kept < both
