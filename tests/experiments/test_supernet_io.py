"""The benchmark of waiting for the disk, end to end at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.experiments.scripts import TOY_SETTING, run_script


@pytest.mark.slow
def test_both_ways_give_the_same_losses_and_the_slow_one_is_waited_for(tmp_path: Path) -> None:
    words = (*TOY_SETTING, "--megabytes-per-second", "10", "--output", str(tmp_path))
    outcome = run_script("supernet_io.py", *words)
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
