"""What a run holds in memory at once, and the refusal of a run that does not fit.

Weights, hidden states and working space of the planned stages (`tyr/planner.py`) are put where
`model.offload` and the byte budgets send them; see `tyr/model/placement.py`. Counts lean upwards: a
budget that passes is enough. What the libraries take is not counted but looked up, as the resident
set of this process.

Letters: C hidden width, d input width of an output projection.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tyr.devices import free_bytes, pins_memory
from tyr.errors import ConfigError
from tyr.memory import available_bytes, rss_bytes
from tyr.model.placement import MemorySettings
from tyr.page_locked import page_locked_bytes

logger = logging.getLogger(__name__)

RESIDENT_BLOCKS = 2  # the one at work and the one that is read ahead
LIBRARIES = 150e6  # bytes that imports still to come and the allocator take, measured
SLACK = 20_000_000  # added to what a message recommends: the next process is not quite this size


@dataclass(frozen=True)
class WeightBytes:
    """Weights in compute precision.

    Args:
        outside: embeddings, final norm and vocabulary projection.
        block: one decoder block.
        blocks: how many there are.
    """

    outside: float
    block: float
    blocks: int

    @property
    def total(self) -> float:
        """All of them."""
        return self.outside + self.blocks * self.block


@dataclass(frozen=True)
class Held:
    """What one stage holds beside the dense weights, in the first process of a run.

    Args:
        working: bytes on the computing device that no setting moves away.
        states: hidden states.
        walking: hidden states of a walk, only there when blocks come and go.
        sliced: a pruned copy of the blocks, only there when they do not.
        others: what each other process holds meanwhile; None: as much as the first.
    """

    working: float
    states: float = 0.0
    walking: float = 0.0
    sliced: float = 0.0
    others: Held | None = None


NOTHING = Held(0.0)


@dataclass(frozen=True)
class Footprint:
    """Most bytes held at once by the processes of a run on one machine.

    Args:
        device: on a computing device; on a CPU device of all processes, on an accelerator of one.
        host: in host memory beside it, of all; on a CPU device that is the same memory.
        file: of hidden states in files, of all.
    """

    device: float
    host: float
    file: float

    @property
    def memory(self) -> float:
        """On a CPU device: all but what is in a file."""
        return self.device + self.host


def footprint(
    weights: WeightBytes,
    stages: Sequence[Held],
    memory: MemorySettings,
    device: torch.device,
    *,
    processes: int = 1,
) -> Footprint:
    """The largest of the stages, under the given settings.

    Args:
        weights: of the dense model, which every process has.
        stages: what they hold.
        memory: where weights and hidden states are kept, by each process.
        device: computing device.
        processes: of the run on this machine.
    """
    held = [placed(weights, stage, memory, device, processes=processes) for stage in stages]
    parts = zip(*((h.device, h.host, h.file) for h in held), strict=True)
    return Footprint(*(max(part) for part in parts))


def placed(
    weights: WeightBytes,
    stage: Held,
    memory: MemorySettings,
    device: torch.device,
    *,
    processes: int = 1,
) -> Footprint:
    """What one stage takes; arguments as in `footprint`."""
    first = _placed(weights, stage, memory, device)
    if processes == 1:
        return first
    other, more = _placed(weights, stage.others or stage, memory, device), processes - 1
    together = first.device + more * other.device
    return Footprint(
        together if device.type == "cpu" else max(first.device, other.device),
        first.host + more * other.host,
        first.file + more * other.file,
    )


def _placed(
    weights: WeightBytes, stage: Held, memory: MemorySettings, device: torch.device
) -> Footprint:
    """The same of one process."""
    offload = memory.on(device)
    offloaded = offload != "none"
    resident = min(weights.blocks, RESIDENT_BLOCKS) if offloaded else weights.blocks
    states = stage.states + (stage.walking if offloaded else 0.0)
    kept = min(states, _limit(memory.device_state_bytes))
    beside = min(states - kept, _limit(memory.host_state_bytes))
    working = stage.working + (0.0 if offloaded else stage.sliced)
    on_device = weights.outside + resident * weights.block + working + kept
    on_host = [weights.total if offload == "cpu" else 0.0, beside]
    if pins_memory(device):
        on_host = [page_locked_bytes(size) for size in on_host]
    return Footprint(on_device, sum(on_host), states - kept - beside)


def smallest_budget(needed: Footprint, device: torch.device, *, processes: int = 1) -> int:
    """The least `model.memory_budget` that a run with this footprint passes."""
    if device.type == "cpu":
        return int(needed.memory) + processes * (int(LIBRARIES) + rss_bytes())
    return int(needed.device)


def check_memory(
    weights: WeightBytes,
    stages: Sequence[Held],
    memory: MemorySettings,
    device: torch.device,
    *,
    processes: int = 1,
) -> None:
    """Refuse a run that needs more memory than it may have, before weights are read.

    Args:
        weights: see `footprint`, as the others.

    Raises:
        ConfigError: it does not fit; the message has the smallest budget that works.
    """
    asked, free = _Asked(weights, stages, device, processes), _free(device, processes)
    _check_given(asked, memory, free)
    budget = memory.memory_budget
    if budget is not None and free is not None and budget > free:
        logger.warning(
            "model.memory_budget is %s bytes, of which %s are free on %s: the system may end this "
            "run for want of memory",
            f"{budget:,.0f}",
            f"{free:,.0f}",
            device,
        )
    if device.type == "cpu":
        if processes > 1:  # the first takes most, and may have a limit
            _check_given(replace(asked, processes=1), memory, _free(device, 1))
        return
    beside, host = available_bytes(processes=processes), asked.needed(memory).host
    if beside is not None and host > beside:
        raise ConfigError(
            f"this run needs {host:,.0f} bytes of host memory beside {device}"
            f"{asked.together()} and {beside:,} are free: lower model.host_state_bytes, or use "
            f"model.offload=disk"
        )


def _check_given(asked: _Asked, memory: MemorySettings, free: float | None) -> None:
    """Compare with the budget, or with what is free if there is none.

    Raises:
        ConfigError: it is too little.
    """
    budget, device = memory.memory_budget, asked.device
    given = free if budget is None else budget
    if given is None or asked.smallest(memory) <= given:
        return
    least, rest = asked.least(memory), asked.shares(memory) + asked.alternatives(memory)
    if budget is None:
        raise ConfigError(
            f"the system has {given:,.0f} bytes free on {device}, but this run needs "
            f"{least:,}{rest}"
        )
    raise ConfigError(
        f"model.memory_budget is {given:,.0f} bytes on {device}, but this run needs {least:,}: "
        f"the smallest model.memory_budget that works{rest}"
    )


@dataclass(frozen=True)
class _Asked:
    """A run whose memory is checked, as the messages speak of it."""

    weights: WeightBytes
    stages: Sequence[Held]
    device: torch.device
    processes: int

    def needed(self, memory: MemorySettings) -> Footprint:
        """See `footprint`."""
        count = self.processes
        return footprint(self.weights, self.stages, memory, self.device, processes=count)

    def smallest(self, memory: MemorySettings) -> int:
        """The budget that passes now."""
        return smallest_budget(self.needed(memory), self.device, processes=self.processes)

    def least(self, memory: MemorySettings) -> int:
        """The budget to recommend, a little above."""
        return self.smallest(memory) + self.processes * SLACK

    def together(self) -> str:
        """Whose memory it is."""
        return "" if self.processes == 1 else f" for its {self.processes} processes together"

    def shares(self, memory: MemorySettings) -> str:
        """What of it one process needs."""
        if self.processes == 1:
            return ""
        if self.device.type != "cpu":
            return f", for each of its {self.processes} processes"
        one = replace(self, processes=1).least(memory)
        return f"{self.together()}, of which the first takes {one:,}"

    def alternatives(self, memory: MemorySettings) -> str:
        """What other settings would need."""
        streamed = replace(memory, offload="disk")
        filed = replace(streamed, device_state_bytes=0, host_state_bytes=0)
        word = "model.offload=disk"
        words = word, f"{word} model.device_state_bytes=0 model.host_state_bytes=0"
        shown, before = "", self.least(memory)
        for settings, word in zip((streamed, filed), words, strict=True):
            least = self.least(settings)
            if least < before:
                shown += f"; with {word}, {least:,}"
                before = least
        if self.processes > 1 and self.device.type == "cpu":
            shown += "; every process holds the model: lower trainer.devices"
        return shown or "; lower data.calibration_tokens, supernet.feature_bytes or batch_tokens"


def _free(device: torch.device, processes: int) -> float | None:
    """Bytes that the processes could take on the device in all, or None if nobody knows."""
    free = free_bytes(device, processes=processes)
    if free is None:
        return None
    return float(free + processes * rss_bytes()) if device.type == "cpu" else float(free)


def _limit(size: float | None) -> float:
    return float("inf") if size is None else float(size)
