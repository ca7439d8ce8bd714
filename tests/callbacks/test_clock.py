"""Durations add up over resumed and killed processes."""

from pathlib import Path

import pytest

from tyr.callbacks.clock import StageClock, by_stage, recorded_seconds
from tyr.events import StageFinished, StageStarted


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_killed_stage_counts_up_to_its_last_step(tmp_path: Path) -> None:
    time = FakeTime()
    killed = StageClock(tmp_path, resumed=False, now=time)
    killed.start(StageStarted("search", 4, 0))
    time.now += 3
    killed.tick()
    time.now += 1  # lost with the kill

    resumed = StageClock(tmp_path, resumed=True, now=time)
    resumed.start(StageStarted("search", 4, 0))
    resumed.finish(StageFinished("search", 5.0, 0))
    time.now += 5
    assert resumed.seconds() == {"search/0": 8.0, "total": 8.0}


def test_a_resume_that_skips_a_stage_keeps_its_time(tmp_path: Path) -> None:
    time = FakeTime()
    first = StageClock(tmp_path, resumed=False, now=time)
    first.start(StageStarted("dense", 1))
    first.finish(StageFinished("dense", 2.0))
    second = StageClock(tmp_path, resumed=True, now=time)
    assert second.seconds()["dense"] == 2.0


def test_a_new_run_starts_at_zero(tmp_path: Path) -> None:
    clock = StageClock(tmp_path, resumed=False)
    clock.finish(StageFinished("dense", 2.0))
    fresh = StageClock(tmp_path, resumed=False)
    assert "dense" not in fresh.seconds()


def test_iterations_of_a_stage_are_summed() -> None:
    seconds = {"search/0": 1.0, "supernet/0": 4.0, "search/1": 2.0, "total": 9.0}
    assert by_stage(seconds) == {"search": 3.0, "supernet": 4.0, "total": 9.0}


def test_nothing_recorded_reads_as_nothing(tmp_path: Path) -> None:
    assert recorded_seconds(tmp_path) == {}


def test_durations_that_are_no_numbers_are_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "durations.json").write_text('{"dense": []}')
    assert recorded_seconds(tmp_path) == {}
    assert "durations.json is damaged" in caplog.text
