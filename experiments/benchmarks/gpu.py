"""One accelerator, a model of Llama-3.1-8B's shapes: planned against measured.

    python experiments/benchmarks/gpu.py                                       (22 GB of disk)
    python experiments/benchmarks/gpu.py --blocks 4 --calibration-tokens 262144     (minutes)
    python experiments/benchmarks/gpu.py --toy                    (any machine, seconds)

Where a command may only take minutes, one stage at a time; a supernet in `--folder` stays there, so
that the second command finds what the first one built:

    python experiments/benchmarks/gpu.py --stage supernet --folder FOLDER
    python experiments/benchmarks/gpu.py --stage generation --folder FOLDER

Measures the device's ceilings, one supernet iteration and one generation of 128, 16 and 4
candidates and the parent, and compares them with `tyr.plan`'s counts. Fewer blocks or calibration
tokens than the whole are scaled up as `extrapolate` says, and the report says so. Writes
results/gpu.json and .md, which keep the stage that was not measured anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from gpu_report import STAGES, TUNING, goals, markdown
from gpu_setting import GpuSetting, stage
from gpu_stages import Workload
from report import describe_run, write_results

from tyr.ceilings import Ceilings, measure_ceilings
from tyr.launch import plain_libraries
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


def extrapolate(built: dict[str, Any], part: GpuSetting, whole: GpuSetting) -> float:
    """Seconds of the whole supernet iteration.

    Passing the stream and summing Hessians go with tokens and blocks; solving, mixing the levels
    and waiting for the disk with blocks alone. Of fewer tokens less writing is hidden, so the last
    is counted too high.
    """
    blocks = whole.blocks / part.blocks
    tokens = whole.calibration_tokens / part.calibration_tokens
    stream = stream_seconds(built)
    return blocks * (built["seconds"] - stream + tokens * stream)


def stream_seconds(built: dict[str, Any]) -> float:
    """Seconds of a build that go with its tokens."""
    fixed = ("solve_seconds", "mix_seconds", "disk_wait_seconds")
    return float(built["seconds"] - sum(built[key] for key in fixed))


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


def measure(
    part: GpuSetting,
    whole: GpuSetting,
    device: torch.device,
    folder: Path,
    *,
    stages: Sequence[str] = STAGES,
) -> dict[str, Any]:
    """Ceilings, the stages asked for, and what they mean for the whole."""
    ceilings = measure_ceilings(device, getattr(torch, part.dtype))
    say(f"products {amount(ceilings.compute, 'FLOP/s')}, solves {amount(ceilings.solve, 'FLOP/s')}")
    started = time.perf_counter()
    workload = Workload(part, device, folder)
    say(f"weights drawn in {time.perf_counter() - started:.1f} s")
    if "supernet" in stages:
        shutil.rmtree(folder, ignore_errors=True)  # what is there already would not be timed
    built = workload.build(say)
    say(f"supernet: {built['seconds']:.1f} s, {built['solve_seconds']:.1f} s of it solving")
    figures = {}
    if "supernet" in stages:
        figures["supernet"] = supernet_figures(built, part, whole, ceilings, device)
    if "generation" in stages:
        searched = workload.search(generations=2)
        for calls in searched["generations"]:
            seconds = [f"{call['seconds']:.2f} s" for call in calls]
            say(f"generation: {', '.join(seconds)}")
        figures["generation"] = generation_figures(searched, part, whole, ceilings)
    common = {
        "setting": asdict(part),
        "ceilings": asdict(ceilings),
        "host_peak_bytes": peak_rss_bytes(),
    }
    return {name: {**figures[name], **common} for name in figures}


def supernet_figures(
    built: dict[str, Any],
    part: GpuSetting,
    whole: GpuSetting,
    ceilings: Ceilings,
    device: torch.device,
) -> dict[str, Any]:
    """Measured, planned, and scaled to the whole."""
    plan, planner = stage(part.planner(), "supernet", device), whole.planner()
    full = stage(planner, "supernet", device)
    weights = planner.shape.parameters * getattr(torch, whole.dtype).itemsize
    return {
        "seconds": extrapolate(built, part, whole),
        "planned_seconds": full.seconds(ceilings),
        "measured": built,
        "measured_planned_seconds": plan.seconds(ceilings),
        "share_of_gemm_rate": plan.compute / stream_seconds(built) / ceilings.compute,
        "share_of_solve_rate": plan.solve / built["solve_seconds"] / ceilings.solve,
        "share_of_time_waiting_for_disk": built["disk_wait_seconds"] / built["seconds"],
        "planned_device_bytes": full.memory + weights,
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


def say(text: str) -> None:
    """Progress for whoever waits."""
    print(text, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("all", *STAGES), default="all", help="what to measure")
    parser.add_argument("--blocks", type=int, help="measure so many blocks (default: all)")
    parser.add_argument("--calibration-tokens", type=int, help="measure on so many (default: all)")
    parser.add_argument("--batch-tokens", type=int, help="positions in one forward call")
    parser.add_argument(
        "--feature-bytes", type=float, help="most bytes of features kept from a sublayer's Hessian"
    )
    parser.add_argument(
        "--structure-cache-bytes",
        type=float,
        help="most bytes of structures kept on the device between search stages",
    )
    parser.add_argument("--accelerator", default="auto", help="auto, cuda, xpu, mps or cpu")
    parser.add_argument("--toy", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument(
        "--folder", type=Path, help="where the supernet goes and stays (default: temporary)"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results")
    return parser.parse_args()


def settings(arguments: argparse.Namespace) -> tuple[GpuSetting, GpuSetting]:
    """The part to measure and the whole that it stands for.

    Of the features of a part as large a share is kept as of those of the whole.
    """
    whole = TOY if arguments.toy else LLAMA
    tuned = {n: getattr(arguments, n) for n in TUNING}
    whole = replace(whole, **{n: int(value) for n, value in tuned.items() if value is not None})
    taken = {n: getattr(arguments, n) for n in ("blocks", "calibration_tokens")}
    part = replace(whole, **{n: value for n, value in taken.items() if value is not None})
    share = part.calibration_tokens / whole.calibration_tokens
    return replace(part, feature_bytes=int(share * whole.feature_bytes)), whole


def refuse(arguments: argparse.Namespace, part: GpuSetting, device: torch.device) -> None:
    """Stop where the figures would say nothing."""
    if not arguments.toy and device.type == "cpu":
        sys.exit("no accelerator was found: this takes one, or --toy to see that the script runs")
    if not arguments.toy and part.calibration_tokens < LEAST_TOKENS:
        sys.exit(f"--calibration-tokens must be at least {LEAST_TOKENS} to extrapolate from")
    if part.blocks < 2:
        sys.exit("--blocks must be at least 2: between fewer there is nothing to search")


def earlier_figures(path: Path, processor: str) -> dict[str, Any]:
    """Stages that an earlier command measured on the same accelerator."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    same = content["environment"]["processor"] == processor
    return dict(content["figures"]) if same else {}


