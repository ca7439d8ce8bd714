"""The progressive greedy pass of Algorithm 1, once for all levels.

Score the units still alive, drop the lowest group, compensate the rest, downdate H⁻¹, repeat. The
order is nested: the structure at 62.5 % continues the path that made 50 %, so one pass to the
sparsest level passes every level on the way. At each of them the kept weight is solved again from
the Hessian itself, which removes the rounding of the downdates. The released code restarts for each
level. Departures from the printed Eq. 5 are in experiments/DEVIATIONS.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tyr.errors import ConfigError
from tyr.linalg import inverse, remove_rows_, solve_kept
from tyr.prune.criterion import Criterion, UnitBlocks

# Compacting copies H⁻¹, which costs as much as a downdate: wait until a quarter of it is dead.
COMPACT_BELOW = 0.75


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
        weight: (U·unit_size, C), solved exactly on the kept rows.
        error: excess of the (damped) squared error over the unpruned optimum, as a fraction of the
            squared norm of the target; 0 when nothing is removed.
    """

    removed: int
    kept: Tensor
    weight: Tensor
    error: float


class GreedyPass:
    """State of one pass: the alive units with their rows of W, G and H⁻¹.

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
        self._weight = start.clone()
        self._gradient = problem.gradient
        device = problem.hessian.device
        self._unit = torch.arange(problem.num_units, device=device)  # stored slot -> unit
        self._alive = torch.ones(problem.num_units, dtype=torch.bool, device=device)

    @property
    def kept(self) -> Tensor:
        """(U,): units still alive, ascending."""
        return self._unit[self._alive]

    def remove(self, count: int) -> None:
        """Drop the `count` units of lowest saliency together and compensate the others."""
        slots = self._alive.nonzero()[:, 0]
        scores = self._criterion.score(self._blocks(slots), rng=self._rng)
        lowest = slots[torch.topk(scores, count, largest=False).indices.sort().values]
        remove_rows_(self._inverse, self._weight, self._rows(lowest), name=self.problem.name)
        self._alive[lowest] = False
        if int(self._alive.sum()) < COMPACT_BELOW * len(self._alive):
            self._compact()

    def snapshot(self) -> Snapshot:
        """The exact solution on the units alive now."""
        problem, kept = self.problem, self.kept
        removed = problem.num_units - len(kept)
        if removed == 0:
            return Snapshot(0, kept, self.start, 0.0)
        rows = _expand(kept, problem.unit_size)
        weight = solve_kept(problem.hessian, problem.gradient, rows, name=problem.name)
        scale = float((self.start * problem.gradient).sum())
        explained = float((weight * problem.gradient[rows]).sum())
        return Snapshot(removed, kept, weight, 1 - explained / scale if scale > 0 else 0.0)

    def _blocks(self, slots: Tensor) -> UnitBlocks:
        size, slot_count = self.problem.unit_size, len(self._unit)
        blocked = self._inverse.view(slot_count, size, slot_count, size)
        weight = self._weight.view(slot_count, size, -1)
        gradient = self._gradient.view(slot_count, size, -1)
        if len(slots) < slot_count:
            weight, gradient = weight[slots], gradient[slots]
        return UnitBlocks(weight, gradient, blocked[slots, :, slots])

    def _rows(self, slots: Tensor) -> Tensor:
        return _expand(slots, self.problem.unit_size)

    def _compact(self) -> None:
        rows = self._rows(self._alive.nonzero()[:, 0])
        self._inverse = self._inverse[rows][:, rows].contiguous()
        self._weight = self._weight[rows]
        self._gradient = self._gradient[rows]
        self._unit = self._unit[self._alive]
        self._alive = torch.ones(len(self._unit), dtype=torch.bool, device=rows.device)


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
    snapshots: dict[int, Snapshot] = {}
    removed = 0
    for count in counts:
        while removed < count:
            step = min(group_size, count - removed)
            state.remove(step)
            removed += step
        snapshots[count] = state.snapshot()
    return snapshots


def _expand(units: Tensor, unit_size: int) -> Tensor:
    """Rows of units: (U,) -> (U·unit_size,)."""
    offsets = torch.arange(unit_size, device=units.device)
    return (units[:, None] * unit_size + offsets).reshape(-1)
