"""One accelerator, a model of Llama-3.1-8B's shapes: planned against measured.

    python experiments/benchmarks/gpu.py                                       (20 GB of disk)
    python experiments/benchmarks/gpu.py --blocks 4 --calibration-tokens 262144     (minutes)
    python experiments/benchmarks/gpu.py --toy                    (any machine, seconds)

Measures the device's ceilings, one supernet iteration and one generation of 128, 16 and 4
candidates and the parent, and compares them with `tyr.plan`'s counts. Fewer blocks or calibration
tokens than the whole are scaled up as `extrapolate` says, and the report says so. Writes
results/gpu.json and .md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from gpu_setting import GpuSetting, stage
from gpu_stages import Workload
from report import Goal, describe_run, table, verdicts, write_results

from tyr.ceilings import Ceilings, measure_ceilings
from tyr.launch import describe_environment, plain_libraries
from tyr.memory import peak_rss_bytes
from tyr.plan_table import amount
from tyr.trainer import choose_device

HERE = Path(__file__).resolve().parent
LLAMA = GpuSetting()
TOY = GpuSetting(
    blocks=3,
    hidden=64,
    ffn=128,
    heads=8,
    kv_heads=2,
    vocabulary=512,
    dtype="float32",
    sequence_length=64,
    calibration_tokens=2048,
    offspring=8,
    stages=((64, 4), (256, 2), (1024, 1)),
    batch_tokens=512,
)
LEAST_TOKENS = 262144  # the rates of fewer say little about the whole

GOALS = (
    Goal("one generation, s", ("generation", "seconds"), at_most=25.0),
    Goal("one supernet iteration, s", ("supernet", "seconds"), at_most=480.0),
)


def extrapolate(built: dict[str, Any], part: GpuSetting, whole: GpuSetting) -> float:
    """Seconds of the whole supernet iteration.

    Passing the stream and summing Hessians go with tokens and blocks, solving with blocks alone.
    """
    blocks = whole.blocks / part.blocks
    tokens = whole.calibration_tokens / part.calibration_tokens
    stream = built["seconds"] - built["solve_seconds"] - built["disk_wait_seconds"]
    return blocks * (tokens * stream + built["solve_seconds"] + built["disk_wait_seconds"])


def extrapolate_generation(
    calls: list[dict[str, Any]], part: GpuSetting, whole: GpuSetting
) -> float:
    """Seconds of a generation of the whole model.

    A trie of more sublayers shares less, so time goes with the distinct nodes that the plan of the
    whole foresees, not with blocks; the vocabulary projection stays as it is.
    """
    if part.blocks == whole.blocks:
        return float(sum(call["seconds"] for call in calls))
    total = 0.0
    for call, share in zip(calls, whole.planner().plan().shares, strict=True):
        nodes = share * call["candidates"] * 2 * whole.blocks
        total += (call["seconds"] - call["head_seconds"]) * nodes / call["nodes"]
        total += call["head_seconds"]
    return total


def measure(part: GpuSetting, whole: GpuSetting, device: torch.device, folder: Path) -> Any:
    """Ceilings, both stages, and what they mean for the whole."""
    ceilings = measure_ceilings(device, getattr(torch, part.dtype))
    say(f"products {amount(ceilings.compute, 'FLOP/s')}, solves {amount(ceilings.solve, 'FLOP/s')}")
    started = time.perf_counter()
    workload = Workload(part, device, folder)
    say(f"weights drawn in {time.perf_counter() - started:.1f} s")
    built = workload.build()
    say(f"supernet: {built['seconds']:.1f} s, {built['solve_seconds']:.1f} s of it solving")
    searched = workload.search(generations=2)
    for calls in searched["generations"]:
        seconds = [f"{call['seconds']:.2f} s" for call in calls]
        say(f"generation: {', '.join(seconds)}")
    return {
        "ceilings": asdict(ceilings),
        "supernet": supernet_figures(built, part, whole, ceilings),
        "generation": generation_figures(searched, part, whole, ceilings),
        "host_peak_bytes": peak_rss_bytes(),
    }


def supernet_figures(
    built: dict[str, Any], part: GpuSetting, whole: GpuSetting, ceilings: Ceilings
) -> dict[str, Any]:
    """Measured, planned, and scaled to the whole."""
    plan, full = stage(part.planner(), "supernet"), stage(whole.planner(), "supernet")
    stream = built["seconds"] - built["solve_seconds"] - built["disk_wait_seconds"]
    return {
        "seconds": extrapolate(built, part, whole),
        "planned_seconds": full.seconds(ceilings),
        "measured": built,
        "measured_planned_seconds": plan.seconds(ceilings),
        "share_of_gemm_rate": plan.compute / stream / ceilings.compute,
        "share_of_solve_rate": plan.solve / built["solve_seconds"] / ceilings.solve,
        "share_of_time_waiting_for_disk": built["disk_wait_seconds"] / built["seconds"],
        "planned_device_bytes": full.memory + whole.planner().plan().model_bytes,
    }


def generation_figures(
    searched: dict[str, Any], part: GpuSetting, whole: GpuSetting, ceilings: Ceilings
) -> dict[str, Any]:
    """The same for the last generation measured; the first one warms up."""
    calls = searched["generations"][-1]
    seconds = sum(call["seconds"] for call in calls)
    return {
        "seconds": extrapolate_generation(calls, part, whole),
        "planned_seconds": whole.generation_flops() / ceilings.compute,
        "measured": searched,
        "measured_seconds": seconds,
        "measured_planned_seconds": part.generation_flops() / ceilings.compute,
        "share_of_gemm_rate": part.generation_flops() / seconds / ceilings.compute,
    }


def markdown(figures: dict[str, Any], part: GpuSetting, whole: GpuSetting) -> list[str]:
    """The report after its verdicts."""
    lines = [""]
    if part != whole:
        lines += [
            f"**Extrapolated**: measured on {part.blocks} of {whole.blocks} blocks and "
            f"{part.calibration_tokens} of {whole.calibration_tokens} calibration tokens.",
            "",
        ]
    ceilings = figures["ceilings"]
    lines += [
        f"Ceilings: products {amount(ceilings['compute'], 'FLOP/s')}, solves "
        f"{amount(ceilings['solve'], 'FLOP/s')}, copies {amount(ceilings['bandwidth'], 'B/s')}.",
        "",
    ]
    rows = []
    for name in ("supernet", "generation"):
        part_figures = figures[name]
        peak = part_figures["measured"]["peak_device_bytes"]
        rows.append(
            [
                name,
                f"{part_figures['planned_seconds']:.3g}",
                f"{part_figures['seconds']:.3g}",
                f"{part_figures['measured_planned_seconds']:.3g}",
                f"{part_figures['share_of_gemm_rate']:.1%}",
                "not counted" if peak is None else amount(peak, "B"),
            ]
        )
    header = ["stage", "planned, s", "whole, s", "planned as measured, s", "of GEMM rate", "peak"]
    lines += [*table(header, rows), ""]
    supernet = figures["supernet"]
    lines += [
        f"Supernet: {supernet['measured']['seconds']:.3g} s measured, of them "
        f"{supernet['measured']['solve_seconds']:.3g} s solving at "
        f"{supernet['share_of_solve_rate']:.1%} of the rate of solves, "
        f"{supernet['share_of_time_waiting_for_disk']:.1%} waiting for the disk; "
        f"{amount(supernet['measured']['bytes'], 'B')} written. Device memory planned for the "
        f"whole: {amount(supernet['planned_device_bytes'], 'B')}; host peak "
        f"{amount(figures['host_peak_bytes'], 'B')}.",
        "",
        "Stages of the last generation, as measured:",
        "",
    ]
    calls = figures["generation"]["measured"]["generations"][-1]
    header = list(calls[0])
    rows = [[f"{call[key]:.4g}" for key in header] for call in calls]
    return [*lines, *table([key.replace("_", " ") for key in header], rows)]


def say(text: str) -> None:
    """Progress for whoever waits."""
    print(text, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, help="measure so many blocks (default: all)")
    parser.add_argument("--calibration-tokens", type=int, help="measure on so many (default: all)")
    parser.add_argument("--batch-tokens", type=int, help="positions in one forward call")
    parser.add_argument("--accelerator", default="auto", help="auto, cuda, xpu, mps or cpu")
    parser.add_argument("--toy", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--folder", type=Path, help="where the supernet goes (default: temporary)")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    arguments = parse()
    plain_libraries()
    device = choose_device(arguments.accelerator)
    whole = TOY if arguments.toy else LLAMA
    names = ("blocks", "calibration_tokens", "batch_tokens")
    chosen = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}
    part = replace(whole, **chosen)
    whole = replace(whole, batch_tokens=part.batch_tokens)
    if not arguments.toy and device.type == "cpu":
        sys.exit("no accelerator was found: this takes one, or --toy to see that the script runs")
    if not arguments.toy and part.calibration_tokens < LEAST_TOKENS:
        sys.exit(f"--calibration-tokens must be at least {LEAST_TOKENS} to extrapolate from")
    if part.blocks < 2:
        sys.exit("--blocks must be at least 2: between fewer there is nothing to search")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tyr-gpu-", dir=arguments.folder) as name:
        figures = measure(part, whole, device, Path(name) / "supernet")
    run = describe_run(torch.get_num_threads(), part.seed)
    machine = describe_environment(device, part.seed)
    if device.type != "cpu":
        run["environment"]["processor"] = machine["processor"]
    content = {
        **run,
        "setting": asdict(part),
        "figures": figures,
        "seconds": time.perf_counter() - started,
    }
    rows = [] if arguments.toy else verdicts(figures, GOALS)  # they say nothing of a toy
    name = "gpu-toy" if arguments.toy else "gpu"
    write_results(
        arguments.output / name,
        content,
        title="One accelerator, Llama-3.1-8B's shapes" + (" (toy size)" if arguments.toy else ""),
        sections=[*rows, *markdown(figures, part, whole)],
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
