"""What every sublayer must keep so that a given engine loads the pruned model, in integers.

The paper prunes to any count of heads and neurons. Serving engines do not load any count: see the
design page, "What the output must load in". A layout says which numbers of units a block may lose,
and hence which budgets can be met; the defaults are the paper's freedom. It knows nothing of the
search: a grid of levels made under a layout has only levels that the layout allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from tyr.budget import Reach
from tyr.errors import ConfigError

_Kind = Literal["attn", "ffn"]  # `tyr.sparsity.Kind`, which is defined above this module


@dataclass(frozen=True)
class Layout:
    """Which counts of units a block may keep.

    Args:
        ffn_alignment: every kept FFN width is a multiple of it.
        allow_empty: a sublayer may lose all its units. If not, it keeps at least one attention
            unit, or `ffn_alignment` neurons.
        equal_blocks: all blocks keep the same counts, which implies that none is empty.

    Raises:
        ConfigError: the alignment is not positive.
    """

    ffn_alignment: int = 1
    allow_empty: bool = True
    equal_blocks: bool = False

    def __post_init__(self) -> None:
        if self.ffn_alignment < 1:
            raise ConfigError(
                f"supernet.ffn_alignment must be at least 1, got {self.ffn_alignment}: 1 for any "
                f"width, 32 or 256 for the block sizes of quantised formats"
            )

    def granule(self, kind: _Kind) -> int:
        """Units of a kind that go together: kept counts are multiples of it."""
        return self.ffn_alignment if kind == "ffn" else 1

    def removable(self, kind: _Kind, block: int, width: int) -> range:
        """Numbers of units that a sublayer of `width` units may lose, ascending.

        The first block always keeps an attention unit: transformers reads the length of the KV
        cache from layer 0 (`get_seq_length`), so a model whose first attention is empty cannot
        generate.

        Raises:
            ConfigError: the sublayer is too narrow to keep anything aligned.
        """
        granule = self.granule(kind)
        must_keep = self.equal_blocks or not self.allow_empty or (kind, block) == ("attn", 0)
        least_kept = granule if must_keep else 0
        if width < least_kept:
            raise ConfigError(
                f"block {block} has {width} {kind} units, but supernet.ffn_alignment={granule} "
                f"needs at least {least_kept} to keep: use an alignment of at most {width}"
            )
        return range(width % granule, width - least_kept + 1, granule)

    def reach(self, kind: _Kind, widths: Sequence[int]) -> Reach:
        """The budgets that blocks of these widths can meet together.

        Raises:
            ConfigError: blocks shall be equal but are not equally wide, or one is too narrow.
        """
        blocks = [self.removable(kind, block, width) for block, width in enumerate(widths)]
        least, most = sum(b[0] for b in blocks), sum(b[-1] for b in blocks)
        granule = self.granule(kind)
        if self.equal_blocks and len(set(widths)) > 1:
            raise ConfigError(
                f"layout=uniform needs blocks that are equally wide, got {sorted(set(widths))} "
                f"{kind} units; use layout=portable"
            )
        step = granule * (len(widths) if self.equal_blocks else 1)
        return Reach(range(least, most + 1, step), sum(widths), rounds=granule > 1)

    def binding(self) -> str:
        """The settings that bind, for messages; nothing for a free layout."""
        free = asdict(FREE)
        bound = [
            f"supernet.{key}={str(value).lower()}"
            for key, value in asdict(self).items()
            if value != free[key]
        ]
        return f" (with {', '.join(bound)})" if bound else ""


FREE = Layout()
