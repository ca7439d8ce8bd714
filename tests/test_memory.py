from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tyr import memory
from tyr.errors import ModelError


def test_available_memory_is_what_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text(
        "MemTotal:  900 kB\nMemAvailable:     300 kB\nHugetlb: 0 kB\n"
    )
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "absent")
    assert memory.available_bytes() == 300 * 1024
    (tmp_path / "meminfo").write_text("MemTotal:  900 kB\n")
    assert memory.available_bytes() is None
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "absent")
    assert memory.available_bytes() is None


def test_what_does_not_fit_is_refused_with_both_sizes() -> None:
    memory.check_fits(5, 5, what="a model")
    memory.check_fits(5, None, what="a model")
    with pytest.raises(ModelError, match=r"about 5\.0 GB .* needed and 4\.0 GB .* a model"):
        memory.check_fits(5_000_000_000, 4_000_000_000, what="a model")


@pytest.mark.parametrize(
    ("line", "folder", "limit", "usage"),
    [
        ("0::/job/step", "", "memory.max", "memory.current"),
        ("4:cpu,memory:/job/step", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_a_control_group_limits_what_is_available(
    line: str, folder: str, limit: str, usage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").write_text(f"3:pids:/other\n{line}\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "absent")
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    assert memory.available_bytes() is None
    job = tmp_path / "groups" / folder / "job"
    (job / "step").mkdir(parents=True)
    for place, most in ((job, "5000"), (job / "step", "max")):
        (place / limit).write_text(f"{most}\n")
        (place / usage).write_text("3000\n")
        (place / "memory.stat").write_text("anon 1\ninactive_file 700\n")
    assert memory.available_bytes() == 5000 - (3000 - 700)
    (job / limit).write_text("9223372036854771712\n")
    assert memory.available_bytes() is None


def test_a_limit_of_the_process_limits_what_is_available() -> None:
    code = (
        "import resource; from tyr.memory import available_bytes, rss_bytes; "
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 28, resource.RLIM_INFINITY)); "
        "print(available_bytes(), rss_bytes(), available_bytes(processes=3))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    left, resident, together = map(int, done.stdout.split())
    assert 0 < left < 1 << 28
    assert abs(together - 3 * left) < 3 << 20, "each has a limit of its own"
    assert 1 << 20 < resident < 1 << 30


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_kept_while_a_context_lasts() -> None:
    code = """
import resource
from tyr.memory import freed_memory_kept, rss_bytes

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    sizes = [len(b"x" * (1 << 26)) for _ in range(10)]
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize()

apart, resident = pages(), rss_bytes()
with freed_memory_kept():
    kept, grown = pages(), rss_bytes() - resident
print(apart, kept, grown, pages(), rss_bytes() - resident)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    apart, kept, grown, after, left = (int(word) / (1 << 26) for word in done.stdout.split())
    assert apart > 9, "left alone, the library asks for new pages every time"
    assert kept < 2
    assert grown > 0.9
    assert after > 9
    assert left < 0.1
