from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from torch import Tensor

from tests.references.one_by_one import OneByOneEvaluator
from tests.tolerance import FLOAT32, assert_close
from tyr.errors import ConfigError
from tyr.events import GenerationFinished, StartRound
from tyr.model.decoder import Decoder
from tyr.search.economy import Economy
from tyr.search.evolution import EvolutionarySearch, SearchState
from tyr.search.ledger import Evaluator, Ledger
from tyr.search.mutation import Levels
from tyr.search.objective import KdHidden, KdLogits, Perplexity, dense_reference
from tyr.search.population import PopulationEvaluator, PopulationLosses
from tyr.search.rounds import RoundsStart
from tyr.search.selection import Sample
from tyr.sparsity import Allocation, LevelGrid, UnitCounts
from tyr.supernet.store import SupernetStore

UNITS = UnitCounts((8,) * 4, (64,) * 4)
CENTRE = Allocation((4,) * 4, (32,) * 4)
GRID = LevelGrid(UNITS, CENTRE, {"attn": 1, "ffn": 8})
START = SearchState(0, (0,) * 8)
GOAL = (3, -4, 1, 0, -2, 2, -2, 2)  # reachable: both kinds sum to zero

Log = list[tuple[SearchState, GenerationFinished]]


class Distance:
    """Loss without a model: squared distance to a goal, plus what `noise` adds for a sample."""

    def __init__(
        self, noise: Callable[[Levels, Sample], float] = lambda levels, sample: 0.0
    ) -> None:
        self._noise = noise
        self.calls: list[tuple[tuple[Levels, ...], Sample]] = []

    num_sequences = 10
    length = 16

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        self.calls.append((tuple(candidates), sample))
        losses = [
            sum((a - b) ** 2 for a, b in zip(levels, GOAL, strict=True))
            + self._noise(levels, sample)
            for levels in candidates
        ]
        return PopulationLosses([float(loss) for loss in losses], len(candidates))


def search(**settings: Any) -> EvolutionarySearch:
    """A small search whose last stage is the whole text of `Distance`."""
    defaults = {"generations": 12, "offspring": 16, "stages": [[16, 6], [48, 3], [160, 1]]}
    return EvolutionarySearch(KdLogits(), **{**defaults, **settings})


def run(
    method: EvolutionarySearch,
    evaluator: Evaluator,
    *,
    grid: LevelGrid = GRID,
    state: SearchState = START,
    log: Log | None = None,
    seed: int = 0,
    iteration: int = 0,
) -> SearchState:
    def record(after: SearchState, event: GenerationFinished) -> None:
        if log is not None:
            log.append((after, event))

    return method.run(
        evaluator, grid, state=state, seed=seed, iteration=iteration, on_generation=record
    )


def test_the_search_finds_the_best_allocation_and_conserves_the_budget() -> None:
    log: Log = []
    state = run(search(generations=40, offspring=32), Distance(), log=log)
    assert state.parent == GOAL
    assert state.loss == 0
    assert state.generation == 40
    for _, event in log:
        assert event.allocation.total == CENTRE.total


def test_a_computed_start_reports_each_of_its_rounds_before_the_first_generation() -> None:
    told: list[object] = []
    method = search(generations=2, economy=Economy(start=RoundsStart(rounds=2)))
    method.run(
        Distance(),
        GRID,
        state=START,
        seed=0,
        iteration=3,
        on_generation=lambda _, event: told.append(event),
        on_start=told.append,
    )
    rounds = [event for event in told if isinstance(event, StartRound)]
    assert told[:2] == rounds
    assert [(event.iteration, event.round, event.rounds) for event in rounds] == [
        (3, 0, 2),
        (3, 1, 2),
    ]
    assert all(event.best_loss <= event.parent_loss and event.seconds > 0 for event in rounds)


def test_the_best_loss_never_grows_when_the_last_stage_is_the_whole_text() -> None:
    log: Log = []
    run(search(), Distance(), log=log)
    losses = [event.best_loss for _, event in log]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    for (_, before), (_, after) in itertools.pairwise(log):
        assert after.parent_loss == before.best_loss


def test_the_parent_wins_a_tie() -> None:
    class Level(Distance):
        def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
            return PopulationLosses([1.0] * len(candidates), 1)

    assert run(search(), Level()).parent == START.parent


def test_the_parent_survives_when_every_offspring_is_worse() -> None:
    at_goal = SearchState(0, GOAL)
    assert run(search(), Distance(), state=at_goal).parent == GOAL


