"""report.html: one self-contained page about a finished run.

Figures are those that lie in run_dir/figures (so `SparsityHeatmap` belongs before this callback),
embedded; nothing is loaded from anywhere. The page states the outcome as `results.verdict` computes
it, also when tyr lost to uniform pruning.
"""

from __future__ import annotations

import json
from pathlib import Path
from string import Template

from tyr.callbacks import markup, report_sections
from tyr.callbacks.clock import recorded_seconds
from tyr.callbacks.history import History
from tyr.callbacks.planned import read_plan
from tyr.callbacks.results import verdict
from tyr.events import Callback, GenerationFinished, RunFinished, RunStarted
from tyr.files import write_text

REPORT_FILE = "report.html"
TEMPLATE_PATH = Path(__file__).with_name("report.html.template")


class HtmlReport(Callback):
    """Writes run_dir/report.html when the run ends."""

    def __init__(self) -> None:
        self._start: RunStarted | None = None
        self._history = History()

    def on_run_start(self, event: RunStarted) -> None:
        self._start = event
        self._history = History.begin(event)

    def on_generation_end(self, event: GenerationFinished) -> None:
        self._history.record(event)

    def on_run_end(self, event: RunFinished) -> None:
        assert self._start is not None, "on_run_start comes first"
        page = render(self._start, event, self._history)
        write_text(Path(event.run_dir) / REPORT_FILE, page)


def render(start: RunStarted, end: RunFinished, history: History) -> str:
    """The whole page.

    Args:
        start: how the run began.
        end: how it ended.
        history: the generations of its search.
    """
    run_dir = Path(end.run_dir)
    seconds = recorded_seconds(run_dir) or dict(end.seconds)
    headline = f"{start.model_name} at {100 * start.sparsity:g} % sparsity"
    rounds = f"iterations of prune and search: {start.iterations or 'none'}"
    about = f"{start.units.num_blocks} decoder blocks, {rounds}"
    return Template(TEMPLATE_PATH.read_text("utf-8")).substitute(
        title=markup.text(f"tyr: {headline}"),
        headline=markup.text(headline),
        about=markup.text(about),
        verdict=markup.text(verdict(end.rows, searched=end.allocation != end.uniform)),
        results=report_sections.results(end.rows),
        results_note=markup.text(report_sections.results_note(end.allocation, end.uniform)),
        figures=report_sections.figures(run_dir),
        search=report_sections.search(history.generations),
        allocation=report_sections.allocation(end.allocation, end.units),
        times=report_sections.times(seconds, read_plan(run_dir), peak_rss_bytes=end.peak_rss_bytes),
        command=markup.text(start.command),
        config=markup.text(_yaml(start.config)),
        environment=report_sections.environment(start.environment),
        files=report_sections.files(run_dir, end.export_dir),
    )


def _yaml(config: object) -> str:
    import yaml

    plain = json.loads(json.dumps(config, default=str))  # paths and the like become text
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
