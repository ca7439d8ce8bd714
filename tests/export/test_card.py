"""The front matter that hubs read, and the licence that goes on with a pruned model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import LlamaConfig

from tests.model_zoo import keep_every_other, structures_from, zoo_decoder
from tyr.export import base
from tyr.export.base import BaseModel, base_model, is_hub_name, licence_entries
from tyr.export.card import CardFacts, model_card
from tyr.export.checkpoint import export_checkpoint
from tyr.model.loading import PretrainedModel

LLAMA = {"license": "other", "license_name": "llama3.1", "license_link": "LICENSE"}


def card_of(origin: BaseModel, **provenance: object) -> str:
    layers = [{"block": 0, "num_attention_heads": 3}]
    return model_card(CardFacts(origin, 200, 100, layers), provenance)


def front(card: str) -> dict[str, Any]:
    """The metadata as the hub's own library reads them."""
    return ModelCard(card).data.to_dict()


def test_the_hubs_library_reads_every_field() -> None:
    assert front(card_of(BaseModel("someone/some-model", LLAMA))) == {
        **LLAMA,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pruned", "tyr"],
        "base_model": "someone/some-model",
    }


def test_the_text_names_the_licence_or_asks_for_it() -> None:
    assert "Licence: llama3.1, that of `someone/x`." in card_of(BaseModel("someone/x", LLAMA))
    assert "state it here before you publish" in card_of(BaseModel("someone/x"))
    assert "icence" not in card_of(BaseModel())


def test_what_the_caller_states_wins() -> None:
    card = card_of(BaseModel("someone/x", LLAMA), license="mit", base="other/model")
    assert (front(card)["license"], front(card)["base_model"]) == ("mit", "other/model")


def test_a_licence_that_looks_like_yaml_stays_text() -> None:
    assert front(card_of(BaseModel("a/b", {"license": "no: 1"})))["license"] == "no: 1"


def test_results_are_a_table_of_plain_values() -> None:
    rows = [{"model": "dense", "tasks": {"piqa": 0.75}, "latency": [{"ttft": 1}], "odd": None}]
    card = card_of(BaseModel(), results=rows)
    assert "| model | tasks piqa |" in card
    assert "| dense | 0.75 |" in card
    assert "ttft" not in card


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("meta/model", True),
        ("model", False),
        ("./models/x", False),
        ("/models/x", False),
        ("~/x", False),
        ("a/b/c", False),
    ],
)
def test_a_hub_name_is_not_a_path(name: str, known: bool) -> None:
    assert is_hub_name(name) is known


def write_base(directory: Path, *, front_matter: str) -> None:
    directory.mkdir(parents=True)
    (directory / "README.md").write_text(f"---\n{front_matter}---\n# Base\n")
    (directory / "LICENSE").write_text("the licence text")
    (directory / "NOTICE.txt").write_text("notice")
    (directory / "LICENSES").mkdir()


def test_the_licence_of_a_local_base_is_read_with_its_files(tmp_path: Path) -> None:
    write_base(tmp_path / "base", front_matter=yaml.safe_dump({**LLAMA, "language": ["en"]}))
    found = base_model(LlamaConfig(name_or_path=str(tmp_path / "base")))
    assert (found.name, found.licence) == ("base", LLAMA)
    assert [file.name for file in found.licence_files] == ["LICENSE", "NOTICE.txt"]


def test_the_built_in_model_states_its_licence() -> None:
    config = PretrainedModel("built-in").configuration()
    assert base_model(config) == BaseModel("tiny", {"license": "apache-2.0"})


def test_a_licence_in_the_configuration_counts_when_the_card_has_none(tmp_path: Path) -> None:
    write_base(tmp_path / "base", front_matter="language: en\n")
    config = LlamaConfig(name_or_path=str(tmp_path / "base"), license="mit")
    assert base_model(config).licence == {"license": "mit"}
    assert base_model(LlamaConfig(license="mit")) == BaseModel("", {"license": "mit"})


@pytest.mark.parametrize(
    "text", ["# no front matter", "---\na: [\n---\n", "---\n- a\n---\n", "---"]
)
def test_a_card_that_cannot_be_read_states_no_licence(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert licence_entries(tmp_path / "README.md") == {}
    assert licence_entries(tmp_path / "absent.md") == {}


def test_a_hub_base_that_cannot_be_reached_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise FileNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    found = base_model(LlamaConfig(name_or_path="someone/some-model"))
    assert found == BaseModel("someone/some-model")
    assert "licence is not carried over" in caplog.text


def test_only_the_card_and_the_licence_texts_are_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_base(tmp_path / "snapshot", front_matter="license: mit\n")
    asked = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    found = base_model(LlamaConfig(name_or_path="someone/some-model"))
    assert asked == [("someone/some-model", ["README.md", *base.LICENCE_FILES])]
    assert (found.name, found.licence) == ("someone/some-model", {"license": "mit"})


def test_an_export_of_a_hub_model_has_its_licence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_base(tmp_path / "snapshot", front_matter=yaml.safe_dump(LLAMA))
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "snapshot")
    )
    decoder = zoo_decoder("llama")
    decoder.config.name_or_path = "someone/some-model"
    structures = structures_from(decoder, keep_every_other)
    exported = export_checkpoint(decoder, structures.__getitem__, tmp_path / "m", provenance={})
    data = front((exported.directory / "README.md").read_text())
    assert (data["base_model"], data["license_name"]) == ("someone/some-model", "llama3.1")
    assert (exported.directory / "LICENSE").read_text() == "the licence text"


FROM_CACHE = """
import sys
from transformers import LlamaConfig
from tyr.export.base import base_model
found = base_model(LlamaConfig(name_or_path="someone/some-model"))
print(found.licence, [file.name for file in found.licence_files])
"""


@pytest.mark.slow  # a cold start, because the hub's library reads its environment once
def test_the_cache_of_the_hub_is_enough_offline(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--some-model"
    write_base(repository / "snapshots" / ("a" * 40), front_matter="license: mit\n")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    finished = subprocess.run(
        [sys.executable, "-c", FROM_CACHE],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "{'license': 'mit'} ['LICENSE', 'NOTICE.txt']"
