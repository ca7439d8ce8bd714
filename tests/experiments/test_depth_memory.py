"""Peak memory against depth, end to end at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "benchmarks" / "depth_memory.py"
TOY = (
    *("--depths", "2", "3", "--hidden", "32", "--ffn", "48", "--heads", "4"),
    *("--sequence-length", "16", "--calibration-tokens", "64", "--batch-tokens", "32"),
    *("--cap-bytes", str(1 << 31)),
)


@pytest.mark.slow
def test_every_depth_gives_the_same_model_in_memory_and_on_disk(tmp_path: Path) -> None:
    outcome = subprocess.run(
        [sys.executable, str(SCRIPT), *TOY, "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    figures = json.loads((tmp_path / "depth_memory.json").read_text())["figures"]
    assert figures["equal_results"] is True
    assert figures["capped_disk_finished"] is True
    assert figures["capped_result_is_that_without_cap"] is True
    assert figures["capped_none_failed"] is False  # so small a model needs no streaming
    assert 0 < figures["disk_spread"] < 1.15
    assert "RLIMIT_DATA" in (tmp_path / "depth_memory.md").read_text()
