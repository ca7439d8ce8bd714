from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tyr.search.paired import (
    inverse_trigamma,
    paired_p_values,
    student_tail,
    variance_prior,
)


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Two-sided 5 % and one-sided 0.1 % points, as printed in any table of Student's law.
@pytest.mark.parametrize(
    ("freedom", "statistic", "tail"),
    [
        (1, 12.7062, 0.025),
        (2, 4.30265, 0.025),
        (5, 2.57058, 0.025),
        (30, 2.04227, 0.025),
        (1, 318.309, 0.001),
        (10, 4.14370, 0.001),
        (120, 3.15954, 0.001),
    ],
)
def test_the_tail_of_students_law_is_the_tabled_one(
    freedom: int, statistic: float, tail: float
) -> None:
    found = student_tail(double([statistic, -statistic]), freedom)
    torch.testing.assert_close(found, double([tail, 1 - tail]), rtol=2e-5, atol=0)


def test_the_tail_of_many_degrees_of_freedom_is_the_normal_one() -> None:
    for freedom in (1e4, math.inf):
        found = float(student_tail(double([3.0]), freedom))
        assert found == pytest.approx(0.5 * math.erfc(3 / math.sqrt(2)), rel=0.01)
    assert student_tail(double([math.inf, -math.inf]), 3).tolist() == [0, 1]
    assert float(student_tail(double([0.0]), 1)) == pytest.approx(0.5)


@pytest.mark.parametrize("x", [1e-3, 0.3, 1.0, 7.5, 1e4])
def test_the_inverse_trigamma_inverts(x: float) -> None:
    value = float(torch.polygamma(1, double(x)))
    assert inverse_trigamma(value) == pytest.approx(x, rel=1e-6)


def test_the_law_of_variances_is_found_again() -> None:
    # Variances are scaled inverse chi-square with 6 degrees of freedom around 4, times chi-square.
    prior = 4 * 6 / normal(6, 4000, seed=1).square().sum(dim=0)
    own = prior * normal(3, 4000, seed=2).square().sum(dim=0) / 3
    freedom, scale = variance_prior(own, 3)
    assert 4.5 < freedom < 8
    assert 3.6 < scale < 4.4


def test_equal_variances_are_pooled() -> None:
    freedom, scale = variance_prior(double([2.0] * 50), 3)
    assert math.isinf(freedom)
    # Smyth's estimator is of the logarithm: log(chi2_3 / 3) has the mean digamma(3/2) - log(3/2).
    digamma = 2 - 2 * math.log(2) - 0.57721566490153286  # at 3/2
    assert scale == pytest.approx(2 * math.exp(math.log(1.5) - digamma))
    assert variance_prior(double([0.0, 0.0]), 3) == (math.inf, 0.0)


def test_one_candidate_gets_the_ordinary_paired_t_test() -> None:
    differences = double([[0.5], [1.5], [1.0], [1.2]])
    p_value = float(paired_p_values(differences, torch.ones(4, dtype=torch.float64)))
    t = float(differences.mean() / (differences.std() / 2))
    assert p_value == pytest.approx(float(student_tail(double(t), 3)))


def by_hand(differences: list[list[float]], tokens: list[float]) -> list[float]:
    """The slow twin of `paired_p_values`, number by number."""
    chunks, whole = len(tokens), sum(tokens)
    candidates = [[row[index] for row in differences] for index in range(len(differences[0]))]
    means = [sum(n * d for n, d in zip(tokens, own, strict=True)) / whole for own in candidates]
    variances = [
        sum(n * chunks / whole * (d - mean) ** 2 for n, d in zip(tokens, own, strict=True))
        / (chunks - 1)
        for own, mean in zip(candidates, means, strict=True)
    ]
    prior, scale = variance_prior(double(variances), chunks - 1)
    freedom = min(prior + chunks - 1, (chunks - 1) * len(candidates))
    found = []
    for mean, variance in zip(means, variances, strict=True):
        drawn = scale
        if math.isfinite(prior):
            drawn = (prior * scale + (chunks - 1) * variance) / (prior + chunks - 1)
        error = math.sqrt(max(drawn, variance) / chunks)
        found.append(float(student_tail(double(mean / error), freedom)))
    return found


@pytest.mark.parametrize("spread", [0.0, 0.7])  # variances of one size, and of very different ones
@pytest.mark.parametrize("count", [1, 2, 12])
@pytest.mark.parametrize("chunks", [2, 5])
def test_p_values_are_those_worked_out_number_by_number(
    spread: float, count: int, chunks: int
) -> None:
    priors = set()
    for seed in range(5):
        scale = 10 ** (spread * normal(count, seed=seed))
        differences = 0.4 + scale * normal(chunks, count, seed=seed + 50)
        tokens = 64.0 * torch.arange(1, chunks + 1, dtype=torch.float64)
        expected = double(by_hand(differences.tolist(), tokens.tolist()))
        torch.testing.assert_close(
            paired_p_values(differences, tokens), expected, rtol=1e-9, atol=0
        )
        priors.add(math.isinf(variance_prior(differences.var(dim=0), chunks - 1)[0]))
    if count == 12 and chunks == 5:
        assert (True in priors) == (spread == 0.0), "both laws are met"


def test_a_chunk_of_twice_the_tokens_counts_as_two_in_the_mean() -> None:
    # Differences of one sign in the heavy chunk only: as its weight grows, the mean follows it.
    differences = double([[-1.0], [2.0], [-0.5]])
    p_values = [
        float(paired_p_values(differences, double([1.0, weight, 1.0])))
        for weight in (1.0, 4.0, 9.0)
    ]
    assert p_values == sorted(p_values, reverse=True)
    assert p_values[0] > 0.4


def test_who_scatters_most_is_not_accused_by_the_others_calm() -> None:
    # Nineteen calm candidates say that variances are small; the twentieth is judged by its own.
    calm = 0.01 * normal(4, 19, seed=3)
    wild = double([[3.0], [-2.0], [4.0], [-1.0]])
    ones = torch.ones(4, dtype=torch.float64)
    together = float(paired_p_values(torch.cat([calm, wild], dim=1), ones)[-1])
    t = float(wild.mean() / (wild.std() / 2))
    assert together > float(student_tail(double(t), 3 * 20))
    assert together > 0.2


def test_without_any_scatter_a_difference_is_certain_and_none_is_no_evidence() -> None:
    ones = torch.ones(3, dtype=torch.float64)
    p_values = paired_p_values(double([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), ones)
    assert p_values.tolist() == pytest.approx([0, 0.5])


def test_p_values_of_equal_candidates_are_uniform() -> None:
    # Twenty candidates, four chunks, variances that differ tenfold: the small p-values that decide
    # come as often as they say.
    found = []
    for seed in range(100):
        scale = 10 ** (0.5 * torch.rand(20, generator=torch.Generator().manual_seed(seed)).double())
        found.append(paired_p_values(scale * normal(4, 20, seed=seed), torch.ones(4).double()))
    p_values = torch.cat(found)
    for level in (0.2, 0.05, 0.01):
        share = float((p_values < level).double().mean())
        assert share < level + 3 * math.sqrt(level / 2000)
