"""Task files are found, checked and described to lm-eval without importing it."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.evaluate.task_files import pair, question, winogrande, write_rows, write_task_files
from tyr.errors import ConfigError, DataError
from tyr.evaluate.local_tasks import choose_tasks, find_tasks, write_tasks
from tyr.evaluate.task_layouts import LAYOUTS, check_file, layout_of

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_files(tmp_path_factory.mktemp("tasks"))


def test_tasks_are_found_by_their_file_names(folder: Path) -> None:
    found = find_tasks(folder)
    assert set(found) == {
        *("arc_easy", "openbookqa", "winogrande", "hellaswag"),
        *("blimp_agreement", "blimp_islands"),
    }
    assert found["hellaswag"].name == "hellaswag-12.jsonl"


def test_all_tasks_means_blimp_as_one(folder: Path) -> None:
    found = find_tasks(folder)
    chosen = choose_tasks(found, None)
    assert chosen["blimp"] == ["blimp_agreement", "blimp_islands"]
    assert set(chosen) == {"arc_easy", "openbookqa", "winogrande", "hellaswag", "blimp"}
    assert choose_tasks(found, ["blimp_islands"]) == {"blimp_islands": ["blimp_islands"]}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["arc_esay"], r"arc_esay is unknown \(did you mean arc_easy\?\); here are: arc_easy,"),
        (["blimpp"], r"unknown \(did you mean blimp\?\)"),
        (["piqa"], r"task piqa has no file in the data directory; here are: arc_easy"),
        (["blimp_transitive"], r"task blimp_transitive has no file"),
        (["blimp", "blimp_islands"], r"blimp_islands is asked for twice"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused(
    wanted: list[str], message: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_tasks(find_tasks(folder), wanted)


def test_a_directory_that_is_not_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing does not exist; expected a directory of task"):
        find_tasks(tmp_path / "missing")
    file = write_rows(tmp_path / "arc_easy.jsonl", [])
    with pytest.raises(DataError, match=r"arc_easy.jsonl is a file; expected a directory"):
        find_tasks(file)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no task file; known: arc_easy.jsonl, .*blimp/"):
        find_tasks(tmp_path / "empty")


def test_two_files_for_one_task_are_refused(tmp_path: Path) -> None:
    for name in ("piqa-a", "piqa-b"):
        write_rows(tmp_path / f"{name}.jsonl", [])
    with pytest.raises(
        DataError, match=r"several files \(piqa-a.jsonl, piqa-b.jsonl\).*piqa.jsonl"
    ):
        find_tasks(tmp_path)
    write_rows(tmp_path / "piqa.jsonl", [])
    assert find_tasks(tmp_path)["piqa"].name == "piqa.jsonl"


GOOD_QUESTION = question(random.Random(0))
HELLASWAG = {
    "activity_label": "w2",
    "ctx_a": "w3",
    "ctx_b": "",
    "endings": ["w4", "w5"],
    "label": "1",
}

BAD_ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("arc_easy", {"gold": None}, r"line 2 has no field 'gold'; it has: query, choices; expected"),
    ("arc_easy", {"gold": 4}, r"line 2: 'gold' is 4; expected the index of the right choice"),
    ("arc_easy", {"gold": -1}, r"'gold' is -1; expected the index"),
    ("arc_easy", {"gold": True}, r"'gold' is true; expected the index"),
    ("arc_easy", {"gold": "B"}, r"'gold' is \"B\"; expected the index"),
    ("arc_easy", {"choices": ["w2"]}, r"'choices' is \[\"w2\"\]; expected a list of two or more"),
    (
        "arc_easy",
        {"choices": ["w2", " "]},
        r"'choices' is .*; expected a list of two or more texts",
    ),
    ("arc_easy", {"choices": "w2"}, r"'choices' is \"w2\"; expected a list"),
    ("arc_easy", {"query": " "}, r"'query' is \" \"; expected a text that is not empty"),
    ("arc_easy", {"query": 3}, r"'query' is 3; expected a text"),
    ("winogrande", {"continuation": None}, r"no field 'continuation'"),
    ("winogrande", {"gold": 2}, r"'gold' is 2; expected the index"),
    ("hellaswag", {"endings": None}, r"no field 'endings'"),
    ("hellaswag", {"label": ""}, r"'label' is \"\"; expected the index"),
    ("blimp_agreement", {"sentence_bad": None}, r"no field 'sentence_bad'"),
]
GOOD_ROWS = {
    "arc_easy": GOOD_QUESTION,
    "winogrande": winogrande(random.Random(0)),
    "hellaswag": HELLASWAG,
    "blimp_agreement": pair(random.Random(0)),
}


@pytest.mark.parametrize(("task", "change", "message"), BAD_ROWS)
def test_a_row_that_does_not_fit_is_refused_with_file_line_and_field(
    task: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = GOOD_ROWS[task]
    changed = {key: value for key, value in {**good, **change}.items() if value is not None}
    path = write_rows(tmp_path / "file.jsonl", [good, changed, good])
    with pytest.raises(DataError, match=rf"file\.jsonl, .*{message}"):
        check_file(path, layout_of(task))


@pytest.mark.parametrize("task", GOOD_ROWS)
def test_a_file_that_fits_is_accepted(task: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "file.jsonl", [GOOD_ROWS[task]] * 2)
    path.write_text(path.read_text() + "\n  \n")
    check_file(path, layout_of(task))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has 0 rows; expected at least 2"),
        ('{"a": ', r"line 1 is not JSON .*holds one object per line"),
        ("[1, 2]", r"line 1 is a list; expected an object"),
        ("\xff", r"is not UTF-8: invalid start byte at byte 0"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        check_file(path, LAYOUTS["arc_easy"])


def test_one_row_is_too_few_for_a_standard_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "file.jsonl", [GOOD_QUESTION])
    with pytest.raises(DataError, match="has 1 rows; expected at least 2"):
        check_file(path, LAYOUTS["arc_easy"])


def test_a_yaml_file_is_written_for_every_task_and_for_the_group(
    folder: Path, tmp_path: Path
) -> None:
    found = find_tasks(folder)
    write_tasks(choose_tasks(found, None), found, tmp_path)
    written = {path.stem: yaml.safe_load(path.read_text()) for path in tmp_path.glob("*.yaml")}
    assert set(written) == {*found, "blimp"}
    assert written["blimp"]["task"] == ["blimp_agreement", "blimp_islands"]
    for name, file in found.items():
        assert written[name]["task"] == name
        assert written[name]["dataset_kwargs"]["data_files"] == {"test": str(file)}


@pytest.mark.slow
def test_nothing_here_needs_lm_eval() -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None; import tyr.evaluate.task_evaluator, "
        "tyr.evaluate.__main__, tyr.evaluate.local_tasks"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not on this machine")
def test_the_files_beside_the_project_fit() -> None:
    found = find_tasks(SHARED)
    assert len(found) == 13
    for name, file in found.items():
        check_file(file, layout_of(name))
