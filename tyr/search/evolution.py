"""The evolutionary search of Algorithm 3, with staged selection (A.3) and elitism.

Each generation: mutate the parent into offspring, thin them over the stages, let the parent compete
in the last stage, keep the best. Everything random derives from (seed, iteration, generation), so a
search that continues from a saved generation makes the same draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from tyr.errors import ConfigError
from tyr.events import GenerationFinished, Round, StartRound, silent
from tyr.memory import is_whole_bytes
from tyr.model.source import parse_dtype
from tyr.randomness import derive_generator
from tyr.search.archive import Evaluation
from tyr.search.economy import Economy
from tyr.search.ledger import Evaluator, Ledger
from tyr.search.mutation import Bounds, Levels, donors_by_kind, mutate
from tyr.search.objective import Objective
from tyr.search.selection import Sample, draw_sample, parse_stages, sample_key
from tyr.search.surrogate import Demand, Proposal, rank_correlation
from tyr.sparsity import Allocation, LevelGrid


@dataclass(frozen=True)
class SearchState:
    """Where a search stands; enough to continue it exactly.

    Args:
        generation: generations done.
        parent: levels of the current parent.
        loss: its loss on `sample_key`'s positions, infinite before the first generation.
        sample_key: the sample that loss was measured on.
        evaluations: losses of this iteration, where an option of the search needs them.
    """

    generation: int
    parent: Levels
    loss: float = math.inf
    sample_key: tuple[int, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()


class EvolutionarySearch:
    """Algorithm 3.

    Args:
        objective: what to minimise (paper: KL on logits).
        generations: per iteration (paper A.3: 50).
        offspring: candidates per generation (128).
        stages: pairs (tokens, survivors), the last with one survivor.
        max_shifts: most shifts in one mutation (4, as in EvoPress).
        batch_tokens: most positions in one forward call.
        compute_dtype: of sublayers and logits while candidates are scored; auto: the model's.
        structure_cache_bytes: most bytes of structures that stay on the device from stage to stage;
            the default holds a small model's, whose files would be opened for every chunk of a
            race.
        economy: what saves tokens; by default nothing does.

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
        structure_cache_bytes: float = 32e6,
        economy: Economy | None = None,
    ) -> None:
        if isinstance(objective, str):
            raise ConfigError(
                f"search.objective={objective} replaces an object by a word; write "
                f"objective={objective}"
            )
        if batch_tokens < 1:
            raise ConfigError(f"search.batch_tokens must be at least 1, got {batch_tokens}")
        if not is_whole_bytes(structure_cache_bytes):
            raise ConfigError(
                f"search.structure_cache_bytes must be a whole number of bytes, e.g. 24e9, or 0 to "
                f"read structures anew for every stage; got {structure_cache_bytes}"
            )
        if generations < 0 or offspring < 1 or max_shifts < 1:
            raise ConfigError(
                f"search needs generations >= 0, offspring >= 1 and max_shifts >= 1; got "
                f"{generations}, {offspring} and {max_shifts}"
            )
        self.objective = objective
        self.batch_tokens = batch_tokens
        parse_dtype(compute_dtype, key="search.compute_dtype", auto=torch.float32)
        self.compute_dtype = compute_dtype
        self.structure_cache_bytes = int(structure_cache_bytes)
        self.generations = generations
        self.offspring = offspring
        self.stages = parse_stages(stages, offspring)
        self.max_shifts = max_shifts
        self.economy = Economy() if economy is None else economy

    def check_text(self, num_sequences: int, length: int) -> None:
        """Raise ConfigError when the search text or a stage is too small."""
        least = self.objective.min_positions
        for stage in self.stages:
            extent = self.economy.racing.extent(stage.num_tokens, length, num_sequences)
            sample = draw_sample(
                num_sequences, extent.length, stage.num_tokens, derive_generator(0)
            )
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
        on_start: Callable[[StartRound], None] = silent,
    ) -> SearchState:
        """Continue the search from `state` to the last generation.

        Args:
            evaluator: scores level vectors.
            grid: levels of this iteration.
            state: where to start.
            seed: of the run.
            iteration: 0-based, for randomness and reports.
            on_generation: called after each generation with the state to save.
            on_start: called after each round of a computed start.
        """
        bounds = grid.bounds()
        # Without a legal shift there is one allocation: the parent's loss is all there is to know.
        stuck = not donors_by_kind(state.parent, bounds)
        while state.generation < self.generations:
            started = time.perf_counter()
            generation = _Generation(self, evaluator, state, seed=seed, iteration=iteration)
            state = generation.run(bounds, stuck=stuck, on_start=on_start)
            if stuck:
                state = replace(state, generation=self.generations)
            seconds = time.perf_counter() - started
            event = generation.event(grid.allocation(state.parent), state.loss, seconds)
            on_generation(state, event)
        return state


