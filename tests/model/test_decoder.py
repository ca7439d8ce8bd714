from __future__ import annotations

import pytest
import torch

from tests.model_zoo import LENGTH, WINDOW, ZOO, random_tokens, zoo_decoder
from tests.tolerance import FLOAT32, relative_error
from tyr.model.decoder import Decoder
from tyr.sparsity import stream_order


def stream(decoder: Decoder, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states before the first block and after each block."""
    context = decoder.context(tokens.shape[1])
    hidden = decoder.embed(tokens)
    states = [hidden]
    for sublayer in decoder.sublayers:
        hidden = sublayer.forward(hidden, context)
        if sublayer.id.kind == "ffn":
            states.append(hidden)
    return states


@pytest.mark.parametrize("length", [1, WINDOW, WINDOW + 1, LENGTH])
@pytest.mark.parametrize("name", ZOO)
def test_dense_stream_passes_the_hidden_states_of_the_stock_model(name: str, length: int) -> None:
    decoder = zoo_decoder(name)
    tokens = random_tokens(2, length)
    expected = decoder.model(tokens, output_hidden_states=True)

    states = stream(decoder, tokens)

    # transformers norms the last hidden state
    states[-1] = decoder.final_norm(states[-1])
    for actual, wanted in zip(states, expected.hidden_states, strict=True):
        assert relative_error(actual, wanted) < FLOAT32
    logits = states[-1] @ decoder.head.T
    assert relative_error(logits, expected.logits) < FLOAT32


def test_a_sliding_window_changes_the_stream_only_beyond_its_length() -> None:
    windowed, full = zoo_decoder("mistral_windowed"), zoo_decoder("mistral")
    tokens = random_tokens(1, LENGTH)
    narrow, wide = stream(windowed, tokens)[-1], stream(full, tokens)[-1]
    assert torch.equal(narrow[:, :WINDOW], wide[:, :WINDOW])
    assert not torch.allclose(narrow[:, WINDOW:], wide[:, WINDOW:])


def test_context_holds_one_mask_per_window() -> None:
    context = zoo_decoder("qwen2_mixed_windows").context(LENGTH)
    assert set(context.attention_masks) == {None, WINDOW}
    assert context.attention_masks[None] is None
    mask = context.attention_masks[WINDOW]
    assert mask is not None
    assert mask.shape == (1, 1, LENGTH, LENGTH)


@pytest.mark.parametrize("name", ["llama", "mistral_windowed", "qwen2_mixed_windows"])
def test_stream_is_causal_whatever_attention_the_model_was_loaded_with(name: str) -> None:
    decoder = zoo_decoder(name)
    tokens = random_tokens(1, LENGTH)
    expected = stream(decoder, tokens)[-1]
    decoder.model.set_attn_implementation("eager")
    eager = Decoder(
        decoder.model,
        decoder.tokenizer,
        architecture=decoder.architecture,
        storage_dtype=decoder.storage_dtype,
    )
    assert relative_error(stream(eager, tokens)[-1], expected) < FLOAT32


def test_sublayers_come_in_stream_order_with_their_unit_counts() -> None:
    decoder = zoo_decoder("llama")
    assert tuple(sublayer.id for sublayer in decoder.sublayers) == stream_order(2)
    assert [sublayer.num_units for sublayer in decoder.sublayers] == list(decoder.units)


def test_decoder_freezes_the_model_and_reports_its_precision() -> None:
    decoder = zoo_decoder("llama", storage_dtype=torch.bfloat16)
    assert decoder.dtype is torch.float32
    assert decoder.storage_dtype is torch.bfloat16
    assert not decoder.model.training
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())


def test_tied_head_is_the_token_embedding() -> None:
    tied, untied = zoo_decoder("qwen3_tied"), zoo_decoder("qwen2")
    assert tied.head is tied.model.get_input_embeddings().weight
    assert untied.head is not untied.model.get_input_embeddings().weight
