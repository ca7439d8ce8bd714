"""Runs a function in several processes joined by gloo; forked, so nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tyr.processes import ProcessGroup

FORK = multiprocessing.get_context("fork")
SECONDS = 100  # a hang is a failure; the machine may be busy with other things


class Gone:
    """What is left of a process that sent no result."""


def fork(bodies: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of functions that run at the same time, each in a process of its own.

    An exception is returned; a process that died without a word gives `Gone`.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(index) for index in range(len(bodies))]
        processes = [
            FORK.Process(target=_report, args=(body, file), daemon=True)
            for body, file in zip(bodies, files, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
        hung = [process for process in processes if process.is_alive()]
        for process in hung:
            process.kill()
            process.join()
        assert not hung, f"{len(hung)} processes did not end in {SECONDS} s"
        return [pickle.loads(file.read_bytes()) if file.exists() else Gone() for file in files]


def joined(body: Callable[[ProcessGroup], Any], size: int = 2) -> list[Any]:
    """Results of `body` in `size` processes, by rank; see `fork`."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"

        def run(rank: int) -> Any:
            wait = timedelta(seconds=SECONDS)
            dist.init_process_group(
                "gloo", init_method=meeting, rank=rank, world_size=size, timeout=wait
            )
            return body(ProcessGroup())

        return fork([lambda rank=rank: run(rank) for rank in range(size)])


def as_torchrun(body: Callable[[], Any], size: int = 2) -> list[Any]:
    """Results of `body` in processes whose environment is that of torchrun."""
    shared = {
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    return _launched(body, size, shared, rank=("RANK", "LOCAL_RANK"))


def as_srun(body: Callable[[], Any], size: int = 2) -> list[Any]:
    """Results of `body` in processes whose environment is that of srun."""
    shared = {
        "SLURM_NTASKS": str(size),
        "SLURM_NTASKS_PER_NODE": str(size),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NAME": "tyr",
    }
    return _launched(body, size, shared, rank=("SLURM_PROCID", "SLURM_LOCALID"))


def _launched(
    body: Callable[[], Any], size: int, shared: Mapping[str, str], *, rank: Sequence[str]
) -> list[Any]:
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}

    def run(number: int) -> Any:
        os.environ.update(shared | meeting, **dict.fromkeys(rank, str(number)))
        return body()

    return fork([lambda number=number: run(number) for number in range(size)])


def results(outcomes: Sequence[Any]) -> list[Any]:
    """The outcomes, none of which may be an exception."""
    for outcome in outcomes:
        assert not isinstance(outcome, Gone), "a process died"
        if isinstance(outcome, BaseException):
            raise outcome
    return list(outcomes)


def _report(body: Callable[[], Any], file: Path) -> None:
    torch.set_num_threads(1)
    try:
        result = body()
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        traceback.print_exc()
        result = error
    temporary = file.with_suffix(".tmp")
    temporary.write_bytes(pickle.dumps(result))
    temporary.rename(file)
    os._exit(0)  # no clean-up of what belongs to the parent
