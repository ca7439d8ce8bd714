from __future__ import annotations

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
