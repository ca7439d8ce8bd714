"""What `gpu.py` writes down: each stage with the part it was measured on, and what is open."""

from __future__ import annotations

from typing import Any

from gpu_setting import GpuSetting
from report import Goal, table, verdicts

from tyr.plan_table import amount

STAGES = ("supernet", "generation")
GOALS = (
    Goal("one generation, s", ("generation", "seconds"), at_most=25.0),
    Goal("one supernet iteration, s", ("supernet", "seconds"), at_most=480.0),
)
# Settings that say how a part is measured, not which part.
TUNING = ("batch_tokens", "feature_bytes", "structure_cache_bytes")


def goals(figures: dict[str, Any]) -> list[str]:
    """Every goal: met, missed, or open where its stage was not measured."""
    taken = [goal for goal in GOALS if goal.path[0] in figures]
    rows = verdicts(figures, taken)
    return rows + [f"| {g.text} | OPEN | {g.bound} | OPEN |" for g in GOALS if g not in taken]


def markdown(figures: dict[str, Any], whole: GpuSetting) -> list[str]:
    """The report after its verdicts."""
    lines = [""]
    for name in (name for name in STAGES if name in figures):
        lines += extrapolated(name, figures[name]["setting"], whole)
    lines += [*stage_table(figures), ""]
    if "supernet" in figures:
        lines += supernet_text(figures["supernet"])
    if "generation" in figures:
        lines += ["Stages of the last generation, as measured:", ""]
        calls = figures["generation"]["measured"]["generations"][-1]
        header = list(calls[0])
        rows = [[f"{call[key]:.4g}" for key in header] for call in calls]
        lines += table([key.replace("_", " ") for key in header], rows)
    return lines


def extrapolated(name: str, setting: dict[str, Any], whole: GpuSetting) -> list[str]:
    """A line that says on which part a stage was measured, if on a part."""
    keys = ("blocks", "calibration_tokens") if name == "supernet" else ("blocks",)
    parts = [
        f"{setting[key]} of {getattr(whole, key)} {key.replace('_', ' ')}"
        for key in keys
        if setting[key] != getattr(whole, key)
    ]
    return [f"**Extrapolated** ({name}): measured on {' and '.join(parts)}.", ""] if parts else []


def stage_table(figures: dict[str, Any]) -> list[str]:
    """Planned, measured and memory of every stage."""
    rows = []
    for name in (name for name in STAGES if name in figures):
        stage, ceilings = figures[name], figures[name]["ceilings"]
        peak = stage["measured"]["peak_device_bytes"]
        rows.append(
            [
                name,
                f"{stage['planned_seconds']:.3g}",
                f"{stage['seconds']:.3g}",
                f"{stage['measured_planned_seconds']:.3g}",
                f"{stage['share_of_gemm_rate']:.1%} of {amount(ceilings['compute'], 'FLOP/s')}",
                "not counted" if peak is None else amount(peak, "B"),
                amount(stage["host_peak_bytes"], "B"),
                ", ".join(f"{key} {stage['setting'][key]}" for key in TUNING),
            ]
        )
    header = ["stage", "planned, s", "whole, s", "planned as measured, s", "of GEMM rate"]
    return table([*header, "device peak", "host peak", "setting"], rows)


def supernet_text(supernet: dict[str, Any]) -> list[str]:
    """Where the time of the supernet went."""
    measured = supernet["measured"]
    return [
        f"Supernet: {measured['seconds']:.3g} s measured, of them "
        f"{measured['solve_seconds']:.3g} s solving at "
        f"{supernet['share_of_solve_rate']:.1%} of the rate of solves "
        f"({amount(supernet['ceilings']['solve'], 'FLOP/s')}), "
        f"{measured['mix_seconds']:.3g} s mixing levels, "
        f"{supernet['share_of_time_waiting_for_disk']:.1%} waiting for the disk; "
        f"{amount(measured['bytes'], 'B')} written. Device memory planned for the "
        f"whole: {amount(supernet['planned_device_bytes'], 'B')}.",
        "",
    ]
