"""How much memory this process has used, and how much is left, asked from the operating system."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tyr.errors import ModelError

if TYPE_CHECKING:
    import torch

MEMINFO = Path("/proc/meminfo")


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int | None:
    """Host memory that can be had without swapping, or None where the system does not tell."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def device_bytes(device: torch.device) -> int | None:
    """Memory that is free where models are put, or None if unknown."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return available_bytes()


def check_fits(needed: int, available: int | None, *, what: str) -> None:
    """Refuse what would not fit, before it is loaded.

    Args:
        needed: bytes, an estimate from below.
        available: bytes, or None if unknown, which refuses nothing.
        what: that needs them, and what to do about it, for the message.

    Raises:
        ModelError: it does not fit.
    """
    if available is not None and needed > available:
        raise ModelError(
            f"about {needed / 1e9:.1f} GB of memory are needed and {available / 1e9:.1f} GB are "
            f"available: {what}"
        )
