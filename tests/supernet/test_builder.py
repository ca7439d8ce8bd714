from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.references.slow_supernet import SlowSettings, build_slowly, by_expectation, by_mean
from tests.supernet.building import Build, hashes, small_pruner
from tests.tiny import random_tokens, tiny_decoder
from tests.tolerance import assert_close
from tyr.calibrate.stream import Stream
from tyr.errors import NumericsError, StoreError
from tyr.events import SublayerPruned
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Structure
from tyr.prune.criterion import Random, SecondOrder, Taylor
from tyr.prune.local import LocalPruner
from tyr.prune.target import CorrectedTarget, SelfTarget
from tyr.sparsity import SublayerId, stream_order
from tyr.supernet.accumulation import (
    Accumulation,
    CompleteAccumulation,
    ExpectationAccumulation,
    NoAccumulation,
    RandomAccumulation,
    UniformAccumulation,
)
from tyr.supernet.builder import check_disk, supernet_bytes

# A level is three neurons. Levels that are whole groups apart cut no group short, and only then is
# the pass through all levels the same as a pass to each.
GROUPS = {"attn": 1, "ffn": 3}
REASON = "float32 activations and Hessian products"


def full_width(build: Build, decoder: Decoder, sublayer: SublayerId, level: int) -> Tensor:
    """(C, d_in), zero where units are gone."""
    stock = decoder.sublayers[sublayer.index]
    structure = build.open().read(sublayer, [level])[level]
    weight = torch.zeros(stock.output_weight.shape, dtype=torch.float64)
    weight[:, stock.rows(structure.kept)] = structure.weight.double()
    return weight


@pytest.mark.parametrize(
    ("accumulation", "shares"),
    [(ExpectationAccumulation(), by_expectation), (UniformAccumulation(), by_mean)],
    ids=["expectation", "uniform"],
)
@pytest.mark.parametrize("corrected", [False, True], ids=["self", "corrected"])
def test_a_supernet_is_the_one_of_separate_passes_and_mixed_outputs(
    tmp_path: Path, tokens: Tensor, corrected: bool, accumulation: Accumulation, shares: Any
) -> None:
    decoder = tiny_decoder(blocks=2)
    target = CorrectedTarget(0.5, 0.5) if corrected else SelfTarget()
    build = Build(
        decoder,
        tokens,
        tmp_path,
        pruner=LocalPruner(Taylor(), target, ffn_group=GROUPS["ffn"]),
        accumulation=accumulation,
        batch_tokens=32,
        levels=5,
    )
    store = build.run()
    share = 0.5 if corrected else None
    slow = build_slowly(
        decoder,
        tokens,
        build.grid,
        SlowSettings(shares=shares, group_size=GROUPS, alpha=share, beta=share),
    )
    for sublayer, levels in slow.items():
        assert list(store.read(sublayer)) == list(levels)
        for level, expected in levels.items():
            assert store.read(sublayer)[level].kept.tolist() == expected.kept
            weight = full_width(build, decoder, sublayer, level)
            assert_close(weight, expected.weight.mT, tolerance=1e-4, reason=REASON)


def test_without_accumulation_every_sublayer_sees_the_dense_stream(
    tmp_path: Path, decoder: Decoder, tokens: Tensor
) -> None:
    build = Build(decoder, tokens, tmp_path, accumulation=NoAccumulation())
    store = build.run()
    # removing nothing is a structure of every sublayer; it must reproduce the dense model
    for sublayer in decoder.sublayers:
        level = min(build.grid.levels(sublayer.id))
        assert torch.equal(store.read(sublayer.id)[level].weight, sublayer.output_weight)


def test_attention_is_passed_before_the_ffn_of_its_block_is_measured(
    tmp_path: Path, decoder: Decoder, tokens: Tensor
) -> None:
    seen = Build(decoder, tokens, tmp_path / "a", accumulation=ExpectationAccumulation()).run()
    blind = Build(decoder, tokens, tmp_path / "b", accumulation=NoAccumulation()).run()
    first, second = SublayerId(0, "attn"), SublayerId(0, "ffn")
    assert seen.errors(first) == blind.errors(first)
    assert seen.errors(second) != blind.errors(second)


