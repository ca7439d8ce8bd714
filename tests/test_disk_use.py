"""What is counted to be on disk against what runs leave there at their worst moments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.supernet.building import Build
from tests.test_pipeline import Runner, make_method, run, source
from tests.tiny import random_tokens, tiny_decoder
from tyr import events
from tyr.disk_use import DiskUse, most_on_disk, supernet_bytes
from tyr.export.checkpoint import NoExport
from tyr.launch import PLAN_FILE
from tyr.planner import shape_of
from tyr.supernet.accumulation import ExpectationAccumulation
from tyr.supernet.builder import supernet_bytes as decoder_supernet_bytes
from tyr.supernet.finish import FromSupernet
from tyr.supernet.settings import SupernetSettings

__all__ = ["run", "source"]  # fixtures


def tensor_bytes(folder: Path) -> int:
    """Bytes of the tensors in all safetensors files, without headers."""
    total = 0
    for file in folder.rglob("*.safetensors"):
        content = file.read_bytes()
        total += len(content) - 8 - int.from_bytes(content[:8], "little")
    return total


class Watch(events.Callback):
    """Looks at the disk whenever the run says something."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.most = 0

    def on_stage_start(self, event: events.StageStarted) -> None:
        self._look()

    def on_evaluation_end(self, event: events.EvaluationFinished) -> None:
        self._look()

    def on_stage_end(self, event: events.StageFinished) -> None:
        self._look()

    def _look(self) -> None:
        self.most = max(self.most, tensor_bytes(self._folder))


@pytest.mark.parametrize("unit", ["head", "kv_group"])
def test_a_supernet_has_the_bytes_that_were_counted(unit: Any, tmp_path: Path) -> None:
    decoder = tiny_decoder(attention_unit=unit)
    build = Build(decoder, random_tokens(4, 8), tmp_path, interval=0.25, attention_unit=unit)
    build.run()
    counted = supernet_bytes(shape_of(decoder.config), build.grid, 4)
    assert counted == decoder_supernet_bytes(decoder, build.grid) == tensor_bytes(tmp_path)


@pytest.mark.parametrize(
    ("changes", "moment"),
    [
        ({"exporter": NoExport()}, "while supernet 2 is built beside the one before it"),
        (
            {"supernet": SupernetSettings(ExpectationAccumulation(), keep="all")},
            "while the pruned model is exported",
        ),
        pytest.param(
            {"iterations": 0, "exporter": NoExport()},
            "while the pruned models are evaluated",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"iterations": 1, "finish": FromSupernet(compare=False)},
            "while the pruned model is exported",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_never_has_more_on_disk_than_was_planned(
    changes: dict[str, Any], moment: str, run: Runner, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    watch = Watch(folder)
    run(folder, make_method(**changes), callbacks=watch)
    plan = json.loads((folder / PLAN_FILE).read_text())
    assert plan["disk_moment"] == moment
    # Norms and embeddings of the export, and levels that a moved centre gains or loses.
    assert watch.most == pytest.approx(plan["disk_bytes"], rel=0.05)


def test_hidden_states_in_files_count_while_they_are_there() -> None:
    def most(**states: float) -> DiskUse:
        return most_on_disk([90, 80], 10, prunings=2, keep="last", exported=20, states=states)

    assert most() == DiskUse(170, "while supernet 2 is built beside the one before it")
    assert most(supernet=1000).bytes == 1170
    assert most(search=1000) == DiskUse(1090, "while supernet 1 is searched")
    assert most(evaluation=1000) == DiskUse(1100, "while the pruned models are evaluated")


def test_supernets_that_are_kept_add_up() -> None:
    kept = most_on_disk([50, 50, 50], 1, prunings=2, keep="all", exported=1, states={})
    assert kept.bytes == 153
    built = most_on_disk([50, 50, 60], 0, prunings=0, keep="all", exported=0, states={})
    assert built == DiskUse(160, "while supernet 3 is built beside those before it")
