"""Tasks on a model whose blocks are on disk: the same answers, and few walks through the blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.evaluate.task_files import write_task_files
from tests.model.test_offload import load, saved
from tests.model_zoo import PATTERNS, random_tokens, structures_from
from tyr.evaluate.task_evaluator import StockModel, from_files
from tyr.evaluate.together import AskedTwice, walks
from tyr.model.decoder import Decoder, PrunedDecoder
from tyr.model.offload import Residency, State


def test_batches_walk_together_up_to_so_many_positions() -> None:
    sizes = (6, 4, 4, 9, 20, 1)
    batches = [torch.zeros(1, size) for size in sizes]
    together = [[b.numel() for b in walk] for walk in walks(batches, 10)]
    assert together == [[6, 4], [4], [9], [20], [1]]
    assert [len(walk) for walk in walks(batches, 1000)] == [6]
    assert list(walks([], 10)) == []


def test_who_asks_for_one_batch_at_a_time_is_answered_from_one_walk() -> None:
    walked: list[int] = []

    def logits_of(batches: Sequence[Tensor]) -> Iterator[Tensor]:
        walked.append(len(batches))
        return (batch[..., None].expand(*batch.shape, 7).float() for batch in batches)

    model = AskedTwice(logits_of, 7)
    for count in (3, 2):  # several tasks
        batches = [torch.full((2, 5 - i), i + 1) for i in range(count)]
        answers = model.ask(lambda batches=batches: [model(batch) for batch in batches])
        assert [float(answer.mean()) for answer in answers] == list(range(1, count + 1))
        assert answers[0].shape == (2, 5, 7)
    assert walked == [3, 2]


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_batches_of_all_lengths_have_the_logits_of_each_alone(
    name: str, pruned: bool, tmp_path: Path
) -> None:
    folder = saved(name, tmp_path)
    whole, streamed = load(folder, "none"), load(folder, "disk")
    batches = [random_tokens(n, length, seed=length) for n, length in ((1, 12), (2, 9), (3, 4))]
    structures = structures_from(whole, PATTERNS["uneven"])

    def stock(decoder: Decoder) -> StockModel:
        model = PrunedDecoder(decoder, structures.__getitem__) if pruned else decoder
        return StockModel(model, decoder.config)

    alone = [stock(whole)(batch).logits for batch in batches]
    for positions in (1, 30, 1000):
        together = list(stock(streamed).logits_of(batches, positions=positions))
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_tasks_on_an_offloaded_model_score_the_same_with_few_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="extra: eval")
    folder = saved("llama", tmp_path / "model")
    tasks = write_task_files(tmp_path / "tasks")
    evaluator = from_files(tasks, ["arc_easy", "winogrande"], batch_tokens=24)
    windows = random_tokens(50, 12)
    whole, streamed = load(folder, "none"), load(folder, "disk")
    batches: list[int] = []
    final_hidden = Decoder.final_hidden

    def count(self: Decoder, tokens: Tensor) -> Tensor:
        batches.append(len(tokens))
        return final_hidden(self, tokens)

    monkeypatch.setattr(Decoder, "final_hidden", count)
    expected = evaluator.evaluate(whole, windows, reference=whole)
    assert len(batches) > 20
    batches.clear()
    reads: list[int] = []
    put = Residency._put

    def read(self: Residency, block: int, state: State) -> None:
        reads.append(block)
        put(self, block, state)

    monkeypatch.setattr(Residency, "_put", read)
    found = evaluator.evaluate(streamed, windows, reference=streamed)
    assert found == expected
    assert not batches
    blocks = len(streamed.sublayers) // 2
    assert len(reads) <= 3 * blocks, "perplexity and two tasks, a walk each"
