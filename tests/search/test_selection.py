from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tyr.errors import ConfigError
from tyr.randomness import derive_generator
from tyr.search.selection import Sample, Stage, best_indices, draw_sample, parse_stages

PAPER = [[2048, 16], [16384, 4], [131072, 1]]


def test_the_paper_s_stages_are_read() -> None:
    expected = (Stage(2048, 16), Stage(16384, 4), Stage(131072, 1))
    assert parse_stages(PAPER, 128) == expected
    assert parse_stages(((10, 1),), 1) == (Stage(10, 1),)


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [[2048]],
        [[2048, 16, 1]],
        [[0, 1]],
        [[10, 0]],
        [[-5, 1]],
        [[10.5, 1]],
        [[10, 1.5]],
        [2048, 1],
        [["many", 1]],
        ["ab"],
    ],
    ids=str,
)
def test_what_is_not_pairs_of_positive_integers_is_refused(stages: Any) -> None:
    with pytest.raises(ConfigError, match=r"search\.stages must be pairs \[tokens, survivors\]"):
        parse_stages(stages, 128)


def test_more_survivors_than_candidates_are_refused() -> None:
    with pytest.raises(ConfigError, match="16 survivors out of 8 candidates.*8 offspring"):
        parse_stages(PAPER, 8)
    with pytest.raises(ConfigError, match="5 survivors out of 4 candidates"):
        parse_stages([[10, 4], [20, 5], [30, 1]], 128)


def test_a_last_stage_with_several_survivors_is_refused() -> None:
    with pytest.raises(ConfigError, match="last stage must keep 1 candidate, got 4"):
        parse_stages(PAPER[:2], 128)


def test_equal_numbers_of_survivors_are_allowed() -> None:
    assert len(parse_stages([[10, 4], [20, 4], [30, 1]], 4)) == 3


@given(st.integers(1, 40), st.integers(1, 64), st.integers(1, 4000), st.integers(0, 99))
def test_a_sample_is_whole_sequences_without_repeats_or_the_start_of_one(
    sequences: int, length: int, num_tokens: int, seed: int
) -> None:
    if num_tokens // length > sequences:
        with pytest.raises(ConfigError, match=r"raise data\.search_tokens or lower search\.stages"):
            draw_sample(sequences, length, num_tokens, derive_generator(seed))
        return
    sample = draw_sample(sequences, length, num_tokens, derive_generator(seed))
    rows = sample.rows.tolist()
    assert rows == sorted(set(rows))
    assert 0 <= rows[0] <= rows[-1] < sequences
    assert sample.length == min(length, num_tokens)
    assert num_tokens - length < sample.num_tokens <= num_tokens
    assert sample.num_tokens == len(rows) * sample.length


def test_samples_differ_with_the_generator_and_cover_the_text() -> None:
    seen: set[int] = set()
    for seed in range(50):
        seen.update(draw_sample(10, 8, 16, derive_generator(seed)).rows.tolist())
    assert seen == set(range(10))


def test_the_key_of_a_sample_tells_positions_apart() -> None:
    rows = torch.tensor([0, 2])
    keys = [Sample(rows, 8).key(), Sample(rows, 4).key(), Sample(rows + 1, 8).key()]
    assert len(set(keys)) == 3
    assert Sample(rows.clone(), 8).key() == keys[0]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
def test_the_best_are_the_lowest_and_ties_go_to_the_earlier(
    losses: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(losses)))
    chosen = best_indices([float(loss) for loss in losses], count)
    expected = [index for _, index in sorted((loss, index) for index, loss in enumerate(losses))]
    assert chosen == expected[:count]
