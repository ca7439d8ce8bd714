"""Sweeps through Hydra's launchers: joblib for real, Slurm up to the script that it is handed.

`sbatch` is replaced by a program that keeps the script and refuses it, so no cluster is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import run_cli

RUN = (sys.executable, "-m", "tyr.run", "-m")
INSTALL = "pip install -e '.[sweep]'"


def environment(*folders: Path) -> dict[str, str]:
    """This checkout, and folders that come first in PATH."""
    root = str(Path(__file__).parents[1])
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        "PATH": os.pathsep.join([*map(str, folders), os.environ["PATH"]]),
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with the programs of a Slurm login node."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {"sbatch": f"cp $1 {tmp_path}/script; exit 1", "srun": "exit 1"}
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def script(cluster: Path, *words: str) -> str:
    """What sbatch was given."""
    command = [*RUN, "launcher=submitit", f"run_dir={cluster.parent / 'sweep'}", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(cluster))
    assert done.returncode != 0, "nothing was submitted"
    written = cluster.parent / "script"
    assert written.exists(), done.stderr
    return written.read_text()


def test_a_sweep_on_slurm_is_an_array_with_a_task_for_each_device(cluster: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason=INSTALL)
    text = script(
        cluster,
        *("sparsity=0.25,0.5,0.75", "trainer.devices=2", "trainer.num_nodes=3"),
        *("hydra.launcher.partition=large", "hydra.launcher.mem_gb=64"),
    )
    lines = text.splitlines()
    for line in (
        "--array=0-2%3",
        "--nodes=3",
        "--ntasks-per-node=2",
        "--gpus-per-node=2",
        "--cpus-per-task=8",
        "--time=1440",
        "--mem=64GB",
        "--partition=large",
        "--job-name=tyr-tiny",
    ):
        assert f"#SBATCH {line}" in lines, text
    [command] = [line for line in lines if line.startswith("srun ")]
    assert "submitit.core._submit" in command
    assert f"{cluster.parent}/sweep/.submitit" in command


def test_a_sweep_for_slurm_where_there_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason=INSTALL)
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = run_cli(capsys, "-m", "launcher=submitit", f"run_dir={tmp_path}/sweep", "seed=0,1")
    assert outcome.status == 2
    assert outcome.err.endswith(
        "tyr: launcher=submitit needs Slurm's srun, and this machine has none\n"
    )


@pytest.mark.slow
def test_a_sweep_without_gpus_asks_for_none(cluster: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason=INSTALL)
    text = script(cluster, "seed=0,1", "hydra.launcher.gpus_per_node=null")
    assert "--gpus" not in text
    assert "#SBATCH --ntasks-per-node=1" in text.splitlines()


def sweep(launcher: str, run_dir: Path, values: str) -> subprocess.CompletedProcess[str]:
    """Short runs with a launcher of this machine."""
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason=INSTALL)
    words = (f"launcher={launcher}", "debug=fast", "callbacks=quiet", "logger=csv", "iterations=0")
    command = [*RUN, *words, f"run_dir={run_dir}", values]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_bad_value_of_a_sweep_ends_its_own_job_only(launcher: str, tmp_path: Path) -> None:
    done = sweep(launcher, tmp_path, "sparsity=1.5,0.5")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("sparsity must be in") == 1
    assert "Traceback" not in done.stderr
    [folder] = [path.parent for path in tmp_path.glob("*/config.yaml")]
    assert (folder / "finished.json").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.slow
def test_the_same_sweep_with_resume_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    words = ("debug=fast", "callbacks=quiet", "logger=csv", "iterations=0", "sparsity=0.25,0.5")

    def sweep(*more: str) -> None:
        command = [*RUN, *words, *more]
        subprocess.run(command, check=True, cwd=tmp_path, env=environment(), timeout=300)

    sweep()
    first, second = sorted(tmp_path.glob("outputs/*/*/finished.json"))
    begun = first.read_bytes()
    first.unlink()  # as killed in its last moment; the second had not begun
    shutil.rmtree(second.parent)
    sweep("resume=true")
    assert first.read_bytes() == begun
    finished = sorted(tmp_path.glob("outputs/*/*/finished.json"))
    assert [path.parent.name for path in finished] == [first.parent.name, second.parent.name]
    assert len(list(tmp_path.glob("outputs/*/*/config.yaml"))) == 2


@pytest.mark.slow
def test_joblib_runs_jobs_side_by_side(tmp_path: Path) -> None:
    done = sweep("joblib", tmp_path, "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/finished.json"))) == 2
