from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tests.references.one_by_one import OneByOneEvaluator
from tests.tolerance import FLOAT32, assert_close
from tyr.errors import NumericsError
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Sublayer
from tyr.randomness import derive_generator
from tyr.search.kept import StructureSource
from tyr.search.mutation import Levels, mutate
from tyr.search.objective import KdHidden, KdLogits, Objective, Perplexity, dense_reference
from tyr.search.population import Frontier, PopulationEvaluator
from tyr.search.selection import Sample
from tyr.sparsity import LevelGrid, stream_order
from tyr.supernet.store import SupernetStore

OBJECTIVES: dict[str, tuple[Objective, Any]] = {
    "kd_logits": (KdLogits(), "kl"),
    "kd_hidden": (KdHidden(0.5, 2.0), (0.5, 2.0)),
    "perplexity": (Perplexity(), "perplexity"),
}


def evaluator(
    decoder: Decoder,
    store: StructureSource,
    text: Tensor,
    *,
    objective: Objective | None = None,
    batch_tokens: int = 8192,
    compute_dtype: torch.dtype | None = None,
) -> PopulationEvaluator:
    chosen = objective or KdLogits()
    blocks = chosen.observed_blocks(decoder.units.num_blocks)
    return PopulationEvaluator(
        decoder,
        store,
        objective=chosen,
        reference=dense_reference(decoder, text, blocks=blocks),
        batch_tokens=batch_tokens,
        compute_dtype=compute_dtype,
    )


def offspring(grid: LevelGrid, count: int, *, seed: int = 0) -> list[Levels]:
    rng = derive_generator(seed)
    return [mutate((0,) * 6, grid.bounds(), rng) for _ in range(count)]


WHOLE = Sample(torch.arange(5), 12)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(
    "sample",
    [WHOLE, Sample(torch.tensor([1, 3]), 12), Sample(torch.tensor([2]), 7)],
    ids=["whole text", "two sequences", "part of one"],
)
def test_losses_are_those_of_one_by_one_evaluation_of_the_masked_model(
    decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor, name: str, sample: Sample
) -> None:
    objective, slow = OBJECTIVES[name]
    candidates = offspring(grid, 4)
    expected = OneByOneEvaluator(decoder, store, text, slow).evaluate(candidates, sample)
    for batch_tokens in (1, 30, 100, 10_000):
        fast = evaluator(decoder, store, text, objective=objective, batch_tokens=batch_tokens)
        actual = fast.evaluate(candidates, sample)
        reason = "float32, three blocks"
        assert_close(actual.losses, expected.losses, tolerance=FLOAT32, reason=reason)
        assert actual.sublayer_evaluations == expected.sublayer_evaluations


def test_extreme_levels_are_evaluated_like_any_other(
    decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor
) -> None:
    bounds = grid.bounds()
    lowest, highest = (tuple(b[side] for b in bounds) for side in (0, 1))
    mixed = tuple(b[place % 2] for place, b in enumerate(bounds))
    candidates = [lowest, highest, mixed]
    actual = evaluator(decoder, store, text).evaluate(candidates, WHOLE).losses
    expected = OneByOneEvaluator(decoder, store, text).evaluate(candidates, WHOLE).losses
    assert_close(actual, expected, tolerance=FLOAT32, reason="float32, three blocks")
    # level -4 of every sublayer removes nothing: the dense model itself
    assert abs(actual[0]) < 1e-6


@settings(max_examples=8)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(10, 200))
def test_any_population_has_the_losses_of_its_members_alone(
    decoder: Decoder,
    store: SupernetStore,
    grid: LevelGrid,
    text: Tensor,
    seed: int,
    count: int,
    batch_tokens: int,
) -> None:
    fast = evaluator(decoder, store, text, batch_tokens=batch_tokens)
    candidates = offspring(grid, count, seed=seed)
    together = fast.evaluate(candidates, WHOLE).losses
    alone = [fast.evaluate([levels], WHOLE).losses[0] for levels in candidates]
    reason = "float32; other batch sizes take other matrix kernels"
    assert_close(together, alone, tolerance=FLOAT32, reason=reason)


def test_each_distinct_prefix_is_computed_once(
    decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor
) -> None:
    candidates = offspring(grid, 40)
    prefixes = {levels[:end] for levels in candidates for end in range(1, 7)}
    result = evaluator(decoder, store, text).evaluate(candidates, WHOLE)
    assert result.sublayer_evaluations == len(prefixes) < 40 * 6


def test_duplicates_cost_nothing_and_score_alike(
    decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor
) -> None:
    first, second = offspring(grid, 2)
    fast = evaluator(decoder, store, text)
    once = fast.evaluate([first, second], WHOLE)
    again = fast.evaluate([first, second, first, first, second], WHOLE)
    assert again.sublayer_evaluations == once.sublayer_evaluations
    a, b = once.losses
    assert again.losses == [a, b, a, a, b]


def test_losses_come_in_the_order_of_the_candidates(
    decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor
) -> None:
    candidates = offspring(grid, 6)
    fast = evaluator(decoder, store, text)
    forward = fast.evaluate(candidates, WHOLE).losses
    assert len(set(forward)) == len(set(candidates))
    backward = fast.evaluate(candidates[::-1], WHOLE).losses
    reason = "float32; the batches are ordered otherwise"
    assert_close(backward[::-1], forward, tolerance=FLOAT32, reason=reason)


