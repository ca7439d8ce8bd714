"""Converting a directory, and exporting a run as directory and file."""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.cli import run_cli
from tests.export.gguf.models import byte_level, export_pruned, small_decoder
from tests.model_zoo import keep_some_nowhere, keep_uneven, structures_from, tiny_tokenizer
from tyr.errors import ConfigError, ModelError, StoreError
from tyr.export.gguf.exporter import GgufExport, convert
from tyr.layout import FREE
from tyr.model.architecture import unit_counts
from tyr.model.loading import BUILT_IN, PretrainedModel
from tyr.model.sublayer import Structure
from tyr.sparsity import SublayerId

gguf = pytest.importorskip("gguf", reason="gguf is not installed (pip install -e '.[gguf]')")

CONF = Path(__file__).parents[3] / "conf" / "export" / "gguf.yaml"


def fields(path: Path) -> dict[str, Any]:
    """Metadata of a file."""
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def tensors(path: Path) -> dict[str, Any]:
    """Tensors of a file by name."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def test_the_metadata_name_every_block(tmp_path: Path) -> None:
    kept = {(0, "attn"): [0, 1], (1, "attn"): [], (2, "attn"): [1, 2, 3], (1, "ffn"): [5]}
    directory = export_pruned(small_decoder("llama"), {**kept, (2, "ffn"): []}, tmp_path / "m")
    written = convert(directory, tmp_path / "small.gguf")
    found = fields(written.path)
    assert found["general.architecture"] == "deci"
    assert found["general.name"] == "small"
    assert found["deci.attention.head_count"] == [2, 0, 3]
    assert found["deci.attention.head_count_kv"] == [1, 0, 3]
    assert found["deci.feed_forward_length"] == [20, 1, 32]
    assert found["deci.attention.key_length"] == found["deci.rope.dimension_count"] == 4
    assert found["deci.vocab_size"] == 300
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    stored = tensors(written.path)
    assert "blk.1.attn_norm.weight" not in stored
    assert not stored["blk.2.ffn_down.weight"].data.any()
    assert stored["rope_freqs.weight"].data.shape == (2,)
    assert written.tensors == {"F32": len(stored) - 19, "F16": 19}
    assert written.bytes == written.path.stat().st_size
    assert written.parameters == sum(int(tensor.n_elements) for tensor in stored.values())


def test_rewritten_blocks_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = {(1, "ffn"): [], (0, "attn"): [0, 1, 2]}
    directory = export_pruned(small_decoder("llama"), kept, tmp_path / "m")
    with caplog.at_level(logging.WARNING, logger="tyr"):
        convert(directory, tmp_path / "m.gguf")
    text = "\n".join(caplog.messages)
    assert "blocks 1 get an FFN of 32 zero neurons" in text
    assert "blocks 0 get KV heads written more than once" in text
    assert "zero head" not in text


def test_the_library_does_not_announce_its_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        convert(BUILT_IN, tmp_path / "m.gguf")
    assert [r.name for r in caplog.records if r.name.startswith("gguf")] == []


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    out.write_text("mine")
    with pytest.raises(StoreError, match="already exists"):
        convert(BUILT_IN, out)
    assert out.read_text() == "mine"
    with pytest.raises(StoreError, match="is a directory"):
        convert(BUILT_IN, tmp_path)


def test_a_failed_conversion_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("tyr.export.gguf.writer.encode", full)
    with pytest.raises(StoreError, match="no space left"):
        convert(BUILT_IN, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        convert(BUILT_IN, tmp_path / "file" / "model.gguf")


def without_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def fail(name: str, *rest: Any) -> Any:
        if name == "gguf":
            raise ModuleNotFoundError("No module named 'gguf'")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", fail)


def test_a_missing_library_is_said_before_a_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gguf(monkeypatch)
    for attempt in (GgufExport, lambda: convert(BUILT_IN, tmp_path / "m.gguf")):
        with pytest.raises(ConfigError, match=r"pip install -e '.\[gguf\]'"):
            attempt()


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tyr.export.gguf import writer

    events: list[str] = []
    encode = writer.encode

    def recorded(name: str, values: torch.Tensor, kind: Any) -> Any:
        events.append(f"made {name}")
        return encode(name, values, kind)

    write = gguf.GGUFWriter.write_tensor_data

    def written(self: Any, tensor: Any, *rest: Any) -> None:
        events.append("written")
        write(self, tensor, *rest)

    monkeypatch.setattr(writer, "encode", recorded)
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", written)
    convert(BUILT_IN, tmp_path / "m.gguf")
    assert events[1::2] == ["written"] * (len(events) // 2)
    assert len(events) == 2 * 110


def test_the_choice_in_the_configuration_writes_directory_and_file(tmp_path: Path) -> None:
    choice = instantiate(OmegaConf.load(CONF))
    decoder = small_decoder("llama")
    structures = structures_from(decoder, keep_uneven)
    exported = choice.export(decoder, structures.__getitem__, tmp_path / "model", {})
    assert exported.directory == tmp_path / "model"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.gguf"]
    assert (tmp_path / "model" / "config.json").is_file()
    assert fields(tmp_path / "model.gguf")["general.name"] == "model"


def test_the_directory_is_kept_when_llama_cpp_cannot_take_the_model(tmp_path: Path) -> None:
    decoder = small_decoder("llama", tokenizer=tiny_tokenizer())
    structures = structures_from(decoder, keep_some_nowhere)
    with pytest.raises(ModelError, match=r"WordLevel model.*export .*model is complete"):
        GgufExport().export(decoder, structures.__getitem__, tmp_path / "model", {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_interrupted_export_is_done_again_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    decoder = small_decoder("llama")
    structures = structures_from(decoder, keep_uneven)
    with monkeypatch.context() as patched:
        patched.setattr("tyr.export.gguf.exporter.convert", stop)
        with pytest.raises(KeyboardInterrupt):
            GgufExport().export(decoder, structures.__getitem__, tmp_path / "model", {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".model.staging").mkdir()  # what a killed process leaves
    (tmp_path / ".model.staging" / "half").write_text("")
    (tmp_path / "model.gguf").write_text("of an export that was killed before its last step")
    GgufExport().export(decoder, structures.__getitem__, tmp_path / "model", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.gguf"]
    assert fields(tmp_path / "model.gguf")["general.architecture"] == "deci"


def test_a_resumed_export_makes_the_file_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = small_decoder("llama")
    structures = structures_from(decoder, keep_uneven)
    exporter, directory = GgufExport(), tmp_path / "model"
    assert not exporter.finished(directory)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tyr.export.gguf.writer.encode", full)
        with pytest.raises(StoreError, match="model is complete; only model.gguf is missing"):
            exporter.export(decoder, structures.__getitem__, directory, {})
        with pytest.raises(StoreError, match="only model.gguf is missing"):
            exporter.finished(directory)
    assert exporter.finished(directory)
    (tmp_path / "whole").mkdir()
    exporter.export(decoder, structures.__getitem__, tmp_path / "whole" / "model", {})
    whole = (tmp_path / "whole" / "model.gguf").read_bytes()
    assert (tmp_path / "model.gguf").read_bytes() == whole


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")

    def never(sublayer_id: SublayerId) -> Structure:
        raise AssertionError(sublayer_id)

    with pytest.raises(StoreError, match="expected a new or empty directory"):
        GgufExport().export(small_decoder("llama"), never, tmp_path, {})
    assert (tmp_path / "notes.txt").is_file()


SIZES = "hidden_size=64 intermediate_size=96 num_attention_heads=4 num_key_value_heads=2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("model_type=mistral +sliding_window=16", "sliding window of 16 tokens.*; use export=hf"),
        ("model_type=qwen3 tie_word_embeddings=false", "this Qwen3 has one of its own"),
    ],
)
def test_a_run_whose_model_llama_cpp_cannot_take_is_refused_before_any_work(
    fields: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [re.sub(r"^(\+?)", r"\1model.config.", word) for word in f"{SIZES} {fields}".split()]
    run_dir = tmp_path / "run"
    outcome = run_cli(capsys, "model=random", *words, "export=gguf", f"run_dir={run_dir}")
    assert outcome.status == 2
    assert re.search(rf"^tyr: export=gguf: .*{message}", outcome.err), outcome.err
    assert not run_dir.exists()


def test_a_run_whose_tokenizer_has_no_mapping_is_refused_before_any_work(tmp_path: Path) -> None:
    decoder = small_decoder("llama", tokenizer=tiny_tokenizer())
    decoder.model.save_pretrained(tmp_path)
    decoder.tokenizer.save_pretrained(tmp_path)
    source = PretrainedModel(str(tmp_path))
    with pytest.raises(ModelError, match=r"export=gguf: .* WordLevel model.*; use export=hf"):
        GgufExport().check(source, decoder.units, sparsity=0.5, layout=FREE)


def test_the_built_in_model_passes() -> None:
    source = PretrainedModel("built-in")
    units = unit_counts(source.configuration(), "head")
    GgufExport().check(source, units, sparsity=0.5, layout=FREE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dtype": "q4"}, "export.dtype"), ({"arch": "llama"}, "export.arch")],
)
def test_unknown_settings_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GgufExport(**settings)


def test_the_tokenizer_helper_is_deterministic() -> None:
    assert byte_level().get_vocab() == byte_level().get_vocab()
