"""What this machine can do at best: rates of matrix products and of copying memory.

Two ceilings bound every stage of the method (a roofline, Williams, Waterman and Patterson 2009).
Measured in about a second, as the best of several repeats, so that a planned time is a lower bound
on an idle machine. Disk and network are not measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tyr.devices import synchronize
from tyr.linalg import solve_dtype

REPEATS = 3
# An idle accelerator raises its clock only after some time under load.
WARM_UP_SECONDS = 0.3


@dataclass(frozen=True)
class Ceilings:
    """Rates of one device.

    Args:
        compute: floating-point operations per second of a product in compute precision.
        solve: the same in the precision of factorisations.
        bandwidth: bytes per second read and written by a copy.
    """

    compute: float
    solve: float
    bandwidth: float


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Time products and a copy on the device.

    Args:
        device: where the method will run.
        dtype: compute precision.
    """
    on_cpu = device.type == "cpu"
    return Ceilings(
        compute=gemm_rate(1024 if on_cpu else 8192, device, dtype),
        solve=gemm_rate(768 if on_cpu else 4096, device, solve_dtype(device)),
        bandwidth=copy_rate(1 << (26 if on_cpu else 30), device),
    )


def gemm_rate(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square product."""
    # Random: equal numbers take less power, so accelerators multiply them faster than weights.
    left = torch.empty(size, size, device=device, dtype=dtype)
    left.normal_(generator=torch.Generator(device).manual_seed(0))
    out = torch.empty_like(left)
    return 2 * size**3 / _best_seconds(lambda: torch.mm(left, left, out=out), device)


def copy_rate(size: int, device: torch.device) -> float:
    """Bytes per second of a copy; each byte is read once and written once."""
    source = torch.ones(size, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * size / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Shortest of several runs, after one to warm up; an accelerator gets more."""
    best, runs = float("inf"), 0
    begun = time.perf_counter()
    least = 0.0 if device.type == "cpu" else WARM_UP_SECONDS
    while runs <= REPEATS or time.perf_counter() - begun < least:
        started = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
        runs += 1
    return best
