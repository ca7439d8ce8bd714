"""Turns errors of configuration into one paragraph with a near match.

Hydra's own messages are long and name internals. This reads them as text, finds the word that was
wrong, and suggests what exists. It never decides anything.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import yaml

from tyr.errors import TyrError


def explain(error: BaseException, config_dir: Path) -> str:
    """One paragraph for the user.

    Args:
        error: what composing or building the configuration raised.
        config_dir: the folder of YAML files, for near matches.
    """
    text = " ".join(str(error).split())
    if isinstance(error, TyrError):
        return text
    if text.startswith("Error merging override") and error.__cause__ is not None:
        word = text.removeprefix("Error merging override ")
        return f"{word}: {explain(error.__cause__, config_dir)}"
    choice = re.search(r"Could not find '([\w./-]+)/([^/']+)'", text)
    if choice:
        return _unknown_choice(choice[1], choice[2], config_dir)
    group = re.search(r"Could not override '([\w.@/]+)'. No match in the defaults list", text)
    key = group or re.search(r"Could not override '([\w.@/]+)'", text)
    if key:
        return _unknown_key(key[1], config_dir)
    missing = re.search(r"[Mm]issing mandatory value: ([\w.]+)", text)
    if missing:
        return f"{missing[1]} must be given: add {missing[1]}=... to the command line"
    return _without_internals(text)


def near(word: str, known: list[str]) -> str:
    """' (did you mean X?)' or nothing."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]}?)" if matches else ""


def groups(config_dir: Path) -> dict[str, list[str]]:
    """Configuration groups with their choices."""
    folders = sorted(folder for folder in config_dir.iterdir() if folder.is_dir())
    return {f.name: sorted(file.stem for file in f.glob("*.yaml")) for f in folders}


def known_keys(config_dir: Path) -> list[str]:
    """Dotted keys that the YAML files define, under the package they go to."""
    keys = {"sparsity", "iterations", "seed", "resume", "run_dir"}
    for path in config_dir.glob("*/*.yaml"):
        keys.update(_keys_of(path))
    return sorted(keys)


def _keys_of(path: Path) -> list[str]:
    """Dotted keys that one YAML file defines."""
    text = path.read_text(encoding="utf-8")
    package = re.search(r"@package ([\w.]+)", text)
    prefix = package[1] if package else path.parent.name
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        return []
    names = _flatten(content, "" if prefix == "_global_" else f"{prefix}.")
    return [name for name in names if "_target_" not in name]


def _choices_with(key: str, config_dir: Path) -> list[str]:
    """The choices, as `group=choice`, whose files define a key."""
    return [
        f"{path.parent.name}={path.stem}"
        for path in sorted(config_dir.glob("*/*.yaml"))
        if key in _keys_of(path)
    ]


def _flatten(content: dict[str, object], prefix: str) -> list[str]:
    names: list[str] = []
    for key, value in content.items():
        names.append(f"{prefix}{key}")
        if isinstance(value, dict):
            names.extend(_flatten(value, f"{prefix}{key}."))
    return names


def _unknown_choice(group: str, word: str, config_dir: Path) -> str:
    if group == "hydra/launcher":
        return f"launcher={word} needs: pip install -e '.[sweep]'"
    choices = groups(config_dir).get(group, [])
    return f"{group}={word} is unknown{near(word, choices)}; known: {', '.join(choices)}"


def _unknown_key(key: str, config_dir: Path) -> str:
    bare = key.split("@")[0]
    known = [*groups(config_dir), *known_keys(config_dir)]
    if bare in known and bare != key:
        return f"there is no setting {key}: write {bare}=..."
    if owners := _choices_with(bare, config_dir):
        return f"the chosen settings have no {bare}; it belongs to {' or '.join(owners)}"
    section = bare.split(".")[0]
    here = [name for name in known if name.startswith(f"{section}.")]
    listed = f"; known under {section}: {', '.join(here)}" if here else ""
    return f"there is no setting {bare}{near(bare, known)}{listed}"


def _without_internals(text: str) -> str:
    return re.sub(r"\s*(full_key|object_type|reference_type)[=:] ?\S*", "", text)
