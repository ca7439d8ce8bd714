"""Stages of selection: many candidates on few tokens, few candidates on many (A.3, EvoPress)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tyr.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """One round of selection.

    Args:
        num_tokens: positions each candidate is evaluated on.
        survivors: candidates that go on.
    """

    num_tokens: int
    survivors: int


@dataclass(frozen=True)
class Sample:
    """Positions of the search text that a stage uses.

    Args:
        rows: (n,), int64, ascending sequence indices.
        length: positions taken from the start of each.
    """

    rows: Tensor
    length: int

    @property
    def num_tokens(self) -> int:
        """Positions in all."""
        return len(self.rows) * self.length

    def key(self) -> tuple[int, ...]:
        """Identifies the sample, for caching a loss."""
        return (self.length, *self.rows.tolist())

    def split(self, most: int) -> list[Sample]:
        """The same positions in at most `most` parts of whole sequences, sizes as equal as can be.

        Dealt one by one: neighbours in the text may belong to one document, and a part should be a
        sample of the whole.

        Args:
            most: at least 1.
        """
        parts = min(most, len(self.rows))
        return [Sample(self.rows[first::parts], self.length) for first in range(parts)]


def sample_key(samples: Sequence[Sample]) -> tuple[int, ...]:
    """Identifies several samples together; of one it is its own key."""
    return tuple(number for sample in samples for number in sample.key())


def parse_stages(stages: Sequence[Sequence[int]], offspring: int) -> tuple[Stage, ...]:
    """Checked stages from `[[tokens, survivors], ...]`.

    Raises:
        ConfigError: not pairs of positive integers, survivors do not fall to 1, or more survivors
            than candidates.
    """
    if not stages or not all(_is_pair_of_counts(stage) for stage in stages):
        raise ConfigError(
            f"search.stages must be pairs [tokens, survivors] of positive integers, got {stages}"
        )
    parsed = tuple(Stage(int(tokens), int(survivors)) for tokens, survivors in stages)
    entering = offspring
    for stage in parsed:
        if stage.survivors > entering:
            raise ConfigError(
                f"search.stages: {stage.survivors} survivors out of {entering} candidates; each "
                f"stage must keep at most what enters it ({offspring} offspring at first)"
            )
        entering = stage.survivors
    if entering != 1:
        raise ConfigError(f"search.stages: the last stage must keep 1 candidate, got {entering}")
    return parsed


def _is_pair_of_counts(stage: object) -> bool:
    """Whether a stage is two whole numbers from 1 up; YAML may write them as 2e3."""
    return (
        isinstance(stage, Sequence)
        and len(stage) == 2
        and all(isinstance(n, int | float) and n >= 1 and float(n).is_integer() for n in stage)
    )


def draw_sample(num_sequences: int, length: int, num_tokens: int, rng: torch.Generator) -> Sample:
    """Sequences of the search text for a stage, without replacement.

    Fewer tokens than a sequence holds take the start of one sequence.

    Args:
        num_sequences: sequences in the search text.
        length: their length.
        num_tokens: positions wanted; rounded down to whole sequences.
        rng: CPU generator.

    Raises:
        ConfigError: the search text is too small.
    """
    taken = min(length, num_tokens)
    count = num_tokens // taken
    if count > num_sequences:
        raise ConfigError(
            f"a search stage of {num_tokens} tokens needs {count} sequences of {length}, but the "
            f"search text has {num_sequences}: raise data.search_tokens or lower search.stages"
        )
    rows = torch.randperm(num_sequences, generator=rng)[:count].sort().values
    return Sample(rows, taken)


def best_indices(losses: Sequence[float], count: int) -> list[int]:
    """Indices of the `count` lowest losses, best first; ties go to the earlier candidate."""
    return sorted(range(len(losses)), key=lambda index: (losses[index], index))[:count]
