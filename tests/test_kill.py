"""SIGKILL, for real, at arbitrary moments of a run started from the command line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_pipeline import tensors_sha

pytestmark = pytest.mark.slow

WORDS = (
    "iterations=2",
    "search.generations=3",
    "search.offspring=6",
    "search.stages=[[512,2],[1024,1]]",
    "data.calibration_tokens=4096",
    "data.evaluation_tokens=2048",
    "logger=csv",
    "callbacks=quiet",
)


def command(run_dir: Path, *more: str) -> list[str]:
    """The run under test."""
    return [sys.executable, "-m", "tyr.run", *WORDS, f"run_dir={run_dir}", *more]


def test_a_killed_run_continues_to_the_identical_result(tmp_path: Path) -> None:
    started = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    seconds = time.monotonic() - started
    allocation = json.loads((tmp_path / "whole" / "allocation.json").read_text())
    rng = random.Random(0)
    for attempt in range(2):
        run_dir = tmp_path / f"run-{attempt}"
        for _ in range(2):  # killed twice, the second time while it continues
            process = subprocess.Popen(
                command(run_dir, "resume=true"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(seconds * rng.uniform(0.3, 0.95))
            process.kill()
            process.wait()
        subprocess.run(command(run_dir, "resume=true"), check=True, capture_output=True)
        assert json.loads((run_dir / "allocation.json").read_text()) == allocation
        assert tensors_sha(run_dir) == tensors_sha(tmp_path / "whole")
        rows = (run_dir / "metrics.csv").read_text().splitlines()
        generations = [row for row in rows if row.startswith("generation,")]
        assert len(generations) == 6