def test_each_structure_is_read_and_sliced_once(
    decoder: Decoder,
    store: SupernetStore,
    grid: LevelGrid,
    text: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[tuple[str, tuple[int, ...]]] = []
    slices: Counter[str] = Counter()
    read, cut = SupernetStore.read, Sublayer.slice

    def counting_read(self: SupernetStore, sublayer: Any, levels: Any) -> Any:
        reads.append((sublayer.name, tuple(levels)))
        return read(self, sublayer, levels)

    def counting_slice(self: Sublayer, structure: Any, dtype: Any) -> Any:
        slices[self.name] += 1
        return cut(self, structure, dtype)

    monkeypatch.setattr(SupernetStore, "read", counting_read)
    monkeypatch.setattr(Sublayer, "slice", counting_slice)
    candidates = offspring(grid, 20)
    evaluator(decoder, store, text).evaluate(candidates, WHOLE)
    used = {
        sublayer.name: tuple(sorted({levels[sublayer.index] for levels in candidates}))
        for sublayer in stream_order(3)
    }
    assert reads == [(name, (level,)) for name, levels in used.items() for level in levels]
    assert slices == {name: len(levels) for name, levels in used.items()}


def record_batch_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences of every pass of a sublayer from now on, filled as they run."""
    sizes: list[int] = []
    branch = Sublayer.branch

    def recording(self: Sublayer, hidden: Tensor, context: Any, sliced: Any = None) -> Any:
        sizes.append(hidden.shape[0])
        return branch(self, hidden, context, sliced)

    monkeypatch.setattr(Sublayer, "branch", recording)
    return sizes


def test_states_at_a_level_run_as_one_batch(
    decoder: Decoder,
    store: SupernetStore,
    grid: LevelGrid,
    text: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = evaluator(decoder, store, text, batch_tokens=8192)
    narrow = evaluator(decoder, store, text, batch_tokens=2 * 60)
    sizes = record_batch_sizes(monkeypatch)
    candidates = offspring(grid, 20)
    used = sum(len({levels[place] for levels in candidates}) for place in range(6))
    result = fast.evaluate(candidates, WHOLE)
    assert len(sizes) == used
    assert sum(sizes) == 5 * result.sublayer_evaluations
    sizes.clear()
    narrow.evaluate(candidates, WHOLE)
    assert max(sizes) == 10, "two states of five sequences"


def test_a_state_larger_than_a_batch_is_split(
    decoder: Decoder,
    store: SupernetStore,
    grid: LevelGrid,
    text: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = evaluator(decoder, store, text, batch_tokens=2 * 12)
    sizes = record_batch_sizes(monkeypatch)
    fast.evaluate(offspring(grid, 3), WHOLE)
    assert set(sizes) == {1, 2}


@pytest.mark.parametrize("batch_tokens", [72, 8192])
def test_states_are_made_only_where_candidates_part(
    decoder: Decoder,
    store: SupernetStore,
    grid: LevelGrid,
    text: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    batch_tokens: int,
) -> None:
    steps: list[int] = []
    advance = PopulationEvaluator._advance

    def watching(
        self: PopulationEvaluator, sublayer: Sublayer, frontier: Frontier, *rest: Any
    ) -> Frontier:
        before = {StorageWeakRef(h.untyped_storage()).cdata for h in present(frontier)}
        moved = advance(self, sublayer, frontier, *rest)
        after = {StorageWeakRef(h.untyped_storage()).cdata for h in present(moved)}
        assert before <= after, "the last way out of a state takes its memory over"
        assert not present(frontier)
        assert len(after) == len(moved.hidden), "no two states share memory"
        for hidden in present(moved):
            assert hidden.untyped_storage().nbytes() == hidden.nbytes, "part of a larger batch"
        steps.append(len(after) - len(before))
        return moved

    fast = evaluator(decoder, store, text, batch_tokens=batch_tokens)
    monkeypatch.setattr(PopulationEvaluator, "_advance", watching)
    fast.evaluate(offspring(grid, 8), WHOLE)
    assert len(steps) == 6
    assert max(steps) > 0


def present(frontier: Frontier) -> list[Tensor]:
    """The states that are in memory."""
    return [hidden for hidden in frontier.hidden if hidden is not None]


def test_a_loss_that_is_not_finite_is_an_error(
    decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor
) -> None:
    class Broken(KdLogits):
        def final_losses(self, states: Any, reference: Any, head: Any) -> list[float]:
            return [float("nan"), *[float("inf")] * (len(states) - 1)]

    candidates = offspring(grid, 3)
    distinct = len(set(candidates))
    with pytest.raises(NumericsError, match=rf"{distinct} of {distinct} candidates is NaN"):
        evaluator(decoder, store, text, objective=Broken()).evaluate(candidates, WHOLE)


def test_evaluation_leaves_the_model_and_the_text_as_they_were(
    decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor
) -> None:
    before = {name: p.clone() for name, p in decoder.model.named_parameters()}
    fast = evaluator(decoder, store, text, objective=KdHidden())
    first = fast.evaluate(offspring(grid, 4), WHOLE).losses
    assert fast.evaluate(offspring(grid, 4), WHOLE).losses == first
    for name, parameter in decoder.model.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_shorter_precision_keeps_the_ranking(
    decoder: Decoder, store: SupernetStore, grid: LevelGrid, text: Tensor, name: str
) -> None:
    objective, _ = OBJECTIVES[name]
    exact = evaluator(decoder, store, text, objective=objective)
    short = evaluator(decoder, store, text, objective=objective, compute_dtype=torch.bfloat16)
    candidates = list(dict.fromkeys(offspring(grid, 40)))
    wide = torch.tensor(exact.evaluate(candidates, WHOLE).losses)
    losses = torch.tensor(short.evaluate(candidates, WHOLE).losses)
    assert not torch.equal(wide, losses), "nothing was computed in bfloat16"
    assert_close(losses, wide, tolerance=0.02, reason="bfloat16 has eight bits")
    ranks = torch.stack([wide.argsort().argsort(), losses.argsort().argsort()]).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.99
