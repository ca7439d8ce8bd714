"""The benchmark of local pruning's hot paths runs at toy size, and fast equals slow."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "experiments" / "benchmarks"


@pytest.mark.slow
def test_fast_routines_give_what_their_slow_twins_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("hot_paths")
    threads = str(torch.get_num_threads())
    script.main(["--toy", "--threads", threads, "--results", str(tmp_path)])
    content = json.loads((tmp_path / "hot_paths.json").read_text())
    assert len(content["gains"]) == 4
    assert content["figures"]["difference"] < 1e-5
    assert content["figures"]["large"]["share"] > 0
    assert "| one greedy pass for all levels |" in (tmp_path / "hot_paths.md").read_text()
