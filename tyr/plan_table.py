"""The plan of a run as a table for people; `python -m tyr.plan` prints it."""

from __future__ import annotations

import math

import torch
from rich.console import Console
from rich.table import Table

from tyr.ceilings import Ceilings
from tyr.planner import RunPlan, StagePlan


def show(plan: RunPlan, ceilings: Ceilings, *, device: torch.device) -> None:
    """Print the plan."""
    console = Console()
    table = Table(title="Plan: least time on this machine, were nothing but products to do")
    for title in ("stage", "times", "products", "solves", "memory", "disk", "at least"):
        table.add_column(title, justify="left" if title == "stage" else "right")
    for stage in plan.stages:
        table.add_row(*_cells(stage, ceilings))
    seconds = sum(stage.seconds(ceilings) for stage in plan.stages)
    memory, disk = amount(plan.memory_bytes, "B"), amount(plan.disk_bytes, "B")
    table.add_section()
    table.add_row("all, with the model", "", "", "", memory, disk, duration(seconds))
    console.print(table)
    held = plan.footprint
    console.print(
        f"At once: {amount(held.device, 'B')} on {device}, {amount(held.host, 'B')} in host memory "
        f"beside it, {amount(held.file, 'B')} of hidden states in a file"
    )
    shares = ", ".join(f"{share:.0%}" for share in plan.shares)
    console.print(
        f"{device}: products {amount(ceilings.compute, 'FLOP/s')}, solves "
        f"{amount(ceilings.solve, 'FLOP/s')}, memory {amount(ceilings.bandwidth, 'B/s')}",
        f"Distinct trie nodes per search stage: {shares}",
        sep="\n",
    )


def amount(value: float, unit: str) -> str:
    """A quantity with a decimal prefix: `amount(2.5e12, "FLOP") == "2.5 TFLOP"`."""
    if value < 1000:
        return f"{value:.3g} {unit}"
    power = min(int(math.log10(value) // 3), 6)
    return f"{value / 1000**power:.3g} {'kMGTPE'[power - 1]}{unit}"


def duration(seconds: float) -> str:
    """A time in its largest fitting unit: `duration(5400) == "1.5 h"`."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def _cells(stage: StagePlan, ceilings: Ceilings) -> list[str]:
    return [
        stage.name,
        str(stage.times),
        amount(stage.times * stage.compute, "FLOP"),
        amount(stage.times * stage.solve, "FLOP") if stage.solve else "",
        amount(stage.memory, "B"),
        amount(stage.disk, "B") if stage.disk else "",
        duration(stage.seconds(ceilings)),
    ]
