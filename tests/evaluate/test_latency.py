from __future__ import annotations

import csv
import io
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.model_zoo import PATTERNS, ZOO, Structures, structures_from, zoo_decoder
from tests.tiny import random_tokens, tiny_decoder
from tyr.errors import ConfigError, ModelError
from tyr.evaluate.engines import Footprint, LlamaCppEngine, Run, TorchEngine, Workload
from tyr.evaluate.latency import (
    COLUMNS,
    Protocol,
    Spread,
    compare,
    csv_text,
    measure,
    workloads,
)
from tyr.evaluate.latency_evaluator import LatencyEvaluator
from tyr.evaluate.peak import PeakTensors
from tyr.evaluate.perplexity import PerplexityEvaluator
from tyr.evaluate.work import Work, count_work
from tyr.export.in_memory import pruned_model
from tyr.model.decoder import Decoder, PrunedDecoder

SHORT = Workload(6, 4, 2)


class Clockwork:
    """An engine that takes the seconds it is told, and writes down when it was asked."""

    def __init__(self, name: str, seconds: list[float], diary: list[str]) -> None:
        self._own, self._seconds, self._diary = name, iter(seconds), diary
        self.name, self.parameters, self.context = "eager", 10, 64
        self.work: Work | None = None

    def prepare(self, workload: Workload) -> None:
        self._diary.append(f"prepare {self._own}")

    def run(self) -> Run:
        self._diary.append(self._own)
        seconds = next(self._seconds)
        return Run(seconds, 2 * seconds)

    def footprint(self) -> Footprint:
        return Footprint(None, 8.0)


def test_models_take_turns_and_swap_places() -> None:
    diary: list[str] = []
    engines = {name: Clockwork(name, [1.0] * 9, diary) for name in ("a", "b")}
    measure(engines, [SHORT], Protocol(repeats=3, warmup=1))
    assert diary == ["prepare a", "prepare b", *"ab", *"ba", *"ab", *"ba"]


def test_figures_are_medians_with_quartiles_after_the_warm_up() -> None:
    seconds = [100.0, 3.0, 1.0, 2.0, 50.0, 4.0]  # the first is the warm-up
    engine = Clockwork("a", seconds, [])
    (row,) = measure({"a": engine}, [SHORT], Protocol(repeats=5, warmup=1))
    assert (row.ttft_seconds_low, row.ttft_seconds, row.ttft_seconds_high) == (2.0, 3.0, 4.0)
    tokens = SHORT.batch * (SHORT.output_tokens - 1)
    assert row.decode_tokens_per_second == tokens / 6.0
    assert row.decode_tokens_per_second_low == tokens / 8.0
    assert (row.repeats, row.kv_bytes_per_token, row.peak_bytes) == (5, 8.0, None)


def test_one_repeat_has_no_spread() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    assert Spread.of(values).median == statistics.median(values)


def structures_of(decoder: Decoder, pattern: str) -> Structures:
    return structures_from(decoder, PATTERNS[pattern])


@pytest.mark.parametrize("pattern", ["uneven", "empty_sublayers"])
@pytest.mark.parametrize("name", ZOO)
def test_a_model_in_memory_computes_what_the_sliced_stream_does(name: str, pattern: str) -> None:
    decoder = zoo_decoder(name)
    read = structures_of(decoder, pattern).__getitem__
    tokens = random_tokens(2, 9) % 61
    before = torch.random.get_rng_state()
    model: Any = pruned_model(decoder, read)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        hidden = PrunedDecoder(decoder, read).final_hidden(tokens)
        logits = model(tokens).logits
        torch.testing.assert_close(logits, hidden @ decoder.head.mT, atol=1e-4, rtol=1e-4)
    shared = model.get_input_embeddings().weight
    assert shared.data_ptr() == decoder.model.get_input_embeddings().weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "mistral_windowed", "qwen3_tied"])
def test_work_is_that_of_the_projections_and_the_attention(name: str) -> None:
    decoder = zoo_decoder(name)
    model: Any = pruned_model(decoder, structures_of(decoder, "uneven").__getitem__)
    work = count_work(model)
    blocks = [module for layer in model.model.layers for module in layer.modules()]
    linear = sum(m.weight.numel() for m in blocks if isinstance(m, torch.nn.Linear))
    assert (work.block_weights, work.head_weights) == (linear, decoder.head.numel())
    attention = [layer.self_attn for layer in model.model.layers]
    assert work.query_width == sum(module.q_proj.out_features for module in attention)
    tokens, batch = 5, 3
    causal = sum(2 * 2 * (position + 1) * work.query_width for position in range(tokens))
    expected = 2 * tokens * linear + 2 * decoder.head.numel() + causal
    assert work.prefill_flops(batch, tokens) == batch * expected
    cached = batch * 7 * work.cache_width
    assert work.decode_bytes(batch, 7) == 4 * (linear + decoder.head.numel() + cached)


