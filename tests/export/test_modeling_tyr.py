from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaModel

import tyr.export
from tests.model_zoo import (
    LENGTH,
    PATTERNS,
    ZOO,
    Structures,
    keep_some_nowhere,
    keep_uneven,
    random_tokens,
    structures_from,
    zoo_decoder,
)
from tests.references.masked_model import masked_model
from tests.tolerance import FLOAT32, relative_error
from tyr.export import modeling_tyr
from tyr.export.checkpoint import export_checkpoint
from tyr.export.in_memory import pruned_model
from tyr.model.architecture import ARCHITECTURES
from tyr.model.decoder import Decoder
from tyr.sparsity import SublayerId

Exported = Callable[..., tuple[Decoder, Structures, Path]]


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    tyr.export.register()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exports of zoo models, each written once."""
    written: dict[tuple[str, str], tuple[Decoder, Structures, Path]] = {}

    def export(name: str, pattern: str) -> tuple[Decoder, Structures, Path]:
        if (name, pattern) not in written:
            decoder = zoo_decoder(name)
            structures = structures_from(decoder, PATTERNS[pattern])
            directory = tmp_path_factory.mktemp(name) / pattern
            export_checkpoint(decoder, structures.__getitem__, directory, provenance={})
            written[name, pattern] = decoder, structures, directory
        return written[name, pattern]

    return export


def load(directory: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, **options).requires_grad_(False).eval()


def in_memory(decoder: Decoder, structures: Structures) -> Any:
    """The exported model without a detour over the disk."""
    return pruned_model(decoder, structures.__getitem__)


def greedy(model: Any, tokens: torch.Tensor, **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": 8, "do_sample": False, **options}
    mask = options.pop("attention_mask", torch.ones_like(tokens))
    generated = model.generate(tokens, attention_mask=mask, **options)
    return generated[:, tokens.shape[1] :].tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ZOO)
def test_reloaded_export_computes_what_the_masked_stock_model_does(
    name: str, pattern: str, attention: str, exported: Exported
) -> None:
    decoder, structures, directory = exported(name, pattern)
    model = load(directory, attn_implementation=attention)
    tokens = random_tokens(2, LENGTH)
    expected = masked_model(decoder, structures)(tokens).logits
    assert relative_error(model(tokens).logits, expected) < FLOAT32
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", ZOO)
def test_generated_text_does_not_depend_on_the_cache(
    name: str, pattern: str, exported: Exported
) -> None:
    decoder, structures, directory = exported(name, pattern)
    model, tokens = load(directory), random_tokens(2, 4)
    expected = greedy(masked_model(decoder, structures), tokens)
    assert greedy(model, tokens) == expected
    assert greedy(model, tokens, use_cache=False) == expected
    assert greedy(model, tokens, cache_implementation="static") == expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama_biased", "mistral_windowed", "qwen3_tied"])
def test_left_padding_changes_no_continuation(
    name: str, attention: str, exported: Exported
) -> None:
    for pattern in ("uneven", "empty_sublayers"):
        model = load(exported(name, pattern)[2], attn_implementation=attention)
        short, long = random_tokens(1, 3), random_tokens(1, 6, seed=1)
        batch = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.int64), short], 1), long])
        mask = (batch != 0).long()
        padded = greedy(model, batch, attention_mask=mask)
        assert padded == [*greedy(model, short), *greedy(model, long)]


@settings(max_examples=20)
@given(data=st.data())
def test_any_kept_set_computes_what_masking_does(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(ZOO)))
    unit = data.draw(st.sampled_from(["head", "kv_group"]))
    decoder = zoo_decoder(name, attention_unit=unit)

    def keep(sublayer: Any) -> list[int]:
        least = int(sublayer.id == SublayerId(0, "attn"))
        units = st.integers(0, sublayer.num_units - 1)
        return sorted(data.draw(st.sets(units, min_size=least)))

    structures = structures_from(decoder, keep)
    model, tokens = in_memory(decoder, structures), random_tokens(2, 7)
    expected = masked_model(decoder, structures)(tokens).logits
    assert relative_error(model(tokens).logits, expected) < FLOAT32
    split = model(tokens[:, :4], use_cache=True)
    rest = model(tokens[:, 4:], past_key_values=split.past_key_values)
    cached = torch.cat([split.logits, rest.logits], dim=1)
    assert relative_error(cached, expected) < FLOAT32


def test_cache_holds_only_the_kv_heads_in_use(exported: Exported) -> None:
    for pattern, heads in (("everything", 4), ("even", 4), ("uneven", 2)):
        model = load(exported("llama", pattern)[2])
        cache = model(random_tokens(1, LENGTH)).past_key_values
        assert [layer.keys.shape for layer in cache.layers] == [(1, heads, LENGTH, 4)] * 2


def test_removed_attention_leaves_its_cache_layer_empty(exported: Exported) -> None:
    model = load(exported("llama", "empty_sublayers")[2])
    cache = model(random_tokens(1, LENGTH)).past_key_values
    assert cache.get_seq_length() == LENGTH
    assert [layer.is_initialized for layer in cache.layers] == [True, False]


def test_evenly_shared_heads_run_as_stock_grouped_attention(exported: Exported) -> None:
    decoder = zoo_decoder("mistral")
    structures = structures_from(decoder, lambda s: [0, 1, 3, 5] if s.id.kind == "attn" else [1])
    model = in_memory(decoder, structures)
    attention = model.model.layers[0].self_attn
    assert attention.num_key_value_groups == 2
    assert not attention._forward_pre_hooks
    assert model.config.query_to_kv == {}


def test_projections_are_really_smaller(exported: Exported) -> None:
    layer = load(exported("qwen2", "uneven")[2]).model.layers[0]
    assert layer.self_attn.q_proj.weight.shape == (3 * 4, 32)
    assert layer.self_attn.q_proj.bias.shape == (3 * 4,)
    assert layer.self_attn.k_proj.weight.shape == (2 * 4, 32)
    assert layer.self_attn.o_proj.weight.shape == (32, 3 * 4)
    assert layer.mlp.down_proj.weight.shape == (32, 7)
    gone = load(exported("llama", "empty_sublayers")[2])
    assert not list(gone.model.layers[1].self_attn.parameters())
    assert not list(gone.model.layers[0].mlp.parameters())


def test_attention_implementation_can_be_changed_after_loading(exported: Exported) -> None:
    model, tokens = load(exported("mistral_windowed", "uneven")[2]), random_tokens(2, LENGTH)
    expected = model(tokens).logits
    model.set_attn_implementation("eager")
    output = model(tokens, output_attentions=True)
    assert relative_error(output.logits, expected) < FLOAT32
    assert [weights.shape[1] for weights in output.attentions] == [4, 4]


@pytest.mark.parametrize("name", ["llama_biased", "qwen3_tied"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_of_an_export_gets_a_gradient(
    name: str, checkpointing: bool, exported: Exported
) -> None:
    model = load(exported(name, "empty_sublayers")[2]).requires_grad_(True).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    tokens = random_tokens(2, LENGTH)
    model(tokens, labels=tokens).loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_random_initialisation_reaches_the_rebuilt_blocks(exported: Exported) -> None:
    config = AutoConfig.from_pretrained(exported("qwen2", "uneven")[2], initializer_range=1e-4)
    model = AutoModelForCausalLM.from_config(config)
    layer = model.model.layers[0]
    assert 0 < layer.self_attn.q_proj.weight.std() < 1e-3
    assert not layer.self_attn.q_proj.bias.any()


@pytest.mark.parametrize("name", ["llama_biased", "qwen2_mixed_windows", "qwen3_tied"])
def test_saving_a_loaded_export_and_loading_it_again_changes_nothing(
    name: str, exported: Exported, tmp_path: Path
) -> None:
    model = load(exported(name, "empty_sublayers")[2])
    model.save_pretrained(tmp_path)
    again, tokens = load(tmp_path), random_tokens(2, LENGTH)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert (tmp_path / "modeling_tyr.py").is_file()
    assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {
        "_name_or_path": ""
    }


def test_backbone_loads_by_itself(exported: Exported) -> None:
    _, _, directory = exported("qwen3_tied", "uneven")
    tokens = random_tokens(2, LENGTH)
    backbone, whole = AutoModel.from_pretrained(directory), load(directory)
    hidden = whole(tokens, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(backbone(tokens).last_hidden_state, hidden)


def test_tied_embeddings_stay_tied(exported: Exported) -> None:
    model = load(exported("qwen3_tied", "even")[2])
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_config_tells_other_engines_the_sizes_of_every_block(exported: Exported) -> None:
    _, _, directory = exported("llama", "empty_sublayers")
    written = json.loads((directory / "config.json").read_text())
    assert written["per_layer_config"] == {
        "0": {
            "num_attention_heads": 3,
            "num_key_value_heads": 2,
            "intermediate_size": 0,
            "skip": ["mlp"],
        },
        "1": {
            "num_attention_heads": 0,
            "num_key_value_heads": 0,
            "intermediate_size": 7,
            "skip": ["attention"],
        },
    }
    assert written["query_to_kv"] == {"0": [0, 0, 1]}
    config = AutoConfig.from_pretrained(directory)
    assert config.num_attention_heads == 8  # the dense model's: an upper bound


def test_stock_constructor_does_not_see_the_sizes_of_the_blocks(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = exported("llama", "uneven")[2]  # may construct the dense model: not to be recorded
    seen, stock = [], LlamaModel.__init__

    def recording(self: Any, config: Any) -> None:
        seen.append(config.to_dict().get("per_layer_config"))
        stock(self, config)

    monkeypatch.setattr(LlamaModel, "__init__", recording)
    model = load(directory)
    assert seen == [None]
    assert model.config.to_dict()["per_layer_config"]


def test_a_sublayer_that_still_has_a_bias_is_not_marked_skipped(exported: Exported) -> None:
    _, _, directory = exported("llama_biased", "empty_sublayers")
    written = json.loads((directory / "config.json").read_text())
    blocks = written["per_layer_config"].values()
    assert [block["num_attention_heads"] for block in blocks] == [3, 0]
    assert not any("skip" in block for block in blocks)


@pytest.mark.parametrize("index", [[0, 1, 0], [0, 0, 0], [0, 1, 2]])
def test_an_index_that_does_not_fit_is_refused(index: list[int]) -> None:
    decoder = zoo_decoder("llama")
    config = in_memory(decoder, structures_from(decoder, keep_uneven)).config
    config.query_to_kv = {"0": index}
    with pytest.raises(ValueError, match="query_to_kv must be ascending"):
        modeling_tyr.TyrLlamaForCausalLM(config)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=str)
def test_every_supported_architecture_has_its_classes(architecture: Any) -> None:
    model = getattr(modeling_tyr, f"Tyr{architecture.class_name}")
    assert model.config_class.model_type == f"tyr_{architecture.model_type}"
    assert hasattr(modeling_tyr, f"Tyr{architecture.class_name}"[: -len("ForCausalLM")] + "Model")
    assert len(Path(modeling_tyr.__file__).read_text().splitlines()) <= 250


WITHOUT_TYR = """
import sys

