from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from tests.model_zoo import (
    LENGTH,
    PATTERNS,
    ZOO,
    random_tokens,
    structures_from,
    zoo_decoder,
)
from tests.references.masked_model import masked_model
from tests.tolerance import FLOAT32, relative_error
from tyr.errors import ConfigError
from tyr.model.decoder import Decoder
from tyr.model.sublayer import AttentionUnit, Structure, Sublayer, head_layout
from tyr.sparsity import SublayerId

kept_heads = st.sets(st.integers(0, 11), min_size=1).map(sorted)


def streamed_logits(
    decoder: Decoder,
    structures: dict[SublayerId, Structure],
    tokens: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    context = decoder.context(tokens.shape[1])
    hidden = decoder.embed(tokens)
    for sublayer in decoder.sublayers:
        sliced = sublayer.slice(structures[sublayer.id], dtype)
        hidden = sublayer.forward(hidden, context, sliced)
    return functional.linear(decoder.final_norm(hidden), decoder.head)


def attention_of(decoder: Decoder, block: int = 0) -> Sublayer:
    return decoder.sublayers[SublayerId(block, "attn").index]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ZOO)
def test_sliced_stream_computes_what_the_masked_stock_model_does(name: str, pattern: str) -> None:
    decoder = zoo_decoder(name)
    structures = structures_from(decoder, PATTERNS[pattern])
    tokens = random_tokens(2, LENGTH)
    expected = masked_model(decoder, structures)(tokens).logits
    assert relative_error(streamed_logits(decoder, structures, tokens), expected) < FLOAT32


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ZOO)
def test_a_sliced_stream_can_compute_in_a_shorter_precision(name: str, pattern: str) -> None:
    decoder = zoo_decoder(name)
    structures = structures_from(decoder, PATTERNS[pattern])
    tokens = random_tokens(2, LENGTH)
    expected = masked_model(decoder, structures)(tokens).logits
    logits = streamed_logits(decoder, structures, tokens, torch.bfloat16)
    assert logits.dtype is torch.float32, "the residual stream lost its precision"
    eight_bits = 0.05
    assert relative_error(logits, expected) < eight_bits


@pytest.mark.parametrize("name", ["llama", "llama_biased", "qwen3_tied"])
def test_kv_groups_go_with_their_query_heads(name: str) -> None:
    decoder = zoo_decoder(name, attention_unit="kv_group")
    structures = structures_from(decoder, lambda s: list(range(1, s.num_units)))
    tokens = random_tokens(2, LENGTH)
    expected = masked_model(decoder, structures)(tokens).logits
    assert relative_error(streamed_logits(decoder, structures, tokens), expected) < FLOAT32
    attention = attention_of(decoder)
    assert attention.num_units == decoder.config.num_key_value_heads
    assert attention.kept_heads(torch.tensor([1])) == [
        attention.dense_groups + head for head in range(attention.dense_groups)
    ]


@settings(max_examples=25)
@given(data=st.data())
def test_any_kept_set_computes_what_masking_does(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["llama_biased", "mistral_windowed", "qwen3_tied"]))
    decoder = zoo_decoder(name)
    structures = structures_from(
        decoder, lambda s: sorted(data.draw(st.sets(st.integers(0, s.num_units - 1))))
    )
    tokens = random_tokens(1, 7)
    expected = masked_model(decoder, structures)(tokens).logits
    assert relative_error(streamed_logits(decoder, structures, tokens), expected) < FLOAT32


