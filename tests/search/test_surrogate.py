from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.references.all_shifts import within
from tyr.errors import ConfigError
from tyr.randomness import derive_generator
from tyr.search.archive import Evaluation
from tyr.search.mutation import Levels, mutate
from tyr.search.surrogate import Demand, LinearSurrogate, NoSurrogate, rank_correlation

BOUNDS = ((-4, 4),) * 8
PARENT = (0,) * 8
GOAL = (3, -4, 1, 0, -2, 2, -2, 2)


def loss(levels: Levels) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(levels, GOAL, strict=True)))


def drawing(seed: int) -> Callable[[], Levels]:
    rng = derive_generator(seed)
    return lambda: mutate(PARENT, BOUNDS, rng)


def evaluated(count: int) -> list[Evaluation]:
    draw = drawing(99)
    return [Evaluation(levels, (16, 0), loss(levels)) for levels in (draw() for _ in range(count))]


def demand(evaluations: list[Evaluation], **changes: Any) -> Demand:
    settings: dict[str, Any] = {"offspring": 32, "least": 4, **changes}
    return Demand(PARENT, BOUNDS, evaluations=evaluations, **settings)


def test_without_a_surrogate_all_that_is_drawn_is_evaluated() -> None:
    proposal = NoSurrogate().propose(demand([]), drawing(0), rng=derive_generator(1))
    draw = drawing(0)
    assert proposal.candidates == [draw() for _ in range(32)]
    assert (proposal.screened, proposal.predictions) == (0, ())


def test_before_anything_is_known_the_first_draws_are_evaluated() -> None:
    proposal = LinearSurrogate().propose(demand([]), drawing(0), rng=derive_generator(1))
    draw = drawing(0)
    assert proposal.candidates == [draw() for _ in range(8)]
    assert proposal.predictions == ()
    assert proposal.screened == 8 * 32 - 8


def test_the_most_promising_offspring_are_evaluated() -> None:
    surrogate = LinearSurrogate(random_share=0.0, optimal_share=0.0)
    proposal = surrogate.propose(demand(evaluated(200)), drawing(0), rng=derive_generator(1))
    draw = drawing(0)
    pool = [loss(draw()) for _ in range(8 * 32)]
    assert len(proposal.candidates) == 8
    mean = sum(map(loss, proposal.candidates)) / 8
    assert mean < sorted(pool)[len(pool) // 10]
    assert len(proposal.predictions) == 8
    assert proposal.screened == 8 * 32 - 8


@pytest.mark.parametrize("optimal_share", [0.0, 0.25, 0.5])
def test_a_share_of_all_that_are_evaluated_is_random(optimal_share: float) -> None:
    chosen = []
    for seed in (1, 2):
        surrogate = LinearSurrogate(random_share=0.5, optimal_share=optimal_share)
        rng = derive_generator(seed)
        chosen.append(surrogate.propose(demand(evaluated(200)), drawing(0), rng=rng).candidates)
    first, second = chosen
    assert first[:4] == second[:4]
    assert set(first[4:]) != set(second[4:])


def test_optima_of_the_regression_are_among_the_evaluated_and_close_to_the_goal() -> None:
    surrogate = LinearSurrogate(random_share=0.0, optimal_share=0.5)
    proposal = surrogate.propose(demand(evaluated(400)), drawing(0), rng=derive_generator(1))
    screened = LinearSurrogate(random_share=0.0, optimal_share=0.0).propose(
        demand(evaluated(400)), drawing(0), rng=derive_generator(1)
    )
    assert min(map(loss, proposal.candidates)) < min(map(loss, screened.candidates))


def test_proposals_are_distinct_legal_and_not_the_parents_twin() -> None:
    bounds = ((0, 2), (-1, 1)) * 4
    evaluations = evaluated(50)
    rng = derive_generator(3)
    proposal = LinearSurrogate().propose(
        Demand(PARENT, bounds, offspring=32, least=4, evaluations=evaluations),
        lambda: mutate(PARENT, bounds, rng),
        rng=rng,
    )
    assert len(set(proposal.candidates)) == len(proposal.candidates) == 8
    for levels in proposal.candidates:
        assert within(levels, bounds)
        assert sum(levels[0::2]) == sum(levels[1::2]) == 0


def test_what_was_evaluated_before_comes_last() -> None:
    evaluations = evaluated(200)
    seen = {one.levels for one in evaluations}
    proposal = LinearSurrogate().propose(demand(evaluations), drawing(0), rng=derive_generator(1))
    assert not seen & set(proposal.candidates)


def test_a_pool_of_nothing_but_optima_leaves_nothing_to_choose() -> None:
    surrogate = LinearSurrogate(drawn=1, evaluated=1.0, random_share=0.0, optimal_share=1.0)
    wanted = demand(evaluated(200), offspring=1, least=1)
    [optimum] = surrogate.propose(wanted, drawing(0), rng=derive_generator(1)).candidates
    proposal = surrogate.propose(wanted, lambda: optimum, rng=derive_generator(1))
    assert proposal.candidates == [optimum]


def test_a_stage_is_never_left_short_of_its_survivors() -> None:
    wanted = demand(evaluated(50), least=20)
    proposal = LinearSurrogate().propose(wanted, drawing(0), rng=derive_generator(1))
    assert len(proposal.candidates) == 20


def test_when_few_allocations_exist_fewer_are_evaluated() -> None:
    bounds = ((-1, 1), (0, 0), (-1, 1), (0, 0))
    parent = (0, 0, 0, 0)
    evaluations = [Evaluation(levels, (16, 0), 1.0) for levels in (parent, (1, 0, -1, 0))]
    rng = derive_generator(3)
    proposal = LinearSurrogate().propose(
        Demand(parent, bounds, offspring=32, least=4, evaluations=evaluations),
        lambda: mutate(parent, bounds, rng),
        rng=rng,
    )
    assert set(proposal.candidates) <= {(1, 0, -1, 0), (-1, 0, 1, 0), parent}
    assert proposal.candidates


def test_the_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4.
    assert rank_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486833)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drawn": 0}, "drawn >= 1"),
        ({"evaluated": 0.0}, r"evaluated in \(0, 1\]"),
        ({"random_share": -0.1}, "not negative"),
        ({"random_share": 0.6, "optimal_share": 0.6}, "together at most 1"),
    ],
)
def test_a_surrogate_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LinearSurrogate(**settings)
