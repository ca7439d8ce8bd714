"""How much memory this process has used, and how much is left, asked from the operating system."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tyr.errors import ModelError

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # control groups of version 1 write no limit as a number beyond this

# Of `freed_memory_kept`: an allocation beyond the first has pages of its own, and more than the
# second at the end of the heap is handed back. glibc's own thresholds rise to the third and twice.
MAPPED_BYTES, KEPT_BYTES, _RISEN = 1 << 28, 1 << 30, 1 << 25
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # numbers of glibc's malloc.h


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes() -> int:
    """Resident set of this process now, bytes; its peak where the system does not tell."""
    fields = _fields(STATUS)
    return fields["VmRSS"] if "VmRSS" in fields else peak_rss_bytes()


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory for the next tensors while the context lasts, then hand it back (glibc).

    Left alone, the C library returns tensors of some megabytes to the system when they are freed,
    and the next ones arrive page by page, zeroed: a tenth of the processor time of building a
    supernet (experiments/LOG.md). Tensors beyond `MAPPED_BYTES` still come and go, lest one that is
    gone leaves a hole of gigabytes. Afterwards the thresholds are where the library's own rise to.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    set_option(_M_MMAP_THRESHOLD, MAPPED_BYTES)
    set_option(_M_TRIM_THRESHOLD, KEPT_BYTES)
    try:
        yield
    finally:
        set_option(_M_MMAP_THRESHOLD, _RISEN)
        set_option(_M_TRIM_THRESHOLD, 2 * _RISEN)
        return_freed()


def return_freed() -> None:
    """Hand freed memory back to the system, where the C library offers it (glibc).

    It keeps what tensors of some megabytes leave behind, in pieces that the next ones do not fit:
    evaluating the same population again and again grew by half of what it holds. Takes
    milliseconds, and page faults later: for the end of a stage, not for an inner loop.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def available_bytes(*, processes: int = 1) -> int | None:
    """Host memory that can be had without swapping, or None where the system does not tell.

    The least of what is free, what a control group leaves, and what the limits of this process
    leave (`ulimit -d`, `ulimit -v`), which each of several processes has for itself.

    Args:
        processes: like this one, whose memory is asked for together.
    """
    limits = [processes * left for left in _left_by_limits()]
    return min([*_free(), *_left_by_groups(), *limits], default=None)


def _free() -> list[int]:
    fields = _fields(MEMINFO)
    return [fields["MemAvailable"]] if "MemAvailable" in fields else []


def _left_by_groups() -> list[int]:
    left = []
    for folder, limit, usage in _groups():
        try:
            most = (folder / limit).read_text(encoding="ascii").strip()
            used = int((folder / usage).read_text(encoding="ascii")) - _reclaimable(folder)
        except (OSError, ValueError):
            continue
        if most.isdigit() and int(most) < UNLIMITED:  # not "max"
            left.append(max(0, int(most) - used))
    return left


def _groups() -> Iterator[tuple[Path, str, str]]:
    """Control groups around this process, with their files of limit and use."""
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root = CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = root / path.lstrip("/")
        yield from ((f, *names) for f in (folder, *folder.parents) if f.is_relative_to(root))


def _reclaimable(folder: Path) -> int:
    """Bytes of files that the system keeps in memory for the group and drops when it has to."""
    lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
    counts = dict(line.split(maxsplit=1) for line in lines)
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))


def _left_by_limits() -> list[int]:
    fields, left = _fields(STATUS), []
    for kind, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY and used in fields:
            left.append(max(0, soft - fields[used]))
    return left


def _fields(path: Path) -> dict[str, int]:
    """The entries in kB of a file of the system, in bytes; none where it does not exist."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def is_whole_bytes(value: object) -> bool:
    """Whether a setting is a number of bytes; YAML reads 8e9 as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value >= 0 and float(value).is_integer()


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
