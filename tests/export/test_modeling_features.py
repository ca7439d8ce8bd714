"""What people do with a loaded export: compile it, export it, train it, adapt it, serve batches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import tyr.export
from tests.model_zoo import (
    LENGTH,
    PATTERNS,
    ZOO,
    keep_everything,
    random_tokens,
    structures_from,
    zoo_decoder,
)
from tests.tolerance import FLOAT32, relative_error
from tyr.export.checkpoint import export_checkpoint
from tyr.export.modeling_tyr import layer_overrides

Load = Callable[..., Any]
SHAPES = ("uneven", "empty_sublayers")  # what no stock model can have
# Tracing takes seconds, so it is tried on one shape of each architecture.
ONE_OF_EACH = [
    ("llama_biased", "empty_sublayers"),
    ("mistral_windowed", "uneven"),
    ("qwen2", "uneven"),
    ("qwen3_tied", "empty_sublayers"),
]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NAMES = [(name, pattern) for name in ZOO for pattern in SHAPES]


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    tyr.export.register()


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads an export of a zoo model, which is written once."""
    base = tmp_path_factory.mktemp("exports")

    def loaded(name: str, pattern: str, **options: Any) -> Any:
        directory = base / f"{name}-{pattern}"
        if not directory.exists():
            decoder = zoo_decoder(name)
            structures = structures_from(decoder, PATTERNS[pattern])
            export_checkpoint(decoder, structures.__getitem__, directory, provenance={})
        return AutoModelForCausalLM.from_pretrained(directory, **options).eval()

    return loaded


@pytest.mark.parametrize(("name", "pattern"), NAMES)
def test_the_attention_implementations_give_equal_logits(
    name: str, pattern: str, load: Load
) -> None:
    tokens = random_tokens(2, LENGTH)
    with torch.no_grad():
        eager, sdpa = (
            load(name, pattern, attn_implementation=kind)(tokens).logits
            for kind in ("eager", "sdpa")
        )
    assert relative_error(eager, sdpa) < FLOAT32


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "pattern"), NAMES)
def test_a_left_padded_batch_gives_the_logits_of_its_sequences(
    name: str, pattern: str, attention: str, load: Load
) -> None:
    model = load(name, pattern, attn_implementation=attention)
    short, long = random_tokens(1, 4), random_tokens(1, 9, seed=1)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.int64), short], dim=1)
    batch = torch.cat([padded, long])
    mask = (batch != 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(batch, attention_mask=mask, position_ids=positions).logits
        assert relative_error(logits[:1, 5:], model(short).logits) < FLOAT32
        assert relative_error(logits[1:], model(long).logits) < FLOAT32


@pytest.mark.parametrize(("name", "pattern"), NAMES)
def test_step_by_step_decoding_gives_the_logits_of_one_forward(
    name: str, pattern: str, load: Load
) -> None:
    from transformers import StaticCache

    model, tokens = load(name, pattern), random_tokens(2, LENGTH)
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        for cache in (None, StaticCache(config=model.config, max_cache_len=LENGTH + 3)):
            steps = []
            for step in range(LENGTH):
                output = model(tokens[:, step : step + 1], past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                steps.append(output.logits)
            assert relative_error(torch.cat(steps, dim=1), expected) < FLOAT32


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("name", "pattern"), NAMES)
def test_no_layer_of_the_cache_is_larger_than_the_dense_models(
    name: str, pattern: str, static: bool, load: Load
) -> None:
    model, dense = load(name, pattern), zoo_decoder(name).model
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    if static:
        options["cache_implementation"] = "static"
    tokens = random_tokens(2, LENGTH)
    caches = [m.generate(tokens, **options).past_key_values for m in (model, dense)]
    blocks = layer_overrides(model.config)
    for index, (layer, stock) in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        heads = blocks[index].get("num_key_value_heads", model.config.num_key_value_heads)
        if heads == 0:
            assert not layer.is_initialized
            continue
        for own, whole in ((layer.keys, stock.keys), (layer.values, stock.values)):
            assert own.shape == (2, heads, *whole.shape[2:])
            assert own.numel() <= whole.numel()
            # Not a view of something larger, such as keys repeated per query head.
            assert own.untyped_storage().nbytes() <= whole.untyped_storage().nbytes()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pattern"), ONE_OF_EACH)
def test_torch_export_traces_a_forward_of_any_size(name: str, pattern: str, load: Load) -> None:
    model, tokens = load(name, pattern).requires_grad_(False), random_tokens(2, LENGTH)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        model,
        (),
        {"input_ids": tokens, "use_cache": False},
        dynamic_shapes={"input_ids": sizes, "use_cache": None},
    )
    others = random_tokens(3, LENGTH + 6, seed=1)
    traced = program.module()(input_ids=others, use_cache=False).logits
    assert relative_error(traced, model(others).logits) < FLOAT32


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pattern"), NAMES)
def test_torch_export_traces_a_forward_strictly(name: str, pattern: str, load: Load) -> None:
    model, tokens = load(name, pattern).requires_grad_(False), random_tokens(2, LENGTH)
    program = torch.export.export(model, (tokens,), {"use_cache": False}, strict=True)
    traced = program.module()(tokens, use_cache=False).logits
    assert relative_error(traced, model(tokens).logits) < FLOAT32


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("name", "pattern"), NAMES)
def test_gradient_checkpointing_changes_no_gradient(
    name: str, pattern: str, reentrant: bool, load: Load
) -> None:
    tokens, plain, saving = random_tokens(2, LENGTH), *(load(name, pattern) for _ in range(2))
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for model in (plain, saving):
        model.train()(tokens, labels=tokens).loss.backward()
    assert saving.is_gradient_checkpointing
    for (parameter, own), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad), parameter


