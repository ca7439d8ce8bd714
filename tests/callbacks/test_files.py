"""Small files survive a kill and hold valid JSON."""

import json
import math
from pathlib import Path

import pytest

from tyr.callbacks.files import write_json, write_text


def test_infinities_become_null_because_json_has_none(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": math.inf, "y": [math.nan, 1.5], "z": {"w": "nan"}})
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "x": None,
        "y": [None, 1.5],
        "z": {"w": "nan"},
    }


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
