"""Algorithm 4, Týr-the-Pruner: prune to a supernet, search it, refine the grid, repeat, compress.

Everything it needs arrives as objects, and every step leaves files from which the next start can
continue. It knows nothing of Hydra, of devices, or of what the callbacks do. Of several processes
all take every step; the first one alone looks at files, writes them, and tells the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from tyr.errors import ConfigError
from tyr.events import EvaluationRow, GenerationFinished, SearchFinished
from tyr.export.checkpoint import ExportedModel
from tyr.layout import Layout
from tyr.model.decoder import Decoder
from tyr.model.source import ModelSource, parse_dtype
from tyr.prune.local import LocalPruner
from tyr.search.evolution import EvolutionarySearch, SearchState
from tyr.search.kept import KeptStructures, StructureSource
from tyr.search.ledger import Evaluator
from tyr.search.population import PopulationEvaluator
from tyr.search.sharded import ShardedEvaluator
from tyr.session import Provenance, Session
from tyr.sparsity import Allocation, LevelGrid, UnitCounts
from tyr.supernet.builder import SupernetBuilder
from tyr.supernet.finish import BuiltSupernet, Finish, Found, Reader, prune_along, single_level_grid
from tyr.supernet.settings import SupernetSettings


class Exporter(Protocol):
    """Writes the pruned model where others can load it."""

    def check(
        self, source: ModelSource, units: UnitCounts, *, sparsity: float, layout: Layout
    ) -> None:
        """Refuse, before any work, what could not be written at the end of it.

        Args:
            source: the dense model, of which no weight is read.
            units: that exist.
            sparsity: fraction to remove; reachable under the layout.
            layout: what every block must keep.

        Raises:
            TyrError: no export can come of this run.
        """

    def export(
        self, decoder: Decoder, read: Reader, directory: Path, provenance: Mapping[str, object]
    ) -> ExportedModel | None:
        """The record of what was written, or None when nothing is."""

    def finished(self, directory: Path) -> bool:
        """Whether an earlier process wrote the model; completes what can be made of what it left.

        Raises:
            TyrError: something is missing that cannot be made.
        """


@dataclass(frozen=True)
class Method:
    """The parts of the method.

    Args:
        iterations: rounds of prune-to-supernet and search (paper A.3: 4); 0 is plain local pruning.
        seed: of everything random.
    """

    iterations: int
    seed: int
    pruner: LocalPruner
    supernet: SupernetSettings
    search: EvolutionarySearch
    finish: Finish
    exporter: Exporter

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ConfigError(f"iterations must not be negative, got {self.iterations}")
        if self.iterations == 0 and not self.finish.prunes:
            raise ConfigError("finish=supernet needs iterations >= 1; use finish=repruned")
        if self.supernet.equal_blocks and self.iterations > 0:
            raise ConfigError(
                f"layout=uniform leaves nothing to search, so it needs iterations=0, got "
                f"iterations={self.iterations}; use layout=portable to search"
            )


class Pipeline:
    """The method on one session.

    Args:
        method: what to do.
        session: on what, and where results go.
    """

    def __init__(self, method: Method, session: Session) -> None:
        self.method = method
        self.session = session
        self.builder = SupernetBuilder(
            session.decoder,
            session.splits.calibration,
            pruner=method.pruner,
            seed=method.seed,
            settings=method.supernet,
            fingerprint=session.splits.fingerprint,
            processes=session.processes,
        )

    def run(self, provenance: Provenance) -> Allocation:
        """From the dense model to the exported one; a finished run is only reported again."""
        session, processes = self.session, self.session.processes
        session.report_start(provenance, self.method.iterations)
        allocation = processes.broadcast(self._finished)
        if allocation is None:
            with session.stage("dense", steps=1):
                session.evaluate("dense", lambda: None)
            allocation, supernet = self.prune_and_search()
            finish, sublayers = self.method.finish, len(session.decoder.sublayers)
            with session.stage("finish", steps=sublayers if finish.prunes else 1):
                final = self.assemble(finish, allocation, supernet)
            others = self.comparisons(allocation, supernet)
            with session.stage("evaluation", steps=1 + len(others)):
                session.evaluate("tyr", lambda: final)
                for name, make in others.items():
                    session.evaluate(name, make)
            with session.stage("export", steps=1):
                processes.alone(partial(self.export, final, allocation, provenance))
            processes.alone(partial(session.run_dir.finish, allocation))
        processes.alone(partial(session.run_dir.tidy, keep=self.method.supernet.keep))
        processes.alone(partial(session.report_end, allocation))
        return allocation

    def _finished(self) -> Allocation | None:
        """The allocation of a run that has all its results, else None."""
        run_dir = self.session.run_dir
        allocation = run_dir.finished_allocation()
        if allocation is None or not {"dense", "tyr"} <= run_dir.evaluations().keys():
            return None
        return allocation if self.method.exporter.finished(run_dir.model) else None

    def prune_and_search(self) -> tuple[Allocation, BuiltSupernet | None]:
        """The loop of Algorithm 4; what an interrupted run finished is not done again."""
        allocation, supernet = self.session.uniform, None
        generations = self.method.search.generations
        for iteration in range(self.method.iterations):
            grid = self.method.supernet.grid(allocation, self.builder.units, iteration)
            state = self.session.processes.broadcast(
                partial(self.session.run_dir.search_state, iteration, grid)
            )
            last = iteration == self.method.iterations - 1
            if state.generation < generations or last:
                supernet = self.prune_to_supernet(iteration, grid)
                state = self.search(iteration, supernet, state)
            allocation = grid.allocation(state.parent)
        return allocation, supernet

    def prune_to_supernet(self, iteration: int, grid: LevelGrid) -> BuiltSupernet:
        """Algorithm 2. The supernet before this one goes once this one is complete."""
        session, label = self.session, f"iteration-{iteration}"
        accumulation = self.method.supernet.accumulation
        store = self.builder.open_store(
            session.run_dir.supernet(iteration), grid, label=label, accumulation=accumulation
        )
        with session.stage("supernet", len(session.decoder.sublayers), iteration):
            self.builder.build(
                store,
                grid,
                accumulation=accumulation,
                label=label,
                report=session.callbacks.on_sublayer_pruned,
                iteration=iteration,
            )
        if self.method.supernet.keep != "all":
            session.processes.alone(partial(session.run_dir.drop_supernets, before=iteration))
        return BuiltSupernet(store, grid)

    def search(self, iteration: int, supernet: BuiltSupernet, state: SearchState) -> SearchState:
        """Algorithm 3, continued from the last finished generation."""
        session, search, grid = self.session, self.method.search, supernet.grid

        def finished(state: SearchState, event: GenerationFinished) -> None:
            session.callbacks.on_generation_end(event)
            session.processes.alone(lambda: session.run_dir.save_search(iteration, grid, state))

        if state.generation >= search.generations:
            return state
        with session.stage("search", search.generations - state.generation, iteration):
            state = search.run(
                self.evaluator(supernet),
                grid,
                state=state,
                seed=self.method.seed,
                iteration=iteration,
                on_generation=finished,
                on_start=session.callbacks.on_start_round,
            )
        allocation = grid.allocation(state.parent)
        session.callbacks.on_search_end(SearchFinished(iteration, allocation, state.loss))
        return state

    def evaluator(self, supernet: BuiltSupernet) -> Evaluator:
        """Scores level vectors, with all processes."""
        session, search = self.session, self.method.search
        local = PopulationEvaluator(
            session.decoder,
            self._structures(supernet),
            objective=search.objective,
            reference=session.reference(search.objective, search.batch_tokens),
            batch_tokens=search.batch_tokens,
            compute_dtype=parse_dtype(
                search.compute_dtype, key="search.compute_dtype", auto=session.decoder.dtype
            ),
        )
        if session.processes.size == 1:
            return local
        averages = search.objective.averages_sequences
        return ShardedEvaluator(local, session.processes, by_sequence=averages)

    def _structures(self, supernet: BuiltSupernet) -> StructureSource:
        """What the search reads structures from."""
        most = self.method.search.structure_cache_bytes
        device = self.session.decoder.device
        return KeptStructures(supernet.store, device, most_bytes=most) if most else supernet.store

    def assemble(
        self, finish: Finish, allocation: Allocation, supernet: BuiltSupernet | None
    ) -> Reader:
        """`compress` of Algorithm 4: one structure per sublayer."""
        directory = self.session.run_dir.path / "finish"
        report = self.session.callbacks.on_sublayer_pruned
        return finish.assemble(Found(self.builder, allocation, supernet, directory, report))

    def comparisons(
        self, allocation: Allocation, supernet: BuiltSupernet | None
    ) -> dict[str, Callable[[], Reader]]:
        """What tyr is compared with: the uniform allocation, and the other way to finish."""
        session, found = self.session, dict[str, Callable[[], Reader]]()
        if session.evaluator.uniform_baseline:
            grid = single_level_grid(self.builder.units, session.uniform)
            folder = session.run_dir.path / "uniform"
            found["uniform"] = partial(prune_along, self.builder, grid, folder)
        if self.method.finish.compare and supernet is not None:
            other = self.method.finish.other()
            found[f"tyr_{other.name}"] = partial(self.assemble, other, allocation, supernet)
        return found

    def export(self, final: Reader, allocation: Allocation, provenance: Provenance) -> None:
        """Write the smaller model and check that it lost exactly the budget."""
        session, exporter = self.session, self.method.exporter
        if exporter.finished(session.run_dir.model):
            return
        rows = session.run_dir.evaluations()
        card = {
            "name": f"{session.decoder.name} pruned by {session.sparsity:.3g}",
            "command": provenance.command,
            "results": [_card_row(name, row) for name, row in rows.items()],
            "data": provenance.config.get("data"),
            "commit": provenance.environment.get("commit"),
        }
        exported = exporter.export(session.decoder, final, session.run_dir.model, card)
        if exported is not None and exported.removed != allocation:
            raise RuntimeError(
                f"the export lost {exported.removed} units but the budget is {allocation.total}"
            )


def _card_row(name: str, row: EvaluationRow) -> dict[str, object]:
    """A row of the model card's table: accuracies are columns like perplexity."""
    numbers = {key: fact for key, fact in asdict(row).items() if isinstance(fact, int | float)}
    return {"model": name, **numbers, **{task: score.value for task, score in row.tasks.items()}}
