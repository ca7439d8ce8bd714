"""Which layouts are written as they are, which are rewritten, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

from tests.model_zoo import ZOO, zoo_config
from tyr.errors import ConfigError, ModelError
from tyr.export import modeling_tyr
from tyr.export.gguf.layout import BlockLayout, model_layout

CLASSES: dict[str, Any] = {
    "llama": modeling_tyr.TyrLlamaConfig,
    "mistral": modeling_tyr.TyrMistralConfig,
    "qwen2": modeling_tyr.TyrQwen2Config,
    "qwen3": modeling_tyr.TyrQwen3Config,
}


def pruned(name: str = "llama", **changes: Any) -> PretrainedConfig:
    """A zoo configuration with fields changed, of the class that exports have."""
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    fields = {**ZOO[name], **plain, **changes}
    config_class = CLASSES[fields.pop("model_type")]
    config: PretrainedConfig = config_class(**fields, allow_global_per_layer_attribute_access=True)
    return config


def block(config: PretrainedConfig, index: int, family: str = "llama") -> BlockLayout:
    return model_layout(config, family=family).blocks[index]


def test_a_dense_model_is_written_as_it_is() -> None:
    layout = model_layout(pruned(), family="llama")
    assert layout.arch == "deci"
    assert layout.blocks == (BlockLayout(8, 4, 20, (1, 1, 1, 1)),) * 2


def test_an_ffn_without_neurons_becomes_32_zero_neurons() -> None:
    config = pruned(per_layer_config={1: {"intermediate_size": 0, "skip": ["mlp"]}})
    assert block(config, 1) == BlockLayout(8, 4, 32, (1, 1, 1, 1), zero_ffn=True)


def test_an_attention_without_heads_is_left_out() -> None:
    sizes = {"num_attention_heads": 0, "num_key_value_heads": 0, "skip": ["attention"]}
    assert block(pruned(per_layer_config={1: sizes}), 1) == BlockLayout(0, 0, 20, ())


@pytest.mark.parametrize("name", ["llama_biased", "qwen3_tied"])
def test_an_attention_that_cannot_be_left_out_becomes_a_zero_head(name: str) -> None:
    sizes = {"num_attention_heads": 0, "num_key_value_heads": 0, "skip": ["attention"]}
    family = name.partition("_")[0]
    found = block(pruned(name, per_layer_config={1: sizes}), 1, family)
    assert (found.query_heads, found.kv_heads, found.zero_attention) == (1, 1, True)


@pytest.mark.parametrize("name", ["llama", "qwen3_tied"])
def test_a_first_block_without_attention_is_refused(name: str) -> None:
    config = pruned(name, per_layer_config={0: {"num_attention_heads": 0, "skip": ["attention"]}})
    with pytest.raises(ModelError, match="block 0 has no attention left"):
        model_layout(config, family=name.partition("_")[0])


@pytest.mark.parametrize(
    ("query_to_kv", "copies"),
    [
        ([0, 0, 0, 1], (3, 1)),
        ([0, 0, 0, 0, 1, 1], (2, 1)),
        ([0, 1, 1, 2, 2, 2], (1, 2, 3)),
        ([0, 0, 0, 1, 1, 1, 1, 1, 1], (1, 2)),
    ],
)
def test_uneven_groups_repeat_kv_heads_as_little_as_possible(
    query_to_kv: list[int], copies: tuple[int, ...]
) -> None:
    sizes = {"num_attention_heads": len(query_to_kv), "num_key_value_heads": len(copies)}
    config = pruned(per_layer_config={1: sizes}, query_to_kv={"1": query_to_kv})
    found = block(config, 1)
    assert found.kv_copies == copies
    assert found.kv_heads == sum(copies)
    assert found.query_heads % found.kv_heads == 0


@pytest.mark.parametrize(
    ("query_to_kv", "message"),
    [
        (None, "3 query heads over 2 KV heads: llama.cpp aborts"),
        ([0, 1], "for each of 3 query heads"),
        ([0, 0, 0], "one of 2 KV heads"),
        ([1, 0, 0], "must be ascending"),
    ],
)
def test_heads_that_do_not_divide_are_refused(query_to_kv: Any, message: str) -> None:
    sizes = {"num_attention_heads": 3, "num_key_value_heads": 2}
    uneven = {} if query_to_kv is None else {"1": query_to_kv}
    config = pruned(per_layer_config={1: sizes}, query_to_kv=uneven)
    with pytest.raises(ModelError, match=message):
        model_layout(config, family="llama")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("mistral_windowed", {}, "sliding window of 5"),
        ("qwen2_mixed_windows", {}, "sliding window of 5"),
        ("qwen3_tied", {"tie_word_embeddings": False}, "tie_word_embeddings=false"),
        ("qwen3_tied", {"attention_bias": True}, "no attention biases"),
    ],
)
def test_what_llama_cpp_would_compute_wrongly_is_refused(
    name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        model_layout(pruned(name, **changes), family=name.partition("_")[0])


def test_a_window_as_long_as_the_context_changes_nothing() -> None:
    config = pruned("mistral_windowed", sliding_window=64)
    assert model_layout(config, family="mistral").arch == "deci"


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "scaling 'dynamic'"),
        ({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, "whole heads"),
        (
            {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "attention_factor": 3.0},
            "attention_factor=3.0",
        ),
    ],
)
def test_a_rope_scaling_that_llama_cpp_lacks_is_refused(rope: dict[str, Any], message: str) -> None:
    config = zoo_config("llama")
    config.rope_parameters = rope
    with pytest.raises(ModelError, match=message):
        model_layout(config, family="llama")


def test_llama3_scaling_needs_deci() -> None:
    config = zoo_config("qwen3_tied", rope_parameters=zoo_config("llama").rope_parameters)
    with pytest.raises(ModelError, match="does not read the tensor of frequency divisors"):
        model_layout(config, family="qwen3")


def test_llama3_divisors_are_one_for_fast_and_the_factor_for_slow_rotations() -> None:
    scaling = {**ZOO["llama"]["rope_parameters"], "original_max_position_embeddings": 128}
    config = zoo_config("llama", head_dim=64, rope_parameters=scaling)
    divisors = model_layout(config, family="llama").rope.divisors
    assert divisors is not None
    torch.testing.assert_close(divisors[[0, -1]], torch.tensor([1.0, 4.0]))
    assert divisors.shape == (32,)
    assert (divisors.diff() >= -1e-5).all()


@pytest.mark.parametrize(
    ("family", "name", "arch", "message"),
    [
        ("llama", "llama", "openelm", "always applies q/k norms"),
        ("qwen3", "qwen3_tied", "deci", "deci has no q/k norms"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(
    family: str, name: str, arch: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        model_layout(pruned(name), family=family, arch=arch)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="auto, deci, openelm"):
        model_layout(pruned(), family="llama", arch="llama")
