"""Supernets built by several processes, against those of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ranks import joined, results
from tests.supernet.building import Build, hashes, small_pruner
from tests.tiny import random_tokens
from tests.tolerance import assert_close
from tyr.errors import ProcessError, StoreError
from tyr.events import SublayerPruned
from tyr.model.decoder import Decoder
from tyr.processes import ALONE, ProcessGroup
from tyr.prune.criterion import SecondOrder
from tyr.prune.local import LocalPruner
from tyr.prune.target import CorrectedTarget
from tyr.sparsity import SublayerId, stream_order
from tyr.supernet.builder import shard
from tyr.supernet.store import SupernetStore

PRUNERS: dict[str, Callable[[], LocalPruner]] = {
    "self": small_pruner,
    "corrected": lambda: LocalPruner(SecondOrder(), CorrectedTarget(), ffn_group=2),
}


def build(decoder: Decoder, tokens: Tensor, directory: Path, **changes: Any) -> SupernetStore:
    return Build(decoder, tokens, directory, **changes).run()


EXACT = (1e-6, "the same float32 batch products; weights are float32")
HALVES = (1e-4, "one float32 product of six sequences against two of three")
THIRDS = (1e-4, "one float32 product of six sequences against three of two")


@pytest.mark.parametrize(
    ("name", "size", "batch_tokens", "tolerance", "reason"),
    [
        ("self", 2, 32, *EXACT),
        ("corrected", 2, 96, *HALVES),
        pytest.param("corrected", 2, 32, *EXACT, marks=pytest.mark.slow),
        pytest.param("self", 2, 96, *HALVES, marks=pytest.mark.slow),
        pytest.param("self", 3, 96, *THIRDS, marks=pytest.mark.slow),
        pytest.param("corrected", 3, 96, *THIRDS, marks=pytest.mark.slow),
    ],
)
def test_a_shared_supernet_is_that_of_one_process(
    tmp_path: Path,
    decoder: Decoder,
    name: str,
    size: int,
    batch_tokens: int,
    tolerance: float,
    reason: str,
) -> None:
    tokens = random_tokens(8 if batch_tokens == 32 else 6, 16)
    settings = {"batch_tokens": batch_tokens}
    alone = build(decoder, tokens, tmp_path / "1", pruner=PRUNERS[name](), **settings)

    def body(processes: ProcessGroup) -> list[str]:
        shared = {**settings, "processes": processes, "pruner": PRUNERS[name]()}
        store = build(decoder, tokens, tmp_path / "2", **shared)
        return [str(store.read(sublayer)) for sublayer in stream_order(3)]

    first, *others = results(joined(body, size))
    assert all(seen == first for seen in others), "all read what the first one wrote"
    together = Build(decoder, tokens, tmp_path / "2", pruner=PRUNERS[name](), **settings).open()
    for sublayer in stream_order(3):
        expected = alone.read(sublayer)
        found = together.read(sublayer)
        assert found.keys() == expected.keys()
        for level, structure in expected.items():
            assert torch.equal(found[level].kept, structure.kept)
            weight = found[level].weight
            assert_close(weight, structure.weight, tolerance=tolerance, reason=reason)


def contents(store: SupernetStore, sublayer: SublayerId) -> dict[int, tuple[list[int], Tensor]]:
    """Kept units and weights of every level, off the disk."""
    stored = store.read(sublayer).items()
    return {level: (one.kept.tolist(), one.weight.clone()) for level, one in stored}


def test_only_the_first_process_reports_and_opens_for_writing(
    tmp_path: Path, decoder: Decoder, tokens: Tensor
) -> None:
    def body(processes: ProcessGroup) -> tuple[int, str]:
        events: list[SublayerPruned] = []
        store = Build(decoder, tokens, tmp_path, processes=processes).run(events.append)
        return len(events), type(store).__name__

    assert results(joined(body)) == [(6, "SupernetStore"), (0, "AttachedStore")]


@pytest.mark.parametrize(("begin", "end"), [(2, 1), (1, 2)])
def test_a_build_is_continued_by_another_number_of_processes(
    tmp_path: Path, decoder: Decoder, begin: int, end: int
) -> None:
    tokens = random_tokens(8, 16)

    def body(processes: Any) -> None:
        build(decoder, tokens, tmp_path, batch_tokens=32, processes=processes)

    def run(size: int) -> None:
        results(joined(body, size)) if size > 1 else body(ALONE)

    run(begin)
    before = hashes(tmp_path)
    made = Build(decoder, tokens, tmp_path, batch_tokens=32)
    expected = contents(made.open(), SublayerId(1, "ffn"))
    lost = tmp_path / "001.ffn.safetensors"
    lost.unlink()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    run(end)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "the rest stays"
    assert hashes(tmp_path).keys() == before.keys()
    rebuilt = contents(made.open(), SublayerId(1, "ffn"))
    assert rebuilt.keys() == expected.keys()
    tolerance, reason = EXACT
    for level, (units, weight) in expected.items():
        found, values = rebuilt[level]
        assert found == units
        assert_close(values, weight, tolerance=tolerance, reason=reason)


def test_a_full_disk_stops_every_process(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(SupernetStore, "write", full)

    def body(processes: ProcessGroup) -> None:
        build(decoder, tokens, tmp_path, processes=processes)

    first, second = joined(body)
    assert isinstance(first, StoreError)
    assert isinstance(second, ProcessError)


class Rank:
    """Stands for one of several processes where only shares matter."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def share(self, rows: Tensor) -> Tensor:
        return rows.tensor_split(self.size)[self.rank]


@pytest.mark.parametrize(
    ("sequences", "size", "sizes"),
    [(8, 2, [4, 4]), (8, 4, [2, 2, 2, 2]), (6, 2, [3, 3]), (35, 2, [18, 17]), (2, 2, [1, 1])],
)
def test_calibration_is_shared_by_whole_batches_where_that_is_even(
    sequences: int, size: int, sizes: list[int]
) -> None:
    tokens = torch.arange(sequences)[:, None].expand(sequences, 16)
    shards = [shard(tokens, 32, Rank(rank, size)) for rank in range(size)]  # type: ignore[arg-type]
    assert torch.equal(torch.cat(shards), tokens)
    assert [len(part) for part in shards] == sizes
