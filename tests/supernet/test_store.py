from __future__ import annotations

import json
import logging
import random
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tests.tiny import random_matrix
from tyr.errors import StoreError, TyrError
from tyr.model.sublayer import Structure
from tyr.sparsity import SublayerId
from tyr.supernet import store as store_module
from tyr.supernet.store import FORMAT, SupernetStore

FIRST, SECOND = SublayerId(0, "attn"), SublayerId(0, "ffn")
HEADER = {"grid": {"step": {"attn": 1}}, "seed": 0}


def structures(dtype: torch.dtype = torch.float32, *, columns: int = 1) -> dict[int, Structure]:
    """Levels -1, 0 and 2 of a sublayer whose units own `columns` columns each."""
    return {
        level: Structure(
            torch.arange(0, 2 * kept, 2), random_matrix(6, kept * columns, seed=kept).to(dtype)
        )
        for level, kept in ((-1, 4), (0, 2), (2, 0))
    }


ERRORS = {-1: 0.1, 0: 1 / 3, 2: 1.0}


def filled(directory: Path) -> SupernetStore:
    store = SupernetStore(directory, HEADER)
    store.write(FIRST, structures(), ERRORS)
    store.write(SECOND, structures(columns=2), ERRORS)
    return store


def reopened(directory: Path) -> SupernetStore:
    return SupernetStore(directory, HEADER)


