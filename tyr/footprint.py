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

from tyr.devices import free_bytes
from tyr.errors import ConfigError
from tyr.memory import available_bytes, rss_bytes
from tyr.model.placement import MemorySettings

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
    on_host = (weights.total if offload == "cpu" else 0.0) + beside
    return Footprint(on_device, on_host, states - kept - beside)


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
    asked = _Asked(weights, stages, device, processes)
    needed = footprint(weights, stages, memory, device, processes=processes)
    given = _given(memory, device, processes)
    if given is not None and smallest_budget(needed, device, processes=processes) > given:
        least, rest = asked.least(memory), asked.shares(memory) + asked.alternatives(memory)
        if memory.memory_budget is None:
            raise ConfigError(
                f"the system has {given:,.0f} bytes free on {device}, but this run needs "
                f"{least:,}{rest}"
            )
        raise ConfigError(
            f"model.memory_budget is {given:,.0f} bytes on {device}, but this run needs {least:,}: "
            f"the smallest model.memory_budget that works{rest}"
        )
    free = _given(replace(memory, memory_budget=None), device, processes)
    if given is not None and free is not None and given > free:
        logger.warning(
            "model.memory_budget is %s bytes, of which %s are free on %s: the system may end this "
            "run for want of memory",
            f"{given:,.0f}",
            f"{free:,.0f}",
            device,
        )
    if processes > 1 and device.type == "cpu":
        check_memory(weights, stages, memory, device)  # the first takes most, and may have a limit
    beside = available_bytes(processes=processes)
    if device.type != "cpu" and beside is not None and needed.host > beside:
        raise ConfigError(
            f"this run needs {needed.host:,.0f} bytes of host memory beside {device}"
            f"{asked.together()} and {beside:,} are free: lower model.host_state_bytes, or use "
            f"model.offload=disk"
        )


@dataclass(frozen=True)
class _Asked:
    """A run whose memory is checked, as the messages speak of it."""

    weights: WeightBytes
    stages: Sequence[Held]
    device: torch.device
    processes: int

    def least(self, memory: MemorySettings, *, processes: int | None = None) -> int:
        """The smallest budget to recommend, a little above the one that passes now."""
        count = processes or self.processes
        needed = footprint(self.weights, self.stages, memory, self.device, processes=count)
        return smallest_budget(needed, self.device, processes=count) + count * SLACK

    def together(self) -> str:
        """Whose memory it is."""
        return "" if self.processes == 1 else f" for its {self.processes} processes together"

    def shares(self, memory: MemorySettings) -> str:
        """What of it one process needs."""
        if self.processes == 1:
            return ""
        if self.device.type != "cpu":
            return f", for each of its {self.processes} processes"
        one = self.least(memory, processes=1)
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


def _given(memory: MemorySettings, device: torch.device, processes: int) -> float | None:
    """Bytes that the processes may take on the device in all, or None if nobody knows."""
    if memory.memory_budget is not None:
        return memory.memory_budget
    free = free_bytes(device, processes=processes)
    if free is None:
        return None
    return float(free + processes * rss_bytes()) if device.type == "cpu" else float(free)


def _limit(size: float | None) -> float:
    return float("inf") if size is None else float(size)
