from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch

from tyr.errors import ConfigError
from tyr.search.mutation import Levels
from tyr.search.racing import NoRacing, Selection, SequentialRacing
from tyr.search.selection import Sample

Losses = Callable[[int, int], float]  # candidate, sequence


class Text:
    """Losses of numbered candidates on every sequence, and what was asked of them."""

    def __init__(self, loss: Losses, *, length: int = 10) -> None:
        self._loss = loss
        self._length = length
        self.tokens = 0
        self.calls: list[tuple[list[int], list[int]]] = []

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> list[float]:
        rows = sample.rows.tolist()
        numbers = [levels[0] for levels in candidates]
        self.calls.append((numbers, rows))
        self.tokens += len(candidates) * sample.num_tokens
        return [sum(self._loss(i, row) for row in rows) / len(rows) for i in numbers]

    def pieces(self, *sizes: int) -> list[Sample]:
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        return [Sample(torch.arange(a, b), self._length) for a, b in pairwise(ends)]


def numbered(count: int) -> list[Levels]:
    return [(i, 0) for i in range(count)]


def from_table(table: torch.Tensor) -> Losses:
    """Losses from a (candidates, sequences) table."""
    rows: list[list[float]] = table.tolist()
    return lambda candidate, sequence: rows[candidate][sequence]


def noisy(
    candidates: int, sequences: int, *, gap: float, seed: int, spread: float = 1.0
) -> torch.Tensor:
    """Candidate i is `gap * i` worse than the first; noise is shared, and own up to `spread`-fold.

    Losses of candidates on one sequence go together, as those of allocations do.
    """
    rng = torch.Generator().manual_seed(seed)
    shared = 3 * torch.randn(1, sequences, generator=rng)
    own = torch.randn(candidates, sequences, generator=rng)
    scale = spread ** torch.rand(candidates, 1, generator=rng)
    return shared + scale * own + gap * torch.arange(candidates)[:, None]


def race(
    table: torch.Tensor, survivors: int, *, error_rate: float = 0.05, chunks: int = 8
) -> tuple[Selection, Text]:
    text = Text(from_table(table))
    racing = SequentialRacing(error_rate, chunks)
    selection = racing.select(
        text.evaluate, numbered(len(table)), text.pieces(table.shape[1]), survivors=survivors
    )
    return selection, text


def rate_of_losing_the_best(
    runs: int,
    *,
    candidates: int,
    survivors: int,
    spread: float,
    error_rate: float = 0.1,
    chunks: int = 6,
) -> float:
    """How often a race takes out a candidate that is as good as any: the worst case of its bound.

    All candidates are equally good, so the first is truly best, and it must not be taken out early;
    that it may not survive the end of a stage of noise is no fault of the race.
    """
    lost = 0
    for seed in range(runs):
        table = noisy(candidates, chunks, gap=0.0, seed=seed, spread=spread)
        selection, text = race(table, survivors, error_rate=error_rate, chunks=chunks)
        # A stage that ended early has taken out all that do not survive it.
        over = len(text.calls) < chunks and 0 not in selection.survivors
        lost += over or 0 not in text.calls[-1][0]
    return lost / runs


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_the_true_best_is_lost_less_often_than_the_error_rate(spread: float) -> None:
    rate = rate_of_losing_the_best(60, candidates=8, survivors=1, spread=spread)
    assert rate <= 0.1 + 3 * (0.1 * 0.9 / 60) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("candidates", [2, 5, 32])
@pytest.mark.parametrize("chunks", [3, 8])
@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_the_error_rate_holds_in_a_long_simulation(
    candidates: int, chunks: int, spread: float
) -> None:
    rate = rate_of_losing_the_best(
        1500, candidates=candidates, survivors=1, spread=spread, chunks=chunks
    )
    assert rate <= 0.1 + 3 * (0.1 * 0.9 / 1500) ** 0.5


def test_who_stays_in_a_race_of_uneven_chunks_has_its_loss_on_all_of_them() -> None:
    table = noisy(3, 11, gap=0.0, seed=4)  # eleven sequences in four chunks: 3, 3, 3 and 2
    selection, text = race(table, 1, error_rate=1e-9, chunks=4)
    assert [len(rows) for _, rows in text.calls] == [3, 3, 3, 2]
    assert selection.losses == pytest.approx(table.mean(dim=1).tolist())


