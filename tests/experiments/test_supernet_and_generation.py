"""The comparison with the released algorithm, end to end at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "benchmarks" / "supernet_and_generation.py"
TOY = (
    *("--blocks", "2", "--hidden", "64", "--ffn", "128", "--heads", "4", "--kv-heads", "2"),
    *("--vocabulary", "256", "--sequence-length", "16", "--calibration-tokens", "256"),
    *("--search-tokens", "256", "--offspring", "6", "--stage-tokens", "16", "64", "256"),
    *("--survivors", "4", "2", "1", "--batch-tokens", "64", "--threads", "1"),
    *("--build-turns", "1", "--search-turns", "2"),
)


@pytest.mark.slow
def test_both_sides_agree_on_losses_and_survivors(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *TOY, "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    outcome = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    content = json.loads((tmp_path / "supernet_and_generation.json").read_text())
    losses = content["figures"]["losses"]
    assert losses["losses"] >= 2 * (6 + 4 + 2)  # two generations of three stages
    assert losses["same_survivors"] is True
    assert losses["largest_relative_difference"] < 1e-4
    generation = content["figures"]["generation"]
    assert generation["short"]["compared"] >= 1
    assert -1 <= generation["short"]["rank_correlation"] <= 1
    assert 0 < generation["of_gemm"]["tyr"] < 1
    assert content["figures"]["build"]["local_ratio"] > 0
    assert content["figures"]["disk"]["tyr_bytes"] > 0
    text = (tmp_path / "supernet_and_generation.md").read_text()
    assert "peak memory of the search" in text
