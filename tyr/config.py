"""The root schema of the configuration: catches misspelt keys and wrong types.

Ranges are checked by the constructors that use the values. Only this module and run.py know
OmegaConf; no class of tyr ever receives one of its containers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

Group = dict[str, Any]


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
