from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch import Tensor

from tests.references.one_by_one import block_outputs, logits_kl
from tests.tiny import random_tokens
from tests.tolerance import FLOAT32, assert_close
from tyr.errors import ConfigError
from tyr.model.decoder import Decoder
from tyr.search.objective import (
    KdHidden,
    KdLogits,
    Objective,
    Perplexity,
    Reference,
    dense_reference,
)

pytestmark = pytest.mark.usefixtures("no_grad")
YAML = sorted((Path(__file__).parents[2] / "conf" / "objective").glob("*.yaml"))
REASON = "float32, three blocks"


@pytest.mark.parametrize("batch_tokens", [1, 24, 10_000])
def test_the_reference_is_what_the_stock_model_passes(
    decoder: Decoder, text: Tensor, batch_tokens: int
) -> None:
    reference = dense_reference(decoder, text, blocks=(0, 2), batch_tokens=batch_tokens)
    logits, outputs = block_outputs(decoder.model, text)
    assert torch.equal(reference.tokens, text)
    assert set(reference.hidden) == {0, 2}
    for block in (0, 2):
        assert_close(reference.hidden[block], outputs[block], tolerance=FLOAT32, reason=REASON)
    assert_close(reference.final @ decoder.head.mT, logits, tolerance=FLOAT32, reason=REASON)


def test_a_sample_of_the_reference_is_the_reference_of_the_sample(
    decoder: Decoder, text: Tensor
) -> None:
    rows = torch.tensor([1, 4])
    sampled = dense_reference(decoder, text, blocks=(1,)).sample(rows, 5)
    direct = dense_reference(decoder, text[rows, :5], blocks=(1,))
    assert torch.equal(sampled.tokens, direct.tokens)
    reason = "float32; attention in other lengths"
    assert_close(sampled.final, direct.final, tolerance=FLOAT32, reason=reason)
    assert_close(sampled.hidden[1], direct.hidden[1], tolerance=FLOAT32, reason=reason)


def test_kd_logits_is_the_divergence_of_the_stock_logits(
    decoder: Decoder, other: Decoder, text: Tensor
) -> None:
    reference = dense_reference(decoder, text)
    losses = KdLogits().final_losses([other.final_hidden(text)], reference, decoder.head)
    expected = logits_kl(decoder.model(text).logits, other.final_hidden(text) @ decoder.head.mT)
    assert_close(losses, [expected], tolerance=FLOAT32, reason=REASON)
    assert KdLogits().observed_blocks(32) == ()


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 0.0), (2.0, 3.0)])
def test_kd_hidden_is_eq_8_with_relative_distances(
    decoder: Decoder, other: Decoder, text: Tensor, alpha: float, beta: float
) -> None:
    objective = KdHidden(alpha, beta)
    reference = dense_reference(decoder, text, blocks=objective.observed_blocks(3))
    _, dense = block_outputs(decoder.model, text)
    _, sparse = block_outputs(other.model, text)
    for block in (0, 1, 2):
        gap = (dense[block] - sparse[block]).double().square().sum()
        expected = alpha * float(gap / dense[block].double().square().sum())
        actual = objective.path_loss(block, sparse[block], reference)
        assert_close(actual, expected, tolerance=FLOAT32, reason=REASON)
    final = [other.final_hidden(text)]
    kl = KdLogits().final_losses(final, reference, decoder.head)[0]
    assert objective.final_losses(final, reference, decoder.head) == [beta * kl]


def test_kd_hidden_watches_the_first_median_and_last_block() -> None:
    assert KdHidden().observed_blocks(32) == (0, 16, 31)
    assert KdHidden().observed_blocks(5) == (0, 2, 4)
    assert KdHidden().observed_blocks(2) == (0, 1)
    assert KdHidden().observed_blocks(1) == (0,)


@pytest.mark.parametrize(("alpha", "beta"), [(-1, 1), (1, -1), (0, 0)])
def test_weights_that_mean_nothing_are_refused(alpha: float, beta: float) -> None:
    with pytest.raises(ConfigError, match="must not be negative, nor both zero"):
        KdHidden(alpha, beta)


def test_the_perplexity_objective_is_the_stock_model_s_loss(
    decoder: Decoder, other: Decoder, text: Tensor
) -> None:
    reference = dense_reference(decoder, text)
    for model in (decoder, other):
        losses = Perplexity().final_losses([model.final_hidden(text)], reference, model.head)
        expected = float(model.model(text, labels=text).loss)
        assert_close(losses, [expected], tolerance=FLOAT32, reason=REASON)


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.stem)
class TestObjectiveContract:
    """What every objective promises; a new YAML file is tested by being there."""

    def objective(self, path: Path) -> Objective:
        built: Objective = instantiate(yaml.safe_load(path.read_text(encoding="utf-8")))
        return built

    def reference(self, decoder: Decoder, text: Tensor, objective: Objective) -> Reference:
        return dense_reference(decoder, text, blocks=objective.observed_blocks(3))

    def test_losses_are_one_per_candidate_whatever_its_company(
        self, path: Path, decoder: Decoder, other: Decoder, text: Tensor
    ) -> None:
        objective = self.objective(path)
        reference = self.reference(decoder, text, objective)
        states = [decoder.final_hidden(text), other.final_hidden(text)]
        together = objective.final_losses(states, reference, decoder.head)
        alone = [objective.final_losses([s], reference, decoder.head)[0] for s in states]
        assert together == alone

    def test_only_observed_blocks_are_asked_for_and_they_exist(self, path: Path) -> None:
        for blocks in (1, 2, 3, 32):
            observed = self.objective(path).observed_blocks(blocks)
            assert set(observed) <= set(range(blocks))
            assert len(set(observed)) == len(observed)

    def test_the_dense_model_has_the_lowest_loss_on_its_own_text(
        self, path: Path, decoder: Decoder, other: Decoder
    ) -> None:
        # greedy continuations of the dense model: text that it finds likely
        text = random_tokens(4, 1)
        for _ in range(10):
            following = (decoder.final_hidden(text) @ decoder.head.mT)[:, -1].argmax(dim=-1)
            text = torch.cat([text, following[:, None]], dim=1)
        objective = self.objective(path)
        reference = self.reference(decoder, text, objective)

        def loss(model: Decoder) -> float:
            final = objective.final_losses([model.final_hidden(text)], reference, decoder.head)[0]
            _, outputs = block_outputs(model.model, text)
            observed = objective.observed_blocks(3)
            return final + sum(objective.path_loss(b, outputs[b], reference) for b in observed)

        assert loss(decoder) < loss(other)


def test_every_objective_of_the_paper_has_a_yaml_file() -> None:
    assert YAML
    assert {"kd_logits", "kd_hidden", "perplexity"} <= {path.stem for path in YAML}