def test_the_parent_enters_the_last_stage_only() -> None:
    evaluator = Distance()
    run(search(generations=1), evaluator)
    sizes = [len(candidates) for candidates, _ in evaluator.calls]
    assert sizes == [16, 6, 1 + 3]
    assert evaluator.calls[-1][0][0] == START.parent


def test_each_stage_passes_its_best_on() -> None:
    evaluator = Distance()
    run(search(generations=1), evaluator)
    for (entered, sample), (onward, _) in zip(evaluator.calls, evaluator.calls[1:], strict=False):
        losses = Distance().evaluate(entered, sample).losses
        ranked = sorted(range(len(entered)), key=lambda place: (losses[place], place))
        survivors = [entered[place] for place in ranked[: 6 if len(entered) == 16 else 3]]
        assert list(onward)[-len(survivors) :] == survivors


def test_a_parent_whose_loss_on_these_positions_is_known_is_not_evaluated_again() -> None:
    evaluator = Distance()
    run(search(generations=3), evaluator)
    last_stage = [candidates for candidates, sample in evaluator.calls if sample.num_tokens == 160]
    assert [len(candidates) for candidates in last_stage] == [4, 3, 3]


def test_a_parent_meets_new_positions_with_a_new_loss() -> None:
    # The last stage is a part of the text: the loss of the parent is measured anew each time.
    evaluator = Distance(noise=lambda levels, sample: float(sample.rows.sum()))
    log: Log = []
    run(search(generations=4, stages=[[16, 3], [48, 1]]), evaluator, log=log)
    last_stage = [call for call in evaluator.calls if call[1].num_tokens == 48]
    assert [len(candidates) for candidates, _ in last_stage] == [4] * 4
    for (_, sample), (_, event) in zip(last_stage, log, strict=True):
        assert event.parent_loss >= event.best_loss >= float(sample.rows.sum())


@pytest.mark.parametrize("stages", [[[16, 6], [48, 3], [160, 1]], [[16, 3], [48, 1]]])
@pytest.mark.parametrize("done", [1, 5, 11])
def test_a_search_that_was_interrupted_continues_to_the_same_states(
    done: int, stages: list[list[int]]
) -> None:
    def noisy() -> Distance:
        return Distance(noise=lambda levels, sample: 0.1 * float(sample.rows.sum()))

    whole: Log = []
    final = run(search(stages=stages), noisy(), log=whole)
    rest: Log = []
    resumed = run(search(stages=stages), noisy(), state=whole[done - 1][0], log=rest)
    assert resumed == final
    assert [state for state, _ in rest] == [state for state, _ in whole[done:]]
    for (_, left), (_, right) in zip(rest, whole[done:], strict=True):
        assert left.stages == right.stages
        assert left.best_loss == right.best_loss
        assert left.generation == right.generation


def test_a_finished_search_does_nothing_more() -> None:
    evaluator = Distance()
    done = SearchState(12, GOAL, 0.5, (16, 1))
    assert run(search(), evaluator, state=done) == done
    assert not evaluator.calls


def test_seed_and_iteration_change_the_draws() -> None:
    def first_population(**changes: int) -> tuple[Levels, ...]:
        evaluator = Distance()
        run(search(generations=1), evaluator, **changes)  # type: ignore[arg-type]
        return evaluator.calls[0][0]

    populations = {
        first_population(seed=0, iteration=0),
        first_population(seed=1, iteration=0),
        first_population(seed=0, iteration=1),
    }
    assert len(populations) == 3
    assert first_population(seed=0, iteration=0) in populations


def test_generations_differ_in_their_draws() -> None:
    evaluator = Distance(noise=lambda levels, sample: 1e9 * (levels != START.parent))
    run(search(generations=3, stages=[[160, 1]]), evaluator)
    offspring = [candidates[-16:] for candidates, _ in evaluator.calls]
    assert len(set(offspring)) == 3


def test_without_a_legal_shift_the_parent_is_measured_and_the_search_ends() -> None:
    evaluator = Distance()
    log: Log = []
    alone = LevelGrid(UNITS, CENTRE, {"attn": 1, "ffn": 8}, half_width=0)
    state = run(search(), evaluator, grid=alone, log=log)
    assert state.parent == START.parent
    assert state.generation == 12
    assert math.isfinite(state.loss)
    assert [candidates for candidates, _ in evaluator.calls] == [(START.parent,)]
    assert [saved for saved, _ in log] == [state]  # so a resumed run does not measure it again


