from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from tyr.errors import ConfigError
from tyr.randomness import derive_generator
from tyr.search.samples import Extent, IndependentSamples, NestedSamples, Samples
from tyr.search.selection import Sample, draw_sample, sample_key

EXTENTS = [Extent(16, 8), Extent(32, 8), Extent(80, 8)]


def drawn(samples: Samples, extents: Sequence[Extent], *, seed: int = 0) -> tuple[Sample, ...]:
    rng = derive_generator(seed)
    return samples.draw(12, extents, rng=rng, fixed=derive_generator(7))


def rows(pieces: Sequence[Sample]) -> list[int]:
    return [row for piece in pieces for row in piece.rows.tolist()]


def test_independent_samples_are_the_papers_draw() -> None:
    [sample] = drawn(IndependentSamples(), EXTENTS, seed=3)
    assert sample.key() == draw_sample(12, 8, 80, derive_generator(3)).key()


def test_a_later_stage_adds_to_the_positions_of_the_earlier_ones() -> None:
    stages = [drawn(NestedSamples(), EXTENTS[: end + 1]) for end in range(3)]
    assert [len(pieces) for pieces in stages] == [1, 2, 3]
    for earlier, later in pairwise(stages):
        assert [p.key() for p in later[:-1]] == [p.key() for p in earlier]
    assert [sum(p.num_tokens for p in pieces) for pieces in stages] == [16, 32, 80]
    assert len(set(rows(stages[2]))) == 10


def test_nested_samples_are_the_same_for_some_generations() -> None:
    keys = {sample_key(drawn(NestedSamples(), EXTENTS, seed=seed)) for seed in range(3)}
    assert len(keys) == 1
    assert [NestedSamples(3).epoch(generation) for generation in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert [IndependentSamples().epoch(generation) for generation in range(3)] == [0, 1, 2]
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        NestedSamples(0)


def test_stages_that_take_shorter_pieces_are_no_part_of_longer_ones() -> None:
    extents = [Extent(4, 8), Extent(32, 8)]
    [sample] = drawn(NestedSamples(), extents)
    assert (len(sample.rows), sample.length) == (4, 8)
    [first] = drawn(NestedSamples(), extents[:1])
    assert (len(first.rows), first.length) == (1, 4)


def test_a_stage_smaller_than_one_before_it_is_a_prefix() -> None:
    [sample] = drawn(NestedSamples(), [Extent(80, 8), Extent(16, 8)])
    assert len(sample.rows) == 2


@pytest.mark.parametrize("samples", [IndependentSamples(), NestedSamples()])
def test_a_text_that_is_too_small_is_refused(samples: Samples) -> None:
    with pytest.raises(ConfigError, match="needs 13 sequences of 8, but the search text has 12"):
        drawn(samples, [Extent(104, 8)])


def test_a_split_deals_whole_sequences_one_by_one() -> None:
    sample = Sample(torch.arange(7), 8)
    parts = sample.split(3)
    assert [part.rows.tolist() for part in parts] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [len(part.rows) for part in sample.split(99)] == [1] * 7
    assert sample_key([sample]) == sample.key()
