"""Models that cannot be pruned are refused with what is wrong and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tyr.errors import ConfigError, ModelError
from tyr.model.loading import BUILT_IN, PretrainedModel, RandomModel

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def write_model(folder: Path, *, tokenizer: bool = True, **changes: Any) -> Path:
    """A loadable model directory, with fields of its config.json replaced."""
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(folder)
    if tokenizer:
        AutoTokenizer.from_pretrained(BUILT_IN).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere does not exist: expected a directory"):
        PretrainedModel(str(tmp_path / "nowhere")).configuration()


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file: expected a directory"):
        PretrainedModel(str(tmp_path / "model.bin")).configuration()


def test_a_directory_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        PretrainedModel(str(tmp_path)).configuration()


def test_a_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="is quantised"):
        PretrainedModel(str(folder)).configuration()


def test_an_unsupported_architecture_lists_the_supported_ones(tmp_path: Path) -> None:
    folder = write_model(tmp_path, model_type="gpt2", architectures=["GPT2LMHeadModel"])
    with pytest.raises(ModelError, match="supported: llama, mistral, qwen2, qwen3.*adapter needs"):
        PretrainedModel(str(folder)).configuration()


def test_a_model_that_is_not_a_causal_lm_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(ModelError, match="not a causal language model"):
        PretrainedModel(str(folder)).configuration()


def test_a_model_that_tyr_already_pruned_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, model_type="tyr_llama")
    with pytest.raises(ModelError, match="already pruned by tyr"):
        PretrainedModel(str(folder)).configuration()


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, tokenizer=False)
    with pytest.raises(ModelError, match="has no usable tokenizer"):
        PretrainedModel(str(folder)).tokenizer()


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot read the weights"):
        PretrainedModel(str(folder)).load(device=CPU)


def test_weights_that_are_missing_from_the_file_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path, num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"lacks .*layers\.1"):
        PretrainedModel(str(folder)).load(device=CPU)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.dtype must be auto or one of"):
        PretrainedModel("built-in", dtype="fp8")


def test_bf16_checkpoints_compute_in_float32_on_cpu_and_are_stored_in_bf16(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    model = LlamaForCausalLM.from_pretrained(folder).to(torch.bfloat16)
    model.save_pretrained(folder)
    decoder = PretrainedModel(str(folder)).load(device=CPU)
    assert (decoder.dtype, decoder.storage_dtype) == (torch.float32, torch.bfloat16)


def test_random_models_repeat_and_leave_the_global_generator_alone() -> None:
    source = RandomModel({"model_type": "qwen3", **SMALL}, seed=3)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second = source.load(device=CPU), source.load(device=CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.head, second.head)


def test_a_random_model_needs_a_vocabulary_that_holds_its_tokenizer() -> None:
    source = RandomModel({"model_type": "llama", **SMALL, "vocab_size": 100})
    with pytest.raises(ModelError, match="vocab_size is 100"):
        source.tokenizer()


def test_a_random_model_needs_a_known_model_type() -> None:
    with pytest.raises(ConfigError, match="needs a model_type"):
        RandomModel({"hidden_size": 8})
    with pytest.raises(ModelError, match=r"model\.config"):
        RandomModel({"model_type": "nonsense"}).configuration()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 250}, r"hidden size \(250\) is not a multiple of"),
        ({"hidden_size": "x"}, "Field 'hidden_size' expected int"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number of at least 1, got 0"),
        ({"num_attention_heads": 0}, "one of its sizes is 0"),
        ({"num_key_value_heads": 3}, "num_attention_heads=4 is no multiple of num_key_value_heads"),
    ],
)
def test_sizes_that_cannot_be_are_errors_of_the_model(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    sizes = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2, **changes}
    with pytest.raises(ModelError, match=message):
        RandomModel({"model_type": "llama", **sizes}).configuration()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    with pytest.raises(ModelError, match=message):
        PretrainedModel(str(tmp_path)).configuration()


def test_a_checkpoint_that_names_no_dtype_has_that_of_its_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LlamaForCausalLM(LlamaConfig(**SMALL)).to(torch.bfloat16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = PretrainedModel(str(tmp_path))
    save_file({"another": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    assert source.precisions(CPU) == (torch.bfloat16, torch.float32)
    assert caplog.text == ""
    (tmp_path / "model.safetensors").unlink()
    source = PretrainedModel(str(tmp_path))
    assert source.precisions(CPU) == (torch.float32, torch.float32)
    assert "names no dtype: taken to be float32" in caplog.text


def test_a_home_directory_that_the_shell_left_alone_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_model(tmp_path / "model")
    assert PretrainedModel("~/model").configuration().model_type == "llama"
