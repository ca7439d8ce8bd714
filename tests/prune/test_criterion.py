from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch import Tensor

from tests.prune.problems import random_data
from tests.references.greedy import unit_scores
from tests.tolerance import assert_close
from tyr.prune.criterion import (
    Criterion,
    FirstOrder,
    Magnitude,
    Random,
    SecondOrder,
    Taylor,
    UnitBlocks,
    first_order_term,
    second_order_term,
)
from tyr.randomness import derive_generator

YAML = sorted((Path(__file__).parents[2] / "conf" / "criterion").glob("*.yaml"))
CRITERIA: dict[str, Criterion] = {
    "taylor": Taylor(),
    "second_order": SecondOrder(),
    "first_order": FirstOrder(),
    "magnitude": Magnitude(),
    "random": Random(),
}


def unit_blocks(units: int, unit_size: int, *, seed: int = 0) -> UnitBlocks:
    """The blocks of a random problem before anything is removed."""
    problem = random_data(units, unit_size, seed=seed).self_problem()
    inverse = torch.linalg.inv(problem.hessian).view(units, unit_size, units, unit_size)
    everyone = torch.arange(units)
    assert problem.weight is not None
    return UnitBlocks(
        everyone,
        problem.weight.view(units, unit_size, -1),
        problem.gradient.view(units, unit_size, -1),
        inverse[everyone, :, everyone],
    )


@pytest.mark.parametrize("unit_size", [1, 2, 4])
@pytest.mark.parametrize("name", CRITERIA)
def test_a_score_is_what_its_definition_gives(name: str, unit_size: int) -> None:
    data = random_data(6, unit_size)
    scores = CRITERIA[name].score(unit_blocks(6, unit_size), rng=derive_generator(3))
    expected = unit_scores(
        data.self_regression(), range(6), criterion=name, rng=derive_generator(3)
    )
    assert_close(scores, expected)


@pytest.mark.parametrize("unit_size", [1, 3])
def test_the_second_order_term_is_half_the_error_that_remains_without_the_unit(
    unit_size: int,
) -> None:
    regression = random_data(5, unit_size).self_regression()
    term = second_order_term(unit_blocks(5, unit_size))
    for unit in range(5):
        others = [other for other in range(5) if other != unit]
        increase = regression.error(others) - regression.error(range(5))
        assert_close(float(term[unit]), 0.5 * increase)


def test_for_a_neuron_the_second_order_term_is_the_printed_eq_4() -> None:
    blocks = unit_blocks(8, 1)
    printed = blocks.weight[:, 0].square().sum(dim=1) / (2 * blocks.inverse[:, 0, 0])
    assert_close(second_order_term(blocks), printed)


def test_the_first_order_term_is_the_printed_eq_4() -> None:
    blocks = unit_blocks(8, 1)
    printed = [
        abs(float(g @ w)) for g, w in zip(blocks.gradient[:, 0], blocks.weight[:, 0], strict=True)
    ]
    assert_close(first_order_term(blocks), printed)


def test_taylor_is_the_sum_of_both_terms() -> None:
    blocks = unit_blocks(6, 2)
    total = Taylor().score(blocks, rng=derive_generator(0))
    assert_close(total, first_order_term(blocks) + second_order_term(blocks))


def test_magnitude_does_not_see_activations() -> None:
    first, second = unit_blocks(6, 2, seed=0), unit_blocks(6, 2, seed=9)
    swapped = replace(second, weight=first.weight)
    rng = derive_generator(0)
    assert torch.equal(Magnitude().score(first, rng=rng), Magnitude().score(swapped, rng=rng))


def test_random_scores_come_from_the_generator_handed_in() -> None:
    blocks = unit_blocks(6, 2)
    draws = [Random().score(blocks, rng=derive_generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_every_yaml_criterion_is_covered_here() -> None:
    assert {path.stem for path in YAML} == set(CRITERIA)


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.stem)
class TestCriterionContract:
    """What every criterion promises; a new YAML file is tested by being there."""

    def criterion(self, path: Path) -> Criterion:
        built: Criterion = instantiate(yaml.safe_load(path.read_text(encoding="utf-8")))
        return built

    @pytest.mark.parametrize(("units", "unit_size"), [(1, 1), (7, 1), (4, 8)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_scores_are_finite_non_negative_and_one_per_unit(
        self, path: Path, units: int, unit_size: int, dtype: torch.dtype
    ) -> None:
        full = unit_blocks(units, unit_size)
        blocks = UnitBlocks(
            full.units, full.weight.to(dtype), full.gradient.to(dtype), full.inverse.to(dtype)
        )
        scores = self.criterion(path).score(blocks, rng=derive_generator(0))
        assert scores.shape == (units,)
        assert scores.dtype == dtype
        assert torch.isfinite(scores).all()
        assert (scores >= 0).all()

    def test_scoring_repeats_and_changes_nothing(self, path: Path) -> None:
        blocks = unit_blocks(5, 2)
        before: list[Tensor] = [t.clone() for t in (blocks.weight, blocks.gradient, blocks.inverse)]
        first = self.criterion(path).score(blocks, rng=derive_generator(4))
        second = self.criterion(path).score(blocks, rng=derive_generator(4))
        assert torch.equal(first, second)
        for now, then in zip((blocks.weight, blocks.gradient, blocks.inverse), before, strict=True):
            assert torch.equal(now, then)

    def test_the_order_of_units_is_of_no_account(self, path: Path) -> None:
        blocks, order = unit_blocks(6, 2), torch.tensor([4, 0, 5, 2, 1, 3])
        scores = self.criterion(path).score(blocks, rng=derive_generator(0))
        moved = UnitBlocks(
            *(t[order] for t in (blocks.units, blocks.weight, blocks.gradient, blocks.inverse))
        )
        assert_close(self.criterion(path).score(moved, rng=derive_generator(0)), scores[order])


def test_an_unused_unit_scores_nothing() -> None:
    blocks = unit_blocks(4, 2)
    weight = blocks.weight.clone()
    weight[2] = 0
    silent = replace(blocks, weight=weight)
    for name in ("taylor", "second_order", "first_order", "magnitude"):
        scores = CRITERIA[name].score(silent, rng=derive_generator(0))
        assert int(scores.argmin()) == 2
        assert float(scores[2]) == 0