def test_every_sublayer_is_mixed_once_and_passed_once(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed: list[str] = []
    passed: Counter[str] = Counter()
    advance = Stream.advance

    class Counting(ExpectationAccumulation):
        def mix(self, sublayer: Any, structures: Any, *, rng: Any) -> Tensor:
            mixed.append(sublayer.name)
            return super().mix(sublayer, structures, rng=rng)

    def counting(self: Stream, sublayer: Any, weight: Tensor) -> None:
        passed[sublayer.name] += 1
        advance(self, sublayer, weight)

    monkeypatch.setattr(Stream, "advance", counting)
    Build(decoder, tokens, tmp_path, accumulation=Counting()).run()
    names = [sublayer.name for sublayer in stream_order(3)]
    assert mixed == names
    assert passed == Counter(names)


def test_reports_come_in_stream_order_with_an_error_per_level(
    tmp_path: Path, decoder: Decoder, tokens: Tensor
) -> None:
    events: list[SublayerPruned] = []
    build = Build(decoder, tokens, tmp_path)
    build.run(events.append)
    assert [event.sublayer for event in events] == list(stream_order(3))
    for event in events:
        assert list(event.errors) == list(build.grid.levels(event.sublayer))
        assert list(event.errors.values()) == sorted(event.errors.values())
        assert event.iteration == 0
        assert not event.resumed


class Way(NamedTuple):
    """A way of building, with everything random in at least one of them."""

    pruner: Callable[[], LocalPruner]
    accumulation: Accumulation


WAYS = {
    "paper": Way(small_pruner, ExpectationAccumulation()),
    "corrected": Way(
        lambda: LocalPruner(SecondOrder(), CorrectedTarget(), ffn_group=2), UniformAccumulation()
    ),
    "random": Way(lambda: LocalPruner(Random(), SelfTarget(), ffn_group=2), RandomAccumulation()),
}


def build_in(directory: Path, decoder: Decoder, tokens: Tensor, way: Way, **changes: Any) -> Build:
    return Build(
        decoder, tokens, directory, pruner=way.pruner(), accumulation=way.accumulation, **changes
    )


class Stopped(Exception):
    """Stands for whatever ends a run early."""


@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_build_that_was_interrupted_continues_to_the_same_bytes(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, way: Way, after: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build_in(whole, decoder, tokens, way).run()
    done: list[SublayerPruned] = []

    def stop(event: SublayerPruned) -> None:
        done.append(event)
        if len(done) == after:
            raise Stopped

    with pytest.raises(Stopped):
        build_in(parts, decoder, tokens, way).run(stop)
    assert hashes(parts) != hashes(whole)
    again: list[SublayerPruned] = []
    build_in(parts, decoder, tokens, way).run(again.append)
    assert hashes(parts) == hashes(whole)
    assert [event.resumed for event in again] == [True] * after + [False] * (6 - after)


@pytest.mark.parametrize("renames", range(2, 13, 3))
def test_a_build_that_was_killed_at_a_rename_continues_to_the_same_bytes(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, renames: int
) -> None:
    # The first rename is the empty manifest's; then structures and manifest alternate. The process
    # dies for good, by a signal that it cannot catch, just before the given rename.
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    Build(decoder, tokens, whole).run()
    child = os.fork()
    if child == 0:
        _build_and_die(decoder, tokens, killed, renames)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert list(killed.glob("*.tmp")), "it died between writing and renaming"
    Build(decoder, tokens, killed).run()
    assert hashes(killed) == hashes(whole)


def _build_and_die(decoder: Decoder, tokens: Tensor, directory: Path, renames: int) -> None:
    count = 0
    replace = Path.replace

    def counting(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    try:
        Path.replace = counting  # type: ignore[method-assign,assignment]
        Build(decoder, tokens, directory).run()
    finally:
        os._exit(3)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_damaged_sublayer_is_rebuilt_alone_to_the_same_bytes(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, way: Way
) -> None:
    store = build_in(tmp_path, decoder, tokens, way).run()
    before = hashes(tmp_path)
    path = store.path(SublayerId(1, "attn"))
    path.write_bytes(path.read_bytes()[:-4])
    again: list[SublayerPruned] = []
    build_in(tmp_path, decoder, tokens, way).run(again.append)
    assert hashes(tmp_path) == before
    assert [event.sublayer.name for event in again if not event.resumed] == ["001.attn"]


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_byte_costs_one_sublayer_and_changes_no_byte_of_the_rest(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, seed: int
) -> None:
    rng = random.Random(seed)
    store = Build(decoder, tokens, tmp_path).run()
    before = hashes(tmp_path)
    damaged = rng.choice(stream_order(3))
    path = store.path(damaged)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    offset = rng.randrange(header) if seed % 2 else rng.randrange(header, len(content))
    content[offset] ^= rng.randrange(1, 256)
    path.write_bytes(content)
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    again: list[SublayerPruned] = []
    Build(decoder, tokens, tmp_path).run(again.append)
    assert hashes(tmp_path) == before
    assert [event.sublayer for event in again if not event.resumed] == [damaged]
    assert [f for f, time in written.items() if f.stat().st_mtime_ns != time] == [path]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_stream_moves_on_with_structures_as_stored(
    tmp_path: Path, tokens: Tensor, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Handed over from memory, they must be what a resumed build reads: rounded, in one order.
    decoder = tiny_decoder(storage_dtype=torch.bfloat16)
    mixed: list[dict[int, Structure]] = []
    mix = type(way.accumulation).mix

    def spy(self: Any, sublayer: Any, structures: Any, *, rng: Any) -> Tensor:
        mixed.append(dict(structures))
        return mix(self, sublayer, structures, rng=rng)

    monkeypatch.setattr(type(way.accumulation), "mix", spy)
    store = build_in(tmp_path, decoder, tokens, way).run()
    for sublayer, handed in zip(stream_order(3), mixed, strict=True):
        stored = store.read(sublayer)
        assert list(handed) == list(stored)
        for level, structure in stored.items():
            assert handed[level].weight.dtype == torch.bfloat16
            assert torch.equal(handed[level].weight, structure.weight)
            assert torch.equal(handed[level].kept, structure.kept)


def test_a_complete_supernet_costs_nothing_to_build_again(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    Build(decoder, tokens, tmp_path).run()
    before = hashes(tmp_path)

    def no_stream(*args: object, **settings: object) -> None:
        raise AssertionError("the calibration text was embedded for nothing")

    monkeypatch.setattr("tyr.supernet.builder.Stream", no_stream)
    Build(decoder, tokens, tmp_path).run()
    assert hashes(tmp_path) == before


@pytest.mark.parametrize("feature_bytes", [0, 9000])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_keeping_features_in_memory_changes_no_byte(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, way: Way, feature_bytes: int
) -> None:
    build_in(tmp_path / "a", decoder, tokens, way, batch_tokens=32).run()
    changes = {"batch_tokens": 32, "feature_bytes": feature_bytes}
    build_in(tmp_path / "b", decoder, tokens, way, **changes).run()
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


@pytest.mark.parametrize("way", WAYS, ids=WAYS)
def test_the_seed_matters_to_random_things_only(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, way: str
) -> None:
    structures = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        build_in(folder, decoder, tokens, WAYS[way], seed=seed).run()
        (folder / "manifest.json").unlink()  # it records the seed
        structures.append(hashes(folder))
    assert (structures[0] == structures[1]) == (way != "random")


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"fingerprint": "other"}, {"interval": 0.25}, {"levels": 3}],
    ids=["seed", "text", "interval", "levels"],
)
def test_structures_of_another_question_are_not_reused(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, change: dict[str, Any]
) -> None:
    Build(decoder, tokens, tmp_path).run()
    store = Build(decoder, tokens, tmp_path, **change).open()
    assert not any(sublayer in store for sublayer in stream_order(3))


def test_a_store_is_in_the_precision_of_the_checkpoint(tmp_path: Path, tokens: Tensor) -> None:
    decoder = tiny_decoder(storage_dtype=torch.bfloat16)
    store = Build(decoder, tokens, tmp_path).run()
    for sublayer in decoder.sublayers:
        structures = store.read(sublayer.id)
        assert {s.weight.dtype for s in structures.values()} == {torch.bfloat16}
        whole = structures[min(structures)]
        assert torch.equal(whole.weight.float(), sublayer.output_weight)


def test_kv_groups_are_pruned_whole(tmp_path: Path, tokens: Tensor) -> None:
    decoder = tiny_decoder(attention_unit="kv_group")
    build = Build(decoder, tokens, tmp_path, attention_unit="kv_group", interval=0.5)
    structures = build.run().read(SublayerId(1, "attn"))
    assert [s.kept.numel() for s in structures.values()] == [2, 1, 0]
    assert [tuple(s.weight.shape) for s in structures.values()] == [(32, 32), (32, 16), (32, 0)]


@pytest.mark.parametrize("part", ["self_attn.k_proj", "mlp.down_proj"])
def test_a_weight_that_is_nan_stops_the_build_before_anything_false_is_stored(
    tmp_path: Path, tokens: Tensor, part: str
) -> None:
    decoder = tiny_decoder()
    decoder.model.model.layers[1].get_submodule(part).weight.data[3, 5] = float("nan")
    build = Build(decoder, tokens, tmp_path)
    kind = "attn" if "attn" in part else "ffn"
    name = part.rsplit(".", maxsplit=1)[1]
    with pytest.raises(NumericsError, match=rf"^001\.{kind}: {name}\.weight: 1 of"):
        build.run()
    assert SublayerId(1, "attn" if kind == "attn" else "ffn") not in build.open()


def test_a_hessian_that_cannot_be_factored_names_the_sublayer(
    tmp_path: Path, decoder: Decoder
) -> None:
    few = random_tokens(1, 4)
    pruner = LocalPruner(Taylor(), SelfTarget(), damping=0.0)
    with pytest.raises(NumericsError, match=r"^000\.attn: .*raise pruner\.damping"):
        Build(decoder, few, tmp_path, pruner=pruner).run()


def test_the_size_on_disk_is_known_beforehand(
    tmp_path: Path, decoder: Decoder, tokens: Tensor
) -> None:
    build = Build(decoder, tokens, tmp_path)
    tensor_bytes = supernet_bytes(decoder, build.grid)
    stored = build.run().bytes_on_disk
    headers = 6 * 2000
    assert tensor_bytes < stored < tensor_bytes + headers


def test_too_little_disk_is_refused_before_any_work(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Build(decoder, tokens, tmp_path / "supernet")
    needed = supernet_bytes(decoder, build.grid)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(
        StoreError, match=r"needs about [\d,.]+ MB but .* [\d,.]+ MB free: choose another run_dir"
    ):
        build.open()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    build.open()


def test_a_half_built_supernet_needs_only_the_rest(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Build(decoder, tokens, tmp_path)
    build.run()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    build.open()


def test_disk_space_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    check_disk(1, tmp_path / "not" / "yet" / "there")
    with pytest.raises(StoreError, match=str(tmp_path)):
        check_disk(1 << 62, tmp_path / "not" / "yet" / "there")


def test_complete_accumulation_follows_the_centre(
    tmp_path: Path, decoder: Decoder, tokens: Tensor
) -> None:
    # The centre of a nine-level supernet is then plain local pruning at that sparsity.
    nine = Build(decoder, tokens, tmp_path / "9", accumulation=CompleteAccumulation()).run()
    one = Build(
        decoder, tokens, tmp_path / "1", accumulation=CompleteAccumulation(), levels=1
    ).run()
    for sublayer in stream_order(3):
        left, right = nine.read(sublayer, [0])[0], one.read(sublayer, [0])[0]
        assert torch.equal(left.kept, right.kept)
        assert torch.equal(left.weight, right.weight)


def test_structures_of_another_model_pruner_or_mode_are_not_taken_over(
    tmp_path: Path, tokens: Tensor
) -> None:
    """Each header differs from the first, so opening the store with it starts afresh."""
    decoder = tiny_decoder()
    store = Build(decoder, tokens, tmp_path).run()
    assert len(Build(decoder, tokens, tmp_path).open().header) == len(store.header)
    assert decoder.sublayers[0].id in Build(decoder, tokens, tmp_path).open()

    changed = tiny_decoder()
    changed.sublayers[-1].output_weight.mul_(1.001)
    others = [
        Build(changed, tokens, tmp_path / "0"),
        Build(decoder, tokens, tmp_path / "1", accumulation=UniformAccumulation()),
        Build(decoder, tokens, tmp_path / "2", pruner=LocalPruner(SecondOrder(), SelfTarget())),
        Build(decoder, tokens, tmp_path / "3", pruner=LocalPruner(Taylor(), CorrectedTarget())),
        Build(
            decoder,
            tokens,
            tmp_path / "4",
            pruner=LocalPruner(Taylor(), CorrectedTarget(alpha=0.25)),
        ),
    ]
    headers = [store.header, *(other.open().header for other in others)]
    assert all(a != b for a, b in combinations(headers, 2))
