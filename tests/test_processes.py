"""What processes say to each other, with two and three joined by gloo on this machine."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from tests.ranks import Gone, joined, results
from tyr.errors import ProcessError, StoreError
from tyr.processes import ALONE, Processes, ProcessGroup, _together


def exchange(processes: Processes) -> dict[str, Any]:
    """Everything that can be said, once."""
    total = torch.full((3,), float(processes.rank + 1), dtype=torch.float64)
    processes.add_up(total)
    halves = torch.full((2, 2), float(processes.rank), dtype=torch.bfloat16)
    processes.copy_from_first(halves.mT if processes.first else halves)
    called: list[int] = []

    def make() -> dict[str, int]:
        called.append(processes.rank)
        return {"from": processes.rank}

    said = processes.broadcast(make)
    alone = processes.alone(make)
    processes.barrier()
    return {
        "total": total.tolist(),
        "halves": halves.float().sum().item(),
        "gathered": processes.gather(("item", processes.rank)),
        "said": said,
        "alone": alone,
        "called": len(called),
        "share": processes.share(torch.arange(7)).tolist(),
    }


@pytest.mark.parametrize("size", [2, 3])
def test_processes_agree(size: int) -> None:
    heard = results(joined(exchange, size))
    for rank, one in enumerate(heard):
        assert one["total"] == [size * (size + 1) / 2] * 3
        assert one["halves"] == 0, "the first process's zeros"
        assert one["gathered"] == [("item", other) for other in range(size)]
        assert one["said"] == {"from": 0}
        assert one["alone"] == ({"from": 0} if rank == 0 else None)
        assert one["called"] == (2 if rank == 0 else 0)
    shares = [one["share"] for one in heard]
    assert [row for share in shares for row in share] == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_single_process_has_the_same_interface() -> None:
    one = exchange(ALONE)
    assert one["total"] == [1, 1, 1]
    assert one["gathered"] == [("item", 0)]
    assert (one["said"], one["alone"], one["called"]) == ({"from": 0}, {"from": 0}, 2)
    assert one["share"] == list(range(7))


@pytest.mark.parametrize("way", ["broadcast", "alone"])
def test_an_error_of_the_first_process_is_its_own_and_told_to_the_others(way: str) -> None:
    def body(processes: ProcessGroup) -> None:
        def fail() -> None:
            raise StoreError("the disk is full")

        getattr(processes, way)(fail)

    first, second = joined(body)
    assert isinstance(first, StoreError)
    assert isinstance(second, ProcessError)
    assert "the first process stopped" in str(second)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_is_missed_by_the_next_collective(victim: int) -> None:
    def body(processes: ProcessGroup) -> None:
        processes.barrier()
        if processes.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.add_up(torch.zeros(1000))
        processes.barrier()

    outcomes = joined(body)
    assert isinstance(outcomes[victim], Gone)
    assert isinstance(outcomes[1 - victim], ProcessError)
    assert "lost contact with another process" in str(outcomes[1 - victim])
    assert "continue with the same command and resume=true" in str(outcomes[1 - victim])


def test_a_backends_reason_is_told_without_the_place_in_its_source() -> None:
    raised = RuntimeError("[/a/pair.cc:553] Connection closed by peer [::1]:2. This is odd. Bye!")
    told = r"run \(Connection closed by peer \[::1\]:2\);"
    with pytest.raises(ProcessError, match=told), _together():
        raise raised
