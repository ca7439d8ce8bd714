"""The command `python -m tyr.latency DENSE PRUNED [--input N ...] [--output N ...] [--batch ...]`.

Measures two models side by side: directories in transformers (eager, and compiled with
`--engine eager compile`), or two .gguf files in llama.cpp. Writes latency.csv and a figure to
`--out`, and prints the table. Nothing is pruned here, and quality is not looked at.

Exit status: 0 on success, 2 with one paragraph on bad input, 1 with a traceback on a fault of tyr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyr.errors import ConfigError, ModelError, TyrError, first_line
from tyr.memory import check_fits

if TYPE_CHECKING:
    import torch

    from tyr.evaluate.engines import Engine, Workload
    from tyr.evaluate.latency import Latency

NAMES = ("dense", "pruned")


def main(words: Sequence[str] | None = None) -> int:
    """Measure as the words say (default: the command line); returns the exit status."""
    given = _parser().parse_args(words)

    from tyr.launch import plain_libraries

    plain_libraries()
    try:
        rows = run(given)
        sys.stdout.write("\n".join(summary(rows)) + "\n")  # before what may fail
        sys.stdout.flush()
        if given.out is not None:
            write(rows, given.out)
    except TyrError as error:
        sys.stderr.write(f"tyr: {' '.join(str(error).split())}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tyr.latency", description="Measure a dense and a pruned model side by side."
    )
    parser.add_argument("dense", type=Path, help="directory or .gguf file")
    parser.add_argument("pruned", type=Path, help="the same of the pruned model")
    parser.add_argument("--input", type=int, nargs="+", default=[128], help="prompt lengths")
    parser.add_argument("--output", type=int, nargs="+", default=[32], help="generated tokens")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="sequences at once")
    parser.add_argument("--repeats", type=int, default=5, help="timed generations")
    parser.add_argument("--warmup", type=int, default=1, help="untimed ones before them")
    parser.add_argument("--engine", nargs="+", help="eager (default), compile")
    parser.add_argument("--dtype", help="auto (default), float32, bfloat16, float16")
    parser.add_argument("--threads", type=int, help="of the processor; default: the engine's")
    parser.add_argument("--accelerator", help="auto (default), cpu, cuda, mps")
    parser.add_argument("--out", type=Path, help="folder for latency.csv and latency.png")
    return parser


def run(given: argparse.Namespace) -> list[Latency]:
    """Load and measure.

    Raises:
        TyrError: a word is wrong, or a model cannot be loaded here.
    """
    from tyr.evaluate.latency import Protocol, measure, workloads

    wanted = workloads(given.input, given.output, given.batch)
    protocol = Protocol(given.repeats, given.warmup)
    paths = dict(zip(NAMES, (given.dense, given.pruned), strict=True))
    rows = []
    for engines in _engines(paths, wanted, given):
        rows += measure(engines, wanted, protocol)
    return rows


def _engines(
    paths: Mapping[str, Path], wanted: Sequence[Workload], given: argparse.Namespace
) -> list[dict[str, Engine]]:
    from tyr.evaluate.engines import LlamaCppEngine, TorchEngine
    from tyr.evaluate.latency_evaluator import torch_engines
    from tyr.model.source import parse_dtype
    from tyr.trainer import choose_device

    files = [path for path in paths.values() if path.suffix == ".gguf"]
    if len(files) == 1:
        raise ConfigError(
            f"{files[0]} is measured in llama.cpp and the other model in torch, which compares "
            f"nothing: give two directories, or two .gguf files (python -m tyr.export_gguf)"
        )
    if files:
        if any(workload.batch != 1 for workload in wanted):
            raise ConfigError("llama.cpp is measured with one sequence only: leave --batch out")
        for name in ("engine", "dtype", "accelerator"):
            if getattr(given, name) is not None:
                raise ConfigError(f"llama.cpp takes no --{name}: leave it out")
        return [{n: LlamaCppEngine(p, threads=given.threads) for n, p in paths.items()}]
    import torch

    if given.threads is not None:
        torch.set_num_threads(given.threads)
    names = torch_engines(given.engine or ["eager"])
    asked = given.dtype or "auto"
    dtype = parse_dtype(asked, key="--dtype", auto=torch.float32)
    device = choose_device(given.accelerator or "auto", key="--accelerator")
    check_directories(paths, wanted, dtype=dtype, device=device, stored=asked == "auto")
    chosen = "auto" if asked == "auto" else dtype
    models = {name: load(path, device=device, dtype=chosen) for name, path in paths.items()}
    return [
        {key: TorchEngine(model, compiled=name == "compile") for key, model in models.items()}
        for name in names
    ]


def check_directories(
    paths: Mapping[str, Path],
    wanted: Sequence[Workload],
    *,
    dtype: torch.dtype,
    device: torch.device,
    stored: bool,
) -> None:
    """Refuse, before any weight is read, models that do not fit or are too short.

    Args:
        paths: model name to directory.
        wanted: what is to be generated.
        dtype: that weights will have.
        device: where they will be.
        stored: whether weights keep the precision of their files instead.

    Raises:
        ConfigError: a workload exceeds a context.
        ModelError: not a model directory, or the two together need more memory than there is.
    """
    from transformers import AutoConfig

    from tyr.devices import free_bytes
    from tyr.evaluate.latency import check_lengths
    from tyr.export import register
    from tyr.export.shards import stored_shapes
    from tyr.model.directory import check_model_directory

    register()
    needed = 0
    for name, path in paths.items():
        check_model_directory(path)
        config = AutoConfig.from_pretrained(path)
        check_lengths(config.max_position_embeddings, wanted, name=f"the {name} model")
        for _, shape, size in stored_shapes(path):
            count = 1
            for length in shape:
                count *= length
            needed += size if stored else count * dtype.itemsize
    check_fits(
        needed,
        free_bytes(device),
        what="for the weights of both models; choose --dtype bfloat16 or a larger machine",
    )


def load(path: Path, *, device: torch.device, dtype: torch.dtype | str) -> Any:
    """A model from a directory, dense or exported, with the code of the installed tyr.

    Raises:
        ModelError: it cannot be read.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from tyr.export import register

    register()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation="sdpa"
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot read {path}: {first_line(error)}") from error
    return model.to(device).eval().requires_grad_(False)


