from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny import random_matrix
from tests.tolerance import assert_close
from tyr.errors import NumericsError
from tyr.linalg import (
    add_to_diagonal,
    cholesky,
    damping_amount,
    inverse,
    solve_dtype,
    solve_nested,
)

TOKENS, WIDTH, OUTPUTS = 40, 9, 5


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """X (N, d_in), W (d_in, C) and H = XᵀX."""
    features = random_matrix(TOKENS, WIDTH, seed=seed)
    weight = random_matrix(WIDTH, OUTPUTS, seed=seed + 1)
    return features, weight, features.mT @ features


row_sets = st.sets(st.integers(0, WIDTH - 1), min_size=1, max_size=WIDTH).map(sorted)


def solve_on(rows: list[int], hessian: Tensor, gradient: Tensor) -> Tensor:
    """Weight (k, C) of the given rows alone."""
    index = torch.tensor(rows, dtype=torch.int64)
    ((weight, _),) = solve_nested(hessian, gradient, index, [len(rows)], name="s")
    return weight


@given(row_sets)
def test_the_solution_on_kept_rows_is_least_squares_on_the_kept_columns(rows: list[int]) -> None:
    features, weight, hessian = problem()
    expected = torch.linalg.lstsq(features[:, rows], features @ weight).solution
    assert_close(solve_on(rows, hessian, hessian @ weight), expected)


@given(st.permutations(range(WIDTH)), st.lists(st.integers(0, WIDTH), min_size=1, max_size=4))
def test_nested_subsets_are_each_solved_as_if_alone(order: list[int], sizes: list[int]) -> None:
    features, weight, hessian = problem()
    gradient = hessian @ weight
    rows = torch.tensor(order[: max(sizes)], dtype=torch.int64)
    solved = list(solve_nested(hessian, gradient, rows, sizes, name="s"))
    assert len(solved) == len(sizes)
    for size, (found, explained) in zip(sizes, solved, strict=True):
        kept = order[:size]
        alone = torch.linalg.solve(hessian[kept][:, kept], gradient[kept])
        assert_close(found, alone)
        assert_close(explained, float((features[:, kept] @ alone).square().sum()))


def test_the_solution_on_no_rows_is_empty() -> None:
    _, weight, hessian = problem()
    assert solve_on([], hessian, hessian @ weight).shape == (0, OUTPUTS)


def test_the_printed_eq_5_is_the_new_weight_and_not_the_perturbation() -> None:
    # Recorded in DEVIATIONS.md: H_kk⁻¹G_k solves the problem, W + H_kk⁻¹G_k does not.
    features, weight, hessian = problem()
    printed = solve_on(list(range(1, WIDTH)), hessian, hessian @ weight)
    wanted = features @ weight

    def error(candidate: Tensor) -> float:
        return float((wanted - features[:, 1:] @ candidate).square().sum())

    assert error(printed) < error(weight[1:]) < error(weight[1:] + printed)


def test_damping_is_a_fraction_of_the_mean_diagonal() -> None:
    matrix = torch.diag(torch.tensor([1.0, 2.0, 6.0]))
    assert damping_amount(matrix, 0.5) == 1.5
    assert torch.equal(add_to_diagonal(matrix, 1.5).diagonal(), torch.tensor([2.5, 3.5, 7.5]))
    assert torch.equal(matrix.diagonal(), torch.tensor([1.0, 2.0, 6.0])), "the input is not changed"


def test_damping_makes_a_rank_deficient_hessian_invertible() -> None:
    few = random_matrix(3, WIDTH)
    hessian = few.mT @ few
    with pytest.raises(NumericsError):
        inverse(hessian, name="s")
    damped = add_to_diagonal(hessian, damping_amount(hessian, 0.01))
    assert_close(inverse(damped, name="s") @ damped, torch.eye(WIDTH))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "broken", [-torch.eye(3), torch.full((3, 3), torch.nan), torch.zeros(3, 3)]
)
def test_a_failed_factorisation_names_the_sublayer_and_what_to_try(
    broken: Tensor, dtype: torch.dtype
) -> None:
    with pytest.raises(NumericsError, match=r"^003\.ffn: .*minor 1 of 3.*pruner\.damping"):
        cholesky(broken.to(dtype), name="003.ffn")


def nearly_singular() -> Iterator[Tensor]:
    """Products vvᵀ, rounded to float32: which of them are positive definite is chance."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(1000):
        vector = torch.rand(2, generator=rng)
        yield torch.outer(vector, vector)


def only_float64_can_factor(matrix: Tensor) -> bool:
    """Machines round differently, so no one matrix does for all."""
    short, wide = (int(torch.linalg.cholesky_ex(m).info) for m in (matrix, matrix.double()))
    return short != 0 and wide == 0


def test_a_float32_matrix_that_only_float64_can_factor_is_factored_there() -> None:
    matrix = next(filter(only_float64_can_factor, nearly_singular()))
    factor = cholesky(matrix, name="s")
    assert factor.dtype == torch.float32
    assert_close(factor @ factor.mT, matrix, tolerance=1e-6, reason="float32 factor")


def test_factorisations_are_in_float64_on_the_cpu() -> None:
    assert solve_dtype(torch.device("cpu")) == torch.float64
    assert solve_dtype(torch.device("cuda")) == torch.float32