class _Generation:
    """One generation of a search.

    Args:
        search: its settings.
        evaluator: scores level vectors.
        state: where it starts.
        seed: of the run.
        iteration: 0-based.
    """

    def __init__(
        self,
        search: EvolutionarySearch,
        evaluator: Evaluator,
        state: SearchState,
        *,
        seed: int,
        iteration: int,
    ) -> None:
        self._search = search
        self._economy = search.economy
        self._evaluator = evaluator
        self._state = state
        self._seed = seed
        self._iteration = iteration
        self._rng = derive_generator(seed, "search", iteration, state.generation)
        self._ledger = Ledger(evaluator, self._economy.archive, state.evaluations)
        self._proposal = Proposal([])
        self._seen: set[Levels] = set()
        self._rank_correlation: float | None = None
        self._parent_loss = math.inf

    def run(
        self, bounds: Bounds, *, stuck: bool, on_start: Callable[[StartRound], None]
    ) -> SearchState:
        """Mutate the parent, thin the offspring over the stages, keep the best."""
        state, stages = self._state, self._search.stages
        parent = state.parent
        candidates: list[Levels] = []
        if not stuck:
            if state.generation == 0:
                parent = self._start(bounds, on_start)
            self._proposal = self._propose(parent, bounds)
            candidates = self._proposal.candidates
        for index in range(len(stages) - 1) if candidates else ():
            candidates = self._thin(candidates, index)
        return self._last_stage(parent, candidates)

    def event(self, allocation: Allocation, loss: float, seconds: float) -> GenerationFinished:
        """What there is to report."""
        ledger, economy = self._ledger, self._economy
        return GenerationFinished(
            iteration=self._iteration,
            generation=self._state.generation,
            generations=self._search.generations,
            seconds=seconds,
            evaluated_tokens=ledger.evaluated_tokens,
            sublayer_evaluations=ledger.sublayer_evaluations,
            dense_sublayer_evaluations=ledger.dense_sublayer_evaluations,
            best_loss=loss,
            parent_loss=self._parent_loss,
            stages=tuple(ledger.stages),
            allocation=allocation,
            screened=self._proposal.screened if economy.surrogate.learns else None,
            raced_out=ledger.raced_out if economy.racing.races else None,
            archive_hits=ledger.archive_hits if economy.archive.keeps else None,
            surrogate_rank_correlation=self._rank_correlation,
        )

    def _start(self, bounds: Bounds, on_start: Callable[[StartRound], None]) -> Levels:
        began = time.perf_counter()
        rng = derive_generator(self._seed, "start", self._iteration)

        def draw(index: int) -> Sample:
            stage = self._search.stages[min(index, len(self._search.stages) - 1)]
            evaluator = self._evaluator
            return draw_sample(evaluator.num_sequences, evaluator.length, stage.num_tokens, rng)

        def report(done: Round) -> None:
            nonlocal began
            now = time.perf_counter()
            on_start(StartRound(**vars(done), iteration=self._iteration, seconds=now - began))
            began = now

        return self._economy.start.find(
            self._ledger.evaluate, self._state.parent, bounds, draw=draw, report=report
        )

    def _propose(self, parent: Levels, bounds: Bounds) -> Proposal:
        rng, search = self._rng, self._search
        evaluations = (*self._state.evaluations, *self._ledger.evaluations)
        self._seen = {one.levels for one in evaluations}
        demand = Demand(
            parent,
            bounds,
            offspring=search.offspring,
            least=search.stages[0].survivors,
            evaluations=evaluations,
        )
        return self._economy.surrogate.propose(
            demand, lambda: mutate(parent, bounds, rng, max_shifts=search.max_shifts), rng=rng
        )

    def _pieces(self, index: int) -> tuple[Sample, ...]:
        """Positions of a stage."""
        length, count = self._evaluator.length, self._evaluator.num_sequences
        racing = self._economy.racing
        epoch = self._economy.samples.epoch(self._state.generation)
        stages = self._search.stages[: index + 1]
        return self._economy.samples.draw(
            count,
            [racing.extent(stage.num_tokens, length, count) for stage in stages],
            rng=self._rng,
            fixed=derive_generator(self._seed, "samples", self._iteration, epoch),
        )

    def _thin(self, candidates: list[Levels], index: int) -> list[Levels]:
        """The survivors of a stage before the last."""
        selection = self._economy.racing.select(
            self._ledger.evaluate,
            candidates,
            self._pieces(index),
            survivors=self._search.stages[index].survivors,
        )
        self._ledger.close_stage(selection)
        if index == 0 and self._proposal.predictions:
            self._rank_correlation = self._compare(selection.losses)
        return [candidates[i] for i in selection.survivors]

    def _compare(self, losses: Sequence[float]) -> float | None:
        """Rank correlation of foretold and measured losses, on candidates not seen before."""
        proposal = self._proposal
        new = [i for i, levels in enumerate(proposal.candidates) if levels not in self._seen]
        return rank_correlation([proposal.predictions[i] for i in new], [losses[i] for i in new])

    def _last_stage(self, parent: Levels, candidates: list[Levels]) -> SearchState:
        """The parent against those left; it comes first, so it wins ties."""
        state, entrants = self._state, [parent, *candidates]
        pieces = self._pieces(len(self._search.stages) - 1)
        same = parent == state.parent and sample_key(pieces) == state.sample_key
        selection = self._economy.racing.select(
            self._ledger.evaluate,
            entrants,
            pieces,
            survivors=1,
            first_loss=state.loss if same else None,
        )
        self._ledger.close_stage(selection)
        best = selection.survivors[0]
        self._parent_loss = selection.losses[0]
        new = self._ledger.evaluations if self._economy.remembers else ()
        return SearchState(
            state.generation + 1,
            entrants[best],
            selection.losses[best],
            selection.sample_key,
            (*state.evaluations, *new),
        )
