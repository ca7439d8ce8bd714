from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from tests.full_disk import largest_file
from tyr.errors import StoreError
from tyr.files import read_record, write_bytes, write_json, write_text


def test_a_text_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "eins\n")
    write_text(path, "zwei: ü\n")
    assert path.read_bytes() == "zwei: ü\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_the_folder_is_made_when_needed(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "b" / "c.bin", b"\x00")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"\x00"


def test_json_survives_with_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"loss": 0.1 + 0.2, "tiny": 5e-324, "none": None, "levels": [-4, 0, 4], "on": True}
    write_json(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == content


def test_what_json_cannot_say_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": math.inf, "b": [1.0, math.nan, (-math.inf,)], 3: "NaN"})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content == {"a": None, "b": [1.0, None, [None]], "3": "NaN"}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, fail)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new", sync=True)
    assert path.read_text() == "old"


@pytest.mark.parametrize("sync", [False, True])
def test_the_content_is_synced_before_it_gets_its_name_where_that_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    done: list[str] = []
    replace = Path.replace

    def renaming(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("sync"))
    monkeypatch.setattr(Path, "replace", renaming)
    write_text(tmp_path / "a.txt", "x", sync=sync)
    assert done == (["sync", "rename"] if sync else ["rename"])


def test_a_full_disk_is_an_error_with_a_next_step_and_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with (
        largest_file(100),
        pytest.raises(StoreError, match=r"cannot write .*a\.json: File too large; free some space"),
    ):
        write_json(path, {"new": "x" * 200}, sync=True)
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ["", "[1", "3", "[1, 2]"])
def test_a_damaged_record_is_said_aloud_and_empty(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "record.json"
    assert read_record(path) == {}
    assert caplog.text == "", "none is no damage"
    write_json(path, {"a": 1})
    assert read_record(path) == {"a": 1}
    path.write_text(content)
    assert read_record(path) == {}
    assert "record.json is damaged" in caplog.text
