"""Directories that are no complete model are refused with what they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.export.gguf.models import export_pruned, small_decoder
from tyr.errors import ModelError
from tyr.export.gguf.layout import model_layout
from tyr.export.gguf.source import open_directory


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model. Copied before it is damaged."""
    directory = tmp_path_factory.mktemp("source") / "model"
    return export_pruned(small_decoder("qwen2"), {(1, "attn"): [0, 1]}, directory)


def copy_of(exported: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in exported.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_an_exported_directory_is_read(exported: Path) -> None:
    source = open_directory(exported)
    assert source.family == "qwen2"
    assert source.eos_ids == (1,)
    name = "model.layers.1.self_attn.q_proj.weight"
    assert source.load(name).shape == source.tensors[name].shape == (8, 32)


def nothing(tmp_path: Path) -> Path:
    return tmp_path / "nowhere"


def a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def an_empty_directory(tmp_path: Path) -> Path:
    return tmp_path


def an_unfinished_run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("sparsity: 0.5")
    return tmp_path


def the_model_of_an_unfinished_run(tmp_path: Path) -> Path:
    return an_unfinished_run(tmp_path) / "model"


def a_finished_run(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return an_unfinished_run(tmp_path)


def an_interrupted_export(tmp_path: Path) -> Path:
    (tmp_path / ".model.partial").mkdir()
    return tmp_path / ".model.partial"


def another_model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    return tmp_path


def no_json(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{")
    return tmp_path


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (nothing, "nowhere does not exist"),
        (a_file, "file is a file"),
        (an_empty_directory, "holds no config.json"),
        (an_unfinished_run, "has not finished.*resume=true"),
        (the_model_of_an_unfinished_run, "has not finished.*resume=true"),
        (a_finished_run, "is a run directory: its exported model is .*model"),
        (an_interrupted_export, "export that was interrupted"),
        (another_model, "model_type 'gpt2'; supported: llama"),
        (no_json, "cannot read configuration and tokenizer"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_model_is_refused(
    build: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        open_directory(build(tmp_path))


def test_missing_weights_are_refused(exported: Path, tmp_path: Path) -> None:
    copy = copy_of(exported, tmp_path)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no safetensors weights"):
        open_directory(copy)
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="lacks 2 of its 2 weight files"):
        open_directory(copy)
    index.write_text("[]")
    with pytest.raises(ModelError, match=r"index\.json is damaged"):
        open_directory(copy)


def test_a_truncated_weight_file_is_refused(exported: Path, tmp_path: Path) -> None:
    copy = copy_of(exported, tmp_path)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match="damaged or half written"):
        open_directory(copy)


@pytest.mark.parametrize("allowed", [True, False])
def test_sizes_per_block_of_a_stock_configuration_are_read(
    allowed: bool, exported: Path, tmp_path: Path
) -> None:
    copy = copy_of(exported, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    config["allow_global_per_layer_attribute_access"] = allowed
    del config["auto_map"]
    (copy / "config.json").write_text(json.dumps(config))
    source = open_directory(copy)
    blocks = model_layout(source.config, family=source.family).blocks
    assert [block.query_heads for block in blocks] == [8, 2, 8]


def test_the_end_tokens_of_the_generation_settings_come_first(
    exported: Path, tmp_path: Path
) -> None:
    copy = copy_of(exported, tmp_path)
    settings = copy / "generation_config.json"
    settings.write_text('{"eos_token_id": [7, 1]}')
    assert open_directory(copy).eos_ids == (1, 7)
    settings.write_text('{"eos_token_id": 7}')
    assert open_directory(copy).eos_ids == (7,)
