"""What is counted before a search against what the search then evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from tests.references.prefixes import distinct_prefixes
from tests.search.test_economy import OPTIONS
from tests.search.test_evolution import GRID, Distance, Log, run, search
from tyr.data import SplitSizes
from tyr.model.decoder import Decoder
from tyr.randomness import derive_generator
from tyr.search.counts import SearchCounts, count_search, distinct_share
from tyr.search.economy import Economy
from tyr.search.evolution import EvolutionarySearch
from tyr.search.knapsack import single_changes
from tyr.search.mutation import Levels, mutate
from tyr.search.objective import KdLogits, dense_reference
from tyr.search.population import PopulationEvaluator, PopulationLosses
from tyr.search.selection import Sample, draw_sample
from tyr.sparsity import LevelGrid
from tyr.supernet.store import SupernetStore

# The last stage is not the whole text, so the parent meets new positions in every generation.
STAGES = [[16, 6], [48, 3], [96, 1]]
SIZES = SplitSizes(
    sequence_length=Distance.length,
    calibration_tokens=16,
    search_tokens=Distance.length * Distance.num_sequences,
    evaluation_tokens=16,
)
SUBLAYERS = 8


class Trie(Distance):
    """Counts the nodes that a trie has."""

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        losses = super().evaluate(candidates, sample).losses
        return PopulationLosses(losses, distinct_prefixes(candidates))


def with_options(name: str | None = None, **settings: Any) -> EvolutionarySearch:
    economy = Economy(**OPTIONS[name]) if name else None
    return search(**{"stages": STAGES, "economy": economy, **settings})


def counted(method: EvolutionarySearch) -> SearchCounts:
    return count_search(method, GRID.bounds(), SIZES)


def test_every_generation_of_the_paper_s_search_evaluates_what_was_counted() -> None:
    method, log = with_options(), Log()
    run(method, Distance(), log=log)
    counts = counted(method)
    assert [call.candidates for call in counts.stages] == [16, 6, 4]
    expected = 16 * 16 + 6 * 48 + 4 * 96
    assert sum(call.evaluated_tokens for call in counts.stages) == expected
    assert [event.evaluated_tokens for _, event in log] == [expected] * 12
    assert counts.evaluated_tokens == 12 * expected


def test_the_trie_of_offspring_is_as_large_as_was_counted_and_that_of_survivors_no_larger() -> None:
    method, evaluator = with_options(offspring=64, generations=8), Trie()
    run(method, evaluator)
    stages = counted(method).stages
    for index, call in enumerate(stages):
        calls = [candidates for candidates, _ in evaluator.calls[index :: len(stages)]]
        measured = sum(map(distinct_prefixes, calls)) / len(calls)
        nodes = call.share * call.candidates * SUBLAYERS
        assert 0.9 * measured < nodes < (1.1 if index == 0 else 1.5) * measured
    assert stages[0].share < 0.7


def test_a_start_evaluates_every_pair_and_its_optima_as_counted() -> None:
    method, evaluator, log = with_options("start"), Trie(), Log()
    run(method, evaluator, log=log)
    counts = counted(method)
    singles, optima = counts.start
    others = [high - low for low, high in GRID.bounds()]  # levels that are not the parent's
    assert (singles.candidates, singles.num_tokens) == (1 + sum(others), 16)
    # A single change shares all that comes before it with the parent.
    nodes = SUBLAYERS + sum(m * (SUBLAYERS - place) for place, m in enumerate(others))
    assert singles.share * singles.candidates * SUBLAYERS == pytest.approx(nodes)
    candidates, sample = evaluator.calls[0]
    assert (len(candidates), sample.num_tokens) == (singles.candidates, singles.num_tokens)
    assert distinct_prefixes(candidates) == nodes
    candidates, sample = evaluator.calls[1]
    assert sample.num_tokens == optima.num_tokens == 48
    assert 2 <= len(candidates) <= optima.candidates <= 5
    first, *later = [event.evaluated_tokens for _, event in log]
    generation = sum(call.evaluated_tokens for call in counts.stages)
    assert later == [generation] * 11
    assert first == generation + singles.evaluated_tokens + len(candidates) * 48


def test_a_surrogate_evaluates_a_part_of_the_offspring_as_counted() -> None:
    method, log = with_options("surrogate", offspring=40), Log()
    run(method, Distance(), log=log)
    counts = counted(method)
    assert [call.candidates for call in counts.stages] == [10, 6, 4]
    assert {event.evaluated_tokens for _, event in log} == {10 * 16 + 6 * 48 + 4 * 96}
    assert counts.evaluated_tokens == sum(event.evaluated_tokens for _, event in log)


def test_with_an_archive_offspring_pay_for_the_new_part_of_nested_samples_only() -> None:
    counts = counted(with_options("archive"))
    paid = [call.evaluated_tokens for call in counts.stages]
    assert paid == [16 * 16, 6 * (48 - 16), 3 * (96 - 48) + 96]
    assert [call.num_tokens for call in counts.stages] == [16, 48, 96]


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_evaluates_more_than_was_counted(name: str) -> None:
    method, log = with_options(name), Log()
    run(method, Distance(lambda levels, sample: 0.1 * sum(levels[::3])), log=log)
    spent = sum(event.evaluated_tokens for _, event in log)
    assert 0.3 * counted(method).evaluated_tokens < spent <= counted(method).evaluated_tokens


def test_racing_counts_the_shorter_sequences_that_it_takes() -> None:
    sizes = SplitSizes(
        sequence_length=1024, calibration_tokens=1024, search_tokens=8192, evaluation_tokens=1024
    )
    stages = [[1024, 6], [2048, 3], [8192, 1]]
    paper = count_search(with_options(stages=stages), GRID.bounds(), sizes)
    raced = count_search(with_options("racing", stages=stages), GRID.bounds(), sizes)
    assert [call.length for call in paper.stages] == [1024, 1024, 1024]
    assert [call.length for call in raced.stages] == [256, 512, 1024]
    assert raced.evaluated_tokens == paper.evaluated_tokens


def test_a_search_of_no_generation_or_no_shift_is_counted_as_such() -> None:
    assert counted(with_options("all", generations=0)) == SearchCounts((), (), 0)
    fixed = LevelGrid(GRID.units, GRID.centre, GRID.step, half_width=0)
    method, log = with_options("start"), Log()
    run(method, Distance(), grid=fixed, log=log)
    counts = count_search(method, fixed.bounds(), SIZES)
    assert [event.evaluated_tokens for _, event in log] == [96]
    assert counts.evaluated_tokens == 96


def test_distinct_nodes_are_those_the_evaluator_computes(
    decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor
) -> None:
    evaluator = PopulationEvaluator(
        decoder, store, objective=KdLogits(), reference=dense_reference(decoder, text)
    )
    rng, parent = derive_generator(1), (0,) * len(decoder.sublayers)
    bounds = grid.bounds()
    drawn = [mutate(parent, bounds, rng) for _ in range(12)]
    for population in (drawn, [parent, *single_changes(parent, bounds)]):
        result = evaluator.evaluate(population, draw_sample(5, 12, 24, rng))
        nodes = sum(len(levels) for levels in population)
        assert distinct_share(population) * nodes == pytest.approx(result.sublayer_evaluations)
        assert distinct_prefixes(population) == result.sublayer_evaluations
