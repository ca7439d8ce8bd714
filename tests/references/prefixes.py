"""The nodes of a trie, counted by writing every prefix down."""

from __future__ import annotations

from collections.abc import Sequence

from tyr.search.mutation import Levels


def distinct_prefixes(candidates: Sequence[Levels]) -> int:
    """Different beginnings of the level vectors, of any length."""
    return len({levels[: end + 1] for levels in candidates for end in range(len(levels))})
