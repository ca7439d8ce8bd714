from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.host_waits import HostWaits
from tests.prune.problems import Data, random_data
from tests.prune.test_criterion import CRITERIA
from tests.references.greedy import prune_greedily
from tests.tolerance import FLOAT32, assert_close
from tyr.errors import ConfigError, NumericsError
from tyr.prune import progressive
from tyr.prune.criterion import Criterion, Random, SecondOrder, Taylor
from tyr.prune.progressive import (
    GreedyPass,
    LocalProblem,
    Snapshot,
    prune_progressively,
    solve_snapshots,
)
from tyr.randomness import derive_generator


def prune(
    problem: LocalProblem, counts: list[int], *, criterion: Criterion, group_size: int = 1
) -> dict[int, Snapshot]:
    return prune_progressively(
        problem, counts, criterion=criterion, group_size=group_size, rng=derive_generator(5)
    )


def slow(
    data: Data, counts: list[int], *, name: str, group_size: int
) -> dict[int, tuple[list[int], Tensor]]:
    return prune_greedily(
        data.self_regression(),
        counts,
        criterion=name,
        group_size=group_size,
        rng=derive_generator(5),
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("units", "unit_size", "group_size", "counts"),
    [
        (10, 1, 1, [0, 2, 5, 9, 10]),
        (12, 1, 4, [0, 3, 6, 9, 12]),  # groups are cut where a count asks for it
        (6, 4, 1, [1, 3, 5]),  # heads
        (5, 6, 2, [4]),
    ],
)
@pytest.mark.parametrize("name", CRITERIA)
def test_the_pass_keeps_the_units_and_weights_of_solving_from_scratch(
    name: str, units: int, unit_size: int, group_size: int, counts: list[int], seed: int
) -> None:
    data = random_data(units, unit_size, seed=seed)
    fast = prune(data.self_problem(), counts, criterion=CRITERIA[name], group_size=group_size)
    expected = slow(data, counts, name=name, group_size=group_size)
    assert list(fast) == counts
    for count, (kept, weight) in expected.items():
        assert fast[count].kept.tolist() == kept
        assert fast[count].removed == count
        assert_close(fast[count].weight, weight)


@pytest.mark.parametrize("name", ["taylor", "second_order"])
@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_the_pass_serves_the_corrected_target_as_well(name: str, alpha: float, beta: float) -> None:
    data, counts = random_data(8, 2), [0, 2, 4, 7]
    problem = data.corrected_problem(alpha, beta)
    fast = prune(problem, counts, criterion=CRITERIA[name])
    regression = data.corrected_regression(alpha, beta)
    expected = prune_greedily(
        regression, counts, criterion=name, group_size=1, rng=derive_generator(5)
    )
    for count, (kept, weight) in expected.items():
        assert fast[count].kept.tolist() == kept
        assert_close(fast[count].weight, weight)


def test_levels_are_nested() -> None:
    data = random_data(16, 1)
    snapshots = prune(data.self_problem(), [0, 4, 8, 12, 16], criterion=Taylor(), group_size=4)
    kept = [set(snapshot.kept.tolist()) for snapshot in snapshots.values()]
    assert [len(units) for units in kept] == [16, 12, 8, 4, 0]
    assert all(sparser < denser for denser, sparser in itertools.pairwise(kept))


@given(st.sets(st.integers(0, 12)), st.integers(1, 5))
@settings(max_examples=25)
def test_counts_on_group_boundaries_do_not_change_the_path(
    counts: set[int], group_size: int
) -> None:
    data = random_data(12, 1)
    on_boundary = [n for n in range(13) if n % group_size == 0 and n in counts]
    everything = list(range(0, 13, group_size))
    some = prune(data.self_problem(), on_boundary, criterion=SecondOrder(), group_size=group_size)
    full = prune(data.self_problem(), everything, criterion=SecondOrder(), group_size=group_size)
    for count in on_boundary:
        assert torch.equal(some[count].kept, full[count].kept)
        assert_close(some[count].weight, full[count].weight)


def test_with_nothing_removed_the_weight_is_the_dense_one_bit_for_bit() -> None:
    data = random_data(8, 2)
    snapshot = prune(data.self_problem(), [0, 4], criterion=Taylor())[0]
    assert torch.equal(snapshot.weight, data.weight)
    assert snapshot.kept.tolist() == list(range(8))
    assert snapshot.error == 0.0


