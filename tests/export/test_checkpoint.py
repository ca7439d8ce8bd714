from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

import tyr.export
from tests.model_zoo import (
    PATTERNS,
    ZOO,
    keep_every_other,
    keep_everything,
    keep_some_nowhere,
    keep_uneven,
    random_tokens,
    structures_from,
    zoo_decoder,
)
from tyr.errors import ConfigError, ModelError, StoreError
from tyr.export.checkpoint import (
    ExportedModel,
    HuggingFaceExport,
    NoExport,
    export_checkpoint,
)
from tyr.export.tensors import model_size
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Structure
from tyr.sparsity import SublayerId

CONF = Path(__file__).parents[2] / "conf" / "export"


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    tyr.export.register()


@pytest.mark.parametrize("unit", ["head", "kv_group"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_counts_in_the_files_are_the_counts_of_the_structures(
    pattern: str, unit: str, tmp_path: Path
) -> None:
    decoder = zoo_decoder("llama_biased", attention_unit=unit)  # type: ignore[arg-type]
    if unit == "kv_group":  # same KV heads as in head units
        keep = {s.id: {u // 2 for u in PATTERNS[pattern](s)} for s in zoo_sublayers("head")}
        structures = structures_from(
            decoder,
            lambda s: keep[s.id] if s.id.kind == "attn" else PATTERNS[pattern](s),
        )
    else:
        structures = structures_from(decoder, PATTERNS[pattern])
    exported = export_checkpoint(decoder, structures.__getitem__, tmp_path / "m", provenance={})
    for sublayer in decoder.sublayers:
        kept = structures[sublayer.id].kept.numel()
        assert exported.removed[sublayer.id] == sublayer.num_units - kept
    size = model_size(decoder, structures.__getitem__)
    assert (exported.parameters, exported.backbone_parameters, exported.bytes) == (
        size.parameters,
        size.backbone_parameters,
        size.bytes,
    )
    model = AutoModelForCausalLM.from_pretrained(exported.directory)
    assert exported.parameters == sum(parameter.numel() for parameter in model.parameters())


def zoo_sublayers(unit: str) -> tuple:  # type: ignore[type-arg]
    return zoo_decoder("llama_biased", attention_unit=unit).sublayers  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ZOO)
def test_dense_size_is_that_of_the_stock_model(name: str) -> None:
    decoder = zoo_decoder(name, storage_dtype=torch.bfloat16)
    parameters = sum(parameter.numel() for parameter in decoder.model.parameters())
    ends = {id(decoder.head), id(decoder.model.get_input_embeddings().weight)}
    inner = sum(p.numel() for p in decoder.model.parameters() if id(p) not in ends)
    size = model_size(decoder)
    assert (size.parameters, size.backbone_parameters) == (parameters, inner)
    assert size.bytes == 2 * parameters
    structures = structures_from(decoder, keep_everything)
    assert model_size(decoder, structures.__getitem__) == size


def test_kv_heads_without_queries_count_as_removed_parameters() -> None:
    decoder = zoo_decoder("llama")
    dense = model_size(decoder).parameters
    spread = structures_from(decoder, lambda s: [0, 2, 4, 6] if s.id.kind == "attn" else range(20))
    packed = structures_from(decoder, lambda s: [0, 1, 6, 7] if s.id.kind == "attn" else range(20))
    query_and_output = 2 * 2 * (4 * 4) * 32  # blocks, projections, 4 heads of 4, hidden
    key_and_value = 2 * 2 * (2 * 4) * 32
    assert dense - model_size(decoder, spread.__getitem__).parameters == query_and_output
    assert dense - model_size(decoder, packed.__getitem__).parameters == (
        query_and_output + key_and_value
    )


def test_nothing_removed_gives_the_tensors_of_the_dense_model(tmp_path: Path) -> None:
    decoder = zoo_decoder("qwen2")
    structures = {
        s.id: Structure(torch.arange(s.num_units), s.output_weight) for s in decoder.sublayers
    }
    exported = export_checkpoint(decoder, structures.__getitem__, tmp_path / "m", provenance={})
    stored = load_file(exported.directory / "model.safetensors")
    assert stored.keys() == decoder.model.state_dict().keys()
    for name, tensor in decoder.model.state_dict().items():
        assert torch.equal(stored[name], tensor), name


def test_weights_are_stored_and_loaded_in_the_precision_of_the_checkpoint(tmp_path: Path) -> None:
    decoder = zoo_decoder("llama", storage_dtype=torch.bfloat16)
    structures = structures_from(decoder, keep_uneven)
    exported = export_checkpoint(decoder, structures.__getitem__, tmp_path / "m", provenance={})
    stored = load_file(exported.directory / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert exported.bytes == 2 * exported.parameters
    weight = structures[SublayerId(0, "ffn")].weight
    assert torch.equal(stored["model.layers.0.mlp.down_proj.weight"], weight)
    model = AutoModelForCausalLM.from_pretrained(exported.directory)
    assert model.dtype is torch.bfloat16
    assert model(random_tokens(1, 4)).logits.isfinite().all()


def test_shards_hold_the_same_tensors_as_one_file(tmp_path: Path) -> None:
    decoder = zoo_decoder("qwen3_tied")
    structures = structures_from(decoder, keep_uneven)
    whole = HuggingFaceExport().export(decoder, structures.__getitem__, tmp_path / "one", {})
    parts = HuggingFaceExport(max_shard_bytes=4000).export(
        decoder, structures.__getitem__, tmp_path / "many", {}
    )
    files = sorted(parts.directory.glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.name.endswith(f"-of-{len(files):05d}.safetensors") for file in files)
    index = json.loads((parts.directory / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == parts.bytes == whole.bytes
    model, tokens = AutoModelForCausalLM.from_pretrained(whole.directory), random_tokens(1, 5)
    sharded = AutoModelForCausalLM.from_pretrained(parts.directory)
    assert torch.equal(sharded(tokens).logits, model(tokens).logits)


def test_every_structure_is_read_once_in_stream_order(tmp_path: Path) -> None:
    decoder = zoo_decoder("llama")
    structures, seen = structures_from(decoder, keep_every_other), []

    def read(sublayer_id: SublayerId) -> Structure:
        seen.append(sublayer_id)
        return structures[sublayer_id]

    export_checkpoint(decoder, read, tmp_path / "m", provenance={})
    assert seen == [sublayer.id for sublayer in decoder.sublayers]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, StoreError])
def test_an_interrupted_export_leaves_nothing_behind(
    error: type[BaseException], tmp_path: Path
) -> None:
    decoder = zoo_decoder("llama")
    structures = structures_from(decoder, keep_every_other)

    def read(sublayer_id: SublayerId) -> Structure:
        if sublayer_id == SublayerId(1, "attn"):
            raise error
        return structures[sublayer_id]

    with pytest.raises(error):
        export_checkpoint(decoder, read, tmp_path / "m", provenance={}, max_shard_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_replaced(tmp_path: Path) -> None:
    decoder = zoo_decoder("llama")
    (tmp_path / ".m.partial").mkdir()
    (tmp_path / ".m.partial" / "part-00000.safetensors").write_bytes(b"half")
    structures = structures_from(decoder, keep_every_other)
    export_checkpoint(decoder, structures.__getitem__, tmp_path / "m", provenance={})
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    decoder = zoo_decoder("llama")
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(StoreError, match="already exists"):
        export_checkpoint(decoder, never_read, tmp_path, provenance={})
    with pytest.raises(StoreError, match="already exists"):
        export_checkpoint(decoder, never_read, tmp_path / "notes.txt", provenance={})
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def never_read(sublayer_id: SublayerId) -> Structure:
    raise AssertionError(f"{sublayer_id} was read before the directory was checked")


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    decoder = zoo_decoder("llama")
    structures = structures_from(decoder, keep_every_other)
    export_checkpoint(decoder, structures.__getitem__, tmp_path, provenance={})
    assert (tmp_path / "config.json").is_file()


def test_an_unwritable_place_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another directory"):
        export_checkpoint(zoo_decoder("llama"), never_read, tmp_path / "file" / "m", provenance={})


def test_a_disk_that_is_full_at_the_tokenizer_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tokenizers library raises the bare class, met on a full tmpfs.
    decoder = zoo_decoder("llama")
    structures = structures_from(decoder, keep_every_other)

    def full(self: object, directory: Path) -> None:
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(type(decoder.tokenizer), "save_pretrained", full)
    with pytest.raises(StoreError, match=r"cannot write the pruned model.*No space left on device"):
        export_checkpoint(decoder, structures.__getitem__, tmp_path / "m", provenance={})
    assert not list(tmp_path.iterdir())


def test_a_first_block_without_attention_is_refused(tmp_path: Path) -> None:
    decoder = zoo_decoder("llama")
    structures = structures_from(decoder, lambda s: [])
    with pytest.raises(ModelError, match="block 0 has no attention"):
        export_checkpoint(decoder, structures.__getitem__, tmp_path / "m", provenance={})


def exported_llama(tmp_path: Path, decoder: Decoder, **provenance: object) -> ExportedModel:
    structures = structures_from(decoder, keep_some_nowhere)
    return export_checkpoint(decoder, structures.__getitem__, tmp_path / "m", provenance=provenance)


def test_generation_settings_come_along_only_if_the_base_has_its_own(tmp_path: Path) -> None:
    decoder = zoo_decoder("llama")
    plain = exported_llama(tmp_path / "plain", decoder)
    assert not (plain.directory / "generation_config.json").exists()
    # Sampling settings without sampling: published models have them, save_pretrained refuses them.
    decoder.model.generation_config = GenerationConfig(temperature=0.6, eos_token_id=[5, 7])
    own = exported_llama(tmp_path / "own", decoder)
    read = GenerationConfig.from_pretrained(own.directory)
    assert (read.temperature, read.eos_token_id) == (0.6, [5, 7])


def test_generation_settings_in_the_directory_of_the_base_come_along(tmp_path: Path) -> None:
    decoder = zoo_decoder("llama")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "generation_config.json").write_text("{}")
    decoder.config.name_or_path = str(tmp_path / "base")
    exported = exported_llama(tmp_path, decoder)
    assert (exported.directory / "generation_config.json").is_file()


def test_model_card_says_what_was_pruned_and_how(tmp_path: Path) -> None:
    base = tmp_path / "private" / "base-model"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: llama3.1\nlanguage: en\n---\n# Base\n")
    (base / "LICENSE").write_text("the licence text")
    decoder = zoo_decoder("llama")
    decoder.config.name_or_path = str(base)
    rows = [
        {"model": "dense", "wikitext2_ppl": 6.24151},
        {"model": "pruned", "wikitext2_ppl": 10.5, "speed": "1.6x"},
    ]
    command = "python -m tyr.run model=llama31_8b sparsity=0.5"
    exported = exported_llama(
        tmp_path, decoder, name="Half a llama", command=command, results=rows, seed=3
    )
    card = (exported.directory / "README.md").read_text()
    front = card.split("---")[1]
    assert "license: llama3.1" in front
    assert "language" not in front
    assert "library_name: transformers" in front
    assert "base_model" not in front
    for wanted in (
        "# Half a llama",
        "`base-model`",
        command,
        "| model | wikitext2_ppl | speed |",
        "| dense | 6.242 |  |",
        f"{exported.parameters:,}",
        f"{model_size(decoder).parameters:,}",
        "| 0 | 3 | 2 | 0 |",
        '"seed": 3',
    ):
        assert wanted in card, wanted
    assert str(tmp_path) not in card
    assert (exported.directory / "LICENSE").read_text() == "the licence text"


def test_model_card_names_a_hub_model_as_its_base(tmp_path: Path) -> None:
    decoder = zoo_decoder("llama")
    given = {"base": "someone/some-model", "license": "mit"}
    card = (exported_llama(tmp_path, decoder, **given).directory / "README.md").read_text()
    assert "base_model: someone/some-model" in card
    assert "license: mit" in card


def test_choices_in_the_configuration_build_and_work(tmp_path: Path) -> None:
    decoder = zoo_decoder("llama")
    structures = structures_from(decoder, keep_every_other)
    files = sorted(CONF.glob("*.yaml"))
    choices = {file.stem: instantiate(OmegaConf.load(file)) for file in files}
    results = {
        name: choice.export(decoder, structures.__getitem__, tmp_path / name, {})
        for name, choice in choices.items()
        if name in ("hf", "none")
    }
    assert isinstance(choices["none"], NoExport)
    assert results["none"] is None
    assert not (tmp_path / "none").exists()
    assert results["hf"].directory == tmp_path / "hf"


def test_shard_size_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="max_shard_bytes"):
        HuggingFaceExport(max_shard_bytes=0)


def test_structures_may_share_memory(tmp_path: Path) -> None:
    decoder = zoo_decoder("llama")
    structures = structures_from(decoder, keep_every_other)
    buffer = torch.cat([structure.weight.reshape(-1) for structure in structures.values()])
    start = 0
    for name, structure in structures.items():
        end = start + structure.weight.numel()
        view = buffer[start:end].reshape(structure.weight.shape)
        structures[name] = Structure(structure.kept, view)
        start = end
    exported = export_checkpoint(decoder, structures.__getitem__, tmp_path / "m", provenance={})
    stored = load_file(exported.directory / "model.safetensors")
    assert torch.equal(
        stored["model.layers.1.mlp.down_proj.weight"], structures[SublayerId(1, "ffn")].weight
    )
