from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from tests.model_zoo import (
    LENGTH,
    Structures,
    keep_uneven,
    random_tokens,
    structures_from,
    zoo_config,
    zoo_decoder,
)
from tests.references.masked_model import masked_model
from tests.tolerance import FLOAT32, assert_close
from tyr.errors import ConfigError, ModelError
from tyr.export.stock import StockExport, check_stock, resized
from tyr.export.tensors import model_size
from tyr.layout import FREE, Layout
from tyr.model.architecture import ARCHITECTURES
from tyr.model.decoder import Decoder, PrunedDecoder
from tyr.model.sublayer import Sublayer
from tyr.sparsity import SublayerId, UnitCounts

NAMES = ("llama", "llama_biased", "mistral_windowed", "qwen2_mixed_windows", "qwen3_tied")
UNIFORM = Layout(equal_blocks=True)


def keep_equally(sublayer: Sublayer) -> list[int]:
    """One KV group fewer, or 13 neurons; not the same ones in both blocks."""
    if sublayer.id.kind == "ffn":
        return list(range(sublayer.id.block, 13 + sublayer.id.block))
    kept = list(range(sublayer.num_units))
    del kept[sublayer.id.block]
    return kept if sublayer.num_units == 2 else kept[: sublayer.num_units // 2]


def exported(
    decoder: Decoder, directory: Path, *, keep: Any = keep_equally
) -> tuple[Path, Structures]:
    structures = structures_from(decoder, keep)
    record = StockExport().export(decoder, structures.__getitem__, directory, {"seed": 3})
    return record.directory, structures


def test_the_zoo_covers_every_architecture() -> None:
    assert {zoo_config(name).model_type for name in NAMES} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", NAMES)
def test_the_stock_class_loads_it_without_code_and_computes_the_same(
    name: str, tmp_path: Path, no_grad: None
) -> None:
    decoder = zoo_decoder(name, attention_unit="kv_group")
    directory, structures = exported(decoder, tmp_path / "m")
    model, report = AutoModelForCausalLM.from_pretrained(
        directory, trust_remote_code=False, output_loading_info=True
    )
    assert type(model) is type(decoder.model)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = random_tokens(2, LENGTH)
    logits = model(tokens).logits
    masked = masked_model(decoder, structures)(tokens).logits
    assert_close(logits, masked, tolerance=FLOAT32, reason="float32 sums in another order")
    sliced = PrunedDecoder(decoder, structures.__getitem__).final_hidden(tokens) @ decoder.head.mT
    assert_close(logits, sliced, tolerance=FLOAT32, reason="float32 sums in another order")
    step = model.generate(tokens[:1], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(
        step, model.generate(tokens[:1], max_new_tokens=4, do_sample=False, use_cache=False)
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_the_base_s_own_with_smaller_numbers(
    name: str, tmp_path: Path
) -> None:
    decoder = zoo_decoder(name, attention_unit="kv_group", storage_dtype=torch.bfloat16)
    directory, structures = exported(decoder, tmp_path / "m")
    written = json.loads((directory / "config.json").read_text())
    assert not written.keys() & {"auto_map", "per_layer_config", "query_to_kv"}
    assert written["model_type"] == decoder.config.model_type
    assert written["architectures"] == [decoder.architecture.class_name]
    assert written["dtype"] == "bfloat16"
    assert written["intermediate_size"] == 13
    assert written["head_dim"] == decoder.sublayers[0].head_size
    kept = structures[SublayerId(1, "attn")].kept.numel()
    assert written["num_key_value_heads"] == kept
    assert written["num_attention_heads"] == kept * decoder.sublayers[0].heads_per_unit
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith(".py")]
    card = (directory / "README.md").read_text()
    assert "trust_remote_code" not in card
    assert "ordinary checkpoint without code" in card


def test_what_was_written_has_the_counts_of_the_structures(tmp_path: Path) -> None:
    decoder = zoo_decoder("mistral", attention_unit="kv_group")
    structures = structures_from(decoder, keep_equally)
    record = StockExport(4000).export(decoder, structures.__getitem__, tmp_path / "m", {})
    assert len(list(record.directory.glob("*.safetensors"))) > 2
    assert record.removed == UnitCounts((1, 1), (7, 7))
    assert record.parameters == model_size(decoder, structures.__getitem__).parameters


def test_a_head_size_that_is_the_class_s_default_is_written_too() -> None:
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, num_key_value_heads=4)
    assert config.head_dim == LlamaConfig().head_dim == 128
    small = resized(config, {"num_attention_heads": 2, "num_key_value_heads": 2})
    assert AutoConfig.for_model(**small.to_diff_dict()).head_dim == 128


@pytest.mark.parametrize(
    ("keep", "unit", "message"),
    [
        (keep_uneven, "head", r"blocks do not fit: \['0', '1'\]"),
        (
            lambda s: range(s.num_units - s.id.block),
            "kv_group",
            r"'num_attention_heads': 8.*blocks do not fit: \[1\]; prune with layout=uniform",
        ),
        (
            lambda s: [] if s.id.kind == "ffn" else [0],
            "kv_group",
            r"'intermediate_size': 0.*blocks do not fit: \[0, 1\]",
        ),
    ],
)
def test_blocks_that_differ_or_are_empty_are_refused(
    keep: Any, unit: Any, message: str, tmp_path: Path
) -> None:
    decoder = zoo_decoder("llama", attention_unit=unit)
    with pytest.raises(ModelError, match=message):
        exported(decoder, tmp_path / "m", keep=keep)
    assert list(tmp_path.iterdir()) == []


def llama(**changes: Any) -> PretrainedConfig:
    """The sizes of Llama-3.1-8B."""
    sizes = {"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336}
    depth = {"hidden_size": 4096, "num_hidden_layers": 32}
    return LlamaConfig(**{**depth, **sizes, **changes})


UNITS = UnitCounts((8,) * 32, (14336,) * 32)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75, 0.875])
def test_head_counts_that_divide_the_hidden_size_are_taken(sparsity: float) -> None:
    check_stock(llama(), UNITS, sparsity=sparsity, layout=UNIFORM)


