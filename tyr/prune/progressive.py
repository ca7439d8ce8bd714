"""The progressive greedy pass of Algorithm 1, once for all levels.

Score the units still alive, drop the lowest group, compensate the rest, downdate H⁻¹, repeat. The
order is nested: the structure at 62.5 % continues the path that made 50 %, so one pass to the
sparsest level passes every level on the way. In float64 the weights that it passes are the levels'
weights; where downdates are float32, the kept weights of all levels are solved again from the
Hessian itself at the end, which removes their rounding. The released code restarts for each level.
Departures from the printed Eq. 5 are in experiments/DEVIATIONS.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tyr.errors import ConfigError
from tyr.linalg import cholesky, inverse, solve_nested
from tyr.prune.criterion import Criterion, UnitBlocks

# Rows of Zᵀ that wait for one update of H⁻¹. More make the update more efficient, but every step
# brings its columns up to date with all that wait.
PANEL = 128

# W and G are read whole at every step, and only to rank units: half the bytes, half the time. No
# rounding of this W reaches a structure.
SCORE_DTYPE = torch.float32


@dataclass(frozen=True)
class LocalProblem:
    """Least squares of one sublayer: minimise tr(ŴᵀHŴ) − 2·tr(ŴᵀG) with whole units zero.

    Args:
        name: sublayer, for messages.
        hessian: (d_in, d_in), damped.
        gradient: (d_in, C), G.
        unit_size: rows per unit; unit u owns rows u·unit_size to (u + 1)·unit_size.
        weight: (d_in, C), the unconstrained optimum H⁻¹G if it is known already.
    """

    name: str
    hessian: Tensor
    gradient: Tensor
    unit_size: int
    weight: Tensor | None = None

    @property
    def num_units(self) -> int:
        """Units of the dense sublayer."""
        return len(self.hessian) // self.unit_size


@dataclass(frozen=True)
class Snapshot:
    """A level on the greedy path.

    Args:
        removed: units gone.
        kept: (U,), int64, ascending.
        weight: (U·unit_size, C), the best on the kept rows.
        error: excess of the (damped) squared error over the unpruned optimum, as a fraction of the
            squared norm of the target; 0 when nothing is removed.
    """

    removed: int
    kept: Tensor
    weight: Tensor
    error: float


class GreedyPass:
    """State of one pass: rows of W and G, the inverse Hessian, and who is still alive.

    Alive units fill the leading slots: the last ones move into the gaps that the removed leave, so
    nothing is ever copied as a whole. Removing rows P takes H⁻¹ to H⁻¹ − ZZᵀ with
    Z = H⁻¹[:,P]·L⁻ᵀ, H⁻¹[P,P] = LLᵀ (the block form of Eq. 6), W to W − ZV with V = L⁻¹W[P], and
    adds ‖V‖² to the error. The diagonal blocks and a rounded W follow at once, because the next
    scores need them; H⁻¹ and W itself wait until `PANEL` rows of Zᵀ have come together, which turns
    many thin updates, bound by memory, into matrix products.

    Args:
        problem: what to prune.
        criterion: who goes first.
        rng: CPU generator for criteria that draw.
    """

    def __init__(
        self, problem: LocalProblem, *, criterion: Criterion, rng: torch.Generator
    ) -> None:
        self.problem = problem
        self._criterion = criterion
        self._rng = rng
        self._inverse = inverse(problem.hessian, name=problem.name)
        start = problem.weight if problem.weight is not None else self._inverse @ problem.gradient
        self.start = start
        # Rows in memory order: the dense weight arrives transposed, which makes scoring four times
        # as slow.
        self._weight = _copy_rows(start, start.dtype)  # W, but for what waits
        self._scored = _copy_rows(start, SCORE_DTYPE)
        self._gradient = _copy_rows(problem.gradient, SCORE_DTYPE)
        self._target = _target_norm(problem, self._weight)
        self._lost = start.new_zeros(())
        count, size = problem.num_units, problem.unit_size
        everyone = torch.arange(count, device=start.device)
        self._unit = everyone.clone()  # slot -> unit
        self._diagonal = self._inverse.view(count, size, count, size)[everyone, :, everyone]
        self._alive = count
        self._panel = self._inverse.new_empty(PANEL, len(self._inverse))  # rows of Zᵀ to come
        self._changes = start.new_empty(PANEL, start.shape[1])  # and of V
        self._waiting = 0

    @property
    def kept(self) -> Tensor:
        """(U,): units still alive, ascending."""
        return self._unit[: self._alive].sort().values

    def snapshot(self, removed: int) -> Snapshot:
        """The present state, with the weight as it has come through all downdates.

        Args:
            removed: units gone so far.
        """
        kept, places = self._unit[: self._alive].sort()
        weight = self._current(_expand(places, self.problem.unit_size))
        lost = self._lost if self._alive else self._target  # all of it, whatever was rounded
        return Snapshot(removed, kept, weight, _fraction(float(lost), float(self._target)))

    def remove(self, count: int) -> None:
        """Drop the `count` units of lowest saliency together and compensate the others."""
        scores = self._criterion.score(self.blocks(), rng=self._rng)
        slots = torch.topk(scores, count, largest=False).indices.sort().values
        self._downdate(_expand(slots, self.problem.unit_size))
        self._drop(slots)

    def blocks(self) -> UnitBlocks:
        """What a criterion sees of the units alive."""
        alive, size = self._alive, self.problem.unit_size
        rows = alive * size
        return UnitBlocks(
            self._unit[:alive],
            self._scored[:rows].view(alive, size, -1),
            self._gradient[:rows].view(alive, size, -1),
            self._diagonal[:alive],
        )

    def _downdate(self, rows: Tensor) -> None:
        """Compensate for `rows`, which are still in place; Z and V are the class's."""
        alive, size = self._alive, self.problem.unit_size
        width = alive * size
        waiting = self._panel[: self._waiting, :width]
        columns = self._inverse[rows, :width]  # (p, width), as of the last flush
        columns = torch.addmm(columns, waiting[:, rows].mT, waiting, alpha=-1)
        factor = cholesky(columns[:, rows], name=self.problem.name)
        part = torch.linalg.solve_triangular(factor, columns, upper=False)  # Zᵀ
        change = torch.linalg.solve_triangular(factor, self._current(rows), upper=False)  # V
        self._lost += change.square().sum()
        self._scored[:width].addmm_(part.mT.to(SCORE_DTYPE), change.to(SCORE_DTYPE), alpha=-1)
        if size == 1:
            self._diagonal[:alive, 0, 0] -= part.square().sum(dim=0)
        else:
            grouped = part.view(-1, alive, size).permute(1, 2, 0)  # (U, D, p)
            self._diagonal[:alive].baddbmm_(grouped, grouped.mT, alpha=-1)
        self._push(part, change)

    def _current(self, rows: Tensor) -> Tensor:
        """W at the given rows, with what waits."""
        waiting, changes = self._panel[: self._waiting], self._changes[: self._waiting]
        return self._weight[rows].addmm_(waiting[:, rows].mT, changes, alpha=-1)

    def _push(self, part: Tensor, change: Tensor) -> None:
        """Let rows of Zᵀ and V wait for the updates, or make them when the panel is full."""
        count, width = part.shape
        if self._waiting + count > PANEL:
            self._subtract(self._panel[: self._waiting, :width], self._changes[: self._waiting])
            self._waiting = 0
        if count > PANEL:
            self._subtract(part, change)
        else:
            places = slice(self._waiting, self._waiting + count)
            self._panel[places, :width] = part
            self._changes[places] = change
            self._waiting += count

    def _subtract(self, rows: Tensor, changes: Tensor) -> None:
        """H⁻¹ ← H⁻¹ − ZZᵀ and W ← W − ZV: Zᵀ (p, width), V (p, C)."""
        width = rows.shape[1]
        self._inverse[:width, :width].addmm_(rows.mT, rows, alpha=-1)
        self._weight[:width].addmm_(rows.mT, changes, alpha=-1)

    def _drop(self, slots: Tensor) -> None:
        """Close the gaps at `slots` (ascending) with the last alive units.

        Slots among the last ones are no gaps: those are copied onto themselves, so that no size
        depends on values, for which an accelerator would have to be waited for.
        """
        left = self._alive - len(slots)
        gone = torch.zeros(self._alive, dtype=torch.uint8, device=slots.device)
        gone[slots] = 1
        movers = left + gone[left:].argsort(stable=True)  # of the last: who stay, then who go
        for values in (self._unit, self._diagonal):
            values[slots] = values[movers]
        to, source = (_expand(s, self.problem.unit_size) for s in (slots, movers))
        for values in (self._weight, self._scored, self._gradient):
            values[to] = values[source]
        width = self._alive * self.problem.unit_size
        square, waiting = self._inverse[:width, :width], self._panel[: self._waiting, :width]
        moved = square[source]
        moved[:, to] = moved[:, source]
        square[to] = moved
        square[:, to] = moved.mT  # H⁻¹ is symmetric, and rows are quicker to read
        waiting[:, to] = waiting[:, source]
        self._alive = left


