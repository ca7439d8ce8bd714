"""Peak memory against depth, end to end at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.experiments.scripts import run_script

TOY = (
    *("--depths", "2", "3", "--hidden", "32", "--ffn", "48", "--heads", "4"),
    *("--sequence-length", "16", "--calibration-tokens", "64", "--batch-tokens", "32"),
    *("--cap-bytes", str(1 << 31)),
)


@pytest.mark.slow
def test_every_depth_gives_the_same_model_in_memory_and_on_disk(tmp_path: Path) -> None:
    outcome = run_script("depth_memory.py", *TOY, "--output", str(tmp_path))
    assert outcome.returncode == 0, outcome.stderr
    figures = json.loads((tmp_path / "depth_memory.json").read_text())["figures"]
    assert figures["equal_results"] is True
    assert figures["capped_disk_finished"] is True
    assert figures["capped_result_is_that_without_cap"] is True
    assert figures["capped_none_failed"] is False  # so small a model needs no streaming
    assert 0 < figures["disk_spread"] < 1.15
    assert "RLIMIT_DATA" in (tmp_path / "depth_memory.md").read_text()
