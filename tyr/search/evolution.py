"""The evolutionary search of Algorithm 3, with staged selection and elitism (A.3).

Each generation: mutate the parent into offspring, thin them over the stages, let the parent compete
in the last stage, keep the best. Everything random derives from (seed, iteration, generation), so a
search that continues from a saved generation makes the same draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from tyr.errors import ConfigError
from tyr.events import GenerationFinished, StageLosses
from tyr.model.loading import parse_dtype
from tyr.randomness import derive_generator
from tyr.search.mutation import Bounds, Levels, donors_by_kind, mutate
from tyr.search.objective import Objective
from tyr.search.population import PopulationLosses
from tyr.search.selection import Sample, Stage, best_indices, draw_sample, parse_stages
from tyr.sparsity import LevelGrid


class Evaluator(Protocol):
    """Scores level vectors; `PopulationEvaluator`, or a slow twin in tests."""

    @property
    def num_sequences(self) -> int:
        """Sequences of the search text."""

    @property
    def length(self) -> int:
        """Positions per sequence."""

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        """Loss of every candidate on the sample."""


@dataclass(frozen=True)
class SearchState:
    """Where a search stands; enough to continue it exactly.

    Args:
        generation: generations done.
        parent: levels of the current parent.
        loss: its loss on `sample_key`'s positions, infinite before the first generation.
        sample_key: the sample that loss was measured on.
    """

    generation: int
    parent: Levels
    loss: float = math.inf
    sample_key: tuple[int, ...] = ()


class Ledger:
    """Evaluates candidates and keeps the account of one generation.

    Args:
        evaluator: scores level vectors.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.evaluated_tokens = 0
        self.sublayer_evaluations = 0
        self.dense_sublayer_evaluations = 0
        self.stages: list[StageLosses] = []

    def draw(self, stage: Stage, rng: torch.Generator) -> Sample:
        """A stage's sample of the search text."""
        evaluator = self._evaluator
        return draw_sample(evaluator.num_sequences, evaluator.length, stage.num_tokens, rng)

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> list[float]:
        """Losses of the candidates on the sample."""
        result = self._evaluator.evaluate(candidates, sample)
        self.evaluated_tokens += len(candidates) * sample.num_tokens
        self.sublayer_evaluations += result.sublayer_evaluations
        self.dense_sublayer_evaluations += sum(len(levels) for levels in candidates)
        self.stages.append(StageLosses(sample.num_tokens, tuple(sorted(result.losses))))
        return result.losses


class EvolutionarySearch:
    """Algorithm 3.

    Args:
        objective: what to minimise (paper: KL on logits).
        generations: per iteration (paper A.3: 50).
        offspring: candidates per generation (128).
        stages: pairs (tokens, survivors), the last with one survivor.
        max_shifts: most shifts in one mutation (4).
        batch_tokens: most positions in one forward call.
        compute_dtype: of sublayers and logits while candidates are scored; auto: the model's.

    Raises:
        ConfigError: a setting is out of range, or `objective` is a word instead of an object.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        generations: int = 50,
        offspring: int = 128,
        stages: Sequence[Sequence[int]] = ((2048, 16), (16384, 4), (131072, 1)),
        max_shifts: int = 4,
        batch_tokens: int = 8192,
        compute_dtype: str = "auto",
    ) -> None:
        if isinstance(objective, str):
            raise ConfigError(
                f"search.objective={objective} replaces an object by a word; write "
                f"objective={objective}"
            )
        if batch_tokens < 1:
            raise ConfigError(f"search.batch_tokens must be at least 1, got {batch_tokens}")
        if generations < 0 or offspring < 1 or max_shifts < 1:
            raise ConfigError(
                f"search needs generations >= 0, offspring >= 1 and max_shifts >= 1; got "
                f"{generations}, {offspring} and {max_shifts}"
            )
        self.objective = objective
        self.batch_tokens = batch_tokens
        parse_dtype(compute_dtype, key="search.compute_dtype", auto=torch.float32)
        self.compute_dtype = compute_dtype
        self.generations = generations
        self.offspring = offspring
        self.stages = parse_stages(stages, offspring)
        self.max_shifts = max_shifts

    def check_text(self, num_sequences: int, length: int) -> None:
        """Raise ConfigError when the search text or a stage is too small."""
        least = self.objective.min_positions
        for stage in self.stages:
            sample = draw_sample(num_sequences, length, stage.num_tokens, derive_generator(0))
            if sample.length < least:
                raise ConfigError(
                    f"this objective needs sequences of at least {least} tokens, but a stage of "
                    f"search.stages has {sample.length}: give every stage at least {least} tokens"
                )

    def run(
        self,
        evaluator: Evaluator,
        grid: LevelGrid,
        *,
        state: SearchState,
        seed: int,
        iteration: int,
        on_generation: Callable[[SearchState, GenerationFinished], None],
    ) -> SearchState:
        """Continue the search from `state` to the last generation.

        Args:
            evaluator: scores level vectors.
            grid: levels of this iteration.
            state: where to start.
            seed: of the run.
            iteration: 0-based, for randomness and reports.
            on_generation: called after each generation with the state to save.
        """
        bounds = grid.bounds()
        # Without a legal shift there is one allocation: the parent's loss is all there is to know.
        stuck = not donors_by_kind(state.parent, bounds)
        while state.generation < self.generations:
            started = time.perf_counter()
            ledger = Ledger(evaluator)
            rng = derive_generator(seed, "search", iteration, state.generation)
            state, parent_loss = self._generation(
                ledger, bounds, state, rng, offspring=0 if stuck else self.offspring
            )
            if stuck:
                state = replace(state, generation=self.generations)
            event = GenerationFinished(
                iteration=iteration,
                generation=state.generation - 1,
                generations=self.generations,
                seconds=time.perf_counter() - started,
                evaluated_tokens=ledger.evaluated_tokens,
                sublayer_evaluations=ledger.sublayer_evaluations,
                dense_sublayer_evaluations=ledger.dense_sublayer_evaluations,
                best_loss=state.loss,
                parent_loss=parent_loss,
                stages=tuple(ledger.stages),
                allocation=grid.allocation(state.parent),
            )
            on_generation(state, event)
        return state

    def _generation(
        self,
        ledger: Ledger,
        bounds: Bounds,
        state: SearchState,
        rng: torch.Generator,
        *,
        offspring: int,
    ) -> tuple[SearchState, float]:
        """One generation: the next state, and the old parent's loss on the last sample."""
        parent = state.parent
        candidates = [
            mutate(parent, bounds, rng, max_shifts=self.max_shifts) for _ in range(offspring)
        ]
        for stage in self.stages[:-1] if candidates else ():
            losses = ledger.evaluate(candidates, ledger.draw(stage, rng))
            candidates = [candidates[index] for index in best_indices(losses, stage.survivors)]
        sample = ledger.draw(self.stages[-1], rng)
        if sample.key() == state.sample_key:  # same positions as last time: its loss is known
            losses = [state.loss, *ledger.evaluate(candidates, sample)]
        else:
            losses = ledger.evaluate([parent, *candidates], sample)
        best = best_indices(losses, 1)[0]  # the parent comes first, so it wins ties
        winner = (parent, *candidates)[best]
        return SearchState(state.generation + 1, winner, losses[best], sample.key()), losses[0]
