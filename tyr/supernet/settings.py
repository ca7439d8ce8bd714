"""Settings of prune-to-supernet, checked before anything runs (Section 2.3, A.3)."""

from __future__ import annotations

from dataclasses import dataclass

from tyr.errors import ConfigError
from tyr.model.sublayer import AttentionUnit
from tyr.sparsity import Allocation, LevelGrid, UnitCounts, level_steps
from tyr.supernet.accumulation import Accumulation

KEEP = ("last", "all", "none")


@dataclass(frozen=True)
class SupernetSettings:
    """How supernets are laid out and built.

    Args:
        accumulation: what the calibration stream moves on with (paper: expectation).
        interval: sparsity step between levels in the first iteration; halved every iteration.
        levels: structures per sublayer, an odd number (paper: nine).
        attention_unit: what is removed whole from attention: `head` or `kv_group`.
        keep: supernets left on disk at the end: `last`, `all` or `none`.
        batch_tokens: positions per calibration batch.
        feature_bytes: most bytes of features kept in memory to avoid a second forward.

    Raises:
        ConfigError: a setting is out of range, or `accumulation` is a word instead of an object.
    """

    accumulation: Accumulation
    interval: float = 0.125
    levels: int = 9
    attention_unit: AttentionUnit = "head"
    keep: str = "last"
    batch_tokens: int = 8192
    feature_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        if isinstance(self.accumulation, str):
            word = self.accumulation
            raise ConfigError(
                f"supernet.accumulation={word} replaces an object by a word; write "
                f"accumulation={word}"
            )
        if not 0 < self.interval <= 0.5:
            raise ConfigError(f"supernet.interval must be in (0, 0.5], got {self.interval}")
        if self.levels < 1 or self.levels % 2 == 0:
            raise ConfigError(f"supernet.levels must be odd and at least 1, got {self.levels}")
        if self.attention_unit not in ("head", "kv_group"):
            raise ConfigError(
                f"supernet.attention_unit must be head or kv_group, got {self.attention_unit!r}"
            )
        if self.keep not in KEEP:
            raise ConfigError(f"supernet.keep must be one of {', '.join(KEEP)}, got {self.keep!r}")
        if self.batch_tokens < 1 or self.feature_bytes < 0:
            raise ConfigError(
                f"supernet needs batch_tokens >= 1 and feature_bytes >= 0, got "
                f"{self.batch_tokens} and {self.feature_bytes}"
            )

    def grid(self, centre: Allocation, units: UnitCounts, iteration: int) -> LevelGrid:
        """Levels of an iteration around an allocation (Algorithm 4, `generateSparsities`)."""
        steps = level_steps(self.interval, iteration, units)
        return LevelGrid(units, centre, steps, half_width=self.levels // 2)