class NoTyr:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tyr":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoTyr())
try:
    import tyr
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("tyr can be imported")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

tokens, results = load_file("tokens.safetensors")["tokens"], {}
for directory in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()
    assert type(model).__module__.endswith("modeling_tyr")
    AutoConfig.from_pretrained(directory, trust_remote_code=True)
    AutoModel.from_pretrained(directory, trust_remote_code=True)
    AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
    results[directory + "/logits"] = model(tokens).logits.detach()
    results[directory + "/text"] = model.generate(tokens, max_new_tokens=5, do_sample=False)
    model.save_pretrained(directory + "-again")
    again = AutoModelForCausalLM.from_pretrained(directory + "-again", trust_remote_code=True)
    results[directory + "/again"] = again(tokens).logits.detach()
save_file(results, "results.safetensors")
"""


@pytest.mark.slow  # a cold start
def test_export_loads_and_generates_where_tyr_is_not_installed(
    exported: Exported, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    names = [("llama_biased", "empty_sublayers"), ("qwen3_tied", "uneven")]
    cases = [exported(*name) for name in names]
    tokens = random_tokens(2, LENGTH)
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    directories = [str(directory) for *_, directory in cases]
    finished = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_TYR, *directories],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "per-layer attribute" not in finished.stderr  # a warning at every load
    results = load_file(tmp_path / "results.safetensors")
    for (decoder, structures, _), directory in zip(cases, directories, strict=True):
        reference = masked_model(decoder, structures)
        logits = results[f"{directory}/logits"]
        assert relative_error(logits, reference(tokens).logits) < FLOAT32
        assert torch.equal(results[f"{directory}/again"], logits)
        text = results[f"{directory}/text"][:, LENGTH:].tolist()
        assert text == greedy(reference, tokens, max_new_tokens=5)


def test_tokenizer_comes_along(exported: Exported) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported("llama", "even")[2])
    assert tokenizer("w5 w9")["input_ids"] == [5, 9]


def test_block_without_attention_does_not_size_the_masks_of_others() -> None:
    decoder = zoo_decoder("qwen2_mixed_windows", num_hidden_layers=3)
    assert decoder.config.layer_types == ["full_attention"] + ["sliding_attention"] * 2
    structures = structures_from(decoder, keep_some_nowhere)
    model, tokens = in_memory(decoder, structures), random_tokens(1, 3)
    expected = greedy(masked_model(decoder, structures), tokens)
    assert greedy(model, tokens) == expected
    assert greedy(model, tokens, cache_implementation="static") == expected
