"""The root schema of the configuration, and what catches misspelt keys and wrong types.

Ranges are checked by the constructors that use the values. Only this module and run.py know
OmegaConf; no class of tyr ever receives one of its containers.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from tyr.errors import ConfigError

Group = dict[str, Any]
NUMBERS = {"int": "a whole number", "float": "a number"}


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
    """Refuse what a constructor does not have, and words where it wants a number or true or false.

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
        wanted = known[name]
        if wanted in NUMBERS and isinstance(value, str):
            raise ConfigError(f"{where} must be {NUMBERS[wanted]}, got {value!r}")
        if wanted == "bool" and not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false, got {value!r}")


def _parameters(target: str) -> dict[str, str] | None:
    """Names and annotations of what a class of tyr takes; None where that is not known."""
    if not target.startswith("tyr."):
        return None
    module, _, name = target.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), name))
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
    return -(-tokens // sequence_length) * sequence_length


def register_resolvers() -> None:
    """Make `${largest_stage:${search.stages},${.sequence_length}}` work in YAML files."""
    OmegaConf.register_new_resolver("largest_stage", largest_stage, replace=True)
