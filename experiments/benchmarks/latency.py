"""Speed of a physically sliced model beside its dense one, on this machine's CPU.

A random Llama of more than 100 M parameters loses half of its heads and neurons, as many in every
block (no search: which units go changes no shape), is exported, loaded again and measured in turns
with the dense model. The ratio of the prefill's FLOP bounds what the time to first token can gain,
the ratio of the bytes read per decoding step what decoding can gain.

    python experiments/benchmarks/latency.py
    python experiments/benchmarks/latency.py --toy      # seconds, to see that it runs
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from report import Goal, describe_run, table, verdicts, write_results

from tyr.callbacks.figure_style import save
from tyr.callbacks.latency import draw_latency
from tyr.evaluate.engines import TorchEngine
from tyr.evaluate.latency import (
    Comparison,
    Latency,
    Protocol,
    compare,
    csv_text,
    measure,
    workloads,
)
from tyr.evaluate.latency_evaluator import torch_engines
from tyr.export.checkpoint import export_checkpoint
from tyr.latency import NAMES, load
from tyr.launch import plain_libraries
from tyr.model.decoder import Decoder
from tyr.model.loading import RandomModel
from tyr.model.sublayer import Structure
from tyr.sparsity import SublayerId, uniform_allocation

RESULTS = Path(__file__).parent / "results"
SPARSITY = 0.5
FULL: dict[str, Any] = {  # 111 M parameters, 94 M of them in the blocks
    "model_type": "llama",
    "vocab_size": 16384,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
TOY: dict[str, Any] = {
    **FULL,
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def sliced(decoder: Decoder) -> dict[SublayerId, Structure]:
    """The first half of every sublayer: whole KV groups, so that half of the KV heads go too."""
    allocation = uniform_allocation(SPARSITY, decoder.units)
    structures = {}
    for sublayer in decoder.sublayers:
        kept = torch.arange(sublayer.num_units - allocation[sublayer.id])
        weight = sublayer.output_weight[:, sublayer.rows(kept)]
        structures[sublayer.id] = Structure(kept, weight.contiguous())
    return structures


def build(config: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Write the dense and the sliced model."""
    source = RandomModel(config, name="random")
    decoder = source.load(device=torch.device("cpu"))
    paths = dict(zip(NAMES, (folder / name for name in NAMES), strict=True))
    decoder.model.save_pretrained(paths["dense"])
    structures = sliced(decoder)
    export_checkpoint(decoder, structures.__getitem__, paths["pruned"], provenance={})
    return paths


def run(given: argparse.Namespace, folder: Path) -> list[Latency]:
    """Measure every engine; models are loaded once."""
    paths = build(TOY if given.toy else FULL, folder)
    models = {
        name: load(path, device=torch.device("cpu"), dtype=getattr(torch, given.dtype))
        for name, path in paths.items()
    }
    wanted = workloads(given.input, given.output, given.batch)
    rows: list[Latency] = []
    for engine in torch_engines(given.engine):
        started = time.perf_counter()
        engines = {n: TorchEngine(m, compiled=engine == "compile") for n, m in models.items()}
        rows += measure(engines, wanted, Protocol(given.repeats, given.warmup))
        print(f"{engine}: {time.perf_counter() - started:.0f} s", flush=True)
    return rows


def figures_of(pairs: Sequence[Comparison]) -> dict[str, Any]:
    """What the goals look at: the smallest gain of any workload, and of how much of the limit."""
    return {
        "ttft": min(pair.ttft_ratio for pair in pairs),
        "decode": min(pair.decode_ratio for pair in pairs),
        "ttft of limit": min(pair.ttft_ratio / (pair.flop_ratio or 1) for pair in pairs),
        "decode of limit": min(pair.decode_ratio / (pair.byte_ratio or 1) for pair in pairs),
    }


GOALS = (
    Goal("time to first token, dense over pruned, worst workload", ("ttft",), at_least=1.0),
    Goal("decode throughput, pruned over dense, worst workload", ("decode",), at_least=1.0),
)


def report(pairs: Sequence[Comparison]) -> list[str]:
    """The lines of the Markdown."""
    header = ["engine", "input+output, batch", "TTFT dense (s)", "pruned (s)", "faster", "FLOP"]
    header += ["decode dense (tok/s)", "pruned (tok/s)", "faster", "bytes"]
    header += ["KV bytes/token", "peak (MB)"]
    lines = []
    for pair in pairs:
        dense, pruned = pair.dense, pair.pruned
        shape = f"{dense.input_tokens}+{dense.output_tokens}, {dense.batch}"
        lines.append(
            [
                *(dense.engine, shape),
                *(_spread(row, "ttft_seconds") for row in (dense, pruned)),
                *(f"{pair.ttft_ratio:.2f}x", f"{pair.flop_ratio:.2f}x"),
                *(_spread(row, "decode_tokens_per_second") for row in (dense, pruned)),
                *(f"{pair.decode_ratio:.2f}x", f"{pair.byte_ratio:.2f}x"),
                f"{dense.kv_bytes_per_token:.0f} -> {pruned.kv_bytes_per_token:.0f}",
                f"{(dense.peak_bytes or 0) / 1e6:.0f} -> {(pruned.peak_bytes or 0) / 1e6:.0f}",
            ]
        )
    first = pairs[0]
    return [
        f"Parameters {first.dense.parameters:,} -> {first.pruned.parameters:,}. Medians of "
        f"{first.dense.repeats} repeats in turns, quartiles in brackets. FLOP and bytes are the "
        "ratios of what has to be computed in the prefill and read in one decoding step: the most "
        "that the column before them could show.",
        "",
        *table(header, lines),
        "",
        *verdicts(figures_of(pairs), GOALS),
        "",
        "Where the difference to the limits goes is measured in latency_parts.md: products come "
        "close to their limit; norms, residuals and rotary embedding work on the full width and "
        "the Python of one call per module on no width at all, so both stay nearly as they were. "
        "In decoding at batch 1 they are a third of the dense time.",
    ]


def _spread(row: Latency, key: str) -> str:
    values = asdict(row)
    return f"{values[key]:.4g} [{values[f'{key}_low']:.4g}, {values[f'{key}_high']:.4g}]"


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--input", type=int, nargs="+", default=[128, 512])
    options.add_argument("--output", type=int, nargs="+", default=[32])
    options.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--warmup", type=int, default=1)
    options.add_argument("--engine", nargs="+", default=["eager"])
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--toy", action="store_true", help="a tiny model: seconds")
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write results/latency.{json,md,csv,png,svg}."""
    given = parser().parse_args(words)
    plain_libraries()
    torch.set_num_threads(given.threads)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(given, Path(folder))
    pairs = compare(rows, *NAMES)
    plain = [asdict(row) for row in rows]
    content = {
        **describe_run(given.threads, seed=0),
        "seconds": time.perf_counter() - started,
        "setting": {"sparsity": SPARSITY, "dtype": given.dtype, "warmup": given.warmup},
        "figures": figures_of(pairs),
        "rows": plain,
    }
    sections = report(pairs)
    write_results(
        given.results / "latency", content, title="Latency, dense and sliced", sections=sections
    )
    (given.results / "latency.csv").write_text(csv_text(plain), encoding="utf-8")
    sides = [[row for row in plain if row["model"] == name] for name in NAMES]
    save(draw_latency(*sides), given.results / "latency")
    print("\n".join(sections))


if __name__ == "__main__":
    main()
