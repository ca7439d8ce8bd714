"""Algorithm 4 in two processes: the result of one, and continuing with another number of them.

The processes are forked with the environment that torchrun gives, and join through Fabric.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.ranks import as_torchrun, results
from tests.test_pipeline import Killed, Runner, StopAt, make_method, run, source
from tests.tolerance import assert_close
from tyr import events
from tyr.errors import ProcessError, ResumeError
from tyr.pipeline import Method
from tyr.search.evolution import EvolutionarySearch
from tyr.search.objective import KdHidden, KdLogits, Reference
from tyr.supernet.accumulation import ExpectationAccumulation
from tyr.supernet.settings import SupernetSettings

__all__ = ["run", "source"]  # fixtures

# Calibration batches are shared whole, so Hessians are float64 sums of the same float32 products,
# added in another order (1e-16), and the same units go. Weights are stored in float32.
WEIGHTS = 1e-6
WEIGHTS_REASON = "stored in float32"
# Losses are means over half the sequences each, whose float32 forwards run in other batches.
LOSSES = 1e-5
LOSSES_REASON = "float32 forwards in batches of another size"


def method(**changes: Any) -> Method:
    """Four calibration batches, so that two processes share them evenly."""
    settings = SupernetSettings(ExpectationAccumulation(), batch_tokens=64)
    return make_method(**{"supernet": settings, **changes})


class Listener(events.Callback):
    """Writes down who was told of what."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def on_evaluation_end(self, event: events.EvaluationFinished) -> None:
        with (self.folder / str(os.getpid())).open("a") as stream:
            stream.write(f"{event.name}\n")


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every exported weight."""
    files = sorted((folder / "model").glob("*.safetensors"))
    assert files
    return {name: values for file in files for name, values in load_file(file).items()}


def assert_same_result(folder: Path, expected: Path) -> None:
    """The same allocation and, within the tolerances above, weights and losses."""
    allocations = [json.loads((f / "finished.json").read_text()) for f in (folder, expected)]
    assert allocations[0] == allocations[1]
    found, weights = tensors(folder), tensors(expected)
    assert found.keys() == weights.keys()
    for name, values in weights.items():
        assert_close(found[name], values, tolerance=WEIGHTS, reason=WEIGHTS_REASON)
    files = [folder / "evaluation.json", expected / "evaluation.json"]
    rows = [json.loads(file.read_text())["rows"] for file in files]
    assert rows[0].keys() == rows[1].keys()
    for name, row in rows[1].items():
        for key in ("perplexity", "kl"):
            assert_close(rows[0][name][key], row[key], tolerance=LOSSES, reason=LOSSES_REASON)


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(KdLogits(), id="kd_logits"),
        pytest.param(KdHidden(), id="kd_hidden", marks=pytest.mark.slow),
    ],
)
def test_two_processes_end_with_the_result_of_one(
    objective: Any, run: Runner, tmp_path: Path
) -> None:
    search = EvolutionarySearch(objective, generations=2, offspring=4, stages=[[32, 2], [64, 1]])
    chosen = method(search=search)
    run(tmp_path / "one", chosen)
    listener = Listener(tmp_path / "heard")
    first, second = results(as_torchrun(lambda: run(tmp_path / "two", chosen, callbacks=listener)))
    assert first == second
    assert_same_result(tmp_path / "two", tmp_path / "one")
    [heard] = (tmp_path / "heard").iterdir()
    assert heard.read_text().split() == ["dense", "tyr", "uniform", "tyr_supernet"]
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2


def start(count: int, work: Any) -> Sequence[Any]:
    """Outcomes of `work` in one process, this one, or in several."""
    if count > 1:
        return as_torchrun(work, count)
    try:
        return [work()]
    except Killed as error:
        return [error]


@pytest.mark.slow
@pytest.mark.parametrize("countdown", [25, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("begin", "end"), [(2, 1), (1, 2)])
def test_a_run_that_died_is_continued_by_another_number_of_processes(
    begin: int, end: int, countdown: int, run: Runner, tmp_path: Path
) -> None:
    run(tmp_path / "whole", method())
    path = tmp_path / "run"
    outcomes = start(begin, lambda: run(path, method(), callbacks=StopAt(countdown)))
    assert isinstance(outcomes[0], Killed)
    assert all(isinstance(other, ProcessError) for other in outcomes[1:])
    assert not (path / "finished.json").exists()
    results(start(end, lambda: run(path, method(), resume=True)))
    assert_same_result(path, tmp_path / "whole")


def test_a_refused_run_directory_stops_every_process(run: Runner, tmp_path: Path) -> None:
    run(tmp_path / "run", method(iterations=0))
    first, second = as_torchrun(lambda: run(tmp_path / "run", method()))
    assert isinstance(first, ResumeError)
    assert isinstance(second, ProcessError)
    assert second.told, "only the first process speaks"


class FailsInTheSecond(KdLogits):
    """An objective with a fault that one process meets."""

    def final_losses(
        self, states: Sequence[Tensor], reference: Reference, head: Tensor
    ) -> list[float]:
        if os.environ.get("RANK") == "1":
            raise ZeroDivisionError
        return super().final_losses(states, reference, head)


def test_a_fault_of_one_process_stops_the_other(run: Runner, tmp_path: Path) -> None:
    search = EvolutionarySearch(
        FailsInTheSecond(), generations=2, offspring=4, stages=[[32, 2], [64, 1]]
    )
    first, second = as_torchrun(lambda: run(tmp_path / "run", method(search=search)))
    assert isinstance(first, ProcessError)
    assert isinstance(second, ZeroDivisionError)
