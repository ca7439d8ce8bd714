"""What a run holds is counted before weights are read, and refused when it is too much."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.cli import run_cli
from tyr import footprint as module
from tyr.errors import ConfigError
from tyr.footprint import (
    NOTHING,
    Held,
    WeightBytes,
    check_memory,
    footprint,
    smallest_budget,
)
from tyr.model.placement import MemorySettings

CPU = torch.device("cpu")
GPU = torch.device("cuda")
WEIGHTS = WeightBytes(outside=100, block=10, blocks=80)
STAGES = (Held(30, walking=70, sliced=400), Held(50, states=60), Held(5, states=20, walking=90))


def memory(offload: str, device: int | None = None, host: int | None = None) -> MemorySettings:
    return MemorySettings(offload, device_state_bytes=device, host_state_bytes=host)


@pytest.mark.parametrize(
    ("settings", "place", "device", "host", "file"),
    [
        (memory("none"), GPU, 900 + 430, 0, 0),
        (memory("disk"), GPU, 120 + 115, 0, 0),
        (memory("cpu"), GPU, 120 + 115, 1024, 0),  # page-locked memory: powers of two
        (memory("cpu"), CPU, 900 + 430, 0, 0),  # the same as none
        (memory("disk", 40), GPU, 120 + 90, 128, 0),
        (memory("disk", 40, 25), GPU, 120 + 90, 32, 45),
        (memory("disk", 0, 0), GPU, 120 + 50, 0, 110),
        (memory("cpu", 0, 0), GPU, 120 + 50, 1024, 110),
    ],
)
def test_weights_and_states_are_counted_where_the_settings_send_them(
    settings: MemorySettings, place: torch.device, device: int, host: int, file: int
) -> None:
    held = footprint(WEIGHTS, STAGES, settings, place)
    assert (held.device, held.host, held.file) == (device, host, file)


def test_with_blocks_on_disk_memory_does_not_grow_with_depth() -> None:
    depths = [WeightBytes(100, 10, blocks) for blocks in (2, 8, 128)]
    streamed = {footprint(w, STAGES, memory("disk"), GPU).device for w in depths}
    assert len(streamed) == 1


def test_the_smallest_budget_passes_and_a_byte_less_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "rss_bytes", lambda: 1000)
    monkeypatch.setattr(module, "SLACK", 0)
    for settings in (memory("none"), memory("disk", 40, 25)):
        least = smallest_budget(footprint(WEIGHTS, STAGES, settings, CPU), CPU)
        fits, small = (
            MemorySettings(
                settings.offload,
                settings.device_state_bytes,
                settings.host_state_bytes,
                memory_budget=budget,
            )
            for budget in (least, least - 1)
        )
        check_memory(WEIGHTS, STAGES, fits, CPU)
        with pytest.raises(ConfigError, match=rf"needs {least:,}: the smallest"):
            check_memory(WEIGHTS, STAGES, small, CPU)


def test_what_is_free_is_the_budget_unless_one_is_given(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device, **_: 10)
    with pytest.raises(ConfigError, match=r"the system has .* bytes free on cpu, but"):
        check_memory(WEIGHTS, STAGES, memory("none"), CPU)
    generous = MemorySettings(memory_budget=10**12)
    check_memory(WEIGHTS, STAGES, generous, CPU)
    assert "model.memory_budget is 1,000,000,000,000 bytes, of which" in caplog.text
    monkeypatch.setattr(module, "free_bytes", lambda device, **_: None)
    check_memory(WEIGHTS, STAGES, memory("none"), CPU)


def test_the_refusal_says_what_other_settings_would_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "rss_bytes", lambda: 0)
    monkeypatch.setattr(module, "LIBRARIES", 0)
    monkeypatch.setattr(module, "SLACK", 0)
    with pytest.raises(ConfigError) as refused:
        check_memory(WEIGHTS, STAGES, MemorySettings(memory_budget=1), CPU)
    assert "needs 1,330" in str(refused.value)
    assert "with model.offload=disk, 235" in str(refused.value)
    assert "model.host_state_bytes=0, 170" in str(refused.value)


SHARED = (Held(50, states=60, others=Held(10, states=60)), Held(90, others=NOTHING))


def test_processes_on_one_machine_add_up_on_a_cpu_and_not_on_accelerators() -> None:
    one = footprint(WEIGHTS, SHARED, memory("none"), CPU)
    three = footprint(WEIGHTS, SHARED, memory("none"), CPU, processes=3)
    assert one.device == 900 + 110
    assert three.device == 900 + 110 + 2 * (900 + 70)
    on_gpus = footprint(WEIGHTS, SHARED, memory("cpu", 0, 25), GPU, processes=3)
    assert on_gpus.device == 120 + 90
    assert on_gpus.host == 3 * (1024 + 32), "page-locked memory comes in powers of two"
    assert on_gpus.file == 3 * 35
    same = footprint(WEIGHTS, STAGES, memory("none"), CPU, processes=2)
    assert same.device == 2 * footprint(WEIGHTS, STAGES, memory("none"), CPU).device


def test_the_memory_of_all_processes_is_refused_per_process_and_in_total(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "rss_bytes", lambda: 1000)
    monkeypatch.setattr(module, "LIBRARIES", 0)
    monkeypatch.setattr(module, "SLACK", 0)
    least = 1010 + 970 + 2 * 1000
    enough, small = (MemorySettings(memory_budget=budget) for budget in (least, least - 1))
    check_memory(WEIGHTS, SHARED, enough, CPU, processes=2)
    check_memory(WEIGHTS, SHARED, small, CPU)
    with pytest.raises(ConfigError) as refused:
        check_memory(WEIGHTS, SHARED, small, CPU, processes=2)
    said = str(refused.value)
    assert f"needs {least:,}: the smallest model.memory_budget that works for its 2" in said
    assert "processes together, of which the first takes 2,010" in said
    assert "lower trainer.devices" in said


def test_a_generous_budget_is_spoken_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device, **_: 10**9)
    check_memory(WEIGHTS, SHARED, MemorySettings(memory_budget=10**12), CPU, processes=2)
    assert caplog.text.count("the system may end this run") == 1


def test_free_memory_is_that_of_the_machine_for_all_its_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "rss_bytes", lambda: 1000)
    monkeypatch.setattr(module, "LIBRARIES", 0)
    for free, processes in ((1010, 1), (1980, 2)):
        monkeypatch.setattr(module, "free_bytes", lambda device, free=free, **_: free)
        check_memory(WEIGHTS, SHARED, memory("none"), CPU, processes=processes)
        monkeypatch.setattr(module, "free_bytes", lambda device, free=free, **_: free - 1)
        with pytest.raises(ConfigError, match="the system has"):
            check_memory(WEIGHTS, SHARED, memory("none"), CPU, processes=processes)


def test_a_limit_of_each_process_is_not_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "rss_bytes", lambda: 0)
    monkeypatch.setattr(module, "LIBRARIES", 0)
    for limit, fits in ((1010, True), (1009, False)):  # the first takes 1010, the other 970
        monkeypatch.setattr(
            module, "free_bytes", lambda device, *, processes, most=limit: processes * most
        )
        if fits:
            check_memory(WEIGHTS, SHARED, memory("none"), CPU, processes=2)
            continue
        with pytest.raises(ConfigError, match="the system has 1,009 bytes free"):
            check_memory(WEIGHTS, SHARED, memory("none"), CPU, processes=2)


def test_host_memory_beside_accelerators_is_refused_for_all_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device, **_: 10**6)
    monkeypatch.setattr(module, "available_bytes", lambda **_: 1200)
    check_memory(WEIGHTS, SHARED, memory("cpu"), GPU)
    with pytest.raises(ConfigError, match="beside cuda for its 2 processes together and 1,200"):
        check_memory(WEIGHTS, SHARED, memory("cpu"), GPU, processes=2)
    monkeypatch.setattr(module, "free_bytes", lambda device, **_: 10)
    with pytest.raises(ConfigError, match=r"needs [\d,]+, for each of its 2 processes"):
        check_memory(WEIGHTS, SHARED, memory("none"), GPU, processes=2)


class Loaded(Exception):
    """The run came as far as reading weights."""


def test_a_run_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise Loaded

    monkeypatch.setattr("tyr.model.loading.PretrainedModel.load", load)
    words = f"run_dir={tmp_path}/run", "callbacks=none", "logger=none"
    outcome = run_cli(capsys, *words, "model.memory_budget=1e8")
    assert outcome.status == 2
    said = re.search(r"needs ([\d,]+): the smallest model.memory_budget that works", outcome.err)
    assert said, outcome.err
    assert not (tmp_path / "run").exists()
    with pytest.raises(Loaded):
        run_cli(capsys, *words, f"model.memory_budget={said[1].replace(',', '')}")


def test_an_unknown_way_to_offload_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_cli(capsys, "model.offload=gpu")
    assert outcome.status == 2
    assert "model.offload must be one of none, cpu, disk" in outcome.err
