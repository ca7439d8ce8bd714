from __future__ import annotations

import pytest
import torch

from tests.references.slow_ridge import slow_ridge
from tyr.randomness import derive_generator
from tyr.search.archive import Evaluation
from tyr.search.increments import centred, features_of, fit_increments, ridge
from tyr.search.mutation import Levels, mutate
from tyr.search.surrogate import rank_correlation

BOUNDS = ((-4, 4),) * 8
CENTRE = (0,) * 8


def candidates(count: int, *, seed: int) -> list[Levels]:
    rng = derive_generator(seed)
    return [mutate(CENTRE, BOUNDS, rng, max_shifts=6) for _ in range(count)]


def additive(levels: Levels) -> float:
    """Every sublayer has a convex cost of its own."""
    return sum((place + 1) * 1.3**level for place, level in enumerate(levels))


def coupled(levels: Levels) -> float:
    """Two sublayers that both become sparser hurt more than each alone."""
    return additive(levels) + 4.0 * levels[0] * levels[2]


def measured(loss: object, levels: list[Levels], *, samples: int = 3) -> list[Evaluation]:
    """Each on one of several samples that shift all losses by as much."""
    assert callable(loss)
    return [
        Evaluation(one, (16, i % samples), loss(one) + 100.0 * (i % samples))
        for i, one in enumerate(levels)
    ]


def test_additive_losses_are_foretold_whatever_the_samples_add() -> None:
    model = fit_increments(measured(additive, candidates(300, seed=1)), pairwise=False)
    assert model is not None
    new = candidates(50, seed=2)
    truth = [additive(levels) for levels in new]
    foretold = model.predict(new)
    correlation = rank_correlation(foretold, truth)
    assert correlation is not None
    assert correlation > 0.99
    assert foretold[0] - foretold[1] == pytest.approx(truth[0] - truth[1], abs=0.5)


def test_pairwise_terms_are_needed_where_sublayers_interact() -> None:
    evaluations = measured(coupled, candidates(300, seed=1))
    new = candidates(60, seed=2)
    truth = [coupled(levels) for levels in new]
    found = []
    for pairwise in (False, True):
        model = fit_increments(evaluations, pairwise=pairwise)
        assert model is not None
        correlation = rank_correlation(model.predict(new), truth)
        assert correlation is not None
        found.append(correlation)
    assert found[1] > 0.98
    assert found[1] > found[0]


def test_nothing_is_foretold_from_nothing_or_from_one_candidate_per_sample() -> None:
    assert fit_increments([], pairwise=False) is None
    alone = [Evaluation(CENTRE, (16, row), 1.0) for row in range(4)]
    assert fit_increments(alone, pairwise=True) is None


def test_the_ridge_is_that_of_the_slow_twin() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    group = torch.arange(40) % 3
    features = centred(features, group)
    truth = torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    noise = torch.randn(40, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = centred((features @ truth)[:, None] + noise, group)[:, 0]
    torch.testing.assert_close(
        ridge(features, target, intercepts=3), slow_ridge(features, target, intercepts=3)
    )


def test_features_tell_levels_apart_and_continue_beyond_the_known_ones() -> None:
    one = features_of([(-2, 1)], 2, pairwise=False)
    assert one.tolist() == [[-3.0, 0, 0, 1, 1, 1.5, 1, 0, 0, 0]]
    beyond = features_of([(3, 0)], 2, pairwise=True)
    assert beyond.tolist() == [[4.5, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]


def test_centring_takes_the_mean_of_each_group() -> None:
    values = torch.tensor([[1.0], [2.0], [3.0], [10.0]])
    assert centred(values, torch.tensor([0, 1, 0, 1])).flatten().tolist() == [-1, -4, 1, 4]
