"""Settings of prune-to-supernet, checked before anything runs (Section 2.3, A.3)."""

from __future__ import annotations

from dataclasses import dataclass

from tyr.errors import ConfigError
from tyr.layout import Layout
from tyr.model.sublayer import AttentionUnit
from tyr.precision import check_matmul_precision
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
        ffn_alignment: every kept FFN width is a multiple of it (32 or 256 for quantised formats).
        allow_empty: whether a sublayer may lose all its units.
        equal_blocks: all blocks keep the same counts, so that stock classes load the result;
            nothing can be searched then.
        keep: supernets left on disk at the end: `last`, `all` or `none`.
        batch_tokens: positions per calibration batch.
        feature_bytes: most bytes of features kept in memory to avoid a second forward.
        matmul_precision: of float32 products in forward passes and Hessians (tyr/precision.py).

    Raises:
        ConfigError: a setting is out of range, or `accumulation` is a word instead of an object.
    """

    accumulation: Accumulation
    interval: float = 0.125
    levels: int = 9
    attention_unit: AttentionUnit = "head"
    ffn_alignment: int = 1
    allow_empty: bool = True
    equal_blocks: bool = False
    keep: str = "last"
    batch_tokens: int = 8192
    feature_bytes: int = 1 << 28
    matmul_precision: str = "highest"

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
        # The layout refuses an alignment out of range.
        if self.layout.equal_blocks and self.attention_unit != "kv_group":
            raise ConfigError(
                f"supernet.equal_blocks=true needs supernet.attention_unit=kv_group, got "
                f"{self.attention_unit}: stock classes share KV heads evenly; layout=uniform sets "
                f"both"
            )
        if self.keep not in KEEP:
            raise ConfigError(f"supernet.keep must be one of {', '.join(KEEP)}, got {self.keep!r}")
        check_matmul_precision(self.matmul_precision, key="supernet.matmul_precision")
        if self.batch_tokens < 1 or self.feature_bytes < 0:
            raise ConfigError(
                f"supernet needs batch_tokens >= 1 and feature_bytes >= 0, got "
                f"{self.batch_tokens} and {self.feature_bytes}"
            )

    @property
    def layout(self) -> Layout:
        """What every block must keep."""
        return Layout(
            ffn_alignment=self.ffn_alignment,
            allow_empty=self.allow_empty,
            equal_blocks=self.equal_blocks,
        )

    def grid(self, centre: Allocation, units: UnitCounts, iteration: int) -> LevelGrid:
        """Levels of an iteration around an allocation (Algorithm 4, `generateSparsities`)."""
        layout = self.layout
        steps = level_steps(self.interval, iteration, units, layout)
        return LevelGrid(units, centre, steps, half_width=self.levels // 2, layout=layout)