def test_with_everything_removed_nothing_is_left_and_all_is_lost() -> None:
    snapshot = prune(random_data(4, 2).self_problem(), [8 // 2], criterion=Taylor())[4]
    assert snapshot.kept.numel() == 0
    assert snapshot.weight.shape == (0, 6)
    assert snapshot.error == 1.0


def test_of_a_weight_of_zeros_nothing_can_be_lost() -> None:
    problem = random_data(6, 1).self_problem()
    nothing = torch.zeros_like(problem.gradient)
    for dtype in (torch.float64, torch.float32):
        empty = LocalProblem("s", problem.hessian.to(dtype), nothing.to(dtype), unit_size=1)
        assert prune(empty, [2], criterion=Taylor())[2].error == 0.0


@pytest.mark.parametrize(("units", "size"), [(24, 1), (8, 3)])
def test_in_float64_the_pass_arrives_at_what_solving_each_level_gives(
    units: int, size: int
) -> None:
    problem = random_data(units, size, tokens=60).self_problem()
    passed = prune(problem, [0, units // 2, units - 1, units], criterion=Taylor())
    kept = {count: snapshot.kept for count, snapshot in passed.items()}
    assert problem.weight is not None
    for count, solved in solve_snapshots(problem, kept, start=problem.weight).items():
        assert torch.equal(passed[count].kept, solved.kept)
        assert_close(passed[count].weight, solved.weight)
        assert_close(passed[count].error, solved.error)


def test_in_float32_the_levels_are_solved_from_the_hessian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = random_data(24, 1, tokens=60).self_problem()
    assert problem.weight is not None
    exact = prune(problem, [0, 12, 23], criterion=Taylor())
    short = LocalProblem(
        problem.name,
        problem.hessian.float(),
        problem.gradient.float(),
        unit_size=1,
        weight=problem.weight.float(),
    )
    monkeypatch.setattr(GreedyPass, "snapshot", lambda *_: pytest.fail("taken from the pass"))
    reason = "solved in float32"
    for count, found in prune(short, [0, 12, 23], criterion=Taylor()).items():
        assert torch.equal(found.kept, exact[count].kept)
        assert_close(found.weight, exact[count].weight, tolerance=FLOAT32, reason=reason)
        assert_close(found.error, exact[count].error, tolerance=FLOAT32, reason=reason)


def test_the_error_is_the_excess_squared_error_over_the_squared_target() -> None:
    data = random_data(9, 2)
    for regression, problem in (
        (data.self_regression(), data.self_problem()),
        (data.corrected_regression(0.5, 0.5), data.corrected_problem(0.5, 0.5)),
    ):
        everyone = range(9)
        best = regression.error(everyone)
        reachable = regression.inputs @ regression.solve(everyone)
        for snapshot in prune(problem, [1, 4, 8], criterion=Taylor()).values():
            excess = regression.error(snapshot.kept.tolist()) - best
            expected = excess / float(reachable.square().sum())
            assert_close(snapshot.error, expected)


def test_errors_grow_with_every_removed_unit() -> None:
    snapshots = prune(random_data(12, 1).self_problem(), list(range(13)), criterion=Taylor())
    errors = [snapshot.error for snapshot in snapshots.values()]
    assert errors == sorted(errors)


@pytest.mark.parametrize("panel", [1, 6, 64])
@pytest.mark.parametrize(("size", "group"), [(1, 1), (1, 3), (2, 1), (4, 2)])
def test_the_running_state_stays_that_of_a_fresh_solution(
    size: int, group: int, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Units change places as others leave, and updates of the inverse wait for a panel to fill.
    monkeypatch.setattr(progressive, "PANEL", panel)
    data = random_data(40 // size, size, tokens=120)
    problem = data.self_problem()
    state = GreedyPass(problem, criterion=Random(), rng=derive_generator(0))
    flushed, moved = Counter[int](), False
    subtract = state._subtract

    def count(rows: Tensor, changes: Tensor) -> None:
        flushed.update([len(rows)])
        subtract(rows, changes)

    monkeypatch.setattr(state, "_subtract", count)
    while len(state.kept) > group:
        state.remove(group)
        blocks = state.blocks()
        moved |= blocks.units.tolist() != state.kept.tolist()
        rows = (blocks.units[:, None] * size + torch.arange(size)).reshape(-1)
        block = problem.hessian[rows][:, rows]
        fresh = torch.linalg.solve(block, problem.gradient[rows])
        reason = "units are ranked in float32"
        assert_close(blocks.weight.flatten(0, 1), fresh, tolerance=FLOAT32, reason=reason)
        assert torch.equal(blocks.gradient.flatten(0, 1), problem.gradient[rows].float())
        left = len(blocks.units)
        inverse = torch.linalg.inv(block).view(left, size, left, size)
        everyone = torch.arange(left)
        assert_close(blocks.inverse, inverse[everyone, :, everyone])
    assert moved, "no unit ever changed its place"
    assert flushed or panel > 40, "the inverse was never updated"


@pytest.mark.parametrize("group", [6, 16])  # 16: the paper's, A.3
def test_a_step_waits_for_an_accelerator_once_whether_last_units_go_or_not(group: int) -> None:
    data = random_data(100, 1, tokens=300)
    state = GreedyPass(data.self_problem(), criterion=Taylor(), rng=derive_generator(0))
    for _ in range(6):
        with HostWaits() as waits:
            state.remove(group)
        # Whether the factorisation succeeded. Some 900 steps prune an FFN of 14,336 neurons.
        assert waits.counts == {"_local_scalar_dense": 1}


def test_waits_inside_of_operations_are_counted() -> None:
    numbers = torch.arange(40)
    with HostWaits() as waits:
        numbers[numbers > 3]
        torch.isin(numbers, numbers[:20])
        float(numbers[0])
    assert waits.counts.keys() == {"nonzero", "_unique", "_local_scalar_dense"}


def test_the_problem_is_not_changed() -> None:
    data = random_data(8, 1)
    problem = data.self_problem()
    before = problem.hessian.clone(), problem.gradient.clone(), data.weight.clone()
    prune(problem, [0, 7], criterion=Taylor())
    assert torch.equal(problem.hessian, before[0])
    assert torch.equal(problem.gradient, before[1])
    assert torch.equal(data.weight, before[2])


@pytest.mark.parametrize("counts", [[-1], [9], [0, 9]])
def test_a_count_outside_the_sublayer_is_refused(counts: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"000.ffn: cannot remove .* of 8 units"):
        prune(random_data(8, 1).self_problem(), counts, criterion=Taylor())


def test_a_group_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 unit, got 0"):
        prune(random_data(8, 1).self_problem(), [1], criterion=Taylor(), group_size=0)


def test_a_hessian_without_damping_that_is_not_invertible_names_the_sublayer() -> None:
    data = random_data(20, 1, tokens=5)
    with pytest.raises(NumericsError, match=r"^000\.ffn: .*raise pruner\.damping"):
        prune(data.self_problem(damping=0.0), [4], criterion=Taylor())
    damped = prune(data.self_problem(), [4], criterion=Taylor())
    assert torch.isfinite(damped[4].weight).all()
