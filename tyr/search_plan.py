"""The operations of a planned search, part by part: teacher, start, and each stage of a generation.

Of `tyr/search/counts.py`'s tokens each takes a sliced forward pass, shared by the trie, and logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from tyr.cost import Shape
from tyr.data import SplitSizes
from tyr.run_plan import Part
from tyr.search.counts import Call, SearchCounts

TEACHER = "teacher"  # the part that every process computes for itself


def search_parts(
    shape: Shape, counts: Sequence[SearchCounts], sizes: SplitSizes, *, kept: float
) -> list[Part]:
    """The searches of all iterations, of at least one generation.

    Args:
        shape: sizes of the decoder.
        counts: what each iteration evaluates.
        sizes: tokens of the splits.
        kept: fraction of the units that a candidate keeps.
    """
    # The teacher's states are computed once and serve every iteration.
    tokens, length = sizes.search_tokens, sizes.sequence_length
    parts = [Part(TEACHER, 1, tokens, shape.forward_flops(tokens, length))]
    starts = [(1, call) for count in counts for call in count.start]
    if starts:
        parts.append(_part(shape, "start", sum(bool(c.start) for c in counts), starts, kept=kept))
    for index in range(max(len(count.stages) for count in counts)):
        calls = [(c.generations, c.stages[index]) for c in counts if index < len(c.stages)]
        times = sum(generations for generations, _ in calls)
        parts.append(_part(shape, f"stage {index + 1}", times, calls, kept=kept))
    return parts


def _part(
    shape: Shape, name: str, times: int, calls: Sequence[tuple[int, Call]], *, kept: float
) -> Part:
    """Calls with how often each comes."""
    tokens = sum(often * call.evaluated_tokens for often, call in calls)
    flops = sum(often * call_flops(shape, call, kept) for often, call in calls)
    return Part(name, times, tokens, flops)


def call_flops(shape: Shape, call: Call, kept: float) -> float:
    """Sliced and shared blocks, with the logits of every candidate and of the teacher."""
    sliced = shape.forward_flops(call.evaluated_tokens, call.length, kept)
    return call.share * sliced + shape.vocabulary_flops(call.evaluated_tokens + call.num_tokens)
