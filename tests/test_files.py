from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from tyr.files import write_json, write_text


def test_a_text_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "eins\n")
    write_text(path, "zwei: ü\n")
    assert path.read_bytes() == "zwei: ü\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_json_survives_with_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"loss": 0.1 + 0.2, "tiny": 5e-324, "none": None, "levels": [-4, 0, 4]}
    write_json(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == content


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


def test_the_content_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    done: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append("sync"))
    monkeypatch.setattr(Path, "replace", lambda a, b: (done.append("rename"), replace(a, b)))
    write_text(path, "x", sync=True)
    assert done == ["sync", "rename"]


def test_infinities_become_null_because_json_has_none(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": math.inf, "y": [math.nan, 1.5], "z": {"w": "nan"}})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "x": None,
        "y": [None, 1.5],
        "z": {"w": "nan"},
    }


def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "x")
    assert (tmp_path / "deep" / "a.txt").read_text() == "x"