def prune_progressively(
    problem: LocalProblem,
    removed_counts: Sequence[int],
    *,
    criterion: Criterion,
    group_size: int,
    rng: torch.Generator,
) -> dict[int, Snapshot]:
    """Snapshots at the given numbers of removed units, from one greedy pass.

    Args:
        problem: what to prune.
        removed_counts: units to have removed at each snapshot, any order.
        criterion: who goes first.
        group_size: units removed in one step (paper A.3: 1 head, 16 neurons); the step before a
            snapshot is shorter where the count asks for it.
        rng: CPU generator for criteria that draw.

    Raises:
        ConfigError: a count is outside [0, num_units] or the group size is below 1.
        NumericsError: a factorisation failed.
    """
    counts = sorted(set(removed_counts))
    if group_size < 1:
        raise ConfigError(f"the pruning group must be at least 1 unit, got {group_size}")
    if counts and not 0 <= counts[0] <= counts[-1] <= problem.num_units:
        raise ConfigError(
            f"{problem.name}: cannot remove {counts[0]}..{counts[-1]} of {problem.num_units} units"
        )
    state = GreedyPass(problem, criterion=criterion, rng=rng)
    exact = carries_weights(problem.hessian.dtype)
    snapshots: dict[int, Snapshot] = {}
    kept: dict[int, Tensor] = {}
    removed = 0
    for count in counts:
        while removed < count:
            step = min(group_size, count - removed)
            state.remove(step)
            removed += step
        if exact:
            snapshots[count] = state.snapshot(count)
        else:
            kept[count] = state.kept
    return snapshots if exact else solve_snapshots(problem, kept, start=state.start)


