"""Budgets: how many units a sparsity asks for, and which numbers can be met.

The paper speaks of fractions; tyr counts units and derives the fraction last, in exact arithmetic,
so that a budget is met to the unit. Numbers only: what a unit is, and which blocks there are, is
not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from tyr.errors import ConfigError

# Sparsities from the first to the second.
Window = tuple[Fraction, Fraction]


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


@dataclass(frozen=True)
class Reach:
    """The budgets of one kind that a layout can meet.

    Args:
        budgets: units removed in all, ascending and evenly spaced; never empty.
        total: units that exist.
        rounds: whether a budget between two of these is taken to the nearer one. Alignment rounds;
            equality of blocks does not, because the step would be too coarse to go unnoticed.
    """

    budgets: range
    total: int
    rounds: bool

    @property
    def slack(self) -> int:
        """How far a budget that was asked for may be from the one that is met."""
        return self.budgets.step // 2 if self.rounds else 0

    def nearest(self, asked: int) -> int | None:
        """The budget that stands for `asked`, half up, or None when it is out of reach."""
        step = self.budgets.step
        place = (2 * (asked - self.budgets[0]) + step) // (2 * step)
        budget = self.budgets[min(max(place, 0), len(self.budgets) - 1)]
        return budget if abs(budget - asked) <= self.slack else None

    @property
    def pointwise(self) -> bool:
        """Whether there are budgets in between that are refused."""
        return not self.rounds and self.budgets.step > 1

    def windows(self, within: Window = (Fraction(0), Fraction(1))) -> list[Window]:
        """Sparsities that ask for a budget in reach, ascending.

        Args:
            within: leave out windows that lie wholly outside; some of those may still be there.
        """
        # A sparsity is rounded half up to whole units, so just below half is safe on both sides.
        beyond = self.slack + Fraction(499, 1000)
        if not self.pointwise:
            first, last = self.budgets[0], self.budgets[-1]
            return [((first - beyond) / self.total, (last + beyond) / self.total)]
        low, high = (int(end * self.total - self.budgets[0]) for end in within)
        near = self.budgets[max(low // self.budgets.step, 0) : high // self.budgets.step + 2]
        return [((b - beyond) / self.total, (b + beyond) / self.total) for b in near]


def nearest_sparsities(sparsity: Fraction, reaches: Sequence[Reach]) -> list[float]:
    """Sparsities in the reach of every kind that are nearest to one that is not, below and above.

    Where blocks shall be equal, the kind with the fewest steps decides which is nearest: for every
    step of it there is at most one sparsity, and it is the roundest. Empty when none is in reach of
    all kinds.
    """
    if any(reach.pointwise for reach in reaches):
        offers = _pointwise_sparsities(reaches)
        below = [offer for offer in offers if offer < sparsity]
        return below[-1:] + [offer for offer in offers if offer > sparsity][:1]
    shared = reaches[0].windows()
    for reach in reaches[1:]:
        shared = overlap(shared, reach.windows())
    densest = max(Fraction(reach.budgets[0], reach.total) for reach in reaches)
    sparsest = min(Fraction(reach.budgets[-1], reach.total) for reach in reaches)
    return [_decimal_in(window, sparsest if window[1] < sparsity else densest) for window in shared]


def _pointwise_sparsities(reaches: Sequence[Reach]) -> list[float]:
    """A sparsity for every step of the coarsest kind that the others can follow, ascending."""
    coarsest, *others = sorted(reaches, key=lambda reach: (not reach.pointwise, len(reach.budgets)))
    offers = []
    for window in coarsest.windows():
        middle, shared = (window[0] + window[1]) / 2, [window]
        for reach in others:
            shared = overlap(shared, reach.windows(window))
        if shared:
            near = min(shared, key=lambda other: abs(_clamp(middle, other) - middle))
            offers.append(_decimal_in(near, middle, fewest=1))
    return offers


def overlap(left: Sequence[Window], right: Sequence[Window]) -> list[Window]:
    """What two ascending lists of disjoint windows have in common, ascending."""
    shared, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        low, high = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if low <= high:
            shared.append((low, high))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return shared


def _clamp(value: Fraction, window: Window) -> Fraction:
    return min(max(value, window[0]), window[1])


def _decimal_in(window: Window, wanted: Fraction, *, fewest: int = 4) -> float:
    """A decimal inside a window and near a wanted number, of few digits but at least so many."""
    target = _clamp(wanted, window)
    for digits in range(fewest, 12):
        scaled = target * 10**digits
        for numerator in (round(scaled), int(scaled), int(scaled) + 1):
            if window[0] <= Fraction(numerator, 10**digits) <= window[1]:
                return float(Fraction(numerator, 10**digits))
    return float(target)
