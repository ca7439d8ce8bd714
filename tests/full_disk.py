"""Disks that run full, for real: a small tmpfs where root may mount one, else a limit on file size.

Code under test sees what the operating system says (`ENOSPC`, `EFBIG`), not a double of it.
"""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 1 << 20


@contextmanager
def small_disk(directory: Path, num_bytes: int) -> Iterator[Path]:
    """A file system of its own at `directory`; skips the test where mounting is not allowed."""
    directory.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(directory)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("this system has no mount command")
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: Path, *, leave: int = 0) -> Path:
    """A file that takes the rest of a small disk, but for about `leave` bytes."""
    ballast = directory / "ballast"
    block = bytes(4096)
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(block)
        except OSError:  # full, which is what was asked for
            pass
        stream.truncate(max(0, ballast.stat().st_size - leave))
    return ballast


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond this; writing more fails as on a full disk.

    Needs no rights. Python ignores the signal that comes with it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
