from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.prune.problems import DAMPING, random_data
from tests.tolerance import assert_close
from tyr.errors import ConfigError
from tyr.prune.progressive import LocalProblem
from tyr.prune.target import CorrectedTarget, SelfTarget


def optimum(problem: LocalProblem) -> torch.Tensor:
    solution: torch.Tensor = torch.linalg.solve(problem.hessian, problem.gradient)
    return solution


def test_the_self_target_is_the_output_of_the_dense_weight() -> None:
    data = random_data(8, 1)
    problem = data.self_problem()
    regression = data.self_regression()
    assert_close(problem.hessian, regression.inputs.mT @ regression.inputs)
    assert_close(problem.gradient, regression.inputs.mT @ regression.outputs)
    assert_close(optimum(problem), data.weight)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.7, 1.0])
def test_the_corrected_target_is_its_formula_on_the_data(alpha: float, beta: float) -> None:
    data = random_data(8, 1)
    problem, regression = (
        data.corrected_problem(alpha, beta),
        data.corrected_regression(alpha, beta),
    )
    assert_close(problem.hessian, regression.inputs.mT @ regression.inputs)
    assert_close(problem.gradient, regression.inputs.mT @ regression.outputs)


def test_the_corrected_target_without_corrections_is_the_self_target() -> None:
    data = random_data(8, 1)
    assert torch.equal(data.corrected_problem(0, 0).gradient, data.self_problem().gradient)
    assert torch.equal(data.corrected_problem(0, 0).hessian, data.self_problem().hessian)


def test_the_full_correction_comes_as_near_to_the_dense_hidden_state_as_a_weight_can() -> None:
    data = random_data(8, 1)
    # dense hidden state r + X·W against r̂ + X̂·Ŵ: the weight has to make up X·W + (r − r̂)
    wanted = data.dense @ data.weight + data.residual_gap
    nearest = torch.linalg.lstsq(data.pruned, wanted).solution
    assert_close(optimum(data.corrected_problem(1, 1, damping=0.0)), nearest)


def test_the_ridge_pulls_towards_the_dense_weight() -> None:
    data = random_data(8, 1)
    heavy = data.corrected_problem(1, 1, damping=1e9)
    assert_close(
        optimum(heavy), data.weight, tolerance=1e-6, reason="the ridge is large, not infinite"
    )


def test_the_ridge_is_a_fraction_of_the_mean_diagonal() -> None:
    data = random_data(8, 1)
    bare, damped = data.self_problem(damping=0.0), data.self_problem()
    ridge = DAMPING * data.statistics.hessian.diagonal().mean()
    assert_close(damped.hessian - bare.hessian, ridge * torch.eye(8))


def test_only_the_corrected_target_needs_the_dense_stream() -> None:
    assert not SelfTarget().needs_dense_stream
    assert CorrectedTarget().needs_dense_stream
    data = random_data(8, 1)
    alone = dataclasses.replace(data.statistics, cross=None, residual=None)
    with pytest.raises(ValueError, match="000.ffn: the corrected target needs"):
        CorrectedTarget().problem(alone, data.weight, damping=0.1, unit_size=1, name="000.ffn")


@pytest.mark.parametrize("key", ["alpha", "beta"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"pruner\.target\.{key} must be in \[0, 1\]"):
        CorrectedTarget(**{key: value})
