"""The options together, in a whole search: accounts, interruptions, and the paper left as it is."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.search.test_evolution import GOAL, GRID, START, Distance, Log, run, search
from tyr.errors import ConfigError
from tyr.rundir import RunDirectory
from tyr.search.archive import KeepAll
from tyr.search.economy import Economy
from tyr.search.evolution import EvolutionarySearch, SearchState
from tyr.search.mutation import Levels
from tyr.search.racing import SequentialRacing
from tyr.search.rounds import RoundsStart
from tyr.search.samples import NestedSamples
from tyr.search.selection import Sample
from tyr.search.start import DynamicStart
from tyr.search.surrogate import LinearSurrogate
from tyr.sparsity import LevelGrid

STAGES = [[16, 6], [48, 3], [160, 1]]
OPTIONS: dict[str, dict[str, Any]] = {
    "rounds": {"start": RoundsStart()},
    "start": {"start": DynamicStart()},
    "surrogate": {"surrogate": LinearSurrogate()},
    "racing": {"racing": SequentialRacing()},
    "archive": {"archive": KeepAll(), "samples": NestedSamples()},
    "nested without archive": {"samples": NestedSamples()},
    "archive without nesting": {"archive": KeepAll()},
}
# Of two starts the later one: rounds are dear where there is no noise.
OPTIONS["all"] = {key: value for option in OPTIONS.values() for key, value in option.items()}


def thrifty(name: str, **settings: Any) -> EvolutionarySearch:
    return search(stages=STAGES, economy=Economy(**OPTIONS[name]), **settings)


def noisy() -> Distance:
    """Losses differ by sequence, as much for all candidates and a little for each."""

    def noise(levels: Levels, sample: Sample) -> float:
        own = sum(level * row for level, row in zip(levels, sample.rows.tolist(), strict=False))
        return 0.1 * float(sample.rows.sum()) + 0.01 * own

    return Distance(noise)


# Digests of every call and event before there were options: the paper's search must not change.
@pytest.mark.parametrize(
    ("stages", "digest"),
    [
        ([[16, 6], [48, 3], [160, 1]], "2bc0126aff7eb1d6"),
        ([[16, 3], [48, 1]], "85150dff87f12c22"),
        ([[8, 4], [32, 1]], "a83684470f691680"),
    ],
)
def test_the_default_search_makes_the_same_draws_as_before_there_were_options(
    stages: list[list[int]], digest: str
) -> None:
    evaluator = Distance(noise=lambda levels, sample: 0.1 * float(sample.rows.sum()))
    log: Log = []
    run(search(generations=6, stages=stages), evaluator, log=log, seed=3, iteration=1)
    calls = [(candidates, sample.key()) for candidates, sample in evaluator.calls]
    facts = [
        (
            state.generation,
            state.parent,
            state.loss,
            state.sample_key,
            event.evaluated_tokens,
            event.sublayer_evaluations,
            event.dense_sublayer_evaluations,
            event.best_loss,
            event.parent_loss,
            [(stage.num_tokens, stage.losses) for stage in event.stages],
        )
        for state, event in log
    ]
    text = repr(calls) + repr(facts)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest
    assert all(state.evaluations == () for state, _ in log)
    last = log[-1][1]
    options = (last.screened, last.raced_out, last.archive_hits, last.surrogate_rank_correlation)
    assert options == (None, None, None, None)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_tokens_reported_are_the_tokens_evaluated(name: str) -> None:
    evaluator = noisy()
    log: Log = []
    run(thrifty(name, generations=5), evaluator, log=log)
    spent = sum(len(candidates) * sample.num_tokens for candidates, sample in evaluator.calls)
    assert sum(event.evaluated_tokens for _, event in log) == spent
    count = sum(len(candidates) for candidates, _ in evaluator.calls)
    assert sum(event.dense_sublayer_evaluations for _, event in log) == 8 * count
    assert sum(event.sublayer_evaluations for _, event in log) == count
    for _, event in log:
        assert event.allocation.total == GRID.centre.total
        assert len(event.stages) == 3


@pytest.mark.parametrize("name", OPTIONS)
def test_a_search_killed_at_any_generation_continues_identically(name: str, tmp_path: Path) -> None:
    whole: Log = []
    final = run(thrifty(name, generations=6), noisy(), log=whole)
    directory = RunDirectory(tmp_path)
    for done in (1, 4):
        directory.save_search(0, GRID, whole[done - 1][0])
        state = directory.search_state(0, GRID)
        rest: Log = []
        assert run(thrifty(name, generations=6), noisy(), state=state, log=rest) == final
        for (_, left), (_, right) in zip(rest, whole[done:], strict=True):
            assert (left.stages, left.evaluated_tokens) == (right.stages, right.evaluated_tokens)
            assert left.surrogate_rank_correlation == right.surrogate_rank_correlation
            assert left.archive_hits == right.archive_hits


@pytest.mark.parametrize("name", ["surrogate", "racing", "archive", "all"])
def test_the_best_allocation_is_still_found(name: str) -> None:
    # Loss without noise, so no option can be misled: what is saved is all that differs.
    log: Log = []
    generations = 15 if "surrogate" in OPTIONS[name] else 40
    assert run(thrifty(name, generations=generations), Distance(), log=log).parent == GOAL
    losses = [event.best_loss for _, event in log]
    assert losses[-1] == 0


def test_all_options_need_fewer_tokens_to_the_best_allocation() -> None:
    def tokens_to_goal(method: EvolutionarySearch) -> int:
        log: Log = []
        run(method, Distance(), log=log)
        spent = 0
        for state, event in log:
            spent += event.evaluated_tokens
            if state.parent == GOAL:
                return spent
        raise AssertionError("the goal was not reached")

    paper = tokens_to_goal(search(generations=40))
    assert 4 * tokens_to_goal(thrifty("all", generations=5)) < paper


def test_an_archive_over_nested_samples_never_pays_twice() -> None:
    evaluator = noisy()
    log: Log = []
    run(thrifty("all", generations=8), evaluator, log=log)
    paid = [
        (levels, sample.key()) for candidates, sample in evaluator.calls for levels in candidates
    ]
    assert len(paid) == len(set(paid))
    assert sum(event.archive_hits or 0 for _, event in log) > 0


def test_options_report_what_they_did() -> None:
    log: Log = []
    run(thrifty("all", generations=4), noisy(), log=log)
    for _, event in log:
        assert event.screened == 8 * 16 - 6 or (event.screened or 0) > 100
        assert event.raced_out is not None
        assert event.surrogate_rank_correlation is not None
        assert -1 <= event.surrogate_rank_correlation <= 1


def test_the_start_is_measured_in_the_first_generation_only() -> None:
    evaluator = Distance()
    log: Log = []
    run(thrifty("start", generations=2), evaluator, log=log)
    first, second = (event for _, event in log)
    singles = 1 + sum(high - low for low, high in GRID.bounds())  # and the parent
    assert len(evaluator.calls[0][0]) == singles
    assert first.evaluated_tokens > second.evaluated_tokens + singles * 16
    assert first.parent_loss == 0, "the parent of the first generation is the start"
    assert log[-1][0].evaluations == (), "nothing is kept that no option needs"


def test_without_a_legal_shift_no_option_does_anything() -> None:
    evaluator = Distance()
    alone = LevelGrid(GRID.units, GRID.centre, dict(GRID.step), half_width=0)
    state = run(thrifty("all"), evaluator, grid=alone)
    assert state.parent == START.parent
    assert {candidates for candidates, _ in evaluator.calls} == {(START.parent,)}


def test_a_state_of_a_search_without_options_is_continued_with_them() -> None:
    plain = SearchState(3, START.parent, 5.0, (16, 1))
    assert run(thrifty("all", generations=5), noisy(), state=plain).generation == 5


def test_racing_counts_when_a_stage_is_too_small_for_the_objective() -> None:
    from tyr.search.objective import Perplexity

    method = EvolutionarySearch(
        Perplexity(),
        offspring=4,
        stages=[[1, 2], [16, 1]],
        economy=Economy(racing=SequentialRacing()),
    )
    with pytest.raises(ConfigError, match="sequences of at least 2 tokens"):
        method.check_text(10, 16)


@pytest.mark.parametrize("part", ["start", "surrogate", "racing", "samples", "archive"])
def test_a_word_in_place_of_an_option_is_refused_with_the_right_key(part: str) -> None:
    word: Any = {part: "fast"}
    with pytest.raises(ConfigError, match=f"write {part}=fast"):
        Economy(**word)
