"""Runs the command line inside the test process, which saves a cold start per case."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

from tyr.run import main, plan_task, task


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: its exit status and what it printed."""

    status: int
    out: str
    err: str


def plan_cli(capsys: pytest.CaptureFixture[str], *words: str) -> Outcome:
    """`python -m tyr.plan *words`."""
    return run_cli(capsys, *words, entry=plan_task)


def run_cli(
    capsys: pytest.CaptureFixture[str], *words: str, entry: Callable[[], None] = task
) -> Outcome:
    """`python -m tyr.run *words`; a traceback (status 1) surfaces as the exception itself.

    Hydra composes everything once only to read `hydra.mode`, which tyr never sets, and then again.
    Here it does not, which is half the time of a command that is refused.
    """
    GlobalHydra.instance().clear()
    before, sys.argv = sys.argv, ["tyr", *words]
    capsys.readouterr()
    try:
        with patch.object(Hydra, "get_mode", return_value=None):
            main(entry)
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()
    captured = capsys.readouterr()
    return Outcome(status, captured.out, captured.err)
