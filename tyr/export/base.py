"""What was published beside the dense model and has to go on with the pruned one: its licence.

The card and the licence texts are read from the directory of a local model, or fetched by name from
the hub that the weights came from (from its cache when the machine is offline). What cannot be read
is reported, never guessed. No weights are read here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import PretrainedConfig

from tyr.errors import first_line

logger = logging.getLogger(__name__)

CARD = "README.md"
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
LICENCE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class BaseModel:
    """Where a pruned model comes from.

    Args:
        name: hub name, or the last part of a local path (the path means nothing to others).
        licence: the licence entries of its card, `license` first.
        licence_files: licence texts; most licences ask to pass them on.
    """

    name: str = ""
    licence: Mapping[str, object] = field(default_factory=dict)
    licence_files: tuple[Path, ...] = ()


def is_hub_name(name: str) -> bool:
    """Whether this is `owner/model` rather than a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def base_model(config: PretrainedConfig) -> BaseModel:
    """The dense model of a configuration, as far as it is published or lies on the disk."""
    source = str(config.name_or_path or "")
    stated = getattr(config, "license", None)
    own = {"license": stated} if isinstance(stated, str) else {}
    if source and Path(source).is_dir():
        return _read(Path(source), Path(source).name, own)
    directory = _fetch_card(source) if is_hub_name(source) else None
    return BaseModel(source, own) if directory is None else _read(directory, source, own)


def _read(directory: Path, name: str, stated: Mapping[str, object]) -> BaseModel:
    """The card wins over config.json, which hubs do not read."""
    licence = licence_entries(directory / CARD) or stated
    files = (file for pattern in LICENCE_FILES for file in directory.glob(pattern))
    return BaseModel(name, licence, tuple(sorted(file for file in files if file.is_file())))


def licence_entries(card: Path) -> dict[str, object]:
    """The licence entries in the front matter of a model card; none without a readable one."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    if not text.startswith("---"):
        return {}
    try:
        front: Any = yaml.safe_load(text.split("---", 2)[1])
    except yaml.YAMLError:
        logger.warning("the front matter of %s is not YAML: its licence is not carried over", card)
        return {}
    entries = front if isinstance(front, dict) else {}
    return {key: entries[key] for key in LICENCE_KEYS if entries.get(key)}


def _fetch_card(name: str) -> Path | None:
    """A folder with the card and the licence texts of a hub model, or None, said aloud."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CARD, *LICENCE_FILES]))
    except (OSError, ValueError) as error:  # unreachable, gated, renamed
        logger.warning(
            "the card of %s cannot be read (%s), so its licence is not carried over: state it in "
            "the exported README.md before you publish the model",
            name,
            first_line(error),
        )
        return None
