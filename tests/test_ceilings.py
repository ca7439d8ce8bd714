from __future__ import annotations

import pytest
import torch

from tyr import ceilings


def test_an_accelerator_is_kept_busy_until_its_clock_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(ceilings, "synchronize", lambda device: None)
    runs: list[float] = []

    def work() -> None:
        runs.append(0.04 if now[0] < ceilings.WARM_UP_SECONDS / 2 else 0.01)
        now[0] += runs[-1]

    assert ceilings._best_seconds(work, torch.device("cuda")) == pytest.approx(0.01)
    assert sum(runs) >= ceilings.WARM_UP_SECONDS
    runs.clear()
    now[0] = 0.0
    assert ceilings._best_seconds(work, torch.device("cpu")) == pytest.approx(0.04)
    assert len(runs) == ceilings.REPEATS + 1
