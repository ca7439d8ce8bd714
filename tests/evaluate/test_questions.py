"""What is asked is what was named; lm-eval's own tasks are stood in for by generated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.evaluate.task_files import write_task_files
from tests.model_zoo import zoo_decoder
from tests.test_config import composed
from tyr.errors import ConfigError, DataError
from tyr.evaluate import harness, questions
from tyr.evaluate.harness import Harness, tasks_in
from tyr.evaluate.local_tasks import choose_tasks, find_tasks, write_tasks
from tyr.evaluate.questions import PAPER, FileTasks, HubTasks

pytest.importorskip("lm_eval", reason="extra: eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def stand_in(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated tasks in the place of lm-eval's own."""
    found = find_tasks(folder)
    write_tasks(choose_tasks(found, None), found, tmp_path)
    monkeypatch.setattr(questions, "own_tasks", lambda: tasks_in(tmp_path))


def prompts(tasks: Any, name: str) -> list[str]:
    task = tasks["tasks"][name]
    task.build_all_requests(limit=3, rank=0, world_size=1)
    return [asked.args[0] for asked in task.instances]


def test_the_paper_in_the_code_is_the_paper_in_the_configuration() -> None:
    config = composed("evaluator=lm_eval").evaluator
    assert {name: config.shots.get(name, 0) for name in config.tasks} == PAPER


@pytest.mark.usefixtures("stand_in")
def test_a_task_gets_its_own_number_of_examples() -> None:
    with HubTasks(["arc_easy", "openbookqa"], {"openbookqa": 2}).load() as tasks:
        assert all(prompt.count("Answer:") == 1 for prompt in prompts(tasks, "arc_easy"))
        assert all(prompt.count("\n\n") == 2 for prompt in prompts(tasks, "openbookqa"))


@pytest.mark.usefixtures("stand_in")
def test_a_group_passes_its_examples_on_and_is_scored_as_one(folder: Path) -> None:
    decoder = zoo_decoder("llama")
    hub = HubTasks(["arc_easy", "blimp"], {"blimp": 1})
    with hub.load() as tasks:
        parts = [tasks["tasks"][f"blimp_{name}"] for name in ("agreement", "islands")]
        assert {part.get_config("num_fewshot") for part in parts} == {1}
    scores = Harness(hub, limit=4).scores(decoder.model, decoder.tokenizer)
    assert {name: score.examples for name, score in scores.items()} == {"arc_easy": 4, "blimp": 8}
    alone = Harness(FileTasks(folder, ["arc_easy"]), limit=4)
    assert scores["arc_easy"] == alone.scores(decoder.model, decoder.tokenizer)["arc_easy"]


@pytest.mark.usefixtures("stand_in")
def test_tasks_are_fetched_once_for_all_models() -> None:
    hub = HubTasks(["arc_easy"], {})
    with hub.load() as first, hub.load() as second:
        assert first["tasks"]["arc_easy"] is second["tasks"]["arc_easy"]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("names", "shots", "message"),
    [
        (["arc_esay"], {}, r"task arc_esay is unknown \(did you mean arc_easy\?\); .* lists the"),
        (["arc_easy"], {"blimpp": 1}, r"task blimpp is unknown \(did you mean blimp\?\)"),
        (["arc_easy"], {"arc_easy": -1}, r"shots.arc_easy must not be negative"),
        ([], {}, r"tasks is empty; name at least one"),
        ("arc_easy", {}, r"must be a list: write evaluator.tasks=\[arc_easy\]"),
    ],
)
def test_a_wrong_name_is_refused(names: Any, shots: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HubTasks(names, shots)


@pytest.mark.usefixtures("stand_in")
def test_a_task_inside_a_group_that_is_asked_for_too_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="task blimp_islands is asked for twice"),
        HubTasks(["blimp", "blimp_islands"], {}).load(),
    ):
        pass


def test_names_of_files_are_checked_alike(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a list: write evaluator.tasks=\[blimp\]"):
        FileTasks(folder, "blimp")
    with pytest.raises(ConfigError, match="tasks is empty"):
        FileTasks(folder, [])


def test_a_dataset_that_is_not_there_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {
        "task": "gone",
        "dataset_path": str(tmp_path / "nowhere"),
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "query",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
    }
    (tmp_path / "gone.yaml").write_text(yaml.safe_dump(task))
    monkeypatch.setattr(questions, "own_tasks", lambda: tasks_in(tmp_path))
    with (
        pytest.raises(DataError, match=r"task gone cannot be loaded: .*evaluator=lm_eval_local"),
        HubTasks(["gone"], {}).load(),
    ):
        pass


@pytest.mark.slow
def test_lm_eval_knows_the_papers_tasks_and_near_matches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = HubTasks()
    assert hub.names == tuple(PAPER)
    assert "mmlu" in harness.own_tasks().all_groups
    with pytest.raises(ConfigError, match=r"hellaswagg is unknown \(did you mean hellaswag"):
        HubTasks(["hellaswagg"])
