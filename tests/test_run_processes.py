"""Several processes from the command line: started by tyr and by torchrun, and killed for real."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WORDS = (
    "debug=fast",
    "logger=csv",
    "model=random",
    *("model.config.hidden_size=64", "model.config.intermediate_size=96"),
    "model.config.num_hidden_layers=4",
    "supernet.batch_tokens=512",  # four calibration batches
    "trainer.accelerator=cpu",
)
TWO = ("trainer.devices=2", "trainer.strategy=ddp")
RUN = (sys.executable, "-m", "tyr.run", *WORDS)
TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"),
    *("29533", "-m", "tyr.run", *WORDS),
)
SECONDS_TO_STOP = 60


def environment() -> dict[str, str]:
    """A thread for each process, and this checkout."""
    root = str(Path(__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}


def begin(*command: str) -> subprocess.Popen[str]:
    """A run in the background."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment())


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A run to its end."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return done


def removed(folder: Path) -> object:
    """The final allocation."""
    content = json.loads((folder / "allocation.json").read_text())
    assert content["final"]
    return content["removed"]


def children(process: int) -> list[int]:
    """Processes of tyr that a process started."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [
        int(child)
        for child in listed
        if "tyr.worker" in Path(f"/proc/{child}/cmdline").read_text().split("\0")
    ]


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until something holds, while the process runs."""
    while not what():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(*RUN, "callbacks=quiet", f"run_dir={folder}")
    return folder


@pytest.mark.parametrize("command", [(*RUN, *TWO), TORCHRUN], ids=["tyr", "torchrun"])
def test_two_processes_make_one_run_with_the_same_allocation(
    command: tuple[str, ...], tmp_path: Path, alone: Path
) -> None:
    # The default run directory has the second in its name: it must be the same for both.
    name = "run_dir=${model.name}-${now:%S-%f}"
    done = subprocess.run(
        [*command, name], capture_output=True, text=True, env=environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    [folder] = tmp_path.iterdir()
    assert removed(folder) == removed(alone)
    assert len(re.findall(r"perplexity +ratio", done.stdout)) == 1, "one table"
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert sum(row["event"] == "generation" for row in rows) == 2


@pytest.mark.parametrize("victim", [1, 0], ids=["second", "first"])
def test_a_killed_process_stops_the_run_which_then_continues(
    victim: int, tmp_path: Path, alone: Path
) -> None:
    folder = tmp_path / "run"
    process = begin(*RUN, *TWO, "callbacks=quiet", f"run_dir={folder}")
    metrics = folder / "metrics.csv"
    wait_for(lambda: metrics.exists() and "001.attn" in metrics.read_text(), process)
    [child] = children(process.pid)
    os.kill(child if victim else process.pid, signal.SIGKILL)
    killed = time.monotonic()
    _, errors = process.communicate(timeout=SECONDS_TO_STOP)
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() - killed < SECONDS_TO_STOP, "the other process still runs"
        time.sleep(0.1)
    if victim:
        assert process.returncode == 1
        assert "process 1 was killed by SIGKILL" in errors
        assert "resume=true" in errors
    run(*RUN, "callbacks=quiet", f"run_dir={folder}", "resume=true")
    assert removed(folder) == removed(alone)


def test_an_exception_of_one_process_is_shown_with_its_number(tmp_path: Path) -> None:
    fault = "search.objective._target_=tests.test_pipeline_processes.FailsInTheSecond"
    process = begin(*RUN, *TWO, "callbacks=quiet", f"run_dir={tmp_path / 'run'}", fault)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "tyr (process 1) failed:" in errors
    assert "Traceback" in errors
    assert "ZeroDivisionError" in errors
    assert errors.strip().splitlines()[-1].startswith("tyr: process 1 failed with status 1")


def test_a_process_that_dies_while_the_first_is_busy_stops_it_too(tmp_path: Path) -> None:
    fault = "evaluator._target_=tests.test_run_processes.Endless"
    process = begin(*RUN, *TWO, "callbacks=quiet", f"run_dir={tmp_path / 'run'}", fault)
    wait_for(lambda: (tmp_path / "run" / "busy").exists(), process)
    [child] = children(process.pid)
    os.kill(child, signal.SIGKILL)
    _, errors = process.communicate(timeout=SECONDS_TO_STOP)
    assert process.returncode == 1
    assert "process 1 was killed by SIGKILL" in errors


class Endless:
    """An evaluator that only the first process calls, and that does not come back."""

    uniform_baseline = False

    def __init__(self, **settings: object) -> None:
        pass

    def check(self, source: object, device: object) -> None:
        pass

    def evaluate(self, model: object, windows: object, *, reference: object) -> None:
        [word] = [word for word in sys.argv if word.startswith("run_dir=")]
        (Path(word.removeprefix("run_dir=")) / "busy").touch()
        time.sleep(10 * SECONDS_TO_STOP)


def test_a_sweep_runs_each_job_in_two_processes(tmp_path: Path) -> None:
    words = ("callbacks=quiet", f"run_dir={tmp_path}", "seed=0,1", "iterations=0")
    run(*RUN[:3], "-m", *WORDS, *TWO, *words)
    assert len(list(tmp_path.glob("*/finished.json"))) == 2


def test_bad_input_is_refused_once_before_anything_starts(tmp_path: Path) -> None:
    process = begin(*RUN, *TWO, f"run_dir={tmp_path / 'run'}", "supernet.levels=8")
    _, errors = process.communicate()
    assert process.returncode == 2
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
