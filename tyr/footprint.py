"""What a run holds in memory at once, and the refusal of a run that does not fit.

Weights, hidden states and working space of the planned stages (`tyr/planner.py`) are put where
`model.offload` and the byte budgets send them; see `tyr/model/placement.py`. Counts lean upwards: a
budget that passes is enough. What the libraries take is not counted but looked up, as the resident
set of this process.

Letters: C hidden width, d input width of an output projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tyr.cost import Shape
from tyr.devices import free_bytes
from tyr.errors import ConfigError
from tyr.memory import available_bytes, rss_bytes
from tyr.model.placement import MemorySettings

SOLVE_BYTES = 8  # float64 on CPU; on accelerators factorisations take 4, which this overstates
RESIDENT_BLOCKS = 2  # the one at work and the one that is read ahead
EVALUATION_BATCH = 8192  # positions; evaluators say it themselves only when they run
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
    """What one stage holds beside the dense weights.

    Args:
        working: bytes on the computing device that no setting moves away.
        states: hidden states.
        walking: hidden states of a walk, only there when blocks come and go.
        sliced: a pruned copy of the blocks, only there when they do not.
    """

    working: float
    states: float = 0.0
    walking: float = 0.0
    sliced: float = 0.0


NOTHING = Held(0.0)


@dataclass(frozen=True)
class Footprint:
    """Most bytes held at once.

    Args:
        device: on the computing device.
        host: in host memory beside it; on a CPU device that is the same memory.
        file: of hidden states in a file.
    """

    device: float
    host: float
    file: float

    @property
    def memory(self) -> float:
        """On a CPU device: all but what is in a file."""
        return self.device + self.host


def footprint(
    weights: WeightBytes, stages: Sequence[Held], memory: MemorySettings, device: torch.device
) -> Footprint:
    """The largest of the stages, under the given settings."""
    offload = memory.on(device)
    offloaded = offload != "none"
    resident = min(weights.blocks, RESIDENT_BLOCKS) if offloaded else weights.blocks
    on_device = weights.outside + resident * weights.block
    on_host = weights.total if offload == "cpu" else 0.0
    held = []
    for stage in stages:
        states = stage.states + (stage.walking if offloaded else 0.0)
        kept = min(states, _limit(memory.device_state_bytes))
        beside = min(states - kept, _limit(memory.host_state_bytes))
        working = stage.working + (0.0 if offloaded else stage.sliced)
        rest = states - kept - beside
        held.append(Footprint(on_device + working + kept, on_host + beside, rest))
    parts = zip(*((h.device, h.host, h.file) for h in held), strict=True)
    return Footprint(*(max(part) for part in parts))


def smallest_budget(needed: Footprint, device: torch.device) -> int:
    """The least `model.memory_budget` that a run with this footprint passes."""
    if device.type == "cpu":
        return int(needed.memory + LIBRARIES) + rss_bytes()
    return int(needed.device)


def check_memory(
    weights: WeightBytes, stages: Sequence[Held], memory: MemorySettings, device: torch.device
) -> None:
    """Refuse a run that needs more memory than it may have, before weights are read.

    Raises:
        ConfigError: it does not fit; the message has the smallest budget that works.
    """
    needed = footprint(weights, stages, memory, device)
    least = smallest_budget(needed, device)
    given = _given(memory, device)
    if given is not None and least > given:
        whose = "the system has" if memory.memory_budget is None else "model.memory_budget is"
        raise ConfigError(
            f"{whose} {given:,.0f} bytes on {device}, but this run needs {least + SLACK:,}: the "
            f"smallest model.memory_budget that works"
            f"{_alternatives(weights, stages, memory, device)}"
        )
    beside = available_bytes()
    if device.type != "cpu" and beside is not None and needed.host > beside:
        raise ConfigError(
            f"this run needs {needed.host:,.0f} bytes of host memory beside {device} and "
            f"{beside:,} are free: lower model.host_state_bytes, or use model.offload=disk"
        )


def _given(memory: MemorySettings, device: torch.device) -> float | None:
    """Bytes that the process may take on the device in all, or None if nobody knows."""
    if memory.memory_budget is not None:
        return memory.memory_budget
    free = free_bytes(device)
    if free is None:
        return None
    return float(free + rss_bytes()) if device.type == "cpu" else float(free)


def _alternatives(
    weights: WeightBytes, stages: Sequence[Held], memory: MemorySettings, device: torch.device
) -> str:
    """What other settings would need, for the message."""
    streamed = replace(memory, offload="disk")
    filed = replace(streamed, device_state_bytes=0, host_state_bytes=0)
    word = "model.offload=disk"
    words = word, f"{word} model.device_state_bytes=0 model.host_state_bytes=0"
    shown, before = "", smallest_budget(footprint(weights, stages, memory, device), device)
    for settings, word in zip((streamed, filed), words, strict=True):
        least = smallest_budget(footprint(weights, stages, settings, device), device)
        if least < before:
            shown += f"; with {word}, {least + SLACK:,}"
            before = least
    return shown or "; lower data.calibration_tokens, supernet.feature_bytes or batch_tokens"


def _limit(size: float | None) -> float:
    return float("inf") if size is None else float(size)


def activation_bytes(shape: Shape, tokens: int, itemsize: int) -> float:
    """A batch inside a sublayer at its widest: gate, up, their product and their parts."""
    ffn = 4 * shape.ffn
    attention = 4 * (shape.heads + shape.kv_heads) * shape.head_size
    return float(tokens * (max(ffn, attention) + 4 * shape.hidden) * itemsize)


def logit_bytes(shape: Shape, tokens: int, device_type: str) -> float:
    """One chunk of positions: logits, log-probabilities and their parts, float32."""
    elements = 1 << 21 if device_type == "cpu" else 1 << 27  # tyr/losses.py
    return 4.0 * 4 * min(max(elements, shape.vocabulary), tokens * shape.vocabulary)


def solving_bytes(
    shape: Shape, width: int, kept: Sequence[float], *, storage: int, corrected: bool
) -> float:
    """Statistics of one sublayer, the greedy pass, and the structures of all levels.

    Args:
        shape: sizes of the decoder.
        width: d.
        kept: fraction of the units that each level keeps.
        storage: bytes of a stored value.
        corrected: whether the moments with the dense stream are there too.
    """
    square, tall = width**2, width * shape.hidden
    moments = SOLVE_BYTES * ((2 * square + tall) if corrected else square)
    solve = SOLVE_BYTES * (4 * square + 3 * tall)
    levels = (SOLVE_BYTES + 2 * storage) * tall * sum(kept)
    return float(moments + solve + levels)


def held_to_measure(
    shape: Shape, tokens: int, itemsize: int, *, device_type: str, pruned: float | None = None
) -> Held:
    """Measuring the dense model, or a pruned one beside it.

    Args:
        shape: sizes of the decoder.
        tokens: of the evaluation text.
        itemsize: bytes of a value in compute precision.
        device_type: of the computing device.
        pruned: fraction of the blocks' weights that the pruned model has.
    """
    batch = min(tokens, EVALUATION_BATCH)
    working = activation_bytes(shape, batch, itemsize) + logit_bytes(shape, batch, device_type)
    models = 1 if pruned is None else 2
    sliced = shape.blocks * shape.block_parameters * itemsize * (pruned or 0.0)
    return Held(working, walking=float(models * tokens * shape.hidden * itemsize), sliced=sliced)
