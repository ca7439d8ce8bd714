"""The processes of one run, and all they ever say to each other.

Work is shared by sequences or by candidates; what several processes must agree on, the first one
decides and tells the others. `ALONE` is the same interface for a single process. How processes come
to be is the business of trainer.py and spawn.py; nothing else in tyr calls torch.distributed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from tyr.errors import ProcessError, first_line

T = TypeVar("T")


class Processes(Protocol):
    """Every method but `first`, `rank` and `size` must be called by all processes alike."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def first(self) -> bool:
        """Whether this one decides and writes."""

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over processes; every process gets the same bits."""

    def copy_from_first(self, tensor: Tensor) -> None:
        """Overwrite a tensor, contiguous except in the first process, by the first one's."""

    def gather(self, item: T) -> list[T]:
        """Every process's item, by rank."""

    def broadcast(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process; it is called there only.

        Raises:
            ProcessError: it failed there (where its own error is raised).
        """

    def alone(self, act: Callable[[], T]) -> T | None:
        """Call `act` in the first process, wait for it elsewhere, where None is returned.

        Raises:
            ProcessError: see `broadcast`.
        """

    def barrier(self) -> None:
        """Wait until every process is here."""

    def share(self, sequences: Tensor) -> Tensor:
        """This process's part of the rows: contiguous, sizes differing by at most one."""


class OneProcess:
    """The only process of its run."""

    rank = 0
    size = 1
    first = True

    def add_up(self, tensor: Tensor) -> None:
        """Nothing to add."""

    def copy_from_first(self, tensor: Tensor) -> None:
        """It is the first."""

    def gather(self, item: T) -> list[T]:
        """The item."""
        return [item]

    def broadcast(self, make: Callable[[], T]) -> T:
        """Its result."""
        return make()

    def alone(self, act: Callable[[], T]) -> T | None:
        """Its result."""
        return act()

    def barrier(self) -> None:
        """No one to wait for."""

    def share(self, sequences: Tensor) -> Tensor:
        """All."""
        return sequences


ALONE = OneProcess()


class ProcessGroup:
    """The default group of torch.distributed, which must exist.

    A process that died is noticed when the others next need it: gloo sees its connections close.
    That surfaces as ProcessError, so that it is never taken for a fault of this process.
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    @property
    def first(self) -> bool:
        """See `Processes.first`."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> None:
        """See `Processes.add_up`."""
        with _together():
            dist.all_reduce(tensor)

    def copy_from_first(self, tensor: Tensor) -> None:
        """See `Processes.copy_from_first`. Sent as bytes: backends lack some number formats."""
        values = tensor.contiguous() if self.first else tensor
        with _together():
            dist.broadcast(values.view(-1).view(torch.uint8), src=0)

    def gather(self, item: T) -> list[T]:
        """See `Processes.gather`."""
        items: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(items, item)
        return items

    def broadcast(self, make: Callable[[], T]) -> T:
        """See `Processes.broadcast`."""
        return cast(T, self._lead(make, tell=True))

    def alone(self, act: Callable[[], T]) -> T | None:
        """See `Processes.alone`."""
        return self._lead(act, tell=False)

    def barrier(self) -> None:
        """See `Processes.barrier`."""
        with _together():
            dist.barrier()

    def share(self, sequences: Tensor) -> Tensor:
        """See `Processes.share`."""
        return sequences.tensor_split(self.size)[self.rank]

    def _lead(self, make: Callable[[], T], *, tell: bool) -> T | None:
        if not self.first:
            worked, made = self._sent((False, None))
            if not worked:
                raise ProcessError("the first process stopped", told=True)
            return cast("T | None", made)
        try:
            result = make()
        except Exception:
            with suppress(ProcessError):  # the error at hand says more than one in telling it
                self._sent((False, None))
            raise
        self._sent((True, result if tell else None))
        return result

    def _sent(self, message: tuple[bool, Any]) -> tuple[bool, Any]:
        """The first process's message."""
        box: list[Any] = [message]
        with _together():
            dist.broadcast_object_list(box, src=0)
        return cast("tuple[bool, Any]", box[0])


@contextmanager
def _together() -> Iterator[None]:
    """Report what a collective raises as the loss of a process, with the backend's reason."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            f"lost contact with another process of this run ({_reason(error)}); the one that died "
            f"says why, or who started it; continue with the same command and resume=true"
        ) from error


def _reason(error: RuntimeError) -> str:
    """The backend's first sentence, without the place in its source."""
    return re.sub(r"^\[\S+:\d+\]\s*", "", first_line(error)).split(". ")[0]
