"""What a search evaluates, counted before it runs: candidates, tokens and distinct trie nodes.

The parts of a search are asked, not imitated: the start is let loose on losses drawn at random, the
surrogate proposes with nothing learned yet, samples and mutations are drawn as in the search. These
are the most that is evaluated, exact with the paper's settings unless the parent meets the same
positions again: racing lets candidates leave, and an archive knows more than is counted here. A
start in rounds is estimated: the nearer its parent stays to the centre, the more levels are around
it (a tenth more in the worst case seen).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import torch

from tyr.data import SplitSizes
from tyr.randomness import derive_generator
from tyr.search.evolution import EvolutionarySearch
from tyr.search.mutation import Bounds, Levels, donors_by_kind, mutate
from tyr.search.selection import Sample, draw_sample
from tyr.search.surrogate import Demand

SIMULATED_POPULATIONS = 3


@dataclass(frozen=True)
class Call:
    """Candidates that are evaluated on the same positions.

    Args:
        candidates: how many.
        num_tokens: positions.
        length: positions of one sequence.
        evaluated_tokens: what the candidates pay for together; less than candidates times
            positions where some losses are known.
        share: distinct trie nodes over the candidates' nodes.
    """

    candidates: int
    num_tokens: int
    length: int
    evaluated_tokens: int
    share: float


@dataclass(frozen=True)
class SearchCounts:
    """One iteration's search.

    Args:
        start: calls that find the first parent.
        stages: calls of one generation.
        generations: how often those come.
    """

    start: tuple[Call, ...]
    stages: tuple[Call, ...]
    generations: int

    @property
    def calls(self) -> tuple[Call, ...]:
        """Each kind of call once."""
        return (*self.start, *self.stages)

    @property
    def evaluated_tokens(self) -> int:
        """Of the whole iteration."""
        once = sum(call.evaluated_tokens for call in self.start)
        return once + self.generations * sum(call.evaluated_tokens for call in self.stages)


def count_search(search: EvolutionarySearch, bounds: Bounds, sizes: SplitSizes) -> SearchCounts:
    """Count one iteration whose parent is the centre of the grid.

    Args:
        search: its settings.
        bounds: lowest and highest level of every sublayer.
        sizes: tokens of the splits.

    Raises:
        ConfigError: the search text is too small for a stage.
    """
    if search.generations == 0:
        return SearchCounts((), (), 0)
    parent: Levels = (0,) * len(bounds)
    if not donors_by_kind(parent, bounds):
        return SearchCounts((), (_stage(search, sizes, len(search.stages) - 1, [[parent]]),), 1)
    start = count_start(search, parent, bounds, sizes)
    return SearchCounts(start, count_generation(search, parent, bounds, sizes), search.generations)


def count_start(
    search: EvolutionarySearch, parent: Levels, bounds: Bounds, sizes: SplitSizes
) -> tuple[Call, ...]:
    """What the start asks for; see `count_search`."""
    calls: list[Call] = []
    rng = derive_generator(0, "plan", "start")

    def draw(index: int) -> Sample:
        stage = search.stages[min(index, len(search.stages) - 1)]
        length = sizes.sequence_length
        return draw_sample(sizes.windows("search"), length, stage.num_tokens, rng)

    def evaluate(candidates: Sequence[Levels], sample: Sample) -> list[float]:
        tokens = len(candidates) * sample.num_tokens
        share = distinct_share(candidates)
        calls.append(Call(len(candidates), sample.num_tokens, sample.length, tokens, share))
        return torch.rand(len(candidates), generator=rng).tolist()

    search.economy.start.find(evaluate, parent, bounds, draw=draw)
    return tuple(calls)


def count_generation(
    search: EvolutionarySearch, parent: Levels, bounds: Bounds, sizes: SplitSizes
) -> tuple[Call, ...]:
    """The stages of one generation; see `count_search`."""
    rng = derive_generator(0, "plan", "offspring")
    populations = [
        [mutate(parent, bounds, rng, max_shifts=search.max_shifts) for _ in range(search.offspring)]
        for _ in range(SIMULATED_POPULATIONS)
    ]
    demand = Demand(
        parent,
        bounds,
        offspring=search.offspring,
        least=search.stages[0].survivors,
        evaluations=(),
    )
    drawn = cycle(populations[0])
    offspring = search.economy.surrogate.propose(demand, lambda: next(drawn), rng=rng).candidates
    calls = []
    entering = len(offspring)
    for index, stage in enumerate(search.stages):
        entrants = [_pick(population, entering, rng) for population in populations]
        if index == len(search.stages) - 1:
            entrants = [[parent, *some] for some in entrants]
        calls.append(_stage(search, sizes, index, entrants))
        entering = stage.survivors
    return tuple(calls)


def _stage(
    search: EvolutionarySearch,
    sizes: SplitSizes,
    index: int,
    populations: Sequence[Sequence[Levels]],
) -> Call:
    """A stage, and how much populations like these share."""
    economy, count = search.economy, sizes.windows("search")
    pieces = economy.samples.draw(
        count,
        [
            economy.racing.extent(stage.num_tokens, sizes.sequence_length, count)
            for stage in search.stages[: index + 1]
        ],
        rng=derive_generator(0, "plan", "samples"),
        fixed=derive_generator(0, "plan", "samples"),
    )
    tokens = sum(piece.num_tokens for piece in pieces)
    # Offspring were measured on the earlier pieces in the stages before; the parent was not.
    entrants = len(populations[0])
    parents = min(1, entrants) if index == len(search.stages) - 1 else 0
    new = pieces[-1].num_tokens if economy.archive.keeps else tokens
    shares = [distinct_share(population) for population in populations]
    return Call(
        entrants,
        tokens,
        pieces[-1].length,
        parents * tokens + (entrants - parents) * new,
        sum(shares) / len(shares),
    )


def _pick(population: Sequence[Levels], count: int, rng: torch.Generator) -> list[Levels]:
    """`count` members at random; all of them, and some twice, where there are fewer."""
    order = torch.randperm(len(population), generator=rng).tolist()
    return [population[order[place % len(order)]] for place in range(count)]


def distinct_share(candidates: Sequence[Levels]) -> float:
    """Distinct prefixes of the level vectors, over the sublayers of all of them."""
    owners, nodes = [0] * len(candidates), 0
    for place in range(len(candidates[0])):
        edges: dict[tuple[int, int], int] = {}
        owners = [
            edges.setdefault((owner, levels[place]), len(edges))
            for owner, levels in zip(owners, candidates, strict=True)
        ]
        nodes += len(edges)
    return nodes / sum(len(levels) for levels in candidates)
