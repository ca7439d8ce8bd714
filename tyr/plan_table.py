"""The plan of a run as a table for people; `python -m tyr.plan` prints it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from tyr.ceilings import Ceilings
from tyr.linalg import solve_dtype
from tyr.run_plan import Part, RunPlan, StagePlan

COLUMNS = ("stage", "times", "tokens", "products", "solves", "memory", "disk", "at least")


def show(
    plan: RunPlan,
    ceilings: Ceilings,
    *,
    device: torch.device,
    dtype: torch.dtype,
    notes: Sequence[str] = (),
) -> None:
    """Print the plan.

    Args:
        plan: what to show.
        ceilings: what the device can do.
        device: computing device.
        dtype: compute precision.
        notes: what else there is to say.
    """
    console = Console(highlight=False)
    table = Table(
        title="Plan: least time on this machine, were nothing but products to do",
        box=box.SIMPLE_HEAD,
        pad_edge=False,  # all columns in 80 characters
        collapse_padding=True,
    )
    for title in COLUMNS:
        table.add_column(title, justify="left" if title == "stage" else "right", no_wrap=True)
    for stage in plan.stages:
        table.add_row(*_cells(stage, ceilings))
        for part in stage.parts:
            table.add_row(*_part_cells(part), style="dim")
    seconds = sum(stage.seconds(ceilings) for stage in plan.stages)
    memory, disk = amount(plan.process.memory, "B"), amount(plan.disk.bytes, "B")
    table.add_section()
    table.add_row("whole run", "", "", "", "", memory, disk, duration(seconds))
    console.print(table)
    for line in (*remarks(plan, device), *notes, _rates(ceilings, device, dtype)):
        console.print(line)


def remarks(plan: RunPlan, device: torch.device) -> list[str]:
    """What the table cannot hold, one sentence each."""
    lines = [
        "Products and solves in FLOP; memory beside the weights, in one process.",
        _held(plan, device),
        f"On disk at most {amount(plan.disk.bytes, 'B')}, {plan.disk.moment}.",
    ]
    if plan.shares:
        shares = ", ".join(f"{share:.0%}" for share in plan.shares)
        lines.append(f"Distinct trie nodes per search stage: {shares}.")
    if plan.upper:
        options = " and ".join(plan.upper)
        lines.append(f"The search and its time are counted in full: {options} can only lower them.")
    devices = max(stage.devices for stage in plan.stages)
    if devices > 1:
        lines.append(f"Times are for {devices} devices like this one, which wait for nothing.")
    return lines


def _held(plan: RunPlan, device: torch.device) -> str:
    """What is in memory at the worst moment."""
    held, resident, many = plan.footprint, amount(plan.resident, "B"), plan.processes > 1
    weights = f"of which {resident} of weights"
    if plan.resident < plan.weights.total:
        weights += f" (the model has {amount(plan.weights.total, 'B')})"
    file = f"; {amount(held.file, 'B')} of hidden states in files" if held.file else ""
    if device.type != "cpu":
        where = f"on each of {plan.processes} devices" if many else f"on {device}"
        host = f"; {amount(held.host, 'B')} in host memory" if held.host else ""
        return f"At once {amount(held.device, 'B')} {where}{host}{file}."
    one = f"At once {amount(plan.process.memory, 'B')} of memory, {weights}"
    if many:
        one += f"; {amount(held.memory, 'B')} by all {plan.processes} processes on this machine"
    return f"{one}{file}."


def _rates(ceilings: Ceilings, device: torch.device, dtype: torch.dtype) -> str:
    names = [str(kind).removeprefix("torch.") for kind in (dtype, solve_dtype(device))]
    return (
        f"Measured on {device}: products {amount(ceilings.compute, 'FLOP/s')} in {names[0]}, "
        f"solves {amount(ceilings.solve, 'FLOP/s')} in {names[1]}, copies "
        f"{amount(ceilings.bandwidth, 'B/s')}."
    )


def amount(value: float, unit: str) -> str:
    """A quantity with a decimal prefix: `amount(2.5e12, "FLOP") == "2.5 TFLOP"`."""
    value = float(f"{value:.3g}")  # before the prefix is chosen: 999,900 is 1 M
    if value < 1000:
        return f"{value:.3g} {unit}".strip()
    power = min(int(math.log10(value) // 3), 6)
    return f"{value / 1000**power:.3g} {'kMGTPE'[power - 1]}{unit}"


def duration(seconds: float) -> str:
    """A time in its largest fitting unit: `duration(5400) == "1.5 h"`."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            digits = 0 if seconds >= 100 * size else 1
            return f"{seconds / size:,.{digits}f} {unit}"
    return f"{seconds:.1f} s"


def _cells(stage: StagePlan, ceilings: Ceilings) -> list[str]:
    return [
        stage.name,
        str(stage.times),
        _unless_none(stage.times * stage.tokens, ""),
        _unless_none(stage.times * stage.compute, ""),
        _unless_none(stage.times * stage.solve, ""),
        _unless_none(stage.memory, "B"),
        _unless_none(stage.disk, "B"),
        duration(stage.seconds(ceilings)),
    ]


def _unless_none(value: float, unit: str) -> str:
    return amount(value, unit) if value else ""


def _part_cells(part: Part) -> list[str]:
    return [
        f"  {part.name}",
        str(part.times),
        _unless_none(part.tokens, ""),
        _unless_none(part.compute, ""),
        _unless_none(part.solve, ""),
    ]
