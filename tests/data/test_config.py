"""Every data choice builds, and those that need no network load."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.data.text import byte_bpe, numbered
from tests.test_config import choices, composed, with_choice
from tyr.data import HubData, SplitSizes
from tyr.run import build


def built(choice: str, path: Path, *overrides: str) -> object:
    path.write_text(numbered(0, 900))
    given = [f"data.path={path}"] if choice == "text" else []
    return build(composed(f"data={choice}", *given, *overrides).data, "data")


@pytest.mark.parametrize("choice", choices("data"))
def test_every_choice_builds_a_source_with_sizes(choice: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(numbered(0, 900))
    path = {"path": tmp_path / "a.txt"} if choice == "text" else {}
    source = build(OmegaConf.create({**with_choice("data", choice).data, **path}), "data")
    assert isinstance(getattr(source, "sizes", None), SplitSizes)
    assert getattr(source, "name", "")


@pytest.mark.parametrize("choice", ["stdlib", "text"])
def test_local_choices_load_the_sizes_asked_for(choice: str, tmp_path: Path) -> None:
    words = ("sequence_length=64", "calibration_tokens=256", "evaluation_tokens=128")
    stages = "search.stages=[[100,2],[1000,1]]"
    source = built(choice, tmp_path / "a.txt", stages, *(f"data.{word}" for word in words))
    splits = source.load(byte_bpe())  # type: ignore[attr-defined]
    assert [len(t) for t in (splits.calibration, splits.search, splits.evaluation)] == [4, 16, 2]


@pytest.mark.parametrize("choice", ["fineweb_edu", "wikitext2", "c4"])
def test_hub_choices_evaluate_on_the_papers_text_and_window(choice: str, tmp_path: Path) -> None:
    source = built(choice, tmp_path / "a.txt", "model=llama31_8b")
    assert isinstance(source, HubData)
    assert source.evaluation is not None
    assert str(source.evaluation) == "Salesforce/wikitext (wikitext-2-raw-v1, test)"
    assert source.evaluation.joined_by == "\n\n"
    assert source.sizes.sequence_length == 4096
    assert source.sizes.search_tokens >= 131072
