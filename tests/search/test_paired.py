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
    freedom, scale = variance_prior(normal(3, 50, seed=5).square().mean(dim=0) * 0 + 2.0, 3)
    assert math.isinf(freedom)
    assert scale > 0
    assert variance_prior(double([0.0, 0.0]), 3) == (math.inf, 0.0)


def test_one_candidate_gets_the_ordinary_paired_t_test() -> None:
    differences = double([[0.5], [1.5], [1.0], [1.2]])
    p_value = float(paired_p_values(differences, torch.ones(4, dtype=torch.float64)))
    t = float(differences.mean() / (differences.std() / 2))
    assert p_value == pytest.approx(float(student_tail(double(t), 3)))


def test_a_chunk_of_twice_the_tokens_counts_as_two() -> None:
    # The same data, once as one heavier chunk: the mean moves as two chunks would move it.
    differences = double([[1.0, 2.0], [4.0, 1.0], [0.5, 3.0]])
    heavy = paired_p_values(differences, double([1.0, 2.0, 1.0]))
    light = paired_p_values(differences, double([1.0, 1.0, 1.0]))
    assert not torch.equal(heavy, light)
    weights = double([0.25, 0.5, 0.25])
    assert ((weights @ differences) > 0).all()
    assert (heavy < 0.5).all()


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
