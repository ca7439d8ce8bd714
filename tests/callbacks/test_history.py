"""History is the same whether events came live or from metrics.csv."""

from collections.abc import Callable
from typing import Any

from tyr.callbacks import CsvMetrics
from tyr.callbacks.history import History
from tyr.callbacks.metrics_file import METRICS_FILE, read_rows
from tyr.events import GenerationFinished, SublayerPruned

RECORDED = (GenerationFinished, SublayerPruned)


def live(events: list[Any]) -> History:
    history = History()
    for event in events:
        if isinstance(event, RECORDED):
            history.record(event)
    return history


def test_history_read_from_the_file_equals_the_live_one(
    run: Any, play: Callable[..., None]
) -> None:
    play([CsvMetrics()], run.events())
    assert History.begin(run.started(resumed=True)) == live(run.events())
    assert History.from_rows(read_rows(run.run_dir / METRICS_FILE)) == live(run.events())


def test_history_holds_what_the_figures_need(run: Any) -> None:
    history = live(run.events())
    assert sorted(history.generations) == [(t, g) for t in range(2) for g in range(4)]
    assert history.searched == {t: run.allocation(t, 3) for t in range(2)}
    assert len(history.errors[1]) == 24
    assert sorted(history.errors[1]["003.ffn"]) == list(range(-4, 5))
    assert sorted(history.errors) == [0, 1], "a finishing pass is no iteration"


def test_a_new_run_starts_with_no_history(run: Any, play: Callable[..., None]) -> None:
    play([CsvMetrics()], run.events())
    assert History.begin(run.started()) == History()


def test_a_sublayer_read_back_does_not_erase_its_errors(
    run: Any, read_back: Callable[[object], object]
) -> None:
    events = run.events()
    again = [read_back(event) for event in events]
    assert live([*events, *again]).errors == live(events).errors
