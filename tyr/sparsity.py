"""Integer bookkeeping of sparsity: units, budgets, allocations and the grid of levels.

Section 2.4 and Algorithm 4 (`generateSparsities`) of the paper speak of fractions; tyr counts units
and derives the fraction last, so a budget is met to the unit and every sparsity shift conserves it.
Nothing here knows about tensors, models or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from tyr.errors import ConfigError

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


def exact_fraction(sparsity: float) -> Fraction:
    """The decimal the user wrote, not its binary neighbour: `exact_fraction(0.3) == 3/10`."""
    return Fraction(repr(float(sparsity)))


def check_sparsity(sparsity: float) -> None:
    """Raise ConfigError unless the sparsity is a fraction in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise ConfigError(
            f"sparsity must be in [0, 1), got {sparsity}: it is the fraction of heads and of FFN "
            f"neurons to remove, so 50 % is sparsity=0.5"
        )


def unit_budget(sparsity: float, total_units: int) -> int:
    """Units to remove out of `total_units`, rounded half up in exact arithmetic."""
    return int(exact_fraction(sparsity) * total_units + Fraction(1, 2))


def even_spread(budget: int, removable: Sequence[int]) -> tuple[int, ...]:
    """Spread a budget over blocks as evenly as the blocks allow.

    Extra units of an inexact division go to evenly spaced blocks, and what a full block cannot give
    up is taken from the others.

    Args:
        budget: units to remove in all.
        removable: most units each block may lose.

    Raises:
        ConfigError: the budget exceeds what is removable.
    """
    if budget > sum(removable):
        raise ConfigError(f"cannot remove {budget} units: only {sum(removable)} are removable")
    removed = [0] * len(removable)
    while (left := budget - sum(removed)) > 0:
        open_blocks = [b for b, most in enumerate(removable) if removed[b] < most]
        count = len(open_blocks)
        for position, block in enumerate(open_blocks):
            # Whole rounds first: an extra unit handed out before a block is full would be uneven.
            extra = left * (position + 1) // count - left * position // count
            share = left // count or extra
            removed[block] += min(share, removable[block] - removed[block])
    return tuple(removed)


def removable_units(units: UnitCounts) -> UnitCounts:
    """Most units each sublayer may lose: all of them, but block 0 keeps one attention unit.

    transformers reads the length of the KV cache from layer 0 (`get_seq_length`), so a model whose
    first attention is empty cannot generate.
    """
    return UnitCounts(attn=(units.attn[0] - 1, *units.attn[1:]), ffn=units.ffn)


def uniform_allocation(sparsity: float, units: UnitCounts) -> Allocation:
    """The isotropic allocation: every block loses as many units, to the nearest one.

    Raises:
        ConfigError: the sparsity is out of range or asks for more units than may be removed.
    """
    check_sparsity(sparsity)
    removable = removable_units(units)
    spread: dict[Kind, tuple[int, ...]] = {}
    for kind in KINDS:
        budget, most = unit_budget(sparsity, units.total[kind]), removable.total[kind]
        if budget > most:
            raise ConfigError(
                f"sparsity {sparsity} is not reachable: it removes {budget} of "
                f"{units.total[kind]} {kind} units, but at most {most} can go (block 0 keeps one "
                f"attention unit for the KV cache); ask for at most {most / units.total[kind]:.4g}"
            )
        spread[kind] = even_spread(budget, removable.of(kind))
    return Allocation(attn=spread["attn"], ffn=spread["ffn"])


def sparsity_of(removed: UnitCounts, units: UnitCounts, kind: Kind) -> list[float]:
    """Fraction removed in every block, for plots and logs; never used to decide anything."""
    return [gone / most for gone, most in zip(removed.of(kind), units.of(kind), strict=True)]


@dataclass(frozen=True)
class LevelGrid:
    """The levels of every sublayer in one iteration: `centre + level * step` removed units.

    One step is the same number of units for all sublayers of a kind, so moving one step from one
    sublayer to another conserves the budget exactly. Levels outside what a sublayer may lose do not
    exist. Algorithm 4 `generateSparsities`, in integers.

    Args:
        units: units that exist.
        centre: removed units at level 0.
        step: units per level, per kind, at least 1.
        half_width: levels on each side of the centre (the paper's nine levels: 4).
    """

    units: UnitCounts
    centre: Allocation
    step: Mapping[Kind, int]
    half_width: int = 4

    def levels(self, sublayer: SublayerId) -> dict[int, int]:
        """Level to removed units, ascending, for the levels this sublayer has."""
        most = removable_units(self.units)[sublayer]
        step, centre = self.step[sublayer.kind], self.centre[sublayer]
        reach = range(-self.half_width, self.half_width + 1)
        return {e: centre + e * step for e in reach if 0 <= centre + e * step <= most}

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
        }


def level_steps(interval: float, iteration: int, units: UnitCounts) -> dict[Kind, int]:
    """Units per level in an iteration: the interval halves each time, but never below one unit.

    Rounded down, so that nine levels around 50 % fit, unless levels are less than a unit apart.
    See experiments/DEVIATIONS.md on why the interval is a whole number of units.

    Args:
        interval: sparsity step of the first iteration (paper: 0.125).
        iteration: 0 for the first.
        units: units that exist.

    Raises:
        ConfigError: the interval is out of range, or finer than half a unit in iteration 0.
    """
    if not 0 < interval <= 0.5:
        raise ConfigError(f"supernet.interval must be in (0, 0.5], got {interval}")
    steps: dict[Kind, int] = {}
    for kind in KINDS:
        width = min(units.of(kind))
        first = exact_fraction(interval) * width
        if first < Fraction(1, 2):
            raise ConfigError(
                f"the level grid is finer than one {kind} unit: supernet.interval={interval} of "
                f"{width} units is {float(first):.3g}; use at least {0.5 / width:.4g}"
            )
        steps[kind] = max(1, int(first / 2**iteration))
    return steps
