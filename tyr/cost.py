"""What a step of the method costs, counted before it runs: multiplications, memory and disk.

Floating-point operations count a multiply and an add as two. Only matrix products and
factorisations are counted, in the orders that tyr performs them; norms, softmax and element-wise
work are not, which is why measured times stay above the counts. The paper gives no cost model; the
counts are ours.

Letters: N tokens, T positions of a sequence, C hidden width, d input width of an output projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tyr.sparsity import KINDS, Kind


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Args:
        hidden: C.
        blocks: decoder blocks.
        heads: query heads.
        kv_heads: key/value heads.
        head_size: width of a head.
        ffn: FFN neurons.
        vocabulary: tokens.
        tied: whether embedding and vocabulary projection are one matrix.
        whole_groups: whether KV heads are pruned with all their query heads. Else one stays as long
            as any of its query heads does.
    """

    hidden: int
    blocks: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocabulary: int
    tied: bool = False
    whole_groups: bool = False

    def inputs(self, kind: Kind) -> int:
        """d: input width of the output projection."""
        return self.heads * self.head_size if kind == "attn" else self.ffn

    @property
    def block_parameters(self) -> int:
        """Matrix weights of one block."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_size * self.hidden
        return attention + 3 * self.hidden * self.ffn

    @property
    def parameters(self) -> int:
        """Matrix weights of the model."""
        vocabularies = 1 if self.tied else 2
        return self.blocks * self.block_parameters + vocabularies * self.vocabulary * self.hidden

    def feature_flops(self, kind: Kind, tokens: int, length: int, kept: float = 1.0) -> float:
        """Everything before the output projection, with a fraction of the units kept."""
        if kind == "ffn":
            return 4.0 * tokens * self.hidden * self.ffn * kept
        heads = self.heads * kept
        kv_heads = self.kv_heads * kept if self.whole_groups else min(self.kv_heads, heads)
        projections = 2.0 * tokens * self.hidden * (heads + 2 * kv_heads) * self.head_size
        scores = 2.0 * tokens * length * heads * self.head_size  # QKᵀ and PV, causal half
        return projections + scores

    def output_flops(self, kind: Kind, tokens: int, kept: float = 1.0) -> float:
        """The output projection."""
        return 2.0 * tokens * self.hidden * self.inputs(kind) * kept

    def sublayer_flops(self, kind: Kind, tokens: int, length: int, kept: float = 1.0) -> float:
        """A whole sublayer."""
        features = self.feature_flops(kind, tokens, length, kept)
        return features + self.output_flops(kind, tokens, kept)

    def forward_flops(self, tokens: int, length: int, kept: float = 1.0) -> float:
        """All blocks."""
        return self.blocks * sum(self.sublayer_flops(k, tokens, length, kept) for k in KINDS)

    def vocabulary_flops(self, tokens: int) -> float:
        """Logits of every position."""
        return 2.0 * tokens * self.hidden * self.vocabulary


def hessian_flops(width: int, tokens: int, strip: int) -> float:
    """XᵀX summed in strips from the diagonal to the right edge: (N, d) -> (d, d)."""
    total = 0.0
    for start in range(0, width, strip):
        stop = min(start + strip, width)
        total += 2.0 * tokens * (stop - start) * (width - start)
    return total


def inverse_flops(width: int) -> float:
    """H⁻¹ (d, d) through its Cholesky factor, with which a greedy pass begins."""
    return float(width**3)


def greedy_flops(
    width: int, outputs: int, kept: Sequence[float], *, carries: bool, corrected: bool = False
) -> float:
    """One greedy pass with its right-hand side, H⁻¹ and the exact weights of its levels.

    Args:
        width: d.
        outputs: C.
        kept: fraction of the units that each level keeps.
        carries: whether the weights of levels are those that come through the pass (in float64), or
            are solved at its end.
        corrected: whether the right-hand side has the drift of the stream, and the pass begins at
            its solution instead of at the dense weight.
    """
    left = width * min(kept)  # rows alive when the pass ends
    of_weights = (width**2 - left**2) * outputs
    downdates = (width**3 - left**3) * 2 / 3
    gradient = 2 * width**2 * outputs * (3 if corrected else 1)
    # W is brought up to date twice: for the scores, and in solving precision.
    total = inverse_flops(width) + gradient + downdates + 2 * of_weights
    if carries:
        return total
    rows = [width * share for share in kept if share < 1]
    if not rows:
        return total
    most = max(rows)
    nested = most**3 / 3 + most**2 * outputs  # one factor, one forward substitution
    solves = sum(size**2 * outputs for size in rows)
    return total + nested + solves
