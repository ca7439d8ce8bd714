"""The benchmark of waiting for the disk, end to end at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "benchmarks" / "supernet_io.py"
TOY = (
    *("--blocks", "2", "--hidden", "64", "--ffn", "128", "--heads", "4", "--kv-heads", "2"),
    *("--vocabulary", "256", "--sequence-length", "16", "--calibration-tokens", "256"),
    *("--search-tokens", "256", "--offspring", "6", "--stage-tokens", "16", "64", "256"),
    *("--survivors", "4", "2", "1", "--batch-tokens", "64", "--threads", "1"),
    *("--megabytes-per-second", "10"),
)


@pytest.mark.slow
def test_both_ways_give_the_same_losses_and_the_slow_one_is_waited_for(tmp_path: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, str(SCRIPT), *TOY, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    figures = json.loads((tmp_path / "supernet_io.json").read_text())["figures"]
    assert figures["equal_losses"] == 1
    for stage in ("supernet", "search"):
        slow = figures["slow"][stage]
        assert slow["before"]["waiting"] > figures["plain"][stage]["before"]["waiting"]
    written = figures["slow"]["supernet"]["before"]["bytes"]
    # what the delay alone takes: every file is written and read back
    assert figures["slow"]["supernet"]["before"]["waiting"] >= 2 * 0.9 * written / 10e6
    assert "share of waiting" in (tmp_path / "supernet_io.md").read_text()
