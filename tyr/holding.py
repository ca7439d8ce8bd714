"""What each stage of a run holds in memory beside the dense weights, counted before it runs.

Counts lean upwards. Where each part goes is decided in `tyr/footprint.py`. Of several processes
each has its share of the calibration text and of a stage's positions, the whole search text's
states, and the moments of a sublayer; the first alone factorises, solves and measures.

Letters: C hidden width, d input width of an output projection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tyr.cost import Shape
from tyr.data import SplitSizes
from tyr.footprint import NOTHING, Held
from tyr.search.counts import Call
from tyr.sparsity import KINDS
from tyr.supernet.builder import EVEN
from tyr.supernet.settings import SupernetSettings

SOLVE_BYTES = 8  # float64 on CPU; on accelerators factorisations take 4, which this overstates
EVALUATION_BATCH = 8192  # positions; evaluators say it themselves only when they run


@dataclass(frozen=True)
class Workload:
    """What all stages work on.

    Args:
        shape: sizes of the decoder.
        sizes: tokens of the splits.
        storage: bytes of a stored value.
        compute: bytes of a value in compute precision.
        device_type: of the computing device.
        processes: that share the work, on all machines.
    """

    shape: Shape
    sizes: SplitSizes
    storage: int
    compute: int
    device_type: str
    processes: int = 1

    @property
    def search_states(self) -> float:
        """Bytes of one hidden state of the whole search text."""
        positions = self.sizes.windows("search") * self.sizes.sequence_length
        return float(positions * self.shape.hidden * self.compute)


def calibration_share(sizes: SplitSizes, batch_tokens: int, processes: int) -> int:
    """Most calibration tokens of one process, as `tyr.supernet.builder.shard` deals them out."""
    windows, length = sizes.windows("calibration"), sizes.sequence_length
    batch = max(1, batch_tokens // length)
    batches = _share(windows, batch)
    if batches % processes and batches < EVEN * processes:
        return _share(windows, processes) * length
    return min(windows, _share(batches, processes) * batch) * length


def held_to_measure(load: Workload, *, pruned: float | None = None) -> Held:
    """Measuring the dense model, or a pruned one beside it; one process does it.

    Args:
        load: what all stages work on.
        pruned: fraction of the blocks' weights that the pruned model has.
    """
    shape, tokens = load.shape, load.sizes.evaluation_tokens
    batch = min(tokens, EVALUATION_BATCH)
    working = activation_bytes(shape, batch, load.compute)
    working += logit_bytes(shape, batch, load.device_type)
    models = 1 if pruned is None else 2
    sliced = shape.blocks * shape.block_parameters * load.compute * (pruned or 0.0)
    walking = float(models * tokens * shape.hidden * load.compute)
    return Held(working, walking=walking, sliced=sliced, others=NOTHING)


def held_to_prune(
    load: Workload, settings: SupernetSettings, kept: Sequence[float], *, corrected: bool
) -> Held:
    """One walk of the calibration stream with a greedy pass at every sublayer.

    Args:
        load: what all stages work on.
        settings: of the walk.
        kept: fraction of the units that each level keeps.
        corrected: whether the target needs a dense stream beside the pruned one.
    """
    shape, streams = load.shape, 2 if corrected else 1
    tokens = calibration_share(load.sizes, settings.batch_tokens, load.processes)
    widest = max(shape.inputs(kind) for kind in KINDS)
    working = float(streams * min(settings.feature_bytes, tokens * widest * load.compute))
    working += activation_bytes(shape, min(tokens, settings.batch_tokens), load.compute)
    working += moment_bytes(widest, shape.hidden, corrected=corrected)
    states = float(streams * tokens * shape.hidden * load.compute)
    passed = float(widest * shape.hidden * load.compute)  # the mixed weight, sent by the first
    solving = solving_bytes(shape, widest, kept, storage=load.storage)
    return Held(working + solving, states, others=Held(working + passed, states))


def held_to_search(
    load: Workload,
    calls: Iterable[Call],
    kept: Sequence[float],
    *,
    batch_tokens: int,
    observed: int,
    by_sequence: bool,
) -> Held:
    """A population between two sublayers, two structures, and the teacher's states.

    Args:
        load: what all stages work on.
        calls: of the evaluator.
        kept: fraction of the units that each level keeps.
        batch_tokens: most positions in one forward call.
        observed: blocks whose dense states the objective needs.
        by_sequence: whether processes may share a call's sequences; else they share candidates.
    """
    shape = load.shape
    frontier, largest = 0, 0
    for call in calls:
        rows = call.num_tokens // call.length
        candidates, tokens = call.candidates, call.num_tokens
        if by_sequence and rows >= load.processes:
            tokens = _share(rows, load.processes) * call.length
        else:
            candidates = _share(candidates, load.processes)
        frontier = max(frontier, (candidates + 1) * tokens)  # a state is copied where ways part
        largest = max(largest, tokens)
    working = float(frontier * shape.hidden * load.compute)
    working += logit_bytes(shape, largest, load.device_type)
    working += activation_bytes(shape, min(largest, batch_tokens), load.compute)
    sliced = shape.block_parameters * load.compute * max(kept)
    widest = max(shape.inputs(kind) for kind in KINDS)
    stored = 2 * widest * shape.hidden * load.storage * max(kept)  # this level's and the next one's
    states = load.search_states
    return Held(working + sliced + stored, (1 + observed) * states, walking=states)


def beside(held: Held, states: float) -> Held:
    """The same with hidden states that every process still has from an earlier stage."""
    others = held.others and beside(held.others, states)
    return replace(held, states=held.states + states, others=others)


def also_working(held: Held, size: float) -> Held:
    """The same with `size` bytes more at hand, in every process."""
    others = held.others and also_working(held.others, size)
    return replace(held, working=held.working + size, others=others)


def larger(first: Held, second: Held) -> Held:
    """The most of two things that a stage does one after the other."""
    states = max(first.states, second.states)
    walking = max(first.states + first.walking, second.states + second.walking) - states
    others = None
    if first.others or second.others:
        pair = [replace(held.others or held, others=None) for held in (first, second)]
        others = larger(*pair)
    return Held(
        max(first.working, second.working),
        states,
        walking=walking,
        sliced=max(first.sliced, second.sliced),
        others=others,
    )


def activation_bytes(shape: Shape, tokens: int, itemsize: int) -> float:
    """A batch inside a sublayer at its widest: gate, up, their product and their parts."""
    ffn = 4 * shape.ffn
    attention = 4 * (shape.heads + shape.kv_heads) * shape.head_size
    return float(tokens * (max(ffn, attention) + 4 * shape.hidden) * itemsize)


def logit_bytes(shape: Shape, tokens: int, device_type: str) -> float:
    """One chunk of positions: logits, log-probabilities and their parts, float32."""
    elements = 1 << 21 if device_type == "cpu" else 1 << 27  # tyr/losses.py
    return 4.0 * 4 * min(max(elements, shape.vocabulary), tokens * shape.vocabulary)


def moment_bytes(width: int, hidden: int, *, corrected: bool) -> float:
    """Statistics of one sublayer: (d, d), and with a dense stream another and (d, C)."""
    square, tall = width**2, width * hidden
    return float(SOLVE_BYTES * ((2 * square + tall) if corrected else square))


def solving_bytes(shape: Shape, width: int, kept: Sequence[float], *, storage: int) -> float:
    """The greedy pass of one sublayer, and the structures of all levels.

    Args:
        shape: sizes of the decoder.
        width: d.
        kept: fraction of the units that each level keeps.
        storage: bytes of a stored value.
    """
    square, tall = width**2, width * shape.hidden
    solve = SOLVE_BYTES * (4 * square + 4 * tall)
    levels = (SOLVE_BYTES + 2 * storage) * tall * sum(kept)
    return float(solve + levels)


def _share(things: int, parts: int) -> int:
    """The largest of nearly equal parts."""
    return -(-things // parts)
