"""Processes that are started, watched and ended, with small programs in the place of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tyr import spawn
from tyr.errors import ProcessError, StoreError
from tyr.spawn import announced_rank, children

READ = "import os, signal, sys, time; job = sys.stdin.readline().strip(); "
WAIT = READ + "os.read(0, 1); sys.exit(1)"  # a worker whose first process never lets go

TWO = {1: {"RANK": "1"}, 2: {"RANK": "2"}}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No patience."""
    monkeypatch.setattr(spawn, "NOTICE_SECONDS", 0.5)
    monkeypatch.setattr(spawn, "POLL_SECONDS", 0.02)


def program(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What is started instead of a worker."""
    monkeypatch.setattr(spawn, "COMMAND", (sys.executable, "-c", text))


def test_each_process_gets_the_job_and_its_rank(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program(
        monkeypatch, READ + f"open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(job)"
    )
    with children("the job", TWO):
        pass
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "1": "the job",
        "2": "the job",
    }


@pytest.mark.parametrize(
    ("text", "message", "status"),
    [
        ("sys.exit(3)", "process 1 failed with status 3, for the reason it gave above", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", "process 1 was killed by SIGKILL", 1),
    ],
)
def test_a_death_stops_a_first_process_that_is_busy(
    text: str, message: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(monkeypatch, READ + text)
    with pytest.raises(ProcessError, match=message) as caught, children("", {1: {}}):
        time.sleep(60)
    assert caught.value.status == status


def test_a_run_in_the_background_is_interrupted_by_a_death_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def be_busy() -> None:
        signal.raise_signal(signal.SIGINT)  # the terminal's
        time.sleep(60)

    program(monkeypatch, READ + "sys.exit(3)")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what has an `&`
    try:
        with pytest.raises(ProcessError, match="status 3"), children("", {1: {}}):
            be_busy()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_lost_connection_is_explained_by_the_process_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spawn, "NOTICE_SECONDS", 60.0)  # it ends long before, on any machine
    program(monkeypatch, READ + "time.sleep(0.2); sys.exit(3)")
    with pytest.raises(ProcessError, match="process 1 failed with status 3"), children("", {1: {}}):
        raise ProcessError("lost contact")


def test_an_error_of_the_first_process_is_its_own_and_ends_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program(monkeypatch, WAIT)
    started = time.monotonic()
    with pytest.raises(StoreError, match="disk"), children("", TWO):
        raise StoreError("the disk is full")
    assert time.monotonic() - started < 20


def test_a_process_that_does_not_end_by_itself_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, READ + "time.sleep(60)")
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), children("", {1: {}}):
        raise KeyboardInterrupt
    assert time.monotonic() - started < 20


def test_a_worker_ends_with_the_first_process() -> None:
    text = "from tyr.spawn import lifeline; import time; print(lifeline(), end='', flush=True)"
    text += "; time.sleep(60)"
    worker = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("the job\n")
    worker.stdin.flush()
    assert worker.stdout.readline() == "the job\n"
    worker.stdin.close()
    assert worker.wait(timeout=20) == 1


@pytest.mark.parametrize(
    ("variables", "rank"),
    [((), 0), (("RANK", "LOCAL_RANK"), 3), (("SLURM_PROCID",), 3), (("LOCAL_RANK",), 3)],
)
def test_a_rank_is_read_from_the_environment(
    variables: Sequence[str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, "3")
    assert announced_rank() == rank


def test_a_first_process_that_cannot_be_interrupted_is_ended() -> None:
    text = (
        "import sys, signal, time, logging; from tyr import spawn; logging.basicConfig();"
        "signal.signal(signal.SIGINT, lambda number, frame: None);"
        "spawn.NOTICE_SECONDS = spawn.UNWIND_SECONDS = 0.2;"
        "spawn.COMMAND = (sys.executable, '-c', 'import sys; sys.exit(3)')\n"
        "with spawn.children('', {1: {}}): time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        timeout=40,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert done.returncode == 3
    assert "process 1 failed with status 3" in done.stderr
