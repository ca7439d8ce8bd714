"""SIGKILL at random moments of a small run: each run is continued and must end the same.

    python experiments/reliability/kill_loop.py       (20 kills, minutes)

One uninterrupted run gives the reference. Then, for every kill, a new run is started, killed at a
random moment, and continued with the same command line and resume=true. The moment is a row of
metrics.csv, drawn from those of the reference, and a random delay after it of up to twice the mean
time between rows: seconds alone would cluster wherever a shared machine happens to be slow.
Allocation and digests of the exported tensors must be the reference's. Writes kill_loop.log beside
itself; exit status 1 when any run ends differently. Every run is a process of its own that goes
through the command line; it is forked from one that has done the imports, which take longer than
the run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyr.launch  # noqa: F401  so that no run has to import it
from tyr.run import main

HERE = Path(__file__).resolve().parent

# Two iterations, several generations, re-pruning and export, on a random model of two blocks.
WORDS = (
    "model=random",
    "model.config.hidden_size=64",
    "model.config.intermediate_size=128",
    "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=8",
    "iterations=2",
    "search.generations=4",
    "search.offspring=8",
    "search.stages=[[256,4],[512,1]]",
    "data.calibration_tokens=4096",
    "data.evaluation_tokens=2048",
    "logger=csv",
    "callbacks=quiet",
)
POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Result:
    """What a run ends with.

    Args:
        allocation: allocation.json, without what is not a result.
        tensors: SHA-256 of every exported weight file.
    """

    allocation: str
    tensors: tuple[str, ...]


def result(run_dir: Path) -> Result:
    """Result of a finished run."""
    removed = json.loads((run_dir / "allocation.json").read_text())["removed"]
    files = sorted((run_dir / "model").glob("*.safetensors"))
    digests = tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    if not digests:
        raise RuntimeError(f"{run_dir} exported no weights")
    return Result(json.dumps(removed), digests)


class Run:
    """A run in a process of its own; it continues what is there.

    Args:
        run_dir: of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._complaints = run_dir.with_suffix(".err")
        self._status: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            self._child()

    def _child(self) -> None:
        """Run the command line and leave; never returns."""
        status = 1
        try:
            for descriptor in (1, 2):
                os.dup2(os.open(self._complaints, os.O_WRONLY | os.O_CREAT, 0o644), descriptor)
            sys.argv = ["tyr", *WORDS, f"run_dir={self.run_dir}", "resume=true"]
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException:  # noqa: BLE001  nothing above this function can report it
            traceback.print_exc()
        finally:
            os._exit(status)

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def kill(self) -> None:
        """SIGKILL."""
        if not self.ended:
            os.kill(self._pid, signal.SIGKILL)
            _, self._status = os.waitpid(self._pid, 0)

    def wait_for_rows(self, rows: int) -> None:
        """Return once metrics.csv has so many events, or the run has ended."""
        while rows_of(self.run_dir) < rows and not self.ended:
            time.sleep(POLL_SECONDS)

    def wait(self) -> None:
        """Return once the run has ended well.

        Raises:
            RuntimeError: it ended otherwise.
        """
        if not self.ended:
            _, self._status = os.waitpid(self._pid, 0)
        if self._status != 0:
            raise RuntimeError(f"{self.run_dir} failed: {self._complaints.read_text()}")


def rows_of(run_dir: Path) -> int:
    """Events that a run has put into metrics.csv."""
    path = run_dir / "metrics.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def kill_after(run_dir: Path, rows: int, seconds: float) -> bool:
    """Kill a new run so long after so many events; False if it had ended by then."""
    run = Run(run_dir)
    run.wait_for_rows(rows)
    time.sleep(seconds)
    ended = run.ended
    run.kill()
    return not ended


def found(run_dir: Path) -> str:
    """Where a killed run stood, from its files."""
    if (run_dir / "finished.json").exists():
        return "finished"
    if (run_dir / "model").exists():
        return "export written"
    if any(run_dir.glob(".model.*")):
        return "export under way"
    rows = evaluated(run_dir)
    for name in ("uniform", "finish"):
        if (count := sublayers(run_dir / name)) is not None:
            return f"{name}: {count}/4 sublayers, {rows} models evaluated"
    for iteration in (1, 0):
        folder = run_dir / f"iteration-{iteration}"
        state = folder / "search.json"
        if state.exists():
            done = json.loads(state.read_text())["state"]["generation"]
            return f"search {iteration}: {done}/4 generations"
        if (count := sublayers(folder / "supernet")) is not None:
            return f"supernet {iteration}: {count}/4 sublayers"
    return f"beginning, {rows} models evaluated"


def sublayers(folder: Path) -> int | None:
    """Finished sublayers of a supernet, or None where there is none."""
    manifest = folder / "manifest.json"
    return len(json.loads(manifest.read_text())["sublayers"]) if manifest.exists() else None


def evaluated(run_dir: Path) -> int:
    """Models measured so far."""
    path = run_dir / "evaluation.json"
    return len(json.loads(path.read_text())["rows"]) if path.exists() else 0


class Log:
    """Lines for the terminal and the log file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def say(self, line: str) -> None:
        """Print and keep a line."""
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def loop(folder: Path, kills: int, seed: int, log: Log) -> Counter[str]:
    """Kill and continue `kills` runs; counts of equal and different results."""
    started = time.monotonic()
    Run(folder / "whole").wait()
    seconds = time.monotonic() - started
    whole = result(folder / "whole")
    rows = rows_of(folder / "whole")
    log.say(f"uninterrupted: {seconds:.2f} s, {rows} events, allocation {whole.allocation}")
    log.say(f"  tensors {' '.join(digest[:16] for digest in whole.tensors)}")
    rng, outcomes = random.Random(seed), Counter[str]()
    number = 0
    while sum(outcomes.values()) < kills:
        number += 1
        run_dir, row = folder / f"run-{number}", rng.randrange(rows)
        delay = rng.uniform(0, 2 * seconds / rows)
        moment = f"{number:3}: killed {delay:.2f} s after event {row:2}"
        if not kill_after(run_dir, row, delay):
            log.say(f"{moment}: had ended by then, not counted")
            continue
        stood = found(run_dir)
        Run(run_dir).wait()
        outcome = "identical" if result(run_dir) == whole else "DIFFERENT"
        outcomes[outcome] += 1
        log.say(f"{moment} ({stood}): {outcome}")
    return outcomes


def commit() -> str:
    """Commit of this checkout."""
    asked = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"


def kill_and_compare() -> None:
    """Kill, continue, compare, log."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="how many (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    log_help = "written anew (kill_loop.log beside the script)"
    parser.add_argument("--log", type=Path, default=HERE / "kill_loop.log", help=log_help)
    arguments = parser.parse_args()
    log = Log(arguments.log)
    log.say(f"python -m tyr.run {' '.join(WORDS)}")
    log.say(f"commit {commit()}, {os.cpu_count()} cores, seed {arguments.seed}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tyr-kill-") as name:
        outcomes = loop(Path(name), arguments.kills, arguments.seed, log)
    log.say(
        f"{outcomes['identical']} of {sum(outcomes.values())} killed runs ended identically "
        f"({time.monotonic() - started:.0f} s)"
    )
    sys.exit(1 if outcomes["DIFFERENT"] else 0)


if __name__ == "__main__":
    kill_and_compare()
