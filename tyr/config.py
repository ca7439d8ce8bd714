"""The root schema of the configuration, and what catches misspelt keys and wrong types.

Ranges are checked by the constructors that use the values. Only this module and run.py know
OmegaConf; no class of tyr ever receives one of its containers.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from tyr.errors import ConfigError

Group = dict[str, Any]
_LONGEST_NAME = 200  # bytes; file systems take 255
# Annotations that are checked: what they are called, and the values that YAML makes for them.
KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "bool": ("true or false", (bool,)),
    "str": ("text", (str,)),
}


@dataclass
class TyrConfig:
    """Root of the configuration. Groups are dictionaries with a `_target_`.

    Args:
        sparsity: fraction of attention units and of FFN neurons to remove, in [0, 1).
        iterations: rounds of prune-to-supernet and search (paper A.3: 4).
        seed: of everything random.
        resume: continue the run in `run_dir`.
        run_dir: where everything is written.
    """

    sparsity: float = 0.5
    iterations: int = 4
    seed: int = 0
    resume: bool = False
    run_dir: str = "outputs/${model.name}-${sparsity}-${now:%Y-%m-%d_%H-%M-%S}"
    model: Group = MISSING
    data: Group = MISSING
    pruner: Group = MISSING
    supernet: Group = MISSING
    search: Group = MISSING
    finish: Group = MISSING
    evaluator: Group = MISSING
    export: Group = MISSING
    trainer: Group = MISSING
    callbacks: Group = field(default_factory=dict)
    logger: Group = field(default_factory=dict)


def check_values(node: Mapping[str, Any], key: str) -> None:
    """Refuse what a constructor does not have, and values of another kind than it wants.

    Only what the constructor's annotations say: ranges are its own business.

    Args:
        node: settings of an object with its `_target_`, and of the objects within.
        key: where they are.

    Raises:
        ConfigError: a setting is unknown or of the wrong kind.
    """
    known = _parameters(str(node.get("_target_", "")))
    for name, value in node.items():
        where = f"{key}.{name}"
        if isinstance(value, Mapping):
            check_values(value, where)
        if known is None or name.startswith("_"):
            continue
        if name not in known:
            raise ConfigError(f"there is no setting {where}; known: {', '.join(known)}")
        _check_kind(value, known[name], where)


def _check_kind(value: object, annotation: str, where: str) -> None:
    """Raise ConfigError when a value is not what the annotation of a plain type says."""
    kind = annotation.removesuffix(" | None")
    if value is None and (kind != annotation or kind in ("Any", "object")):
        return
    if (items := re.fullmatch(r"(?:Sequence|list)\[(.+)\]", kind)) is not None:
        if not isinstance(value, list):
            raise ConfigError(
                f"{where} must be a list, got {_as_written(value)}: write '{where}=[...]'"
            )
        for item in value if items[1] in KINDS else ():  # of others constructors know more
            _check_kind(item, items[1], f"each of {where}")
        return
    if kind not in KINDS:
        if value is None:
            raise ConfigError(f"{where} must be given, got null")
        return
    name, types = KINDS[kind]
    infinite = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, types) and isinstance(value, bool) == (kind == "bool") and not infinite:
        return
    hint = ""
    if kind == "int" and isinstance(value, float) and value.is_integer():
        hint = f": write {int(value)}"
    elif kind == "str" and isinstance(value, int | float):
        hint = f": write '{where}=\"{_as_written(value)}\"'"
    raise ConfigError(f"{where} must be {name}, got {_as_written(value)}{hint}")


def _as_written(value: object) -> str:
    """A value in YAML's words."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)


def _parameters(target: str) -> dict[str, str] | None:
    """Names and annotations of what a class of tyr takes; None where that is not known."""
    if not target.startswith("tyr."):
        return None
    module, _, name = target.rpartition(".")
    try:
        signature = inspect.signature(getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"there is no {target}: {error}") from error
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return None
    return {name: str(p.annotation) for name, p in signature.parameters.items()}


def largest_stage(stages: list[list[int]], sequence_length: int) -> int:
    """Tokens of the largest search stage in whole sequences: the least a search text must hold.

    Stages that are not pairs count nothing here: the search itself, which is built first, says what
    is wrong with them.
    """
    try:
        tokens = max(int(stage[0]) for stage in stages)
    except (TypeError, ValueError, IndexError):
        tokens = 0
    if not isinstance(sequence_length, int) or sequence_length < 1:
        return tokens  # the text, which is built later, refuses such a length
    return -(-tokens // sequence_length) * sequence_length


def as_folder(words: str) -> str:
    """The settings of a job of a sweep as the name of a folder, however many they are.

    Those that do not fit are told apart by a checksum.
    """
    name = words.replace("/", "_")
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 2]}...{hashlib.sha256(words.encode()).hexdigest()[:8]}"


def register_resolvers() -> None:
    """Make `${largest_stage:${search.stages},${.sequence_length}}` work in YAML files."""
    OmegaConf.register_new_resolver("largest_stage", largest_stage, replace=True)
    OmegaConf.register_new_resolver("as_folder", as_folder, replace=True)
