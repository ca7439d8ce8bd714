"""allocation.json is current after every search."""

import json
from collections.abc import Callable
from typing import Any

from tyr.callbacks import Checkpoint
from tyr.events import SearchFinished
from tyr.sparsity import Allocation


def read(run: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.run_dir / "allocation.json").read_text())
    return content


def test_the_allocation_is_written_after_each_search_and_at_the_end(run: Any) -> None:
    checkpoint = Checkpoint()
    checkpoint.on_run_start(run.started())
    checkpoint.on_search_end(SearchFinished(0, run.allocation(0, 3), 0.3))
    content = read(run)
    assert (content["iteration"], content["loss"], content["final"]) == (0, 0.3, False)
    assert Allocation.from_dict(content["removed"]) == run.allocation(0, 3)
    assert content["sparsity"]["ffn"] == [r / 448 for r in run.allocation(0, 3).ffn]
    assert content["units"] == run.units.as_dict()

    checkpoint.on_run_end(run.finished())
    assert read(run)["final"] is True
    assert Allocation.from_dict(read(run)["removed"]) == run.allocation(1, 3)


def test_a_run_resumed_after_its_search_keeps_the_loss(run: Any, play: Callable[..., None]) -> None:
    play([Checkpoint()], [run.started(), *run.middle()])
    play([Checkpoint()], [run.started(resumed=True), run.finished()])
    assert (read(run)["iteration"], read(run)["loss"], read(run)["final"]) == (1, 0.15, True)