def test_the_account_of_a_generation_adds_up() -> None:
    log: Log = []
    run(search(generations=2), Distance(), log=log)
    first, second = (event for _, event in log)
    assert [(s.num_tokens, len(s.losses)) for s in first.stages] == [(16, 16), (48, 6), (160, 4)]
    assert all(list(s.losses) == sorted(s.losses) for s in first.stages)
    assert first.evaluated_tokens == 16 * 16 + 6 * 48 + 4 * 160
    assert second.evaluated_tokens == 16 * 16 + 6 * 48 + 3 * 160  # the parent's loss is known
    assert first.dense_sublayer_evaluations == (16 + 6 + 4) * 8
    assert first.sublayer_evaluations == 16 + 6 + 4
    assert (first.generation, second.generation) == (0, 1)
    assert (first.iteration, first.generations) == (0, 2)
    assert first.best_loss == first.stages[-1].losses[0]


def test_a_state_before_the_first_generation_has_no_loss() -> None:
    assert math.isinf(START.loss)
    assert START.sample_key == ()


SLOW_OBJECTIVES = [
    pytest.param(KdLogits(), "kl", id="kd_logits"),
    pytest.param(KdHidden(0.5, 2.0), (0.5, 2.0), id="kd_hidden"),
    pytest.param(Perplexity(), "perplexity", id="perplexity"),
]


@pytest.mark.parametrize(("objective", "slow"), SLOW_OBJECTIVES)
def test_the_survivors_are_those_of_one_by_one_evaluation(
    decoder: Decoder,
    store: SupernetStore,
    grid: LevelGrid,
    text: Tensor,
    objective: Any,
    slow: Any,
) -> None:
    method = EvolutionarySearch(
        objective, generations=2, offspring=5, stages=[[12, 3], [60, 1]], batch_tokens=100
    )
    reference = dense_reference(decoder, text, blocks=objective.observed_blocks(3))
    fast = PopulationEvaluator(
        decoder, store, objective=objective, reference=reference, batch_tokens=100
    )
    start = SearchState(0, (0,) * 6)
    logs: tuple[Log, Log] = ([], [])
    evaluators: tuple[Evaluator, Evaluator] = (
        fast,
        OneByOneEvaluator(decoder, store, text, slow),
    )
    for evaluator, log in zip(evaluators, logs, strict=True):
        run(method, evaluator, grid=grid, state=start, log=log)
    for (left, ours), (right, theirs) in zip(*logs, strict=True):
        assert left.parent == right.parent
        assert ours.sublayer_evaluations == theirs.sublayer_evaluations
        assert ours.evaluated_tokens == theirs.evaluated_tokens
        for mine, other in zip(ours.stages, theirs.stages, strict=True):
            assert_close(
                mine.losses, other.losses, tolerance=FLOAT32, reason="float32, three blocks"
            )


def test_the_ledger_counts_nothing_before_it_is_used() -> None:
    ledger = Ledger(Distance())
    assert (ledger.evaluated_tokens, ledger.sublayer_evaluations, ledger.stages) == (0, 0, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generations": -1}, "generations >= 0"),
        ({"offspring": 0}, "offspring >= 1"),
        ({"max_shifts": 0}, "max_shifts >= 1"),
        ({"batch_tokens": 0}, "search.batch_tokens must be at least 1, got 0"),
        (
            {"structure_cache_bytes": -1},
            "search.structure_cache_bytes must be a whole number .* -1",
        ),
        ({"structure_cache_bytes": "big"}, "search.structure_cache_bytes must be .* got big"),
        ({"compute_dtype": "fp8"}, "search.compute_dtype must be auto or one of .* got 'fp8'"),
        ({"stages": [[10, 17], [20, 1]]}, "17 survivors out of 16"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(**settings)


def test_a_word_in_place_of_an_objective_is_refused_with_the_right_key() -> None:
    word: Any = "kd_logits"
    with pytest.raises(ConfigError, match="write objective=kd_logits"):
        EvolutionarySearch(word)


def test_the_defaults_are_those_of_the_paper() -> None:
    paper = EvolutionarySearch(KdLogits())
    assert (paper.generations, paper.offspring, paper.max_shifts) == (50, 128, 4)
    stages = [(stage.num_tokens, stage.survivors) for stage in paper.stages]
    assert stages == [(2048, 16), (16384, 4), (131072, 1)]


def test_a_text_too_small_for_a_stage_is_refused_before_the_search() -> None:
    search().check_text(10, 16)
    with pytest.raises(ConfigError, match="160 tokens needs 10 sequences of 16.* has 9"):
        search().check_text(9, 16)
