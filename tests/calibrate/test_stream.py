from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tests.tiny import random_tokens, tiny_decoder
from tests.tolerance import FLOAT32, assert_close
from tyr.calibrate.stream import Stream, check_finite
from tyr.errors import NumericsError
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Sublayer

pytestmark = pytest.mark.usefixtures("no_grad")


def states_after(decoder: Decoder, stream: Stream) -> Tensor:
    """Hidden states after passing every sublayer with its dense weight."""
    for sublayer in decoder.sublayers:
        stream.advance(sublayer, sublayer.output_weight)
    return torch.cat(list(stream._hidden))


def test_passing_with_dense_weights_is_the_dense_forward(decoder: Decoder, tokens: Tensor) -> None:
    hidden = states_after(decoder, Stream(decoder, tokens))
    expected = decoder.model.model(tokens).last_hidden_state
    actual = decoder.final_norm(hidden)
    assert_close(actual, expected, tolerance=FLOAT32, reason="float32, three blocks")


def test_features_are_what_the_stock_output_projection_receives(
    decoder: Decoder, tokens: Tensor
) -> None:
    received: list[Tensor] = []
    block = decoder.model.model.layers[0]
    projections = (block.self_attn.o_proj, block.mlp.down_proj)
    handles = [p.register_forward_pre_hook(lambda _, x: received.append(x[0])) for p in projections]
    decoder.model(tokens)
    for handle in handles:
        handle.remove()
    stream = Stream(decoder, tokens)
    for sublayer, expected in zip(decoder.sublayers, received, strict=False):
        features = torch.cat([part for _, part in stream.batches(sublayer)])
        assert_close(features, expected, tolerance=FLOAT32, reason="float32")
        stream.advance(sublayer, sublayer.output_weight)


@pytest.mark.parametrize("batch_tokens", [1, 16, 40, 10_000])
def test_a_batch_holds_as_many_whole_sequences_as_fit(
    decoder: Decoder, tokens: Tensor, batch_tokens: int
) -> None:
    stream = Stream(decoder, tokens, batch_tokens=batch_tokens)
    sizes = [len(hidden) for hidden, _ in stream.batches(decoder.sublayers[0])]
    fitting = min(len(tokens), max(1, batch_tokens // 16))
    assert sum(sizes) == len(tokens)
    assert sizes[0] == fitting
    assert stream.num_tokens == 96


@pytest.mark.parametrize("feature_bytes", [0, 5000, 1 << 28])
def test_keeping_features_changes_no_bit(
    decoder: Decoder, tokens: Tensor, feature_bytes: int
) -> None:
    kept = Stream(decoder, tokens, batch_tokens=32)
    other = Stream(decoder, tokens, batch_tokens=32, feature_bytes=feature_bytes)
    for stream in (kept, other):
        for sublayer in decoder.sublayers[:3]:
            for _ in stream.batches(sublayer):
                pass
            stream.advance(sublayer, 0.5 * sublayer.output_weight)
    for left, right in zip(kept._hidden, other._hidden, strict=True):
        assert torch.equal(left, right)


def count_forwards(monkeypatch: pytest.MonkeyPatch) -> list[Sublayer]:
    calls: list[Sublayer] = []
    features = Sublayer.features

    def counting(self: Sublayer, *args: object) -> Tensor:
        calls.append(self)
        return features(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Sublayer, "features", counting)
    return calls


def test_features_within_the_budget_are_computed_once_and_the_rest_twice(
    decoder: Decoder, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sublayer = decoder.sublayers[0]
    batch_bytes = 2 * 16 * 32 * 4  # sequences x positions x width x float32
    calls = count_forwards(monkeypatch)
    stream = Stream(decoder, tokens, batch_tokens=32, feature_bytes=2 * batch_bytes)
    list(stream.batches(sublayer))
    assert len(calls) == 3
    stream.advance(sublayer, sublayer.output_weight)
    assert len(calls) == 4, "of three batches, two were kept"


def test_features_are_let_go_once_the_stream_has_passed(decoder: Decoder, tokens: Tensor) -> None:
    stream = Stream(decoder, tokens)
    sublayer = decoder.sublayers[0]
    features = [StorageWeakRef(part.untyped_storage()) for _, part in stream.batches(sublayer)]
    assert not any(part.expired() for part in features)
    stream.advance(sublayer, sublayer.output_weight)
    assert all(part.expired() for part in features)


def test_a_stream_takes_the_sublayers_in_order(decoder: Decoder, tokens: Tensor) -> None:
    stream = Stream(decoder, tokens)
    assert stream.position == 0
    with pytest.raises(RuntimeError, match="stands before sublayer 0, not 000.ffn"):
        next(iter(stream.batches(decoder.sublayers[1])))
    stream.advance(decoder.sublayers[0], decoder.sublayers[0].output_weight)
    assert stream.position == 1
    with pytest.raises(RuntimeError, match=r"not 000\.attn"):
        stream.advance(decoder.sublayers[0], decoder.sublayers[0].output_weight)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("layers.1.input_layernorm", "001.attn: norm.weight"),
        ("layers.1.self_attn.q_proj", "001.attn: q_proj.weight"),
        ("layers.1.self_attn.k_proj", "001.attn: k_proj.weight"),
        ("layers.1.self_attn.o_proj", "001.attn: o_proj.weight"),
        ("layers.1.mlp.up_proj", "001.ffn: up_proj.weight"),
        ("layers.1.mlp.down_proj", "001.ffn: down_proj.weight"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(part: str, name: str, value: float) -> None:
    # The features would not always tell: CPU attention turns a NaN query into zeros.
    decoder = tiny_decoder(blocks=2)
    decoder.model.model.get_submodule(part).weight.data.view(-1)[0] = value
    with pytest.raises(NumericsError, match=f"^{name}: 1 of .*NaN or infinite"):
        states_after(decoder, Stream(decoder, random_tokens(2, 8)))


def test_features_that_overflow_name_their_sublayer() -> None:
    decoder = tiny_decoder(blocks=2)
    decoder.model.model.layers[1].mlp.gate_proj.weight.data.mul_(1e30)
    decoder.model.model.layers[1].mlp.up_proj.weight.data.mul_(1e30)
    with pytest.raises(NumericsError, match=r"^001\.ffn: input of the output projection: "):
        states_after(decoder, Stream(decoder, random_tokens(2, 8)))


def test_hidden_states_that_overflow_name_their_sublayer(decoder: Decoder, tokens: Tensor) -> None:
    stream = Stream(decoder, tokens)
    sublayer = decoder.sublayers[0]
    with pytest.raises(NumericsError, match=r"^000\.attn: hidden states: "):
        stream.advance(sublayer, sublayer.output_weight * float("inf"))


def test_the_message_counts_the_values_that_are_not_finite() -> None:
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    with pytest.raises(NumericsError, match="^what: 3 of 4 values"):
        check_finite(values, "what")
    check_finite(torch.ones(3), "fine")
