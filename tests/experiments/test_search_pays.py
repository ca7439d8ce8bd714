"""The benchmark of searched against uniform allocation, end to end at toy size."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"


@pytest.fixture
def search_pays(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("search_pays")


@pytest.mark.slow
def test_every_seed_of_a_setting_is_measured_and_tabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search_pays: Any
) -> None:
    words = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path), "--only", "1"]
    smoke = ["--smoke", "debug=fast", "data.evaluation_tokens=1024"]
    monkeypatch.setattr(sys, "argv", ["search_pays.py", *words, *smoke])
    search_pays.main()
    written = json.loads((tmp_path / "search_pays.json").read_text())
    (entry,) = written["settings"]
    assert len(entry["runs"]) == 3
    for run in entry["runs"]:
        assert {"dense", "uniform", "tyr", "tyr_supernet"} <= set(run)
        assert run["dense"]["kl"] < run["uniform"]["kl"]
        assert run["seconds"] > 0
    assert written["seconds"] == sum(run["seconds"] for run in entry["runs"])
    assert f"| {entry['name']} | 3 |" in (tmp_path / "search_pays.md").read_text()


def test_a_spread_shows_what_lies_behind_a_mean(search_pays: Any) -> None:
    assert search_pays.spread([0.25]) == "0.2500"
    assert search_pays.spread([0.1, 0.2, 0.3]) == "0.2000 (0.1000-0.3000)"
