"""The benchmark of one accelerator, end to end on the CPU at toy size."""

from __future__ import annotations

import importlib
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.experiments.scripts import run_script


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return run_script("gpu.py", "--accelerator", "cpu", *words)


def test_only_what_goes_with_tokens_is_scaled_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments" / "benchmarks"))
    gpu = importlib.import_module("gpu")
    part = replace(gpu.LLAMA, blocks=4, calibration_tokens=gpu.LLAMA.calibration_tokens // 16)
    fixed = {"solve_seconds": 10.0, "mix_seconds": 5.0, "disk_wait_seconds": 3.0}
    whole = gpu.extrapolate({"seconds": 100.0, **fixed}, part, gpu.LLAMA)
    assert whole == pytest.approx(8 * (16 * 82 + 18))


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
    assert report.count("**Extrapolated**") == (2 if part else 0)
    assert not (tmp_path / "gpu.md").exists()


@pytest.mark.slow
def test_stages_are_measured_by_commands_of_their_own(tmp_path: Path) -> None:
    words = ("--toy", "--blocks", "2", "--folder", str(tmp_path), "--output", str(tmp_path))
    reports = []
    for stage in ("supernet", "generation"):
        outcome = run(*words, "--stage", stage)
        assert outcome.returncode == 0, outcome.stderr
        reports.append(json.loads((tmp_path / "gpu-toy.json").read_text())["figures"])
    first, second = reports
    assert list(first) == ["supernet"]
    assert first["supernet"] == second["supernet"]
    assert second["generation"]["seconds"] > 0
    assert list((tmp_path / "supernet").iterdir())
    assert "supernet: 0.0 s, 0.0 s of it solving" in outcome.stdout  # taken, not built again


@pytest.mark.slow
def test_a_machine_without_an_accelerator_is_told_so(tmp_path: Path) -> None:
    outcome = run("--output", str(tmp_path))
    assert outcome.returncode == 1
    assert "no accelerator was found" in outcome.stderr
    assert not list(tmp_path.iterdir())