def carries_weights(dtype: torch.dtype) -> bool:
    """Whether a pass in this precision arrives at weights that can be stored as they are."""
    return dtype == torch.float64


def solve_snapshots(
    problem: LocalProblem, kept: Mapping[int, Tensor], *, start: Tensor
) -> dict[int, Snapshot]:
    """Exact weights of nested sets of kept units.

    Args:
        problem: what they solve.
        kept: removed units to kept ones (U,), each set within the one before it.
        start: (d_in, C), the unconstrained optimum.
    """
    target = float(_target_norm(problem, _copy_rows(start, start.dtype)))
    whole = Snapshot(0, torch.arange(problem.num_units, device=start.device), start, 0.0)
    sparser = {removed: units for removed, units in kept.items() if removed > 0}
    snapshots = {0: whole} if 0 in kept else {}
    if not sparser:
        return snapshots
    order = _longest_first(list(sparser.values()))
    rows = _expand(order, problem.unit_size)
    sizes = [len(units) * problem.unit_size for units in sparser.values()]
    solved = solve_nested(problem.hessian, problem.gradient, rows, sizes, name=problem.name)
    for (removed, units), (weight, explained) in zip(sparser.items(), solved, strict=True):
        ascending = _expand(order[: len(units)].argsort(), problem.unit_size)
        error = _fraction(target - explained, target)
        snapshots[removed] = Snapshot(removed, units, weight[ascending], error)
    return snapshots


def _target_norm(problem: LocalProblem, start: Tensor) -> Tensor:
    """tr(WᵀG) of the unconstrained optimum `start` (d_in, C): what errors are fractions of."""
    return torch.dot(start.flatten(), problem.gradient.flatten())


def _fraction(lost: float, target: float) -> float:
    return lost / target if target > 0 else 0.0


def _longest_first(nested: Sequence[Tensor]) -> Tensor:
    """Members of the first set, ordered so that each later set is a leading part of it."""
    parts = [nested[-1]]
    for larger, smaller in zip(nested[-2::-1], nested[:0:-1], strict=True):
        parts.append(larger[~torch.isin(larger, smaller)])
    return torch.cat(parts)


def _copy_rows(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, rows in memory order."""
    return torch.empty(matrix.shape, dtype=dtype, device=matrix.device).copy_(matrix)


def _expand(units: Tensor, unit_size: int) -> Tensor:
    """Rows of units: (U,) -> (U·unit_size,)."""
    offsets = torch.arange(unit_size, device=units.device)
    return (units[:, None] * unit_size + offsets).reshape(-1)