@pytest.mark.parametrize("pattern", ["uneven", "empty_sublayers"])
def test_the_footprint_counts_the_cache_of_the_heads_that_are_left(pattern: str) -> None:
    decoder = zoo_decoder("llama")
    model: Any = pruned_model(decoder, structures_of(decoder, pattern).__getitem__)
    heads = {"uneven": 2 + 2, "empty_sublayers": 2}[pattern]
    sides = [TorchEngine(model), TorchEngine(decoder.model)]
    for engine in sides:
        engine.prepare(SHORT)
    own, dense = (engine.footprint() for engine in sides)
    assert own.kv_bytes_per_token == 2 * heads * 4 * 4  # keys and values, head size 4, float32
    assert dense.kv_bytes_per_token == 2 * 8 * 4 * 4
    assert sides[0].work is not None
    assert own.kv_bytes_per_token == 4 * sides[0].work.cache_width
    weights = sum(p.nbytes for p in model.parameters())
    assert own.peak_bytes is not None
    assert dense.peak_bytes is not None
    assert weights < own.peak_bytes < dense.peak_bytes


def test_peak_memory_is_that_of_the_tensors_alive_at_once() -> None:
    old = torch.zeros(1000)
    with PeakTensors() as peak:
        first = torch.zeros(1000)  # 4000 bytes
        second = first + 1  # 8000
        del first
        view = second.view(10, 100)
        third = torch.cat([view, view])  # 4000 + 8000
        third.add_(1)
        old.mul_(2)  # was there before
        del second, view, third
        torch.zeros(1)
    assert peak.peak_bytes == 12000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"), [("llama", {}), ("mistral_windowed", {"sliding_window": 20})]
)
def test_a_compiled_model_is_traced_once_per_shape(
    name: str, changes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backend that generates no code: the real one takes minutes for the same graphs."""
    graphs: list[int] = []
    real = torch.compile

    def counting(model: Any, **options: Any) -> Any:
        def backend(graph: Any, inputs: Any) -> Any:
            graphs.append(1)
            return graph.forward

        return real(model, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", counting)
    decoder = zoo_decoder(name, **changes)
    model: Any = pruned_model(decoder, structures_of(decoder, "empty_sublayers").__getitem__)
    engine = TorchEngine(model, compiled=True)
    engine.prepare(Workload(6, 14, 2))
    engine.run()
    traced = len(graphs)
    assert 2 <= traced <= 4  # a prompt and a step, not one for each position
    engine.run()
    engine.run()
    assert len(graphs) == traced


def test_a_window_that_slides_is_not_compiled() -> None:
    engine = TorchEngine(zoo_decoder("mistral_windowed").model, compiled=True)
    with pytest.raises(ConfigError, match=r"cannot decode 20 positions with a sliding window of 5"):
        engine.prepare(Workload(6, 14, 1))


def test_greedy_tokens_are_those_of_generate() -> None:
    decoder = zoo_decoder("llama")
    model: Any = pruned_model(decoder, structures_of(decoder, "uneven").__getitem__)
    engine = TorchEngine(model)
    engine.prepare(SHORT)
    fed: list[torch.Tensor] = []

    def recording(tokens: torch.Tensor, **options: Any) -> Any:
        fed.append(tokens)
        return model(tokens, **options)

    from transformers import DynamicCache

    engine._generate(recording, DynamicCache(config=model.config))
    with torch.no_grad():
        told = model.generate(
            fed[0], attention_mask=torch.ones_like(fed[0]), max_new_tokens=3, do_sample=False
        )
    assert [tuple(tokens.shape) for tokens in fed] == [(2, 6), (2, 1), (2, 1), (2, 1)]
    assert torch.equal(torch.cat(fed[1:], dim=1), told[:, 6:])


def test_every_combination_of_lengths_is_a_workload() -> None:
    assert workloads([1, 2], [3], [4, 5]) == [
        Workload(1, 3, 4),
        Workload(1, 3, 5),
        Workload(2, 3, 4),
        Workload(2, 3, 5),
    ]


def test_ratios_say_how_many_times_better_the_second_is() -> None:
    work = {"dense": Work(100, 0, 0, 0, 4), "pruned": Work(40, 0, 0, 0, 4)}
    engines = {"dense": Clockwork("d", [4.0], []), "pruned": Clockwork("p", [2.0], [])}
    for name, engine in engines.items():
        engine.work = work[name]
    (pair,) = compare(measure(engines, [SHORT], Protocol(1, 0)), "dense", "pruned")
    assert (pair.ttft_ratio, pair.decode_ratio) == (2.0, 2.0)
    assert (pair.flop_ratio, pair.byte_ratio) == (2.5, 2.5)


def test_rows_read_back_from_csv() -> None:
    rows = measure({"a": Clockwork("a", [1.0, 2.0], [])}, [SHORT], Protocol(1, 1))
    (row,) = csv.DictReader(io.StringIO(csv_text([asdict(row) for row in rows])))
    assert tuple(row) == COLUMNS
    assert (row["model"], float(row["ttft_seconds"]), row["peak_bytes"]) == ("a", 2.0, "")


def evaluator(**settings: Any) -> LatencyEvaluator:
    defaults = {"inputs": [6], "outputs": [3], "batches": [1], "repeats": 1, "warmup": 0}
    return LatencyEvaluator(pruned_model, **{**defaults, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engines": ["egaer"]}, r"unknown engine 'egaer' \(did you mean eager\?\)"),
        ({"engines": []}, "no engine is given"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"warmup": -1}, "warmup at least 0"),
        ({"outputs": [1]}, "output >= 2"),
        ({"inputs": [0]}, "input >= 1"),
        ({"batches": [0]}, "batch >= 1"),
        ({"inputs": []}, "each need at least one number"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluator(**settings)


def test_lengths_beyond_the_context_are_refused() -> None:
    decoder = tiny_decoder()
    with pytest.raises(ConfigError, match="60 input and 5 output tokens exceed the context"):
        evaluator(inputs=[8, 60], outputs=[5]).evaluate(
            decoder, random_tokens(2, 8), reference=decoder
        )


def test_a_copy_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tyr.evaluate.latency_evaluator.available_bytes", lambda: 1000)
    decoder = zoo_decoder("llama")
    model = PrunedDecoder(decoder, structures_of(decoder, "uneven").__getitem__)
    with pytest.raises(ModelError, match="about 0.0 GB of memory are needed"):
        evaluator().evaluate(model, random_tokens(2, 8) % 61, reference=decoder)


def test_perplexity_and_kl_are_those_without_the_latency() -> None:
    decoder, windows = zoo_decoder("qwen2"), random_tokens(3, 8) % 61
    model = PrunedDecoder(decoder, structures_of(decoder, "uneven").__getitem__)
    plain = PerplexityEvaluator()
    for measured in (decoder, model):
        quality = evaluator().evaluate(measured, windows, reference=decoder)
        expected = plain.evaluate(measured, windows, reference=decoder)
        assert (quality.perplexity, quality.kl) == (expected.perplexity, expected.kl)
        names = ["dense"] if measured is decoder else ["dense", "pruned"]
        assert [row["model"] for row in quality.latency] == names


class FakeLlama:
    """As much of llama-cpp-python as the engine calls."""

    def __init__(self, path: str, **options: Any) -> None:
        self.options, self.fed = options, []
        FakeLlama.last = self  # type: ignore[attr-defined]

    def reset(self) -> None:
        self.fed.clear()

    def eval(self, tokens: list[int]) -> None:
        self.fed.append(len(tokens))


def write_gguf(path: Path) -> None:
    """A file with a context length and two tensors, which no engine could run."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "deci")
    writer.add_context_length(64)
    for name in ("a.weight", "b.weight"):
        writer.add_tensor(name, np.zeros((4, 5), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def llama_cpp(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("llama_cpp")
    module.Llama = FakeLlama  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", module)
    pytest.importorskip("gguf", reason="extra: gguf")
    return module


def test_llama_cpp_is_fed_the_prompt_and_then_token_by_token(
    llama_cpp: ModuleType, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf")
    engine = LlamaCppEngine(tmp_path / "m.gguf", threads=1)
    (row,) = measure({"dense": engine}, [Workload(6, 4, 1)], Protocol(1, 0))
    loaded = FakeLlama.last  # type: ignore[attr-defined]
    assert loaded.fed == [6, 1, 1, 1]
    assert loaded.options["n_ctx"] == 10
    assert (row.engine, row.parameters, row.kv_bytes_per_token) == ("llama.cpp", 40, None)
    with pytest.raises(ConfigError, match="batch 1 only, got 2"):
        measure({"dense": engine}, [SHORT], Protocol(1, 0))
    with pytest.raises(ConfigError, match="exceed the context of dense, 64"):
        measure({"dense": engine}, [Workload(64, 4, 1)], Protocol(1, 0))


def test_llama_cpp_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[gguf-test\]'"):
        LlamaCppEngine(tmp_path / "m.gguf")


def test_a_gguf_that_is_not_there_is_refused(llama_cpp: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        LlamaCppEngine(tmp_path / "m.gguf")
