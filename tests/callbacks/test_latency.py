"""latency.csv and its figure hold what the evaluator measured, and are absent otherwise."""

import csv
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.test_config import composed
from tyr.callbacks import HtmlReport, LatencyTable
from tyr.callbacks.latency import draw_latency
from tyr.evaluate.latency import COLUMNS


def measured(model: str, *, batch: int, ttft: float) -> dict[str, Any]:
    numbers = {
        "ttft_seconds": ttft,
        "ttft_seconds_low": 0.9 * ttft,
        "ttft_seconds_high": 1.2 * ttft,
        "decode_tokens_per_second": 40 / ttft,
        "decode_tokens_per_second_low": 35 / ttft,
        "decode_tokens_per_second_high": 50 / ttft,
    }
    workload = {"input_tokens": 128, "output_tokens": 32, "batch": batch}
    rest = dict.fromkeys(set(COLUMNS) - numbers.keys() - workload.keys())
    return {**rest, **workload, **numbers, "model": model, "engine": "eager", "repeats": 5}


def with_latency(run: Any) -> Any:
    pair = [measured(name, batch=b, ttft=b) for b in (1, 4) for name in ("dense", "pruned")]
    rows = {name: replace(row, latency=pair) for name, row in run.rows.items()}
    rows["dense"] = replace(rows["dense"], latency=pair[::2])
    return replace(run, rows=rows)


def test_every_row_of_the_final_table_is_in_the_csv(run: Any, play: Callable[..., None]) -> None:
    run = with_latency(run)
    play([LatencyTable()], run.events())
    rows = list(csv.DictReader((run.run_dir / "latency.csv").open()))
    names = list(dict.fromkeys(row["model"] for row in rows))
    assert names == [
        "dense",
        *("dense beside uniform", "uniform", "dense beside tyr", "tyr"),
        *("dense beside tyr_supernet", "tyr_supernet"),
    ]
    assert [row["batch"] for row in rows if row["model"] == "tyr"] == ["1", "4"]
    assert float(rows[0]["ttft_seconds"]) == 1.0
    drawn = {path.name for path in (run.run_dir / "figures").iterdir()}
    assert drawn == {"latency.png", "latency.svg"}


def test_the_report_shows_the_figure_and_links_the_numbers(
    run: Any, play: Callable[..., None]
) -> None:
    run = with_latency(run)
    order = list(composed("evaluator=latency").callbacks)
    assert order.index("latency") < order.index("report"), "the report embeds what is drawn"
    play([LatencyTable(), HtmlReport()], run.events())
    page = (run.run_dir / "report.html").read_text("utf-8")
    assert "How fast the model runs" in page
    assert 'href="latency.csv"' in page


def test_a_run_without_latency_writes_nothing(run: Any, play: Callable[..., None]) -> None:
    play([LatencyTable()], run.events())
    assert not (run.run_dir / "latency.csv").exists()
    assert not (run.run_dir / "figures").exists()


def test_the_figure_states_how_many_times_faster_the_pruned_model_is() -> None:
    dense = [measured("dense", batch=1, ttft=3.0)]
    pruned = [measured("pruned", batch=1, ttft=2.0)]
    left, right = draw_latency(dense, pruned).axes
    assert [text.get_text() for text in left.texts] == [" 1.50x"]
    assert [text.get_text() for text in right.texts] == [" 1.50x"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["128+32, batch 1"]
