from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tyr.errors import ResumeError
from tyr.events import EvaluationRow
from tyr.rundir import INPUTS, RunDirectory, flatten
from tyr.search.archive import Evaluation
from tyr.search.evolution import SearchState
from tyr.sparsity import Allocation, LevelGrid, UnitCounts

CONFIG: dict[str, Any] = {
    "sparsity": 0.5,
    "resume": False,
    "run_dir": "outputs/a",
    "model": {"_target_": "M", "path": "p"},
    "search": {"stages": [[10, 1]], "objective": {"_target_": "O"}},
    "callbacks": {"progress": {"_target_": "P"}},
    "logger": {},
}
UNITS = UnitCounts((4, 4), (24, 24))
GRID = LevelGrid(UNITS, Allocation((2, 2), (12, 12)), {"attn": 1, "ffn": 3})
STATE = SearchState(3, (1, -1, -1, 1), 0.1 + 0.2, (12, 0, 4))
ROW = EvaluationRow(perplexity=12.5, kl=0.1, parameters=10, backbone_parameters=8, bytes=40)


def text(**changes: Any) -> str:
    return yaml.safe_dump({**CONFIG, **changes})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An opened run directory."""
    directory = RunDirectory(tmp_path / "run")
    directory.start(text(), resume=False)
    return directory


def test_a_new_run_writes_its_configuration(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a" / "b")
    assert directory.start(text(), resume=False) is False
    assert yaml.safe_load((directory.path / "config.yaml").read_text()) == CONFIG


def test_resuming_where_nothing_is_begins_a_run(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path / "new").start(text(), resume=True) is False


def test_a_run_is_not_overwritten(run: RunDirectory) -> None:
    with pytest.raises(ResumeError, match="already holds a run: continue it with resume=true"):
        run.start(text(), resume=False)


@pytest.mark.parametrize("left", ["finished.json", "evaluation.json", "iteration-0", "model"])
@pytest.mark.parametrize("resume", [False, True])
def test_results_of_nobody_knows_what_are_not_taken_for_this_runs(
    tmp_path: Path, left: str, resume: bool
) -> None:
    (tmp_path / left).mkdir()
    with pytest.raises(ResumeError, match=rf"holds {left} but no config\.yaml"):
        RunDirectory(tmp_path).start(text(), resume=resume)
    assert not (tmp_path / "config.yaml").exists()


def test_the_same_configuration_continues(run: RunDirectory) -> None:
    before = (run.path / "config.yaml").read_bytes()
    assert run.start(text(), resume=True) is True
    assert (run.path / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"resume": True},
        {"run_dir": "elsewhere"},
        {"callbacks": {}},
        {"callbacks": {"progress": {"_target_": "Q", "every": 2}}},
        {"logger": {"wandb": {"_target_": "W"}}},
        {"model": {**CONFIG["model"], "offload": "disk", "host_state_bytes": 8e9}},
    ],
    ids=str,
)
def test_what_does_not_touch_results_may_change(run: RunDirectory, change: dict[str, Any]) -> None:
    assert run.start(text(**change), resume=True) is True


def test_another_configuration_is_refused_with_every_key_that_differs(run: RunDirectory) -> None:
    changed = text(
        sparsity=0.375,
        model={"_target_": "M", "path": "q"},
        search={"stages": [[10, 1]], "objective": {"_target_": "O", "alpha": 2}},
        callbacks={},
    )
    with pytest.raises(ResumeError) as caught:
        run.start(changed, resume=True)
    message = str(caught.value)
    assert "sparsity: was 0.5, now 0.375" in message
    assert "model.path: was 'p', now 'q'" in message
    assert "search.objective.alpha: was None, now 2" in message
    for same in ("callbacks", "stages", "_target_", "resume:"):
        assert same not in message


def test_a_change_inside_a_list_is_a_change(run: RunDirectory) -> None:
    changed = text(search={"stages": [[10, 2], [20, 1]], "objective": {"_target_": "O"}})
    with pytest.raises(ResumeError, match=r"search\.stages: was \[\[10, 1\]\]"):
        run.start(changed, resume=True)


def test_another_text_is_refused(run: RunDirectory) -> None:
    run.check_input("tokens", "abc")
    run.check_input("tokens", "abc")
    with pytest.raises(ResumeError, match="text is not the one"):
        run.check_input("tokens", "abd")


def test_a_directory_serves_one_process_at_a_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.locked():
        with pytest.raises(ResumeError, match=r"another process works on .*run"), run.locked():
            pytest.fail("a lock was given twice")
        with RunDirectory(tmp_path / "other").locked():
            pass
    with run.locked():
        assert list(run.path.iterdir()) == []


def test_every_input_is_recorded_beside_the_others(run: RunDirectory) -> None:
    for name in INPUTS:
        run.check_input(name, "abc")
    for name in INPUTS:
        run.check_input(name, "abc")
        with pytest.raises(ResumeError, match="was begun"):
            run.check_input(name, "abd")


def test_a_damaged_record_of_the_text_is_written_anew(
    run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    (run.path / "inputs.json").write_text('{"tok')
    with caplog.at_level(logging.WARNING):
        run.check_input("tokens", "abc")
    assert "inputs.json is damaged" in caplog.text
    with pytest.raises(ResumeError):
        run.check_input("tokens", "abd")


@pytest.mark.parametrize("content", ["", "a: [1", "- 1\n- 2\n", "word"])
def test_a_run_whose_configuration_is_damaged_is_not_continued(
    run: RunDirectory, content: str
) -> None:
    (run.path / "config.yaml").write_text(content)
    with pytest.raises(ResumeError, match=r"config\.yaml is damaged.*choose another run_dir"):
        run.start(text(), resume=True)


def test_a_search_state_survives_exactly(run: RunDirectory) -> None:
    run.save_search(1, GRID, STATE)
    assert run.search_state(1, GRID) == STATE
    assert run.search_state(0, GRID) == SearchState(0, (0, 0, 0, 0)), "another iteration"


def test_what_the_options_of_a_search_learned_survives_exactly(run: RunDirectory) -> None:
    one, other = (1, -1, -1, 1), (0, 0, 0, 0)
    learned = (
        Evaluation(one, (12, 0, 4), 0.1 + 0.2),
        Evaluation(other, (12, 0, 4), 1e-17),
        Evaluation(one, (6, 3), 2.5),
    )
    state = replace(STATE, evaluations=learned)
    run.save_search(0, GRID, state)
    assert run.search_state(0, GRID) == state
    content = json.loads((run.path / "iteration-0" / "search.json").read_text())["state"]
    assert content["evaluations"]["candidates"] == ["1 -1 -1 1", "0 0 0 0"], "each once"
    assert content["evaluations"]["samples"] == ["12 0 4", "6 3"]


def test_a_state_without_options_is_written_as_before_there_were_any(run: RunDirectory) -> None:
    run.save_search(0, GRID, STATE)
    content = json.loads((run.path / "iteration-0" / "search.json").read_text())["state"]
    assert content.keys() == {"generation", "parent", "loss", "sample_key"}


def test_an_unsearched_iteration_starts_at_the_centre(run: RunDirectory) -> None:
    start = run.search_state(0, GRID)
    assert start == SearchState(0, (0,) * 4)
    run.save_search(0, GRID, start)
    assert run.search_state(0, GRID) == start, "an infinite loss survives too"


def test_a_search_on_another_grid_does_not_count(run: RunDirectory) -> None:
    run.save_search(0, GRID, STATE)
    finer = LevelGrid(UNITS, GRID.centre, {"attn": 1, "ffn": 2})
    assert run.search_state(0, finer) == SearchState(0, (0,) * 4)


BROKEN = ["", "{", '{"grid": ', "[1]", "null", '"text"', "\x00"]


def test_no_flipped_bit_of_a_search_passes_for_where_it_stood(run: RunDirectory) -> None:
    run.save_search(0, GRID, STATE)
    path = run.path / "iteration-0" / "search.json"
    whole = path.read_bytes()
    start = run.search_state(1, GRID)
    found = []
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        found.append(run.search_state(0, GRID))
    assert all(state in (STATE, start) for state in found)
    assert found.count(STATE) < 0.01 * len(found), "digits that no float64 holds"


@pytest.mark.parametrize("content", BROKEN)
def test_a_damaged_search_starts_that_search_again_and_nothing_else(
    run: RunDirectory, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    run.save_search(0, GRID, STATE)
    run.save_search(1, GRID, STATE)
    run.save_evaluation("dense", ROW)
    (run.path / "iteration-1" / "search.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert run.search_state(1, GRID) == SearchState(0, (0,) * 4)
    assert "iteration-1/search.json is damaged: what it recorded will be done again" in caplog.text
    assert run.search_state(0, GRID) == STATE
    assert run.evaluations() == {"dense": ROW}


def test_a_search_record_with_parts_missing_is_damaged(
    run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    states: list[Any] = [{}, {"generation": 1}, [], None]
    for state in states:
        path = run.path / "iteration-0" / "search.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"grid": GRID.as_dict(), "state": state}))
        with caplog.at_level(logging.WARNING):
            assert run.search_state(0, GRID) == SearchState(0, (0,) * 4)
    assert caplog.text.count("is damaged") == 4


@pytest.mark.parametrize("content", [*BROKEN, '{"dense": {"perplexity": 1}}', '{"dense": 3}'])
def test_damaged_evaluations_are_measured_again_and_nothing_else(
    run: RunDirectory, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    run.save_search(0, GRID, STATE)
    run.save_evaluation("dense", ROW)
    (run.path / "evaluation.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert run.evaluations() == {}
    assert "evaluation.json is damaged" in caplog.text
    assert run.search_state(0, GRID) == STATE
    run.save_evaluation("tyr", ROW)
    assert run.evaluations() == {"tyr": ROW}


def test_evaluations_are_collected_by_name(run: RunDirectory) -> None:
    assert run.evaluations() == {}
    run.save_evaluation("dense", ROW)
    run.save_evaluation("tyr", ROW)
    assert list(run.evaluations()) == ["dense", "tyr"]


def folders(run: RunDirectory) -> list[str]:
    return sorted(str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_dir())


def finished_run(run: RunDirectory) -> None:
    for iteration in (0, 1):
        run.supernet(iteration).mkdir(parents=True)
        run.save_search(iteration, GRID, STATE)
    for name in ("finish", "uniform", "model"):
        (run.path / name).mkdir()


def test_earlier_supernets_are_dropped_and_their_searches_kept(run: RunDirectory) -> None:
    finished_run(run)
    run.drop_supernets(before=1)
    assert not run.supernet(0).exists()
    assert run.supernet(1).exists()
    assert run.search_state(0, GRID) == STATE


@pytest.mark.parametrize(
    ("keep", "supernets"), [("last", [0, 1]), ("all", [0, 1]), ("none", [])], ids=str
)
def test_a_finished_run_leaves_the_model_and_the_supernets_to_keep(
    run: RunDirectory, keep: str, supernets: list[int]
) -> None:
    finished_run(run)
    allocation = Allocation((1, 3), (10, 14))
    assert run.finished_allocation() is None
    run.finish(allocation)
    run.tidy(keep=keep)
    assert run.finished_allocation() == allocation
    assert [i for i in (0, 1) if run.supernet(i).exists()] == supernets
    assert "finish" not in folders(run)
    assert "uniform" not in folders(run)
    assert "model" in folders(run)


def test_nested_settings_are_named_with_dots() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": None}) == {
        "a.b.c": 1,
        "a.d": [1, {"e": 2}],
        "f": None,
    }
