"""Prune one sublayer to several levels: statistics in, structures out (Algorithm 1 and A.3).

This is the boundary between torch's (out, in) weights and the paper's (d_in, d_out) mathematics,
and between solving precision and storage precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tyr.calibrate.statistics import Statistics
from tyr.errors import ConfigError
from tyr.model.sublayer import Structure, Sublayer
from tyr.prune.criterion import Criterion
from tyr.prune.progressive import prune_progressively
from tyr.prune.target import Target
from tyr.sparsity import Kind


@dataclass(frozen=True)
class PrunedLevel:
    """A structure with the relative reconstruction error it leaves (see `Snapshot.error`)."""

    structure: Structure
    error: float


class LocalPruner:
    """Local pruning of one sublayer.

    Args:
        criterion: saliency (paper: taylor).
        target: what to reproduce (paper: self).
        attention_group: attention units removed per step (paper A.3: 1 head).
        ffn_group: neurons removed per step (paper A.3: 16).
        damping: ridge as a fraction of mean(diag H).

    Raises:
        ConfigError: a setting is out of range or not an object.
    """

    def __init__(
        self,
        criterion: Criterion,
        target: Target,
        *,
        attention_group: int = 1,
        ffn_group: int = 16,
        damping: float = 0.01,
    ) -> None:
        for key, value in (("criterion", criterion), ("target", target)):
            if isinstance(value, str):
                raise ConfigError(
                    f"pruner.{key}={value} replaces an object by a word; write {key}={value}"
                )
        if min(attention_group, ffn_group) < 1:
            raise ConfigError(
                f"pruner.attention_group and pruner.ffn_group must be at least 1, got "
                f"{attention_group} and {ffn_group}"
            )
        if not damping >= 0:
            raise ConfigError(f"pruner.damping must not be negative, got {damping}")
        self.criterion = criterion
        self.target = target
        self.group_size: dict[Kind, int] = {"attn": attention_group, "ffn": ffn_group}
        self.damping = damping

    def prune(
        self,
        sublayer: Sublayer,
        statistics: Statistics,
        removed_counts: Sequence[int],
        *,
        storage_dtype: torch.dtype,
        rng: torch.Generator,
    ) -> dict[int, PrunedLevel]:
        """Structures at the given numbers of removed units, on the CPU.

        Args:
            sublayer: whose output projection to prune.
            statistics: moments of its features on the calibration stream.
            removed_counts: units removed, one structure each.
            storage_dtype: precision the structures are rounded to.
            rng: CPU generator for criteria that draw.
        """
        problem = self.target.problem(
            statistics,
            sublayer.output_weight.mT,
            damping=self.damping,
            unit_size=sublayer.unit_size,
            name=sublayer.name,
        )
        snapshots = prune_progressively(
            problem,
            removed_counts,
            criterion=self.criterion,
            group_size=self.group_size[sublayer.id.kind],
            rng=rng,
        )
        levels: dict[int, PrunedLevel] = {}
        for removed, snapshot in snapshots.items():
            weight = snapshot.weight.mT.to(storage_dtype).contiguous().cpu()
            levels[removed] = PrunedLevel(Structure(snapshot.kept.cpu(), weight), snapshot.error)
        return levels