def write(rows: Sequence[Latency], folder: Path) -> None:
    """Write latency.csv and the figure.

    Raises:
        ConfigError: the folder cannot be written.
    """
    from tyr.callbacks.figure_style import save
    from tyr.callbacks.latency import FIGURE_NAME, LATENCY_FILE, draw_latency
    from tyr.evaluate.latency import csv_text
    from tyr.files import write_text

    plain = [asdict(row) for row in rows]
    try:
        write_text(folder / LATENCY_FILE, csv_text(plain))
        sides = [[row for row in plain if row["model"] == name] for name in NAMES]
        save(draw_latency(*sides), folder / FIGURE_NAME)
    except OSError as error:
        raise ConfigError(f"cannot write to --out {folder}: {error}") from error


def summary(rows: Sequence[Latency]) -> list[str]:
    """One Markdown line per workload: both models, their ratio, and the ratio that is the limit."""
    from tyr.evaluate.latency import compare

    lines = [
        "| engine | input | output | batch | TTFT (s) | ratio | limit (FLOP) "
        "| decode (tokens/s) | ratio | limit (bytes) | KV bytes/token | peak (MB) |",
        "|" + "---|" * 12,
    ]
    for pair in compare(rows, *NAMES):
        dense, pruned = pair.dense, pair.pruned
        cells = [
            dense.engine,
            str(dense.input_tokens),
            str(dense.output_tokens),
            str(dense.batch),
            f"{dense.ttft_seconds:.4g} -> {pruned.ttft_seconds:.4g}",
            f"{pair.ttft_ratio:.2f}x",
            _ratio(pair.flop_ratio),
            f"{dense.decode_tokens_per_second:.4g} -> {pruned.decode_tokens_per_second:.4g}",
            f"{pair.decode_ratio:.2f}x",
            _ratio(pair.byte_ratio),
            f"{_number(dense.kv_bytes_per_token)} -> {_number(pruned.kv_bytes_per_token)}",
            f"{_megabytes(dense.peak_bytes)} -> {_megabytes(pruned.peak_bytes)}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.1f}"


if __name__ == "__main__":
    sys.exit(main())
