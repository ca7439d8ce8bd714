"""Which positions of the search text a stage uses.

The paper (A.3) draws them anew for every stage of every generation. Nested samples are prefixes of
one permutation: a later stage adds to the positions of the earlier ones, and the same positions
come again for some generations, so that an archive has something to give. What that costs is that
the search fits those positions, so the permutation is renewed now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch

from tyr.errors import ConfigError
from tyr.search.selection import Sample, draw_sample


@dataclass(frozen=True)
class Extent:
    """How much text a stage uses.

    Args:
        num_tokens: positions in all.
        length: most positions from one sequence.
    """

    num_tokens: int
    length: int

    @property
    def taken(self) -> int:
        """Positions from each sequence."""
        return min(self.num_tokens, self.length)


class Samples(Protocol):
    """Gives the positions of a stage."""

    def epoch(self, generation: int) -> int:
        """Generations of one epoch share the generator `fixed`."""

    def draw(
        self,
        num_sequences: int,
        extents: Sequence[Extent],
        *,
        rng: torch.Generator,
        fixed: torch.Generator,
    ) -> tuple[Sample, ...]:
        """Positions of the last of `extents`, in pieces; all but the last piece were seen before.

        Args:
            num_sequences: of the search text.
            extents: this stage's and those of the stages before it.
            rng: generator of the generation.
            fixed: a fresh generator that is the same for all generations of an epoch.
        """


class IndependentSamples:
    """The paper's: whole sequences without replacement, drawn anew each time."""

    def epoch(self, generation: int) -> int:
        """Every generation is its own."""
        return generation

    def draw(
        self,
        num_sequences: int,
        extents: Sequence[Extent],
        *,
        rng: torch.Generator,
        fixed: torch.Generator,
    ) -> tuple[Sample, ...]:
        """See `Samples.draw`."""
        extent = extents[-1]
        return (draw_sample(num_sequences, extent.length, extent.num_tokens, rng),)


class NestedSamples:
    """Prefixes of one permutation of the sequences, the same for several generations.

    A stage that takes shorter pieces of sequences than a later one is no part of it.

    Args:
        generations: how long a permutation serves.

    Raises:
        ConfigError: less than one generation.
    """

    def __init__(self, generations: int = 4) -> None:
        if generations < 1:
            raise ConfigError(f"samples.generations must be at least 1, got {generations}")
        self.generations = generations

    def epoch(self, generation: int) -> int:
        """A permutation serves `generations` of them."""
        return generation // self.generations

    def draw(
        self,
        num_sequences: int,
        extents: Sequence[Extent],
        *,
        rng: torch.Generator,
        fixed: torch.Generator,
    ) -> tuple[Sample, ...]:
        """See `Samples.draw`."""
        taken = extents[-1].taken
        # Drawn, and not used but for its size: it refuses a text that is too small.
        count = len(draw_sample(num_sequences, taken, extents[-1].num_tokens, rng).rows)
        order = torch.randperm(num_sequences, generator=fixed)
        ends = {extent.num_tokens // taken for extent in extents if extent.taken == taken}
        cuts = [0, *sorted(end for end in ends if end < count), count]
        return tuple(Sample(order[a:b].sort().values, taken) for a, b in pairwise(cuts))
