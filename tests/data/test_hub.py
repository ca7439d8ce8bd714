"""The hub's classes, against folders of files read through the real `datasets` library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from tests.data.text import assert_no_marker_is_shared, byte_bpe, in_stream_order, numbered, spelled
from tyr.data import HubData, HubText
from tyr.errors import DataError

SIZES = {
    "sequence_length": 16,
    "calibration_tokens": 320,
    "search_tokens": 160,
    "evaluation_tokens": 160,
}
TRAIN = [numbered(10 * index, 10) for index in range(30)]
TEST = [numbered(10 * index, 10) for index in range(70, 90)]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and no files in the user's cache."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A dataset with a train and a test split."""
    for split, rows in (("train", TRAIN), ("test", TEST)):
        lines = (json.dumps({"text": row, "label": 0}) for row in rows)
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{split}.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "set")


def test_one_split_serves_all_three_without_overlap(folder: str) -> None:
    splits = HubData(folder, **SIZES).load(byte_bpe())
    assert "".join(TRAIN).startswith(in_stream_order(splits))
    assert_no_marker_is_shared(splits)


def test_evaluation_may_come_from_another_split(folder: str) -> None:
    splits = HubData(folder, evaluation_split="test", **SIZES).load(byte_bpe())
    assert "".join(TEST).startswith(spelled(splits.evaluation))
    assert "".join(TRAIN).startswith(spelled(splits.search) + spelled(splits.calibration))
    assert_no_marker_is_shared(splits)


def test_evaluation_may_come_from_another_dataset(folder: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.txt").write_text(numbered(900, 60))
    elsewhere = HubText(str(tmp_path / "other"), joined_by="\n")
    splits = HubData(folder, evaluation=elsewhere, **SIZES).load(byte_bpe())
    assert numbered(900, 60).startswith(spelled(splits.evaluation))
    assert_no_marker_is_shared(splits)


def test_joined_rows_are_one_document_with_the_empty_rows(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rows = (json.dumps({"text": text}) for text in ("a", "", "b"))
    (folder / "train.jsonl").write_text("\n".join(rows))
    assert list(HubText(str(folder), joined_by="\n\n").documents()) == ["a\n\n\n\nb"]
    assert list(HubText(str(folder)).documents()) == ["a", "", "b"]


def test_joined_rows_are_flushed_before_they_fill_the_memory(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tyr.data.hub._JOINED_CHARACTERS", 500)
    documents = list(HubText(folder, joined_by="\n").documents())
    assert "".join(documents) == "\n".join(TRAIN)
    assert len(documents) > 5
    assert max(map(len, documents)) < 1000


def test_the_same_rows_give_the_same_fingerprint(folder: str) -> None:
    one, two = (HubData(folder, **SIZES).load(byte_bpe()) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.search, two.search)


def test_a_hub_that_cannot_be_reached_is_named_with_a_way_out() -> None:
    data = HubData("someone/something", "raw", evaluation_split="test", **SIZES)
    message = r"someone/something \(raw, test\) cannot be read: .*data=text data.path=FILE"
    with pytest.raises(DataError, match=message):
        data.load(byte_bpe())


def test_a_connection_that_breaks_midway_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Iterator[dict[str, str]]:
        yield {"text": "a few words"}
        raise httpx.ReadTimeout("")

    monkeypatch.setattr("datasets.load_dataset", broken)
    documents = HubText("someone/something").documents()
    assert next(documents) == "a few words"
    with pytest.raises(DataError, match=r"\(train\) cannot be read: ReadTimeout\. Check"):
        next(documents)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"split": "validation"}, "cannot be read: Bad split: validation"),
        ({"subset": "raw"}, "cannot be read: BuilderConfig 'raw' not found"),
        ({"split": "train[:10%]"}, "cannot be read: Bad split"),
        ({"field": "body"}, r"row 0 has no field 'body'; it has: text, label"),
        ({"field": "label"}, r"row 0: 'label' is int, expected text"),
    ],
)
def test_wrong_names_are_told_apart(folder: str, wrong: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        HubData(folder, **wrong, **SIZES).load(byte_bpe())


@pytest.mark.parametrize("split", ["test", "train+test", "all"])
def test_text_that_is_calibrated_on_is_not_evaluated_on(split: str) -> None:
    with pytest.raises(DataError, match="is part of the calibration text"):
        HubData("someone/something", split=split, evaluation_split="test", **SIZES)


def test_another_subset_is_another_text() -> None:
    elsewhere = HubText("someone/something", "b")
    assert HubData("someone/something", "a", evaluation=elsewhere, **SIZES).evaluation == elsewhere


def test_two_evaluation_texts_are_refused() -> None:
    with pytest.raises(DataError, match="not both"):
        HubData("a/b", evaluation_split="test", evaluation=HubText("c/d"), **SIZES)


def test_a_name_in_place_of_an_evaluation_text_is_refused() -> None:
    name: object = "wikitext2"
    with pytest.raises(DataError, match=r"got 'wikitext2'; set data.evaluation.dataset=NAME"):
        HubData("a/b", evaluation=name, **SIZES)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dataset", "split", "field"])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"data.{name} is empty"):
        HubText(**{"dataset": "a/b", name: ""})


def test_building_a_source_reads_nothing() -> None:
    data = HubData("someone/something", **SIZES)
    assert data.name == "something"
    assert data.sizes.windows("calibration") == 20


@pytest.mark.parametrize("other", ["data/", "./data", "{tmp_path}/data"])
def test_a_local_dataset_is_the_same_however_its_path_is_spelt(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    elsewhere = HubText(other.format(tmp_path=tmp_path))
    assert HubText("data").shares_rows_with(elsewhere)
    assert HubText("data", subset="a").shares_rows_with(elsewhere), "None is any subset"
    assert not HubText("data", subset="a").shares_rows_with(HubText("data", subset="b"))
