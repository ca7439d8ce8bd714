"""The benchmark of tokens runs at toy size, and what it concludes from its searches."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"


@pytest.fixture
def conclusions(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("fewer_tokens_report")


@pytest.mark.slow
def test_the_benchmark_runs_at_toy_size_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conclusions: Any
) -> None:
    script = importlib.import_module("fewer_tokens")
    threads = str(torch.get_num_threads())
    words = ["--toy", "--only", "built-in", "--threads", threads]
    words += ["--out", str(tmp_path / "out"), "--results", str(tmp_path)]
    script.main(words)
    result = json.loads((tmp_path / "fewer_tokens.json").read_text())
    summary = result["models"]["built-in"]
    assert summary.keys() == script.VARIANTS.keys()
    assert all(variant["seeds"] == 2 for variant in summary.values())
    assert "| all options | 2 |" in (tmp_path / "fewer_tokens.md").read_text()
    assert (tmp_path / "fewer_tokens_built-in.png").stat().st_size > 1000
    searches = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.json")}
    unfinished = next((tmp_path / "out").rglob("racing-1.json"))
    unfinished.rename(tmp_path / "aside.json")
    script.main([*words, "--finished"])
    assert not unfinished.exists()
    assert "| racing | 1 |" in (tmp_path / "fewer_tokens.md").read_text()
    (tmp_path / "aside.json").rename(unfinished)
    script.main(words)
    assert searches == {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.json")}


def search(losses: list[float], tokens: int) -> dict[str, Any]:
    points = [
        {
            "loss": loss,
            "tokens": tokens,
            "seconds": 2.0,
            "processor_seconds": 1.0 + i,
            "rank_correlation": None,
        }
        for i, loss in enumerate(losses)
    ]
    return {"start_loss": 9.0, "points": points, "fresh": None}


def test_a_search_arrives_at_the_first_loss_that_is_as_good(conclusions: Any) -> None:
    run = search([5.0, 3.0, 4.0, 2.0], 100)
    there = conclusions.arrival(run, 3.5)
    assert there == {"tokens": 200, "seconds": 4, "processor": 2}
    assert conclusions.arrival(run, 1.9) is None


def test_ratios_compare_with_the_whole_schedule_and_with_its_own_arrival(conclusions: Any) -> None:
    paper = [search([5.0, 3.0, 4.0, 3.0], 100), search([5.0, 5.0, 5.0, 1.0], 100)]
    fast = [search([3.0, 2.0], 50), search([4.0, 4.0], 50)]
    summary = conclusions.summarise({conclusions.PAPER: paper, conclusions.FAST: fast}, 2.5)
    found = summary[conclusions.FAST]
    assert found["reached"] == 1  # of two seeds; the other has no ratio
    assert found["ratio_whole"] == 400 / 50
    assert found["ratio_first_arrival"] == 200 / 50
    assert found["ratio_seconds"] == 4
    assert found["tokens_at_least"] == 8 / 2, "the seed that did not arrive counts as zero"
    assert found["seconds_at_least"] == pytest.approx(4 / 2 * 2.5)
    assert summary[conclusions.PAPER]["ratio_whole"] == pytest.approx((4 / 2 + 1) / 2)