@given(heads=kept_heads, groups=st.sampled_from([1, 2, 3, 4]))
def test_head_layout_pairs_every_query_head_with_its_own_kv_head(
    heads: list[int], groups: int
) -> None:
    layout = head_layout(heads, groups)
    assert list(layout.query) == heads
    assert len(layout.query) == layout.query_groups * len(layout.key_value)
    for position, head in enumerate(heads):
        assert layout.key_value[position // layout.query_groups] == head // groups


@given(heads=kept_heads, groups=st.sampled_from([1, 2, 3, 4]))
def test_head_layout_runs_each_kv_head_once_when_shared_evenly(
    heads: list[int], groups: int
) -> None:
    layout = head_layout(heads, groups)
    used = [head // groups for head in heads]
    if len({used.count(kv) for kv in used}) == 1:
        assert list(layout.key_value) == sorted(set(used))


def test_slicing_shrinks_the_parameters() -> None:
    decoder = zoo_decoder("qwen2")
    structures = structures_from(decoder, PATTERNS["even"])
    attention, ffn = decoder.sublayers[:2]
    sliced = attention.slice(structures[attention.id])
    shapes = {name: tuple(tensor.shape) for name, tensor in sliced.parameters.items()}
    assert shapes == {
        "q_proj.weight": (16, 32),
        "q_proj.bias": (16,),
        "k_proj.weight": (16, 32),
        "k_proj.bias": (16,),
        "v_proj.weight": (16, 32),
        "v_proj.bias": (16,),
    }
    assert sliced.output.shape == (32, 16)
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in ffn.slice(structures[ffn.id]).parameters.items()
    }
    assert shapes == {"gate_proj.weight": (10, 32), "up_proj.weight": (10, 32)}


def test_structures_in_bfloat16_are_computed_in_the_precision_of_the_module() -> None:
    decoder = zoo_decoder("llama", storage_dtype=torch.bfloat16)
    structures = structures_from(decoder, PATTERNS["uneven"])
    attention = attention_of(decoder)
    assert structures[attention.id].weight.dtype is torch.bfloat16
    assert attention.slice(structures[attention.id]).output.dtype is torch.float32


def test_an_empty_sublayer_adds_its_output_bias_and_nothing_else() -> None:
    hidden = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    for name, has_bias in (("llama_biased", True), ("llama", False)):
        decoder = zoo_decoder(name)
        structures = structures_from(decoder, lambda s: [])
        for sublayer in decoder.sublayers:
            sliced = sublayer.slice(structures[sublayer.id])
            output = sublayer.forward(hidden, decoder.context(4), sliced)
            bias = sublayer.output_bias
            assert (bias is not None) == has_bias
            assert torch.equal(output, hidden if bias is None else hidden + bias)


def test_rows_of_a_unit_are_the_columns_of_its_heads() -> None:
    decoder = zoo_decoder("mistral", attention_unit="kv_group")
    attention = attention_of(decoder)
    rows = attention.rows(torch.tensor([1]))
    assert rows.tolist() == list(range(24, 48))  # 3 heads of 8


def test_features_and_projection_make_up_the_sublayer() -> None:
    decoder = zoo_decoder("llama_biased")
    context = decoder.context(LENGTH)
    hidden = decoder.embed(random_tokens(1, LENGTH))
    for sublayer in decoder.sublayers:
        features = sublayer.features(hidden, context)
        assert features.shape[-1] == sublayer.num_units * sublayer.unit_size
        projected = sublayer.project(hidden, features, sublayer.output_weight)
        assert torch.equal(projected, sublayer.forward(hidden, context))


def test_running_sliced_leaves_the_dense_module_as_it_was() -> None:
    decoder = zoo_decoder("llama")
    tokens = random_tokens(1, LENGTH)
    before = decoder.model(tokens).logits
    streamed_logits(decoder, structures_from(decoder, PATTERNS["uneven"]), tokens)
    assert torch.equal(decoder.model(tokens).logits, before)


def test_unknown_attention_unit_is_refused() -> None:
    decoder = zoo_decoder("llama")
    wrong: AttentionUnit = "layer"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="head or kv_group"):
        Sublayer(
            SublayerId(0, "attn"),
            decoder.architecture.blocks(decoder.model)[0],
            architecture=decoder.architecture,
            attention_unit=wrong,
        )


def test_a_key_head_is_computed_once_for_all_that_look_at_it() -> None:
    decoder = zoo_decoder("llama_biased")  # two query heads per KV head
    attention = attention_of(decoder)
    uneven = structures_from(decoder, lambda s: [0, 1, 4])[attention.id]
    sliced = attention.slice(uneven)
    head = attention.head_size
    assert sliced.query_groups == 1
    assert sliced.key_value is not None
    assert sliced.key_value.tolist() == [0, 0, 1]
    assert sliced.parameters["k_proj.weight"].shape == (2 * head, 32)
    assert sliced.parameters["v_proj.bias"].shape == (2 * head,)
    assert (
        attention.slice(structures_from(decoder, lambda s: [0, 4])[attention.id]).key_value is None
    )
