"""CsvMetrics and WandbTracking, driven by a whole synthetic run; wandb for real, offline."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tyr.callbacks import CsvMetrics, WandbTracking
from tyr.callbacks.metrics_file import METRICS_FILE, read_rows
from tyr.errors import ConfigError, TyrError
from tyr.events import (
    GenerationFinished,
    StageFinished,
    StageStarted,
    StartRound,
    SublayerPruned,
)


def test_every_event_becomes_one_row_with_its_numbers(run: Any, play: Callable[..., None]) -> None:
    play([CsvMetrics()], run.events())
    rows = read_rows(run.run_dir / METRICS_FILE)
    counts = dict.fromkeys(("stage", "sublayer", "generation", "search", "evaluation"), 0)
    for row in rows:
        counts[row["event"]] += 1
    assert counts == {"stage": 8, "sublayer": 72, "generation": 8, "search": 2, "evaluation": 4}

    event = run.generation(1, 2)
    (row,) = [
        r for r in rows if (r["event"], r["iteration"], r["generation"]) == ("generation", "1", "2")
    ]
    assert float(row["best_loss"]) == event.best_loss
    assert int(row["evaluated_tokens"]) == event.evaluated_tokens
    assert json.loads(row["allocation"]) == event.allocation.as_dict()
    first = json.loads(row["stages"])[0]
    assert first["num_tokens"] == 2048
    assert first["candidates"] == 16
    assert first["best"] == min(event.stages[0].losses)
    assert first["mean"] == pytest.approx(sum(event.stages[0].losses) / 16)


def test_a_row_is_on_disk_before_the_next_event(run: Any) -> None:
    csv = CsvMetrics()
    csv.on_run_start(run.started())
    csv.on_generation_end(run.generation(0, 0))
    assert len(read_rows(run.run_dir / METRICS_FILE)) == 1


def test_a_sublayer_read_back_on_resume_keeps_the_errors_that_were_measured(
    run: Any, play: Callable[..., None], read_back: Callable[[object], object]
) -> None:
    play([CsvMetrics()], run.events())
    before = (run.run_dir / METRICS_FILE).read_text()
    again = [read_back(e) for e in run.middle() if not isinstance(e, StageFinished)]
    play([CsvMetrics()], [run.started(resumed=True), *again])
    assert (run.run_dir / METRICS_FILE).read_text() == before


def test_the_seconds_of_a_stage_add_up_over_processes(run: Any, play: Callable[..., None]) -> None:
    stage = [StageStarted("search", 4, 0), StageFinished("search", 1.5, 0)]
    play([CsvMetrics()], [run.started(), *stage])
    play([CsvMetrics()], [run.started(resumed=True), *stage])
    (row,) = read_rows(run.run_dir / METRICS_FILE)
    assert float(row["seconds"]) == 3.0


def test_finishing_passes_with_other_labels_do_not_replace_each_other(
    run: Any, play: Callable[..., None]
) -> None:
    sublayer = next(e for e in run.middle() if isinstance(e, SublayerPruned))
    sublayer = SublayerPruned(sublayer.sublayer, 0.1, {0: 0.5})
    events = []
    for label in ("uniform", "tyr"):
        events += [StageStarted("finish", 1, label=label), sublayer, StageFinished("finish", 0.1)]
    play([CsvMetrics()], [run.started(), *events])
    rows = [r for r in read_rows(run.run_dir / METRICS_FILE) if r["event"] == "sublayer"]
    assert [row["name"] for row in rows] == ["uniform", "tyr"]


KILLED_CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from conftest import SyntheticRun, send
from tyr.callbacks import CsvMetrics, Summary
from tyr.events import EvaluationRow, GenerationFinished
rows = {{n: EvaluationRow(2.0, 0.1, 3, 2, 6) for n in ("dense", "uniform", "tyr")}}
run = SyntheticRun(Path({run_dir!r}), rows)
callbacks = [CsvMetrics(), Summary()]
send(callbacks, [run.started()])
for event in run.middle():
    send(callbacks, [event])
    if isinstance(event, GenerationFinished) and event.generation == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_every_row_it_reported(run: Any) -> None:
    code = KILLED_CHILD.format(tests=str(Path(__file__).parent), run_dir=str(run.run_dir))
    child = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert child.returncode == -9, child.stderr.decode()
    rows = read_rows(run.run_dir / METRICS_FILE)
    assert [r["generation"] for r in rows if r["event"] == "generation"] == ["0", "1", "2"]
    durations = json.loads((run.run_dir / "durations.json").read_text())
    assert durations["supernet/0"] == 2.4
    assert durations["search/0"] > 0


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login, no W&B settings, and a home of its own."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC", "WANDB_DIR", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name in ("HOME", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.mark.usefixtures("offline")
def test_wandb_keeps_a_whole_run_offline_and_says_nothing(
    run: Any, play: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    tracking = WandbTracking(heatmap_every=4)
    play([tracking], run.events())
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    (recorded,) = (run.run_dir / "wandb").glob("offline-run-*")
    assert list(recorded.glob("*.wandb"))
    images = list((recorded / "files" / "media" / "images").rglob("*.png"))
    assert len(images) == 2, "one per four generations; the search's end shows the same allocation"
    assert list((recorded / "files" / "media" / "table").rglob("*.json"))


@pytest.mark.usefixtures("offline")
def test_a_resumed_run_continues_the_same_wandb_run_without_repeating_a_generation(
    run: Any, play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = run.middle()
    cut = [isinstance(e, GenerationFinished) for e in events].index(True) + 2
    first = WandbTracking()
    play([first], [run.started(), *events[:cut]])
    first.on_run_error(KeyboardInterrupt())
    before = json.loads((run.run_dir / "wandb.json").read_text())
    assert before["last"] == [0, 1]

    second = WandbTracking()
    logged: list[dict[str, Any]] = []
    original = WandbTracking._log
    monkeypatch.setattr(
        WandbTracking, "_log", lambda self, m: (logged.append(m), original(self, m))[1]
    )
    time.sleep(1.1)  # W&B names the folder of a part by the second it starts
    play([second], [run.started(resumed=True), *events[cut - 2 :], run.finished()])
    after = json.loads((run.run_dir / "wandb.json").read_text())
    assert after["id"] == before["id"]
    assert after["step"] == before["step"] + len(logged)
    steps = [m["search/step"] for m in logged if "search/step" in m]
    assert steps == [2, 3, 4, 5, 6, 7]
    parts = list((run.run_dir / "wandb").glob(f"offline-run-*-{before['id']}"))
    assert len(parts) == 2


@pytest.mark.usefixtures("offline")
@pytest.mark.usefixtures("offline")
def test_rounds_of_a_start_that_was_interrupted_are_logged_once(
    run: Any, play: Callable[..., None]
) -> None:
    rounds = [StartRound(number, 3, 8, 0.5, 0.4, iteration=0, seconds=0.1) for number in range(3)]
    first = WandbTracking()
    play([first], [run.started(), *rounds[:2]])
    first.on_run_error(KeyboardInterrupt())
    before = json.loads((run.run_dir / "wandb.json").read_text())
    second = WandbTracking()
    time.sleep(1.1)  # W&B names the folder of a part by the second it starts
    play([second], [run.started(resumed=True), *rounds])
    second.on_run_error(KeyboardInterrupt())
    after = json.loads((run.run_dir / "wandb.json").read_text())
    assert before["step"] == 2
    assert after["step"] == 3


def test_losses_that_are_not_finite_do_not_stop_the_tracking(run: Any) -> None:
    from dataclasses import replace

    from tyr.events import StageLosses

    tracking = WandbTracking()
    tracking.on_run_start(run.started())
    stages = (StageLosses(8, (1.0, float("inf"))), StageLosses(8, (float("nan"),)))
    tracking.on_generation_end(replace(run.generation(0, 0), stages=stages))
    tracking.on_run_error(RuntimeError())


def test_a_missing_wandb_is_named_with_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tyr.callbacks.tracking.find_spec", lambda _: None)
    with pytest.raises(TyrError, match="pip install wandb"):
        WandbTracking()


def test_bad_arguments_are_refused_before_a_run_starts() -> None:
    with pytest.raises(ConfigError, match=r"heatmap_every must be at least 1, got 0"):
        WandbTracking(heatmap_every=0)
    with pytest.raises(ConfigError, match="auto, online, offline, disabled"):
        WandbTracking(mode="sometimes")


def test_nothing_heavy_is_imported_before_a_run_starts() -> None:
    code = (
        "import sys, tyr.callbacks as c; c.WandbTracking(); c.SparsityHeatmap(); c.Progress();"
        "print([m for m in ('wandb', 'matplotlib', 'torch', 'rich', 'yaml') if m in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert child.stdout.strip() == "[]"