def same(left: Structure, right: Structure) -> bool:
    return (
        torch.equal(left.kept, right.kept)
        and torch.equal(left.weight, right.weight)
        and left.weight.dtype == right.weight.dtype
        and left.kept.dtype == right.kept.dtype
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_structures_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    store = SupernetStore(tmp_path / "supernet", HEADER)
    assert FIRST not in store
    store.write(FIRST, structures(dtype), ERRORS)
    for source in (store, reopened(tmp_path / "supernet")):
        assert FIRST in source
        assert SECOND not in source
        assert source.errors(FIRST) == ERRORS
        read = source.read(FIRST)
        assert list(read) == [-1, 0, 2]
        for level, structure in structures(dtype).items():
            assert same(read[level], structure)


def test_some_levels_are_read_alone(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert list(store.read(FIRST, [2, -1, 2])) == [-1, 2]
    assert store.read(FIRST, []) == {}
    assert same(store.read(FIRST, [0])[0], structures()[0])


WANTED = [(SECOND, None), (FIRST, [2, -1, 2]), (FIRST, []), (SECOND, {0})]


def test_reading_ahead_gives_what_reading_gives(tmp_path: Path) -> None:
    store = filled(tmp_path)
    ahead = list(store.read_ahead(WANTED))
    at_once = [store.read(sublayer, levels) for sublayer, levels in WANTED]
    assert [list(levels) for levels in ahead] == [[-1, 0, 2], [-1, 2], [], [0]]
    for left, right in zip(ahead, at_once, strict=True):
        assert all(same(left[level], right[level]) for level in right)
    assert list(store.read_ahead([])) == []


def test_the_next_sublayer_is_read_while_this_one_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    started = [threading.Event(), threading.Event()]
    threads: set[str] = set()
    read = SupernetStore.read

    def reading(self: SupernetStore, sublayer: SublayerId, levels: object = None) -> object:
        threads.add(threading.current_thread().name)
        started[sublayer.index].set()
        return read(self, sublayer)

    monkeypatch.setattr(SupernetStore, "read", reading)
    coming = store.read_ahead([(FIRST, None), (SECOND, None)])
    next(coming)
    assert started[1].wait(10), "the second is read before it is asked for"
    assert threading.current_thread().name not in threads
    coming.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("supernet-reader")]


def test_what_was_read_ahead_outlives_its_file(tmp_path: Path) -> None:
    store = filled(tmp_path)
    [read] = list(store.read_ahead([(FIRST, [0])]))
    with store.path(FIRST).open("r+b") as file:
        file.seek(-500, 2)
        file.write(bytes(500))
    assert same(read[0], structures()[0])


def test_reading_ahead_fails_at_the_turn_of_what_is_damaged(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.path(SECOND).unlink()
    coming = store.read_ahead([(FIRST, None), (SECOND, None)])
    assert same(next(coming)[0], structures()[0])
    with pytest.raises(StoreError, match=r"000\.ffn from .*resume=true"):
        next(coming)


def test_writing_again_replaces(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.write(FIRST, {0: structures()[0]}, {0: 0.5})
    again = reopened(tmp_path)
    assert list(again.read(FIRST)) == [0]
    assert again.errors(FIRST) == {0: 0.5}
    assert again.forget_damaged() == []


def test_no_zeros_are_stored(tmp_path: Path) -> None:
    store = SupernetStore(tmp_path, HEADER)
    units, kept = 4096, 100
    store.write(
        FIRST, {0: Structure(torch.arange(kept), random_matrix(64, kept).bfloat16())}, {0: 0.0}
    )
    needed = kept * (64 * 2 + 4)
    assert needed <= store.bytes_on_disk < needed + 1000 < units * 64 * 2
    assert store.bytes_on_disk == store.path(FIRST).stat().st_size


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    store = filled(tmp_path)
    tensors = load_file(store.path(FIRST))
    assert sorted(tensors) == ["-1.kept", "-1.weight", "0.kept", "0.weight", "2.kept", "2.weight"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000.attn.safetensors",
        "000.ffn.safetensors",
        "manifest.json",
    ]


def test_an_intact_store_loses_nothing_when_opened_again(tmp_path: Path) -> None:
    filled(tmp_path)
    store = reopened(tmp_path)
    assert store.forget_damaged() == []
    assert FIRST in store
    assert SECOND in store


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink], ids=["cut", "flipped bit", "missing"])
def test_damage_is_noticed_and_only_that_sublayer_forgotten(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    path = filled(tmp_path).path(FIRST)
    assert callable(damage)
    damage(path)
    store = reopened(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert store.forget_damaged() == ["000.attn"]
    assert "000.attn will be rebuilt" in caplog.text
    assert FIRST not in store
    assert SECOND in store
    assert reopened(tmp_path).forget_damaged() == [], "the manifest has forgotten it too"


@pytest.mark.parametrize("seed", range(12))
def test_one_flipped_bit_anywhere_in_a_file_is_noticed(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    store = filled(tmp_path)
    path, other = rng.sample([store.path(FIRST), store.path(SECOND)], 2)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    # length of the header, header, and data in turn
    start, stop = [(0, 8), (8, header), (header, len(content))][seed % 3]
    content[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    assert reopened(tmp_path).forget_damaged() == [path.stem]
    assert other.stem not in reopened(tmp_path).forget_damaged()


def test_no_flipped_bit_in_the_manifest_passes_for_the_truth_or_ends_the_run(
    tmp_path: Path,
) -> None:
    """Whatever is still in the store afterwards is what was written."""
    filled(tmp_path / "whole")
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    written = {FIRST: structures(), SECOND: structures(columns=2)}
    left = []
    for bit in range(8 * len(files["manifest.json"])):
        content = bytearray(files["manifest.json"])
        content[bit // 8] ^= 1 << bit % 8
        folder = tmp_path / "damaged"
        folder.mkdir(exist_ok=True)
        for name, whole in {**files, "manifest.json": bytes(content)}.items():
            (folder / name).write_bytes(whole)
        store = reopened(folder)
        store.forget_damaged()
        assert store.bytes_on_disk >= 0
        there = [sublayer for sublayer in written if sublayer in store]
        for sublayer in there:
            assert store.errors(sublayer) == ERRORS
            found = store.read(sublayer)
            assert all(same(found[level], written[sublayer][level]) for level in found)
        left.append(len(there))
    assert set(left) == {0, 1}, "either all of it is lost or one sublayer"


def test_a_file_that_no_manifest_names_is_not_there(tmp_path: Path) -> None:
    # Killed between writing the structures and writing the manifest.
    filled(tmp_path)
    manifest = tmp_path / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["sublayers"][SECOND.name]
    manifest.write_text(json.dumps(content))
    (tmp_path / "000.ffn.tmp").write_bytes(b"half a file")
    (tmp_path / ".manifest.json.tmp").write_text("{")
    store = reopened(tmp_path)
    assert store.forget_damaged() == []
    assert FIRST in store
    assert SECOND not in store
    store.write(SECOND, structures(columns=2), ERRORS)
    assert same(reopened(tmp_path).read(SECOND)[0], structures(columns=2)[0])
    assert not (tmp_path / "000.ffn.tmp").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", f'{{"format": {FORMAT}}}', "\x00\xff", "null"])
def test_a_damaged_manifest_starts_afresh_and_says_so(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        store = reopened(tmp_path)
    assert "damaged: this supernet will be rebuilt" in caplog.text
    assert FIRST not in store
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    "header", [{**HEADER, "seed": 1}, {**HEADER, "dtype": "torch.bfloat16"}, {}]
)
def test_structures_of_other_settings_are_not_used(
    tmp_path: Path, header: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path)
    with caplog.at_level(logging.WARNING):
        store = SupernetStore(tmp_path, header)
    assert "belongs to other settings" in caplog.text
    assert FIRST not in store
    assert not store.path(FIRST).exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O")])
def test_a_full_disk_is_an_error_with_a_next_step_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = filled(tmp_path)

    def full(tensors: object, path: Path, **more: object) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(store_module, "save_file", full)
    with pytest.raises(StoreError, match="001.attn to .*free some space.*resume=true") as caught:
        store.write(SublayerId(1, "attn"), structures(), ERRORS)
    assert isinstance(caught.value, TyrError)
    assert isinstance(caught.value, OSError)
    assert SublayerId(1, "attn") not in store
    assert not list(tmp_path.glob("*.tmp"))
    assert FIRST in reopened(tmp_path)


def test_reading_what_is_missing_or_damaged_says_what_to_do(tmp_path: Path) -> None:
    store = filled(tmp_path)
    cut(store.path(FIRST))
    store.path(SECOND).unlink()
    for sublayer in (FIRST, SECOND):
        with pytest.raises(StoreError, match=f"{sublayer.name} from .*resume=true, which rebuilds"):
            store.read(sublayer)
    with pytest.raises(StoreError):
        filled(tmp_path / "other").read(FIRST, [7])


def test_a_deleted_store_is_empty(tmp_path: Path) -> None:
    store = filled(tmp_path / "supernet")
    store.delete()
    assert FIRST not in store
    assert not (tmp_path / "supernet").exists()


def test_the_order_of_writing_lists_a_sublayer_only_after_its_file_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[str] = []
    replace = Path.replace

    def spy(self: Path, target: Path) -> Path:
        renamed.append(target.name)
        return replace(self, target)

    store = SupernetStore(tmp_path, HEADER)
    monkeypatch.setattr(Path, "replace", spy)
    store.write(FIRST, structures(), ERRORS)
    assert renamed == ["000.attn.safetensors", "manifest.json"]
