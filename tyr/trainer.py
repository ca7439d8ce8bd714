"""Devices and processes of a run, from Lightning Fabric: the config group `trainer`.

One process per device. On one machine tyr starts them itself; under torchrun or srun they are there
already. Fabric picks the device of each, its threads and the backend, and joins them. The model is
not divided: every process holds it, and work on sequences or candidates is shared.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException

from tyr.errors import ConfigError, ProcessError, first_line
from tyr.processes import ALONE, Processes, ProcessGroup
from tyr.spawn import children

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
STRATEGIES = ("auto", "ddp")
FABRIC_LEAVES = ("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "WORLD_SIZE")


@dataclass(frozen=True)
class Trainer:
    """How many processes work on a run, and where.

    Args:
        accelerator: a Lightning Fabric accelerator: auto, cpu, cuda, mps.
        devices: processes on each machine.
        strategy: auto or ddp; the same here, as no gradients are exchanged.
        num_nodes: machines.
        timeout_minutes: how long a process waits for another that lives. Must exceed what the first
            one does alone: evaluation and export.

    Raises:
        ConfigError: a setting is out of range.
    """

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    num_nodes: int = 1
    timeout_minutes: float = 720.0

    def __post_init__(self) -> None:
        for key in ("devices", "num_nodes"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"trainer.{key} must be a whole number of at least 1, got {value!r}"
                )
        if self.strategy not in STRATEGIES:
            raise ConfigError(
                f"trainer.strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}: "
                f"work is shared between processes, the model is not divided"
            )
        if not self.timeout_minutes > 0:
            raise ConfigError(
                f"trainer.timeout_minutes must be positive, got {self.timeout_minutes}"
            )

    def machines(self) -> Machines:
        """Processes per machine, machines, and whether they run already.

        Raises:
            ConfigError: torchrun or srun started another number than is asked for.
        """
        found = started_by_others()
        if found is None:
            return Machines(self.devices, self.num_nodes, started="LOCAL_RANK" in os.environ)
        if (self.devices, self.num_nodes) not in ((1, 1), (found.devices, found.num_nodes)):
            raise ConfigError(
                f"trainer.devices={self.devices} and trainer.num_nodes={self.num_nodes}, but this "
                f"run was started as {found.devices} processes on each of {found.num_nodes} "
                f"machines: give the same numbers, or leave them to torchrun or srun"
            )
        return found


@dataclass(frozen=True)
class Machines:
    """Processes on machines.

    Args:
        devices: processes per machine.
        num_nodes: machines.
        started: whether all of them run already.
    """

    devices: int
    num_nodes: int
    started: bool

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.devices * self.num_nodes


def started_by_others() -> Machines | None:
    """What torchrun, or srun with several tasks, started this process as a part of."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        return Machines(local, int(env["WORLD_SIZE"]) // local, started=True)
    tasks, nodes = int(env.get("SLURM_NTASKS", "1")), int(env.get("SLURM_NNODES", "1"))
    if tasks > 1 and "SLURM_PROCID" in env:
        return Machines(tasks // nodes, nodes, started=True)
    return None


@contextmanager
def connect(trainer: Trainer, job: str) -> Iterator[tuple[torch.device, Processes]]:
    """This process's device and the processes of the run, started if need be and joined.

    Args:
        trainer: how many, and where.
        job: line that a process started here gets, see `job_line`.

    Raises:
        ConfigError: these devices are not on this machine.
        ProcessError: another process died or failed.
    """
    machines = trainer.machines()
    if machines.size == 1:
        yield choose_device(trainer.accelerator, key="trainer.accelerator"), ALONE
        return
    if dist.is_initialized():
        raise ProcessError(
            "the processes of an earlier run that failed are still joined to this one: start this "
            "run by a command of its own"
        )
    with _as_it_was():
        fabric, here = _fabric(trainer, machines)
        others = {} if machines.started else _environments(here, machines)
        with children(job, others):
            with _told_of_waiting(machines.size):
                fabric.launch()
            with _left():
                yield fabric.device, ProcessGroup()


@contextmanager
def _left() -> Iterator[None]:
    """Leave the group of processes at the end.

    NCCL leaves it together with the others only, who may be waiting in another call for this
    process that failed: then its end, which `children` and launchers watch for, must do.
    """
    try:
        yield
    except BaseException:
        if dist.get_backend() == "gloo":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def _told_of_waiting(size: int) -> Iterator[None]:
    """Say what is waited for when the other processes do not come.

    A batch script that forgot srun looks like one of several processes, and would wait for hours.
    """
    said = (
        f"still waiting for all {size} processes of this run to join; if only this one was started "
        f"(a Slurm script without srun?), stop it and start them with srun or torchrun"
    )
    timer = threading.Timer(PATIENCE_SECONDS, logger.warning, [said])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def job_line(config_yaml: str, path: Path, command: str) -> str:
    """What a process that tyr starts needs to know."""
    return json.dumps({"config": config_yaml, "path": str(path.absolute()), "command": command})


def choose_device(accelerator: str, *, key: str = "accelerator") -> torch.device:
    """The device Lightning Fabric picks for an accelerator name.

    Args:
        accelerator: its name.
        key: what the user called it.

    Raises:
        ConfigError: unknown, or not on this machine.
    """
    try:
        return torch.device(Fabric(accelerator=accelerator, devices=1).device)
    except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise _unusable(f"{key}={accelerator}", error) from error


class _FirstOfNode(LightningEnvironment):
    """The process that the user started, which starts the others of its machine."""

    creates_processes_externally = True  # by tyr/spawn.py

    def local_rank(self) -> int:
        return 0


def _fabric(trainer: Trainer, machines: Machines) -> tuple[Fabric, LightningEnvironment]:
    """Fabric with its devices checked, not yet connected."""
    here = _FirstOfNode()
    if machines.num_nodes > 1 and not machines.started and "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            f"trainer.num_nodes={machines.num_nodes} needs MASTER_ADDR, MASTER_PORT and NODE_RANK "
            f"in the environment of every machine: set them, or start with torchrun or srun"
        )
    try:
        fabric = Fabric(
            accelerator=trainer.accelerator,
            devices=machines.devices,
            num_nodes=machines.num_nodes,
            strategy=DDPStrategy(timeout=timedelta(minutes=trainer.timeout_minutes)),
            plugins=[] if machines.started else [here],
        )
    except (ValueError, RuntimeError, ImportError, MisconfigurationException) as error:
        asked = f"trainer.accelerator={trainer.accelerator} trainer.devices={machines.devices}"
        raise _unusable(asked, error) from error
    return fabric, here


def _environments(here: LightningEnvironment, machines: Machines) -> dict[int, dict[str, str]]:
    """Rank to variables of the processes to start on this machine."""
    shared = {
        "MASTER_ADDR": here.main_address,
        "MASTER_PORT": str(here.main_port),
        "NODE_RANK": str(here.node_rank()),
        "WORLD_SIZE": str(machines.size),
    }
    first = here.node_rank() * machines.devices
    return {
        first + local: {**shared, "LOCAL_RANK": str(local), "RANK": str(first + local)}
        for local in range(1, machines.devices)
    }


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Undo what Fabric leaves in the environment: the next job of a sweep runs in this process."""
    earlier = {name: os.environ.get(name) for name in FABRIC_LEAVES}
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for name, value in earlier.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _unusable(asked: str, error: Exception) -> ConfigError:
    return ConfigError(f"{asked} cannot be used here: {first_line(error)}")
