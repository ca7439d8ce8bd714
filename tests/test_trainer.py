"""The config group `trainer`: what it refuses, and what it finds under torchrun and srun."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.ranks import as_srun, as_torchrun, results
from tyr import trainer as module
from tyr.errors import ConfigError, ProcessError
from tyr.processes import ALONE
from tyr.trainer import FABRIC_LEAVES, Machines, Trainer, choose_device, connect


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's variables."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("LOCAL_RANK", "MASTER_ADDR"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": 0}, "trainer.devices must be a whole number of at least 1, got 0"),
        ({"devices": "auto"}, "trainer.devices must be a whole number"),
        ({"num_nodes": True}, "trainer.num_nodes must be a whole number"),
        ({"strategy": "fsdp"}, "trainer.strategy must be one of auto, ddp, got 'fsdp'"),
        ({"timeout_minutes": 0}, "trainer.timeout_minutes must be positive"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(**settings)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "1"}


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_processes_that_run_already_are_counted(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = Machines(2, 2, started=True)
    assert Trainer().machines() == found
    assert Trainer(devices=2, num_nodes=2).machines() == found
    with pytest.raises(ConfigError, match="was started as 2 processes on each of 2 machines"):
        Trainer(devices=4).machines()


def test_a_single_task_of_a_job_starts_its_own_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SRUN, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}.items():
        monkeypatch.setenv(name, value)
    assert Trainer(devices=2).machines() == Machines(2, 1, started=False)


@pytest.mark.parametrize("launched", [as_torchrun, as_srun])
def test_processes_find_each_other(launched: Any) -> None:
    def body() -> tuple[int, list[int], str]:
        before = {name: os.environ.get(name) for name in FABRIC_LEAVES}
        with connect(Trainer("cpu"), "") as (device, processes):
            said = processes.size, processes.gather(processes.rank), str(device)
        assert {name: os.environ.get(name) for name in FABRIC_LEAVES} == before
        assert not torch.distributed.is_initialized()
        return said

    assert results(launched(body)) == [(2, [0, 1], "cpu")] * 2


class Failed(Exception):
    """What a process raises in these tests."""


@pytest.mark.parametrize(("backend", "leaves"), [("gloo", True), ("nccl", False)])
def test_a_process_that_fails_does_not_wait_for_the_others(backend: str, leaves: bool) -> None:
    def body() -> tuple[bool, str]:
        left: list[bool] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "get_backend", lambda: backend)
            patch.setattr(dist, "destroy_process_group", lambda: left.append(True))
            with pytest.raises(Failed), connect(Trainer("cpu"), ""):
                raise Failed
        try:
            with connect(Trainer("cpu"), ""):
                return bool(left), "joined again"
        except ProcessError as error:
            return bool(left), str(error)

    for left, said in results(as_torchrun(body)):
        assert left == leaves
        assert "start this run by a command of its own" in said


def test_one_process_is_alone() -> None:
    with connect(Trainer("cpu"), "") as (device, processes):
        assert (device.type, processes) == ("cpu", ALONE)


@pytest.mark.parametrize("devices", [1, 2])
def test_an_accelerator_that_is_not_here_is_refused(devices: int) -> None:
    with (
        pytest.raises(ConfigError, match=r"trainer\.accelerator=abacus.* cannot be used here"),
        connect(Trainer("abacus", devices=devices), ""),
    ):
        pass


def test_several_machines_need_to_know_where_to_meet() -> None:
    with (
        pytest.raises(ConfigError, match="needs MASTER_ADDR, MASTER_PORT and NODE_RANK"),
        connect(Trainer("cpu", num_nodes=2), ""),
    ):
        pass


def test_a_device_is_refused_by_the_name_its_user_gave() -> None:
    with pytest.raises(ConfigError, match="^--where=abacus cannot be used here"):
        choose_device("abacus", key="--where")


def test_who_waits_in_vain_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.01)
    with module._told_of_waiting(4):
        deadline = time.monotonic() + 60
        while "still waiting" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "still waiting for all 4 processes of this run to join" in caplog.text
    caplog.clear()
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 60.0)
    with module._told_of_waiting(4):
        pass
    assert caplog.text == ""