def main() -> None:
    """Measure and write."""
    arguments = parse()
    plain_libraries()
    device = choose_device(arguments.accelerator)
    part, whole = settings(arguments)
    refuse(arguments, part, device)
    started = time.perf_counter()
    stages = STAGES if arguments.stage == "all" else (arguments.stage,)
    chosen = arguments.folder
    place = (
        tempfile.TemporaryDirectory(prefix="tyr-gpu-") if chosen is None else nullcontext(chosen)
    )
    with place as name:
        measured = measure(part, whole, device, Path(name) / "supernet", stages=stages)
    run = describe_run(torch.get_num_threads(), part.seed, device=str(device))
    path = arguments.output / ("gpu-toy" if arguments.toy else "gpu")
    earlier = earlier_figures(path.with_suffix(".json"), run["environment"]["processor"])
    figures = {**earlier, **measured}
    content = {
        **run,
        "setting": asdict(whole),
        "figures": figures,
        "seconds": time.perf_counter() - started,
    }
    rows = [] if arguments.toy else goals(figures)  # they say nothing of a toy
    write_results(
        path,
        content,
        title="One accelerator, Llama-3.1-8B's shapes" + (" (toy size)" if arguments.toy else ""),
        sections=[*rows, *markdown(figures, whole)],
    )
    say("\n".join([*rows, *markdown(figures, whole)]))


if __name__ == "__main__":
    main()
