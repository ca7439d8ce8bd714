"""report.html is self-contained, escaped, and says what happened."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from tyr.callbacks import CsvMetrics, HtmlReport, SparsityHeatmap, Summary, figure_style

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Balanced(HTMLParser):
    """Fails on a tag that closes what is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(run: Any) -> str:
    text: str = (run.run_dir / "report.html").read_text("utf-8")
    return text


def parse(text: str) -> Balanced:
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_the_report_holds_table_figures_and_command(
    run: Any, play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure_style, "FORMATS", ["svg"])  # what the page embeds
    play([CsvMetrics(), Summary(), SparsityHeatmap(), HtmlReport()], run.events())
    text = page(run)
    assert "tyr beats uniform pruning: its perplexity is 20 % lower" in text
    assert text.count("data:image/svg+xml;base64,") == 4
    assert "<td>1.88x</td>" in text
    assert "python -m tyr.run model=stories sparsity=0.5 &#x27;note=&lt;&amp;&gt;&#x27;" in text
    assert "path: a &amp; b" in text
    assert "<td>packages: numpy</td><td>2</td>" in text
    assert "the same number of units" in text
    assert "<td>1 of 8</td>" in text or "<td>2 of 8</td>" in text

    check_it_is_self_contained_and_escaped(text)


def check_it_is_self_contained_and_escaped(text: str) -> None:
    parser = parse(text)
    assert len(parser.sources) > 4
    assert all(not re.match(r"(https?:)?//", source) for source in parser.sources)
    assert "<script" not in text
    assert "stories<12>" not in text
    assert "stories&lt;12&gt;" in text
    assert "@import" not in text


def test_the_report_of_a_lost_race_says_so(run: Any, play: Callable[..., None]) -> None:
    rows = {**run.rows, "tyr": replace(run.rows["tyr"], perplexity=30.0, kl=1.0)}
    play([HtmlReport()], [run.started(), replace(run.finished(), rows=rows)])
    assert "tyr does not beat uniform pruning: its perplexity is 50 % higher" in page(run)


def test_unequal_budgets_are_not_called_equal(run: Any, play: Callable[..., None]) -> None:
    more = replace(run.finished(), allocation=run.units)
    play([HtmlReport()], [run.started(), more])
    assert "different numbers of units" in page(run)


def test_a_report_without_search_figures_or_rows_is_still_a_page(
    run: Any, play: Callable[..., None]
) -> None:
    run = replace(run, iterations=0)
    end = replace(run.finished(), rows={}, allocation=run.uniform, export_dir=None, seconds={})
    play([HtmlReport()], [run.started(), end])
    parse(page(run))
    assert "<h2>Search</h2>" not in page(run)
    assert "The pruned model was not evaluated." in page(run)


def test_a_resumed_report_tables_the_generations_before(
    run: Any, play: Callable[..., None]
) -> None:
    play([CsvMetrics()], [run.started(), *run.middle()])
    play([CsvMetrics(), HtmlReport()], [run.started(resumed=True), run.finished()])
    assert "<td>1</td><td>4</td><td>1.3333</td><td>0.4</td>" in page(run)


def test_configuration_values_that_yaml_does_not_know_become_text(
    run: Any, play: Callable[..., None]
) -> None:
    start = replace(run.started(), config={"dir": run.run_dir, "sizes": (1, 2)})
    play([HtmlReport()], [start, run.finished()])
    assert f"dir: {run.run_dir}" in page(run)
