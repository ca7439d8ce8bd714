"""The console: plain lines in a log, a live board on a terminal, the table at the end."""

import io
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from tyr.callbacks import Progress
from tyr.errors import ConfigError
from tyr.events import StageFinished, StageStarted, StartRound, SublayerPruned

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def console(*, terminal: bool, width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=40, highlight=False,
        legacy_windows=False, _environ={"TERM": "xterm"},
    )  # fmt: skip


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_gets_a_few_plain_lines_per_stage(run: Any, play: Callable[..., None]) -> None:
    run = replace(run, generations=50)
    target = console(terminal=False)
    play([Progress(console=target)], run.events())
    text = output(target)
    assert "\x1b" not in text
    assert "iteration 2/2, search, 50 generations" in text
    assert "iteration 2/2, search: done in 1.0 s" in text
    assert "  50/50  best loss" in text
    assert len(text.splitlines()) < 60, "hundreds of steps must not become hundreds of lines"


START = StartRound(
    iteration=0, round=1, rounds=3, changes=64, parent_loss=0.5, best_loss=0.25, seconds=60.0
)


def test_a_computed_start_is_told_of_round_by_round(run: Any, play: Callable[..., None]) -> None:
    target = console(terminal=False)
    search = [StageStarted("search", 4, 0), START, replace(START, round=0, rounds=1)]
    play([Progress(console=target)], [run.started(), *search])
    assert "  start, round 2/3: 64 changes measured, loss 0.5 to 0.25\n" in output(target)
    assert "  start: 64 changes measured, loss 0.5 to 0.25\n" in output(target)


def test_the_rest_of_a_search_is_not_expected_to_take_as_long_as_its_start(
    run: Any, play: Callable[..., None]
) -> None:
    progress = Progress(console=console(terminal=False))
    first = replace(run.generation(0, 0), seconds=62.0)
    play([progress], [run.started(), StageStarted("search", run.generations, 0), START, first])
    assert progress._plan._mean("search") == 2.0


def test_lines_per_stage_counts_the_step_lines(run: Any, play: Callable[..., None]) -> None:
    for wanted in (0, 2, 4):
        target = console(terminal=False)
        play([Progress(wanted, console=target)], [run.started(), *run.middle()])
        steps = re.findall(r"^\[.*\]   \d+/24 ", output(target), flags=re.MULTILINE)
        assert len(steps) == 3 * wanted  # two supernets and the finishing pass


def test_the_table_fits_eighty_columns_and_names_the_files(
    run: Any, play: Callable[..., None]
) -> None:
    run.run_dir.mkdir(parents=True)
    (run.run_dir / "report.html").write_text("")
    (run.run_dir / "model.gguf").write_text("")
    target = console(terminal=False, width=80)
    play([Progress(console=target)], run.events())
    end = output(target).split("\n\n", 1)[1]
    assert re.search(r"^tyr +16\.00 +1\.88x +0\.7000 +82\.0 M +0\.63x +164 +0\.63x", end, re.M)
    assert all(len(line) <= 80 for line in end.split("\n  model")[0].splitlines())
    assert "tyr beats uniform pruning" in end
    assert "report.html" in end
    assert re.search(r"^  gguf +\S*model\.gguf$", end, re.M)
    assert "metrics.csv" not in end, "only files that exist are named"


def test_a_terminal_gets_a_board_with_every_stage(run: Any, play: Callable[..., None]) -> None:
    target = console(terminal=True)
    play([Progress(console=target)], run.events())
    text = output(target)
    assert "\x1b[?25l" in text, "the cursor hides while the board is live"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "and comes back"
    plain = ESCAPES.sub("", text)
    for stage in ("dense evaluation", "iteration 1/2, prune to supernet", "iteration 2/2, search"):
        assert f"✓ {stage}" in plain
    assert "tyr beats uniform pruning" in plain


def test_an_error_closes_the_board_and_gives_the_log_handlers_back(
    run: Any, play: Callable[..., None]
) -> None:
    handler = logging.StreamHandler(sys.stdout)
    logging.getLogger().addHandler(handler)
    try:
        progress, target = Progress(console=console(terminal=True)), sys.stdout
        play([progress], [run.started(), *run.middle()[:10]])
        assert handler.stream is not target, "log lines go above the board"
        progress.on_run_error(KeyboardInterrupt())
        assert handler.stream is target
        assert sys.stdout is target
        progress.on_run_error(KeyboardInterrupt())  # twice does no harm
    finally:
        logging.getLogger().removeHandler(handler)


def test_an_error_before_the_start_is_survived() -> None:
    Progress(console=console(terminal=True)).on_run_error(RuntimeError())


def test_a_resumed_run_says_so(
    run: Any, play: Callable[..., None], read_back: Callable[[object], object]
) -> None:
    target = console(terminal=False)
    events = [read_back(e) if isinstance(e, SublayerPruned) else e for e in run.middle()]
    play([Progress(console=target)], [run.started(resumed=True), *events, run.finished()])
    assert "2 iterations, continued" in output(target)


def test_an_evaluation_that_prunes_counts_models_not_sublayers(
    run: Any, play: Callable[..., None]
) -> None:
    target = console(terminal=False)
    pruned = [event for event in run.middle() if isinstance(event, SublayerPruned)][:24]
    evaluation = [StageStarted("evaluation", 3), *pruned, StageFinished("evaluation", 1.0)]
    play([Progress(console=target)], [run.started(), *evaluation])
    assert "/3" not in output(target)


def test_model_names_with_brackets_are_printed_not_interpreted(
    run: Any, play: Callable[..., None]
) -> None:
    target = console(terminal=False)
    play([Progress(console=target)], [replace(run.started(), model_name="[bold]x[/nothing]")])
    assert "[bold]x[/nothing]" in output(target)


def test_a_negative_number_of_lines_is_refused() -> None:
    with pytest.raises(ConfigError, match="lines_per_stage must be at least 0, got -1"):
        Progress(-1)
