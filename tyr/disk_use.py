"""What a run has on disk at once, counted before it runs.

Follows what `pipeline.py` writes and deletes: the supernet of an iteration goes when the next one
is complete, the structures of the finish and of the uniform baseline when the run ends. Small state
files, figures, headers of tensor files and the random weights of `model=random` are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tyr.cost import Shape
from tyr.sparsity import LevelGrid, stream_order

INDEX_BYTES = 4  # of a kept unit


@dataclass(frozen=True)
class DiskUse:
    """Most bytes on disk at once.

    Args:
        bytes: of structures, exported model and hidden states.
        moment: when, e.g. `while supernet 2 is built beside the one before it`.
    """

    bytes: float
    moment: str


def supernet_bytes(shape: Shape, grid: LevelGrid, itemsize: int) -> int:
    """All structures of a grid: kept columns and the indices of kept units.

    Args:
        shape: sizes of the decoder.
        grid: levels of an iteration.
        itemsize: bytes of a stored value.
    """
    total = 0
    for sublayer in stream_order(shape.blocks):
        units = grid.units[sublayer]
        column = shape.inputs(sublayer.kind) // units * shape.hidden * itemsize
        for removed in grid.levels(sublayer).values():
            total += (units - removed) * (column + INDEX_BYTES)
    return total


def most_on_disk(
    supernets: Sequence[float],
    single: float,
    *,
    prunings: int,
    keep: str,
    exported: float,
    states: Mapping[str, float],
) -> DiskUse:
    """The largest of the moments of a run.

    Args:
        supernets: bytes of each iteration's.
        single: bytes of a supernet with one level per sublayer.
        prunings: how many of those are there before the export.
        keep: `supernet.keep`.
        exported: bytes of the exported model.
        states: bytes of hidden states in files, by the name of the stage.
    """
    moments = list(_searching(supernets, keep, states))
    left = sum(supernets) if keep == "all" else sum(supernets[-1:])
    left += prunings * single
    walked = max(states.get("finish", 0.0), states.get("evaluation", 0.0))
    moments += [
        DiskUse(left + walked, "while the pruned models are evaluated"),
        DiskUse(left + exported, "while the pruned model is exported"),
    ]
    return max(moments, key=lambda moment: moment.bytes)


def _searching(
    supernets: Sequence[float], keep: str, states: Mapping[str, float]
) -> Iterator[DiskUse]:
    """Building each supernet, and searching it."""
    there = 0.0
    for number, new in enumerate(supernets, start=1):
        before = "those" if keep == "all" and number > 2 else "the one"
        beside = f" beside {before} before it" if number > 1 else ""
        built = there + new + states.get("supernet", 0.0)
        yield DiskUse(built, f"while supernet {number} is built{beside}")
        there = there + new if keep == "all" else new
        yield DiskUse(there + states.get("search", 0.0), f"while supernet {number} is searched")