def test_the_loss_of_one_that_left_is_its_difference_on_what_it_saw() -> None:
    # Three near ties race to the end; the fourth leaves before, of uneven chunks.
    table = noisy(4, 23, gap=0.0, seed=2)
    table[3] += 30
    selection, text = race(table, 1, error_rate=0.001, chunks=6)
    saw = [row for numbers, rows in text.calls if 3 in numbers for row in rows]
    last, _ = text.calls[-1]
    assert len(last) == 3, "the others raced on"
    assert 0 < len(saw) < 23
    leader = selection.survivors[0]
    behind = float((table[3, saw] - table[leader, saw]).mean())
    assert selection.losses[3] == pytest.approx(selection.losses[leader] + behind)
    assert selection.losses[leader] == pytest.approx(float(table[leader].mean()))


def test_chunks_weigh_in_the_test_as_many_tokens_as_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[float]] = []

    def p_values(differences: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        seen.append(weights.tolist())
        return torch.ones(differences.shape[1], dtype=torch.float64)

    monkeypatch.setattr("tyr.search.racing.paired_p_values", p_values)
    race(noisy(3, 11, gap=0.0, seed=4), 1, chunks=4)
    assert seen == [[30, 30], [30, 30, 30]]
    seen.clear()
    race(noisy(3, 7, gap=0.0, seed=4), 1, chunks=4)
    assert seen == [[20, 20], [20, 20, 20]]


def test_clearly_worse_candidates_leave_and_their_tokens_are_saved() -> None:
    table = noisy(16, 8, gap=10.0, seed=1)
    selection, text = race(table, 4)
    assert selection.survivors == [0, 1, 2, 3]
    assert selection.raced_out == 12
    assert text.tokens < 16 * 80 / 2
    assert [len(entered) for entered, _ in text.calls] == sorted(
        (len(entered) for entered, _ in text.calls), reverse=True
    )


def test_a_stage_ends_when_only_as_many_are_left_as_survive() -> None:
    table = noisy(6, 8, gap=50.0, seed=2)
    selection, text = race(table, 2)
    assert len(text.calls) < 8
    assert selection.survivors == [0, 1]
    seen = [row for _, rows in text.calls for row in rows]
    assert selection.sample_key == tuple(n for row in seen for n in (10, row))
    assert selection.num_tokens == 80
    mean = float(table[0, : len(seen)].double().mean())
    assert selection.losses[0] == pytest.approx(mean)


def test_nothing_is_tested_before_the_second_chunk() -> None:
    _, text = race(noisy(6, 8, gap=1000.0, seed=2), 1)
    assert [len(entered) for entered, _ in text.calls[:2]] == [6, 6]


def test_a_race_in_which_nobody_is_hopeless_ends_as_without_racing() -> None:
    table = noisy(9, 7, gap=0.3, seed=3).double()
    selection, text = race(table, 3, error_rate=1e-12)
    plain = NoRacing().select(text.evaluate, numbered(9), text.pieces(7), survivors=3)
    assert selection.survivors == plain.survivors
    assert selection.losses == pytest.approx(plain.losses)
    assert selection.raced_out == 0


def test_one_that_left_is_reported_by_its_difference_to_the_leader() -> None:
    table = noisy(4, 8, gap=40.0, seed=4).double()
    selection, text = race(table, 1)
    seen = [rows for entered, rows in text.calls if 3 in entered]
    rows = [row for chunk in seen for row in chunk]
    behind = float((table[3, rows] - table[0, rows]).mean())
    assert selection.losses[3] == pytest.approx(selection.losses[0] + behind)


def test_chunks_that_chose_the_candidates_count_but_do_not_testify() -> None:
    # On the first piece candidate 1 was chosen and looks perfect; on the stage's own it is as good.
    table = noisy(2, 16, gap=0.0, seed=5).double()
    table[1, :8] -= 1000
    text = Text(from_table(table))
    selection = SequentialRacing().select(
        text.evaluate, numbered(2), text.pieces(8, 8), survivors=1
    )
    assert selection.raced_out == 0
    assert selection.survivors == [1]
    assert selection.losses[1] == pytest.approx(float(table[1].mean()))


def test_earlier_pieces_are_cut_as_in_their_own_stage() -> None:
    text = Text(from_table(noisy(2, 32, gap=0.0, seed=6)))
    racing = SequentialRacing(chunks=4)
    racing.select(text.evaluate, numbered(2), text.pieces(8), survivors=1)
    racing.select(text.evaluate, numbered(2), text.pieces(8, 24), survivors=1)
    own = [rows for _, rows in text.calls[:4]]
    assert [rows for _, rows in text.calls[4:8]] == own
    assert len(text.calls[8:]) == 4


def test_copies_survive_together_as_without_racing() -> None:
    table = noisy(4, 8, gap=5.0, seed=8).double()
    text, other = Text(from_table(table)), Text(from_table(table))
    numbers = [0, 2, 1, 1, 3, 1, 0]
    entered = [(i, 0) for i in numbers]
    for survivors in range(1, 8):
        raced = SequentialRacing().select(
            text.evaluate, entered, text.pieces(8), survivors=survivors
        )
        plain = NoRacing().select(other.evaluate, entered, text.pieces(8), survivors=survivors)
        assert raced.survivors == plain.survivors
        assert raced.raced_out <= 7 - survivors
    assert all(len(set(asked)) == len(asked) for asked, _ in text.calls)


def test_copies_of_a_rival_are_no_further_evidence() -> None:
    """Equal losses of copies look like variances that are known exactly."""
    lost, runs = 0, 300
    for seed in range(runs):
        text = Text(from_table(noisy(2, 8, gap=0.0, seed=seed)))
        entered = [(i, 0) for i in (0, *(1,) * 15)]
        selection = SequentialRacing(0.01).select(
            text.evaluate, entered, text.pieces(8), survivors=1
        )
        lost += selection.raced_out == 1  # the one that has no copies, and is as good
    assert lost / runs <= 0.01 + 3 * (0.01 * 0.99 / runs) ** 0.5


def test_one_alone_is_measured_to_the_end_of_the_stage() -> None:
    text = Text(from_table(noisy(1, 8, gap=0.0, seed=9).double()))
    selection = SequentialRacing().select(text.evaluate, [(0, 0)] * 2, text.pieces(8), survivors=1)
    assert len(selection.sample_key) == 2 * 8
    assert selection.losses[0] == selection.losses[1]
    assert text.tokens == 80


def test_the_parent_wins_a_tie_in_a_race() -> None:
    selection, _ = race(torch.ones(5, 8), 1)
    assert selection.survivors == [0]
    assert selection.raced_out == 0


def test_a_known_loss_is_used_without_racing_and_measured_with_it() -> None:
    text = Text(from_table(noisy(3, 4, gap=1.0, seed=7)))
    plain = NoRacing().select(
        text.evaluate, numbered(3), text.pieces(4), survivors=1, first_loss=-5.0
    )
    assert (plain.losses[0], plain.survivors, plain.known) == (-5.0, [0], 1)
    assert text.calls == [([1, 2], [0, 1, 2, 3])]


def test_a_stage_of_one_sequence_is_raced_on_the_starts_of_four() -> None:
    racing = SequentialRacing()
    assert racing.extent(2048, 4096, 64).taken == 512
    assert racing.extent(16384, 4096, 64).taken == 4096
    assert racing.extent(128, 128, 64).taken == 64, "not shorter than says something"
    assert racing.extent(256, 256, 2).taken == 128, "of a text that has only two"
    for tokens in (63, 100, 127, 190, 255):
        extent = racing.extent(tokens, 2048, 64)
        assert tokens - tokens // extent.taken * extent.taken < 4, "next to none are dropped"
    assert NoRacing().extent(2048, 4096, 64).taken == 2048


@pytest.mark.parametrize(("error_rate", "chunks"), [(0.0, 8), (1.0, 8), (0.05, 0)])
def test_racing_out_of_range_is_refused(error_rate: float, chunks: int) -> None:
    with pytest.raises(ConfigError, match=r"error_rate in \(0, 1\) and chunks >= 1"):
        SequentialRacing(error_rate, chunks)