# PEFT draws the first LoRA matrix of a projection without inputs, which has no elements.
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("pattern", ["even", *SHAPES])
@pytest.mark.parametrize("name", ZOO)
def test_lora_attaches_to_every_projection_and_learns(name: str, pattern: str, load: Load) -> None:
    peft = pytest.importorskip("peft", reason="pip install peft")
    tokens = random_tokens(2, LENGTH)
    model = load(name, pattern)
    there = [key for key, _ in model.named_modules() if key.rpartition(".")[2] in PROJECTIONS]
    base = {key: value.clone() for key, value in model.state_dict().items()}
    before = model(tokens).logits.detach()
    config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=PROJECTIONS)
    adapted = peft.get_peft_model(model, config)
    adapters = [key for key, _ in adapted.named_modules() if key.endswith("lora_A.default")]
    assert len(adapters) == len(there) >= 7
    assert torch.equal(adapted(tokens).logits, before)  # LoRA starts as no change
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    losses = []
    for _ in range(2):
        loss = adapted(tokens, labels=tokens).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    expected = adapted(tokens).logits.detach()
    merged = adapted.merge_and_unload()
    assert relative_error(merged(tokens).logits, expected) < 10 * FLOAT32  # another order of sums
    assert merged.state_dict().keys() == base.keys()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pattern"), [("llama_biased", "empty_sublayers")])
def test_a_compiled_model_computes_the_same_without_graph_breaks(
    name: str, pattern: str, load: Load
) -> None:
    model, tokens = load(name, pattern).requires_grad_(False), random_tokens(2, LENGTH)
    expected = model(tokens).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert relative_error(compiled(tokens, use_cache=False).logits, expected) < FLOAT32


def test_the_removed_output_projection_keeps_only_its_bias_in_the_file(
    load: Load, tmp_path: Path
) -> None:
    model = load("llama_biased", "empty_sublayers")
    removed = model.model.layers[1].self_attn.o_proj
    assert [key for key, _ in removed.named_parameters()] == ["bias"]
    assert list(removed.state_dict()) == ["bias"]
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(again.model.layers[1].self_attn.o_proj.bias, removed.bias)


def test_a_pushed_model_is_tagged(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """`push_to_hub` without a hub: what would be uploaded."""
    from huggingface_hub import ModelCard
    from transformers.utils import hub

    class Offline:
        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

    uploaded: dict[str, str] = {}

    def upload(self: Any, folder: str, *_: Any, **__: Any) -> str:
        for file in Path(folder).iterdir():
            text = file.suffix in (".md", ".json", ".py")
            uploaded[file.name] = file.read_text() if text else ""
        return "url"

    def absent(*_: Any, **__: Any) -> Any:
        raise hub.EntryNotFoundError("no card")

    model = load("llama", "uneven")
    monkeypatch.setattr(hub, "hf_api", Offline)
    monkeypatch.setattr(ModelCard, "load", absent)
    monkeypatch.setattr(type(model), "_upload_modified_files", upload)
    model.push_to_hub("someone/pruned")
    assert {"modeling_tyr.py", "config.json", "model.safetensors", "README.md"} <= uploaded.keys()
    data = ModelCard(uploaded["README.md"]).data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["tags"] == ["pruned", "tyr"]
    assert "tyr_llama" in uploaded["config.json"]
    model.add_model_tags("mine")  # as trainers do
    assert load("llama", "uneven").model_tags == ["pruned", "tyr"]


@pytest.mark.slow  # a cold start; `registered` above shows the rest in every test
def test_registering_is_all_that_loading_without_remote_code_needs(tmp_path: Path) -> None:
    decoder = zoo_decoder("qwen3_tied")
    structures = structures_from(decoder, keep_everything)
    export_checkpoint(decoder, structures.__getitem__, tmp_path / "m", provenance={})
    program = (
        "import sys, tyr.export\n"
        "from transformers import AutoModelForCausalLM\n"
        "load = AutoModelForCausalLM.from_pretrained\n"
        "try:\n"
        "    load(sys.argv[1], trust_remote_code=False)\n"
        "except ValueError:\n"
        "    print('refused')\n"
        "tyr.export.register()\n"
        "tyr.export.register()\n"
        "print(type(load(sys.argv[1], trust_remote_code=False)).__module__)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["refused", "tyr.export.modeling_tyr"]


def test_batches_of_unequal_prompts_generate_what_single_prompts_do(load: Load) -> None:
    for name, pattern in NAMES:
        model = load(name, pattern)
        prompts = [random_tokens(1, length, seed=length) for length in (2, 5, 7)]
        alone = [continuation(model, prompt, torch.ones_like(prompt)) for prompt in prompts]
        batch = torch.zeros(3, 7, dtype=torch.int64)
        for row, prompt in zip(batch, prompts, strict=True):
            row[-prompt.shape[1] :] = prompt[0]
        assert continuation(model, batch, (batch != 0).long()) == [text for (text,) in alone]


def continuation(model: Any, tokens: Tensor, mask: Tensor) -> list[list[int]]:
    with torch.no_grad():
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        told = model.generate(tokens, attention_mask=mask, **options)
    return told[:, tokens.shape[1] :].tolist()
