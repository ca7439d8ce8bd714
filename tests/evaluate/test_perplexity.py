from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.references.one_by_one import logits_kl
from tests.tiny import VOCABULARY, random_tokens
from tests.tolerance import FLOAT32, assert_close
from tyr.errors import ConfigError, NumericsError
from tyr.evaluate.perplexity import PerplexityEvaluator
from tyr.model.decoder import Decoder

REASON = "float32, three blocks"


@pytest.fixture(scope="module")
def windows() -> Tensor:
    """(7, 10): a number of windows that no batch divides."""
    return random_tokens(7, 10, seed=3)


@pytest.mark.parametrize("batch_tokens", [1, 25, 10_000])
def test_perplexity_is_that_of_transformers_own_loss(
    decoder: Decoder, windows: Tensor, batch_tokens: int
) -> None:
    with torch.no_grad():
        expected = float(decoder.model(windows, labels=windows).loss)
    evaluator = PerplexityEvaluator(batch_tokens=batch_tokens)
    quality = evaluator.evaluate(decoder, windows, reference=decoder)
    assert_close(math.log(quality.perplexity), expected, tolerance=FLOAT32, reason=REASON)


def test_every_window_is_scored_on_its_own(decoder: Decoder, windows: Tensor) -> None:
    with torch.no_grad():
        alone = [float(decoder.model(window[None], labels=window[None]).loss) for window in windows]
    quality = PerplexityEvaluator().evaluate(decoder, windows, reference=decoder)
    mean = sum(alone) / len(alone)
    assert_close(math.log(quality.perplexity), mean, tolerance=FLOAT32, reason=REASON)


def test_the_dense_model_is_at_no_distance_from_itself(decoder: Decoder, windows: Tensor) -> None:
    assert PerplexityEvaluator().evaluate(decoder, windows, reference=decoder).kl == 0.0


@pytest.mark.parametrize("batch_tokens", [1, 25, 10_000])
def test_kl_is_that_of_the_full_logits_over_all_positions(
    decoder: Decoder, other: Decoder, windows: Tensor, batch_tokens: int
) -> None:
    # `other` keeps its own blocks but reads out through the head it is measured with
    with torch.no_grad():
        teacher = decoder.model(windows).logits
        student = other.final_hidden(windows) @ decoder.head.mT
    same_head = SameHead(other, decoder)
    quality = PerplexityEvaluator(batch_tokens=batch_tokens).evaluate(
        same_head, windows, reference=decoder
    )
    assert_close(quality.kl, logits_kl(teacher, student), tolerance=FLOAT32, reason=REASON)


class Plain:
    """A model that knows no better way through several batches than one by one."""

    def final_hidden(self, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def final_states(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return (self.final_hidden(batch) for batch in batches)


class SameHead(Plain):
    """One decoder's blocks with another's vocabulary projection, as pruning leaves it."""

    def __init__(self, blocks: Decoder, head: Decoder) -> None:
        self._blocks, self.head = blocks, head.head

    def final_hidden(self, tokens: Tensor) -> Tensor:
        return self._blocks.final_hidden(tokens)


def test_a_model_that_knows_nothing_has_the_perplexity_of_the_vocabulary(
    decoder: Decoder, windows: Tensor
) -> None:
    class Silent(Plain):
        head = decoder.head

        def final_hidden(self, tokens: Tensor) -> Tensor:
            return torch.zeros(*tokens.shape, 32)

    quality = PerplexityEvaluator().evaluate(Silent(), windows, reference=decoder)
    assert_close(quality.perplexity, float(VOCABULARY), tolerance=FLOAT32, reason="float32")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error(
    decoder: Decoder, windows: Tensor, value: float
) -> None:
    class Broken(Plain):
        head = decoder.head

        def final_hidden(self, tokens: Tensor) -> Tensor:
            return torch.full((*tokens.shape, 32), value)

    with pytest.raises(NumericsError, match="evaluation loss is nan"):
        PerplexityEvaluator().evaluate(Broken(), windows, reference=decoder)


def test_a_loss_whose_exponential_overflows_is_an_error(decoder: Decoder, windows: Tensor) -> None:
    class Hopeless(Plain):
        head = decoder.head

        def final_hidden(self, tokens: Tensor) -> Tensor:
            return 1e4 * torch.ones(*tokens.shape, 32)

    with pytest.raises(NumericsError, match=r"evaluation loss is \d+\.\d+ with KL"):
        PerplexityEvaluator().evaluate(Hopeless(), windows, reference=decoder)


@pytest.mark.parametrize("settings", [{"batch_tokens": 0}, {"batch_tokens": -8}])
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="evaluator.batch_tokens must be at least 1"):
        PerplexityEvaluator(**settings)