def test_a_head_count_that_the_class_refuses_is_named_with_those_it_takes() -> None:
    message = (
        r"LlamaConfig refuses .*'num_attention_heads': 20.*4096\) is not a multiple.*"
        r"sparsities it takes: 0, 0.5, 0.75, 0.875; use one of these"
    )
    with pytest.raises(ConfigError, match=message):
        check_stock(llama(), UNITS, sparsity=0.375, layout=UNIFORM)


def test_a_sparsity_that_only_a_rounder_number_reaches_is_offered_too() -> None:
    # Two of three groups go; 0.6667 of 3 x 100 neurons are 200, no multiple of three equal blocks.
    config = llama(
        hidden_size=54,
        head_dim=8,
        num_attention_heads=6,
        num_key_value_heads=3,
        intermediate_size=100,
        num_hidden_layers=3,
    )
    units = UnitCounts((3,) * 3, (100,) * 3)
    with pytest.raises(ConfigError, match=r"sparsities it takes: 0, 0\.67; use one of these"):
        check_stock(config, units, sparsity=0.33, layout=UNIFORM)
    check_stock(config, units, sparsity=0.67, layout=UNIFORM)


def test_a_class_without_that_rule_takes_any_head_count() -> None:
    config = zoo_config("mistral", hidden_size=4096, num_attention_heads=32, num_key_value_heads=8)
    check_stock(config, UNITS, sparsity=0.375, layout=UNIFORM)


def test_a_layout_whose_blocks_may_differ_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"blocks that are all alike.*use layout=uniform"):
        check_stock(llama(), UNITS, sparsity=0.5, layout=FREE)


def test_shard_size_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="max_shard_bytes must be positive, got 0"):
        StockExport(max_shard_bytes=0)
