"""Integer bookkeeping of sparsity: units, budgets, allocations and the grid of levels.

Section 2.4 and Algorithm 4 (`generateSparsities`) of the paper speak of fractions; tyr counts units
and derives the fraction last, so a budget is met to the unit and every sparsity shift conserves it.
Which counts a block may keep at all is the layout's to say (`layout.py`). Nothing here knows about
tensors, models or files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Literal

from tyr.budget import (
    check_sparsity,
    even_spread,
    exact_fraction,
    nearest_sparsities,
    unit_budget,
)
from tyr.errors import ConfigError
from tyr.layout import FREE, Layout

Kind = Literal["attn", "ffn"]
KINDS: tuple[Kind, ...] = ("attn", "ffn")


@dataclass(frozen=True)
class SublayerId:
    """Names one attention or FFN module: `SublayerId(3, "attn")` is `003.attn`."""

    block: int
    kind: Kind

    @property
    def name(self) -> str:
        """File-safe name that sorts in stream order."""
        return f"{self.block:03d}.{self.kind}"

    @property
    def index(self) -> int:
        """Position in the stream: attention of a block comes before its FFN."""
        return 2 * self.block + KINDS.index(self.kind)


def stream_order(num_blocks: int) -> tuple[SublayerId, ...]:
    """Every sublayer of a model in the order the hidden states pass through them."""
    return tuple(SublayerId(block, kind) for block in range(num_blocks) for kind in KINDS)


@dataclass(frozen=True)
class UnitCounts:
    """A number of units for every sublayer: how many exist, may go, or are removed.

    Args:
        attn: one count per block, in attention units (query heads or KV groups).
        ffn: one count per block, in FFN neurons.
    """

    attn: tuple[int, ...]
    ffn: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.attn) != len(self.ffn):
            raise ConfigError(
                f"a count per block is needed for both kinds, got {len(self.attn)} for attn "
                f"and {len(self.ffn)} for ffn"
            )

    @property
    def num_blocks(self) -> int:
        """Number of decoder blocks."""
        return len(self.attn)

    def of(self, kind: Kind) -> tuple[int, ...]:
        """The counts of one kind, one per block."""
        return self.attn if kind == "attn" else self.ffn

    def __getitem__(self, sublayer: SublayerId) -> int:
        return self.of(sublayer.kind)[sublayer.block]

    def __iter__(self) -> Iterator[int]:
        """Counts in stream order."""
        return (self[sublayer] for sublayer in stream_order(self.num_blocks))

    @property
    def total(self) -> dict[Kind, int]:
        """Sum over the blocks, per kind."""
        return {kind: sum(self.of(kind)) for kind in KINDS}

    def as_dict(self) -> dict[str, list[int]]:
        """Plain lists, for JSON."""
        return {kind: list(self.of(kind)) for kind in KINDS}

    @classmethod
    def from_dict(cls, counts: Mapping[str, Sequence[int]]) -> UnitCounts:
        """Inverse of `as_dict`."""
        return cls(attn=tuple(counts["attn"]), ffn=tuple(counts["ffn"]))

    @classmethod
    def from_stream(cls, counts: Sequence[int]) -> UnitCounts:
        """Counts given in stream order (attention, FFN, attention, ...)."""
        return cls(attn=tuple(counts[0::2]), ffn=tuple(counts[1::2]))


# An allocation is the number of units removed from every sublayer.
Allocation = UnitCounts


def uniform_allocation(sparsity: float, units: UnitCounts, layout: Layout = FREE) -> Allocation:
    """The isotropic allocation: every block loses as many units, to the nearest granule.

    An aligned layout cannot meet every budget; the nearest one it can meet is taken, at most half a
    granule away. `budget_notes` says so.

    Args:
        sparsity: fraction of the units of each kind to remove.
        units: units that exist.
        layout: what every block must keep.

    Raises:
        ConfigError: the sparsity is out of range or not to be had under the layout.
    """
    check_sparsity(sparsity)
    spread: dict[Kind, tuple[int, ...]] = {}
    for kind in KINDS:
        widths = units.of(kind)
        budget = layout.reach(kind, widths).nearest(unit_budget(sparsity, sum(widths)))
        if budget is None:
            raise ConfigError(_unreachable(sparsity, units, layout, kind))
        granule = layout.granule(kind)
        ranges = [layout.removable(kind, block, width) for block, width in enumerate(widths)]
        granules = (budget - sum(r[0] for r in ranges)) // granule
        extra = even_spread(granules, [len(r) - 1 for r in ranges])
        spread[kind] = tuple(r[count] for r, count in zip(ranges, extra, strict=True))
    return Allocation(attn=spread["attn"], ffn=spread["ffn"])


def _unreachable(sparsity: float, units: UnitCounts, layout: Layout, kind: Kind) -> str:
    """Why a sparsity cannot be had, and which can."""
    reaches = {k: layout.reach(k, units.of(k)) for k in KINDS}
    budgets, total = reaches[kind].budgets, units.total[kind]
    asked = unit_budget(sparsity, total)
    offers = nearest_sparsities(exact_fraction(sparsity), list(reaches.values()))
    if asked > budgets[-1]:
        why, bound = f"at most {budgets[-1]} can go", "at most"
        if budgets[-1] == total - 1 and kind == "attn":
            why += " (block 0 keeps one attention unit for the KV cache)"
    elif asked < budgets[0]:
        why, bound = f"at least {budgets[0]} must go", "at least"
    else:
        why = f"all {units.num_blocks} blocks shall lose as many, in steps of {budgets.step} in all"
        bound = "one of"
    ask = "the nearest reachable:" if layout.equal_blocks else f"ask for {bound}"
    offered = " and ".join(f"{offer:.12g}" for offer in offers)
    remedy = f"{ask} {offered}" if offers else "no sparsity is reachable for both kinds"
    return (
        f"sparsity {sparsity} is not reachable: it removes {asked} of {total} {kind} units, but "
        f"{why}; {remedy}{layout.binding()}"
    )


def budget_notes(sparsity: float, units: UnitCounts, removed: Allocation) -> list[str]:
    """A sentence for every kind whose budget is not the one the sparsity asks for."""
    notes = []
    for kind in KINDS:
        total, met = units.total[kind], removed.total[kind]
        asked = unit_budget(sparsity, total)
        if met != asked:
            notes.append(
                f"sparsity {sparsity} asks for {asked} of {total} {kind} units; the nearest budget "
                f"the layout can meet is {met} ({met / total:.4g}), and that is removed"
            )
    return notes


def sparsity_of(removed: UnitCounts, units: UnitCounts, kind: Kind) -> list[float]:
    """Fraction removed in every block, for plots and logs; never used to decide anything."""
    return [gone / most for gone, most in zip(removed.of(kind), units.of(kind), strict=True)]


@dataclass(frozen=True)
class LevelGrid:
    """The levels of every sublayer in one iteration: `centre + level * step` removed units.

    One step is the same number of units for all sublayers of a kind, so moving one step from one
    sublayer to another conserves the budget exactly. Levels that the layout does not allow do not
    exist; the others have no gaps, so a search needs to know only the lowest and the highest.
    Algorithm 4 `generateSparsities`, in integers.

    Args:
        units: units that exist.
        centre: removed units at level 0.
        step: units per level, per kind, at least 1.
        half_width: levels on each side of the centre (the paper's nine levels: 4).
        layout: what every block must keep; centre and step are made for the same one.
    """

    units: UnitCounts
    centre: Allocation
    step: Mapping[Kind, int]
    half_width: int = 4
    layout: Layout = FREE

    def levels(self, sublayer: SublayerId) -> dict[int, int]:
        """Level to removed units, ascending, for the levels this sublayer has."""
        allowed = self.layout.removable(sublayer.kind, sublayer.block, self.units[sublayer])
        step, centre = self.step[sublayer.kind], self.centre[sublayer]
        reach = range(-self.half_width, self.half_width + 1)
        return {e: centre + e * step for e in reach if centre + e * step in allowed}

    def bounds(self) -> tuple[tuple[int, int], ...]:
        """Lowest and highest level of every sublayer, in stream order."""
        grids = (self.levels(sublayer) for sublayer in stream_order(self.units.num_blocks))
        return tuple((min(grid), max(grid)) for grid in grids)

    def allocation(self, levels: Sequence[int]) -> Allocation:
        """Removed units of a level vector given in stream order."""
        order = stream_order(self.units.num_blocks)
        return Allocation.from_stream(
            [self.centre[s] + e * self.step[s.kind] for s, e in zip(order, levels, strict=True)]
        )

    def as_dict(self) -> dict[str, object]:
        """What identifies the grid, for manifests."""
        return {
            "units": self.units.as_dict(),
            "centre": self.centre.as_dict(),
            "step": dict(self.step),
            "half_width": self.half_width,
            "layout": asdict(self.layout),
        }


def level_steps(
    interval: float, iteration: int, units: UnitCounts, layout: Layout = FREE
) -> dict[Kind, int]:
    """Units per level in an iteration: the interval halves each time, but never below one granule.

    Rounded down to whole granules, so that nine levels around 50 % fit, unless levels are less than
    a granule apart. See experiments/DEVIATIONS.md on why the interval is a whole number of units.

    Args:
        interval: sparsity step of the first iteration (paper: 0.125).
        iteration: 0 for the first.
        units: units that exist.
        layout: how many units go together.

    Raises:
        ConfigError: the interval is out of range, or finer than half a granule in iteration 0.
    """
    if not 0 < interval <= 0.5:
        raise ConfigError(f"supernet.interval must be in (0, 0.5], got {interval}")
    steps: dict[Kind, int] = {}
    for kind in KINDS:
        width, granule = min(units.of(kind)), layout.granule(kind)
        first = exact_fraction(interval) * width
        if first < Fraction(granule, 2):
            least = math.ceil(Fraction(granule * 10**4, 2 * width)) / 10**4
            one = f"one {kind} unit" if granule == 1 else f"{granule} {kind} units"
            raise ConfigError(
                f"the level grid is finer than {one}: supernet.interval={interval} of "
                f"{width} units is {float(first):.3g}; use at least {least:g}"
            )
        steps[kind] = max(1, int(first / 2**iteration / granule)) * granule
    return steps
