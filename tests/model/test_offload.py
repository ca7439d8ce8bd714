"""Blocks that come from disk: the same model, and never more than two of them in memory."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import AutoModelForCausalLM

from tests.model_zoo import LENGTH, ZOO, random_tokens, tiny_tokenizer, zoo_decoder
from tyr.errors import ConfigError, ModelError
from tyr.evaluate.latency_evaluator import LatencyEvaluator
from tyr.export.tensors import model_size
from tyr.model.decoder import Decoder
from tyr.model.loading import PretrainedModel, RandomModel
from tyr.model.offload import FileWeights, State
from tyr.model.placement import Placement
from tyr.model.skeleton import leave_on_host, lend_blocks
from tyr.model.states import StatePool

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 2048,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def saved(name: str, folder: Path, *, shard: str = "1GB", **changes: Any) -> Path:
    """A zoo model as a checkpoint."""
    zoo_decoder(name, **changes).model.save_pretrained(folder, max_shard_size=shard)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path, offload: str) -> Decoder:
    return PretrainedModel(str(folder), offload=offload).load(device=CPU)


@pytest.mark.parametrize("shard", ["1GB", "9KB"])
@pytest.mark.parametrize("name", ZOO)
def test_a_model_on_disk_is_the_model_in_memory(name: str, shard: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path, shard=shard)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (shard == "9KB")
    whole, streamed = load(folder, "none"), load(folder, "disk")
    assert streamed.offloaded
    assert not whole.offloaded
    tokens = random_tokens(5, LENGTH)
    assert torch.equal(streamed.final_hidden(tokens), whole.final_hidden(tokens))
    batches = tokens.split(2)
    for left, right in zip(
        streamed.final_states(batches), whole.final_states(batches), strict=True
    ):
        assert torch.equal(left, right)
    assert torch.equal(streamed.head, whole.head)
    assert streamed.fingerprint == whole.fingerprint
    assert model_size(streamed) == model_size(whole)
    assert (streamed.dtype, streamed.device) == (whole.dtype, whole.device)
    for left_sublayer, right_sublayer in zip(streamed.sublayers, whole.sublayers, strict=True):
        pairs = zip(left_sublayer.parameters(), right_sublayer.parameters(), strict=True)
        for (left_name, left), (right_name, right) in pairs:
            assert left_name == right_name
            assert torch.equal(left, right)


def test_half_precision_files_compute_in_float32(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    whole, streamed = load(folder, "none"), load(folder, "disk")
    assert streamed.storage_dtype is torch.bfloat16
    assert streamed.dtype is torch.float32
    tokens = random_tokens(2, LENGTH)
    assert torch.equal(streamed.final_hidden(tokens), whole.final_hidden(tokens))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_are_the_same_in_memory_and_on_disk(dtype: str, tmp_path: Path) -> None:
    config = {"model_type": "qwen2", **SMALL}
    whole = RandomModel(config, dtype=dtype).load(device=CPU)
    source = RandomModel(config, dtype=dtype, offload="disk")
    streamed = source.load(device=CPU, scratch=tmp_path)
    [folder] = tmp_path.iterdir()
    assert len(list(folder.glob("*.safetensors"))) == 4 + 1  # blocks, and the rest
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(streamed.parameter(name), parameter), name
    assert whole.fingerprint == streamed.fingerprint
    tokens = random_tokens(2, LENGTH)
    assert torch.equal(streamed.final_hidden(tokens), whole.final_hidden(tokens))
    del streamed
    deadline = time.monotonic() + 60
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:  # a prefetch may be on its way
        gc.collect()
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def test_random_weights_depend_on_seed_and_name() -> None:
    config = {"model_type": "llama", **SMALL}
    first, second = (RandomModel(config, seed=seed).load(device=CPU) for seed in (0, 1))
    weights = [d.sublayers[i].output_weight for d in (first, second) for i in (0, 2)]
    for index, weight in enumerate(weights):
        assert float(weight.std()) == pytest.approx(0.02, rel=0.2)
        assert not any(torch.equal(weight, other) for other in weights[:index])
    assert torch.equal(dict(first.sublayers[0].parameters())["norm.weight"], torch.ones(16))


class CountedWeights(FileWeights):
    """Knows how many blocks it has handed out that are still in memory."""

    storages: dict[int, list[StorageWeakRef]]
    most = 0
    reads = 0

    def read(self, names: Iterable[str]) -> State:
        state = super().read(names)
        blocks = {name.split(".")[2] for name in state if name.startswith("model.layers.")}
        if blocks:
            self.reads += 1
            self.storages = getattr(self, "storages", {})
            kept = [StorageWeakRef(t.untyped_storage()) for t in state.values()]
            self.storages[self.reads] = kept
            alive = sum(any(not ref.expired() for ref in refs) for refs in self.storages.values())
            self.most = max(self.most, alive)
        return state


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Decoder, CountedWeights]:
    made: list[CountedWeights] = []

    def make(*args: Any, **kwargs: Any) -> CountedWeights:
        made.append(CountedWeights(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr("tyr.model.loading.FileWeights", make)
    decoder = load(saved("llama", tmp_path, num_hidden_layers=6), "disk")
    return decoder, made[0]


def test_at_most_two_blocks_are_in_memory(counted: tuple[Decoder, CountedWeights]) -> None:
    decoder, weights = counted
    tokens = random_tokens(6, LENGTH)
    list(decoder.final_states(tokens.split(2)))
    assert weights.most == 2
    for block in (4, 0, 3, 5, 5, 2):  # in no order
        assert decoder.sublayers[2 * block].output_weight.isfinite().all()
    assert weights.most == 2
    absent = [p.is_meta for p in decoder.architecture.blocks(decoder.model)[0].parameters()]
    assert all(absent)


def test_a_walk_reads_every_block_once_whatever_the_batches(
    counted: tuple[Decoder, CountedWeights],
) -> None:
    decoder, weights = counted
    tokens = random_tokens(6, LENGTH)
    for _ in range(3):  # the first block of the next walk is the one read ahead
        list(decoder.final_states(tokens.split(1)))
    decoder.sublayers[0].parameters()
    assert weights.reads <= 3 * 6 + 1


def test_a_checkpoint_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    (folder / "model.safetensors").rename(folder / "weights.bin")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor .*offload=disk reads"):
        load(folder, "disk")


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path, shard="9KB")
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match="cannot read the weights"):
        load(folder, "disk")


def test_damaged_or_incomplete_weights_are_refused_before_any_is_read(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    norm = tensors.pop("model.layers.1.input_layernorm.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .*layers\.1\.input_layernorm"):
        load(folder, "disk")
    save_file({**tensors, "model.layers.1.input_layernorm.weight": norm[:3]}, weights)
    with pytest.raises(ModelError, match=r"input_layernorm\.weight has shape \(3,\), expected"):
        load(folder, "disk")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot read the weights"):
        load(folder, "disk")


def test_a_file_that_goes_away_later_is_an_error_of_the_model(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    decoder = load(folder, "disk")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot read model.layers.0"):
        decoder.final_hidden(random_tokens(1, 4))


def test_generation_settings_come_along(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    whole, streamed = (load(folder, offload).model for offload in ("none", "disk"))
    assert streamed.generation_config.temperature == 0.6
    assert streamed.generation_config.to_dict() == whole.generation_config.to_dict()


def test_offloading_to_host_memory_is_none_on_a_cpu_device(tmp_path: Path) -> None:
    assert not load(saved("llama", tmp_path), "cpu").offloaded


@pytest.mark.parametrize("name", ZOO)
def test_blocks_lent_from_host_memory_compute_what_the_model_did(name: str) -> None:
    # What offload=cpu does beside an accelerator, with the CPU in its place.
    tokens = random_tokens(2, LENGTH)
    dense = zoo_decoder(name)
    expected, model = dense.final_hidden(tokens), dense.model
    residency = lend_blocks(model, leave_on_host(model, CPU), CPU)
    streamed = Decoder(
        model,
        dense.tokenizer,
        architecture=dense.architecture,
        storage_dtype=torch.float32,
        placement=Placement(StatePool(CPU), residency),
    )
    assert torch.equal(streamed.final_hidden(tokens), expected)
    tied = model.get_input_embeddings().weight is streamed.head
    assert tied == model.config.tie_word_embeddings


@pytest.mark.parametrize("offload", ["none", "disk"])
def test_a_tied_checkpoint_with_two_matrices_is_refused(offload: str, tmp_path: Path) -> None:
    folder = saved("qwen3_tied", tmp_path)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file({**tensors, "lm_head.weight": head}, weights, metadata={"format": "pt"})
    load(folder, offload)
    save_file({**tensors, "lm_head.weight": head + 1}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="says tie_word_embeddings, but the weights"):
        load(folder, offload)


def test_random_weights_on_disk_outlive_their_source(tmp_path: Path) -> None:
    source = RandomModel({"model_type": "llama", **SMALL}, offload="disk")
    decoders = [source.load(device=CPU, scratch=tmp_path) for _ in range(2)]
    del source
    tokens = random_tokens(1, 4)
    first, second = (decoder.final_hidden(tokens) for decoder in decoders)
    assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("name", ["llama", "qwen3_tied"])
def test_on_an_accelerator_offloading_changes_no_number(
    name: str, offload: str, tmp_path: Path
) -> None:
    folder = saved(name, tmp_path, num_hidden_layers=6)
    device = torch.accelerator.current_accelerator()
    assert device is not None
    whole = PretrainedModel(str(folder)).load(device=device)
    streamed = PretrainedModel(str(folder), offload=offload).load(device=device)
    assert streamed.offloaded
    tokens = random_tokens(6, LENGTH)
    for _ in range(3):
        for left, right in zip(
            streamed.final_states(tokens.split(2)), whole.final_states(tokens.split(2)), strict=True
        ):
            assert torch.equal(left, right)
    assert streamed.fingerprint == whole.fingerprint


def test_speed_is_not_measured_on_a_model_that_is_not_in_memory(tmp_path: Path) -> None:
    decoder = load(saved("llama", tmp_path), "disk")
    evaluator = LatencyEvaluator(pytest.fail, inputs=[4], outputs=[2], batches=[1])
    with pytest.raises(ConfigError, match="use model.offload=none, or export and measure"):
        evaluator.evaluate(decoder, random_tokens(2, 8), reference=decoder)
