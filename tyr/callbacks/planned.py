"""What plan.json foresaw, beside what the run took.

The plan (`tyr/planner.py`) counts the products of every stage at the rate measured on the machine,
and nothing else; what lies between it and the clock is all other work. Here it is only read back
and put beside the measured seconds, for the terminal, report.html and summary.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyr.callbacks.results import format_megabytes, format_seconds
from tyr.files import UNRECORDED, read_json

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Planned:
    """The parts of a plan that a run can be held against.

    Args:
        seconds: by stage, all iterations together, and in `total`.
        memory_bytes: model, hidden states and work; without what the libraries take.
    """

    seconds: Mapping[str, float]
    memory_bytes: float


def read_plan(run_dir: Path) -> Planned | None:
    """The plan of a run; None for a run without one."""
    return read_json(run_dir / PLAN_FILE, _planned, without=UNRECORDED)


def _planned(plan: Mapping[str, Any]) -> Planned:
    seconds = {stage["name"]: stage["seconds"] for stage in plan["stages"]}
    return Planned({**seconds, "total": plan["seconds"]}, plan["memory_bytes"])


def times_planned(measured: float, planned: float | None) -> str:
    """`4.0x`, or a dash where nothing was planned."""
    return f"{measured / planned:.1f}x" if planned else "-"


def time_sentence(planned: Planned, measured: Mapping[str, float]) -> str:
    """One line for the terminal.

    Args:
        planned: of the run.
        measured: seconds by stage, and in `total`.
    """
    total, took = planned.seconds["total"], measured["total"]
    return (
        f"Planned {format_seconds(total)} for the products alone, took {format_seconds(took)} "
        f"({times_planned(took, total)})."
    )


def memory_sentence(planned: Planned, peak_bytes: int) -> str:
    """One sentence for the report.

    Args:
        planned: of the run.
        peak_bytes: largest resident set of the process.
    """
    return (
        f"Peak memory of the process {format_megabytes(peak_bytes)} MB, libraries included; "
        f"planned for model, hidden states and work {format_megabytes(int(planned.memory_bytes))} "
        f"MB."
    )
