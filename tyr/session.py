"""What every stage of a run shares: the model, the text, the run directory, clocks and callbacks.

`pipeline.py` says what happens in which order; this module does the book-keeping around it: timing
a stage, measuring a model once, and reporting the start and the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tyr import events
from tyr.data import TokenSplits
from tyr.evaluate.perplexity import Evaluator
from tyr.export.tensors import model_size
from tyr.layout import FREE, Layout
from tyr.memory import peak_rss_bytes
from tyr.model.decoder import Decoder, PrunedDecoder
from tyr.processes import ALONE, Processes
from tyr.rundir import RunDirectory
from tyr.search.objective import Objective, Reference, dense_reference
from tyr.sparsity import Allocation, uniform_allocation
from tyr.supernet.finish import Reader


@dataclass(frozen=True)
class Provenance:
    """How a run came about, for its reports.

    Args:
        config: resolved configuration, plain containers.
        command: command line that repeats the run.
        environment: versions, commit, device, seed.
        resumed: whether earlier work was found.
    """

    config: Mapping[str, object]
    command: str
    environment: Mapping[str, object]
    resumed: bool = False


class Session:
    """One run on one model and text.

    Args:
        decoder: the dense model.
        splits: calibration, search and evaluation tokens.
        run_dir: opened run directory.
        callbacks: told of every step.
        evaluator: measures models.
        sparsity: fraction to remove; decides the uniform allocation and thereby the budget.
        layout: what every block must keep.
        processes: who share the work.
    """

    def __init__(
        self,
        decoder: Decoder,
        splits: TokenSplits,
        *,
        run_dir: RunDirectory,
        callbacks: events.Callback,
        evaluator: Evaluator,
        sparsity: float,
        layout: Layout = FREE,
        processes: Processes = ALONE,
    ) -> None:
        self.decoder = decoder
        self.processes = processes
        self.splits = splits
        self.run_dir = run_dir
        self.callbacks = callbacks
        self.evaluator = evaluator
        self.sparsity = sparsity
        self.uniform = uniform_allocation(sparsity, decoder.units, layout)
        self.seconds: dict[str, float] = {}
        self._reference: Reference | None = None

    @contextmanager
    def stage(
        self, stage: events.StageName, steps: int, iteration: int | None = None
    ) -> Iterator[None]:
        """Time a stage and report its start and end."""
        self.callbacks.on_stage_start(events.StageStarted(stage, steps, iteration))
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        key = stage if iteration is None else f"{stage}-{iteration}"
        self.seconds[key] = self.seconds.get(key, 0.0) + seconds
        self.callbacks.on_stage_end(events.StageFinished(stage, seconds, iteration))

    def evaluate(self, name: str, make: Callable[[], Reader | None]) -> events.EvaluationRow:
        """Measure a model, unless that was done before the run was interrupted.

        All processes make it, the first one measures it: a few forward passes over the evaluation
        text are little beside the search, and speed or lm-eval's tasks cannot be shared.

        Args:
            name: row of the final table.
            make: gives the reader of its structures, or None for the dense model.
        """
        row = self.processes.broadcast(lambda: self.run_dir.evaluations().get(name))
        if row is None:
            read = make()
            row = self.processes.broadcast(lambda: self._measure_and_save(name, read))
        self.callbacks.on_evaluation_end(events.EvaluationFinished(name, row))
        return row

    def _measure_and_save(self, name: str, read: Reader | None) -> events.EvaluationRow:
        row = self._measure(read)
        self.run_dir.save_evaluation(name, row)
        return row

    def _measure(self, read: Reader | None) -> events.EvaluationRow:
        model = self.decoder if read is None else PrunedDecoder(self.decoder, read)
        quality = self.evaluator.evaluate(model, self.splits.evaluation, reference=self.decoder)
        size = model_size(self.decoder, read)
        return events.EvaluationRow(
            perplexity=quality.perplexity,
            kl=quality.kl,
            parameters=size.parameters,
            backbone_parameters=size.backbone_parameters,
            bytes=size.bytes,
            tasks=quality.tasks,
            latency=quality.latency,
        )

    def reference(self, objective: Objective, batch_tokens: int) -> Reference:
        """Dense states on the search text, computed once for all iterations."""
        if self._reference is None:
            self._reference = dense_reference(
                self.decoder,
                self.splits.search,
                blocks=objective.observed_blocks(self.decoder.units.num_blocks),
                batch_tokens=batch_tokens,
            )
        return self._reference

    def report_start(self, provenance: Provenance, iterations: int) -> None:
        """Tell the callbacks that the run begins."""
        started = events.RunStarted(
            run_dir=self.run_dir.path,
            model_name=self.decoder.name,
            units=self.decoder.units,
            uniform=self.uniform,
            sparsity=self.sparsity,
            iterations=iterations,
            config=provenance.config,
            command=provenance.command,
            environment=provenance.environment,
            resumed=provenance.resumed,
        )
        self.callbacks.on_run_start(started)

    def report_end(self, allocation: Allocation) -> None:
        """Tell the callbacks that the run ended, with the final table."""
        export = self.run_dir.model
        finished = events.RunFinished(
            run_dir=self.run_dir.path,
            rows=self.run_dir.evaluations(),
            allocation=allocation,
            uniform=self.uniform,
            units=self.decoder.units,
            seconds=dict(self.seconds),
            peak_rss_bytes=peak_rss_bytes(),
            export_dir=export if export.exists() else None,
            removed_units=allocation.total,
        )
        self.callbacks.on_run_end(finished)
