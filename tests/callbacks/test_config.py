"""Every YAML of the callbacks and logger groups builds its objects."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from tyr.callbacks import CsvMetrics, HtmlReport, Progress, SparsityHeatmap, WandbTracking
from tyr.events import Callback

CONF = Path(__file__).parents[2] / "conf"
CHOICES = sorted(
    (group, path.stem)
    for group in ("callbacks", "logger")
    for path in (CONF / group).glob("*.yaml")
)


def build(group: str, choice: str) -> dict[str, Callback]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+{group}={choice}"])
    return {name: instantiate(node) for name, node in (config.get(group) or {}).items()}


def test_there_are_choices_to_test() -> None:
    assert {"default", "none", "quiet"} <= {c for g, c in CHOICES if g == "callbacks"}
    assert {"csv", "wandb", "csv_wandb", "none"} <= {c for g, c in CHOICES if g == "logger"}


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_a_choice_builds_callbacks(group: str, choice: str) -> None:
    built = build(group, choice)
    assert all(isinstance(callback, Callback) for callback in built.values())
    assert bool(built) == (choice != "none")


def test_the_default_logger_is_csv_then_wandb() -> None:
    built = list(build("logger", "csv_wandb").values())
    assert [type(callback) for callback in built] == [CsvMetrics, WandbTracking]


def test_figures_come_before_the_report_and_progress_is_last() -> None:
    order = [type(callback) for callback in build("callbacks", "default").values()]
    assert order.index(SparsityHeatmap) < order.index(HtmlReport)
    assert order[-1] is Progress


def test_quiet_is_the_default_without_its_voice() -> None:
    default, quiet = build("callbacks", "default"), build("callbacks", "quiet")
    assert set(default) - set(quiet) == {"progress"}
