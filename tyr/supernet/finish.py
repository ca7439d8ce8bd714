"""The last step of Algorithm 4, `compress`: from the found allocation to one structure each.

`supernet` takes the structures as the search saw them (the paper). `repruned` walks the calibration
stream once more along the chosen path with complete accumulation, so every sublayer is solved for
exactly the input it will get.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tyr.errors import ConfigError
from tyr.events import silent
from tyr.model.sublayer import Structure
from tyr.sparsity import Allocation, LevelGrid, SublayerId, UnitCounts
from tyr.supernet.accumulation import CompleteAccumulation
from tyr.supernet.builder import Report, SupernetBuilder
from tyr.supernet.store import SupernetStore

Reader = Callable[[SublayerId], Structure]


@dataclass(frozen=True)
class BuiltSupernet:
    """A complete supernet with its grid."""

    store: SupernetStore
    grid: LevelGrid


@dataclass(frozen=True)
class Found:
    """What a finish has to work with.

    Args:
        builder: walks the calibration stream.
        allocation: removed units of every sublayer.
        supernet: the last iteration's, or None when nothing was searched.
        directory: where structures made here go.
        report: called after each sublayer.
    """

    builder: SupernetBuilder
    allocation: Allocation
    supernet: BuiltSupernet | None
    directory: Path
    report: Report = silent


class Finish(Protocol):
    """Turns an allocation into structures."""

    name: str
    prunes: bool  # whether sublayers are pruned, and reported, once more
    compare: bool  # also evaluate what the other way of finishing gives

    def other(self) -> Finish:
        """The other way, for comparison."""

    def assemble(self, found: Found) -> Reader:
        """A reader of the final structures."""


def single_level_grid(units: UnitCounts, allocation: Allocation) -> LevelGrid:
    """A grid whose only level is the allocation itself."""
    return LevelGrid(units, allocation, {"attn": 1, "ffn": 1}, half_width=0)


def read_allocation(supernet: BuiltSupernet, allocation: Allocation) -> Reader:
    """Reader of the structures of an allocation that lies on the supernet's grid."""
    grid = supernet.grid

    def read(sublayer: SublayerId) -> Structure:
        shift = allocation[sublayer] - grid.centre[sublayer]
        level, rest = divmod(shift, grid.step[sublayer.kind])
        if rest:
            raise ValueError(f"{sublayer.name}: {allocation[sublayer]} units is not a level")
        return supernet.store.read(sublayer, [level])[level]

    return read


def prune_along(
    builder: SupernetBuilder,
    grid: LevelGrid,
    directory: Path,
    *,
    label: str = "local",
    report: Report = silent,
) -> Reader:
    """Plain local pruning to one level per sublayer, with complete accumulation."""
    accumulation = CompleteAccumulation()
    store = builder.open_store(directory, grid, label=label, accumulation=accumulation)
    builder.build(store, grid, accumulation=accumulation, label=label, report=report)
    return lambda sublayer: store.read(sublayer, [0])[0]


class Repruned:
    """Prune once more along the chosen path (design, "Finish").

    Args:
        compare: also evaluate the structures as the supernet holds them.
    """

    name = "repruned"
    prunes = True

    def __init__(self, *, compare: bool = True) -> None:
        self.compare = compare

    def other(self) -> Finish:
        """See `Finish.other`."""
        return FromSupernet()

    def assemble(self, found: Found) -> Reader:
        """See `Finish.assemble`."""
        grid = single_level_grid(found.builder.units, found.allocation)
        return prune_along(
            found.builder, grid, found.directory, label="finish", report=found.report
        )


class FromSupernet:
    """Take the structures as the search saw them (the paper).

    Args:
        compare: also prune along the chosen path and evaluate that.
    """

    name = "supernet"
    prunes = False

    def __init__(self, *, compare: bool = True) -> None:
        self.compare = compare

    def other(self) -> Finish:
        """See `Finish.other`."""
        return Repruned()

    def assemble(self, found: Found) -> Reader:
        """See `Finish.assemble`.

        Raises:
            ConfigError: nothing was searched, so there is no supernet.
        """
        if found.supernet is None:
            raise ConfigError("finish=supernet needs iterations >= 1; use finish=repruned")
        return read_allocation(found.supernet, found.allocation)
