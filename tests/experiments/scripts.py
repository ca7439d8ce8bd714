"""Benchmarks as a user starts them: scripts in processes of their own, at toy size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Sizes of experiments/benchmarks/setting.py with which a comparison takes seconds.
TOY_SETTING = (
    *("--blocks", "2", "--hidden", "64", "--ffn", "128", "--heads", "4", "--kv-heads", "2"),
    *("--vocabulary", "256", "--sequence-length", "16", "--calibration-tokens", "256"),
    *("--search-tokens", "256", "--offspring", "6", "--stage-tokens", "16", "64", "256"),
    *("--survivors", "4", "2", "1", "--batch-tokens", "64", "--threads", "1"),
)


def run_script(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script of experiments/benchmarks on this checkout."""
    return subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "benchmarks" / name), *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
