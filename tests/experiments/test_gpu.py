"""The benchmark of one accelerator, end to end on the CPU at toy size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "benchmarks" / "gpu.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), "--accelerator", "cpu", *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", [(), ("--blocks", "2", "--calibration-tokens", "1024")])
def test_the_benchmark_runs_at_toy_size_and_says_what_it_scaled_up(
    tmp_path: Path, part: tuple[str, ...]
) -> None:
    outcome = run("--toy", *part, "--output", str(tmp_path))
    assert outcome.returncode == 0, outcome.stderr
    figures = json.loads((tmp_path / "gpu-toy.json").read_text())["figures"]
    supernet, generation = figures["supernet"], figures["generation"]
    scale = 1.5 if part else 1  # of three blocks, two were measured
    assert supernet["seconds"] >= scale * supernet["measured"]["seconds"] * 0.999
    assert supernet["planned_seconds"] >= scale * supernet["measured_planned_seconds"]
    assert 0 < supernet["share_of_gemm_rate"] < 1
    assert supernet["measured"]["bytes"] > 0
    stages = generation["measured"]["generations"][-1]
    assert [stage["candidates"] for stage in stages] == [8, 4, 3]
    assert [stage["tokens"] for stage in stages] == [64, 256, 1024]
    assert 0 < generation["measured_planned_seconds"] < generation["measured_seconds"]
    report = (tmp_path / "gpu-toy.md").read_text()
    assert ("**Extrapolated**" in report) == bool(part)
    assert not (tmp_path / "gpu.md").exists()


@pytest.mark.slow
def test_a_machine_without_an_accelerator_is_told_so(tmp_path: Path) -> None:
    outcome = run("--output", str(tmp_path))
    assert outcome.returncode == 1
    assert "no accelerator was found" in outcome.stderr
    assert not list(tmp_path.iterdir())
