"""What a run tells its callbacks: frozen events, and the hooks that receive them.

The pipeline emits, callbacks listen; neither knows the other's type. Events carry plain numbers and
`UnitCounts`, never tensors or models, so a callback cannot change or leak a run's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tyr.sparsity import Allocation, Kind, SublayerId, UnitCounts

StageName = Literal["dense", "supernet", "search", "finish", "export", "evaluation"]


@dataclass(frozen=True)
class RunStarted:
    """A run begins (or continues): everything known before any work.

    Args:
        config: the resolved configuration as plain containers.
        command: the command line that repeats this run.
        environment: versions, commit, device, seed.
        resumed: whether finished work was found and will be skipped.
    """

    run_dir: Path
    model_name: str
    units: UnitCounts
    uniform: Allocation
    sparsity: float
    iterations: int
    config: Mapping[str, object]
    command: str
    environment: Mapping[str, object]
    resumed: bool = False


@dataclass(frozen=True)
class StageStarted:
    """A stage begins. `steps` counts what will be reported: sublayers, generations, or 1."""

    stage: StageName
    steps: int
    iteration: int | None = None  # 0-based; None outside the prune-and-search loop
    label: str = ""


@dataclass(frozen=True)
class StageFinished:
    """A stage ended after `seconds` of this process (a resumed stage counts only its rest)."""

    stage: StageName
    seconds: float
    iteration: int | None = None


@dataclass(frozen=True)
class SublayerPruned:
    """One sublayer's structures are solved; their file is complete or being written.

    Args:
        errors: level to relative reconstruction error on the calibration stream (squared error of
            the output projection over its squared norm), as recorded when it was solved.
        resumed: whether it was there already and only passed.
    """

    sublayer: SublayerId
    seconds: float
    errors: Mapping[int, float]
    iteration: int | None = None
    resumed: bool = False


@dataclass(frozen=True)
class StageLosses:
    """Losses of one search stage, sorted ascending.

    Of all candidates that entered, but for a parent whose loss on these positions was known.
    """

    num_tokens: int
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Round:
    """What one round of a computed start did.

    Args:
        round: 0-based, of `rounds`.
        changes: allocations measured around the parent.
        parent_loss: loss of the parent on the tokens that optima are compared on.
        best_loss: loss of the best of them, the parent included, on the same tokens.
    """

    round: int
    rounds: int
    changes: int
    parent_loss: float
    best_loss: float


@dataclass(frozen=True)
class StartRound(Round):
    """A round of the start of an iteration's search; the first generation comes after the last."""

    iteration: int
    seconds: float


@dataclass(frozen=True)
class GenerationFinished:
    """One generation of the search.

    Args:
        evaluated_tokens: candidates times tokens of every evaluation made, start included.
        sublayer_evaluations: distinct trie nodes that were computed, all stages together.
        dense_sublayer_evaluations: the same count for one-by-one evaluation.
        best_loss: loss of the new parent on the last stage's tokens, or on those of them that a
            race took to be decided.
        parent_loss: loss of the old parent on the same tokens; if it was raced out, as in `stages`.
        stages: losses on a stage's tokens; of candidates that left one early, the difference to the
            leader on the tokens they saw, added to the leader's loss.
        allocation: removed units of the new parent.
        screened: offspring that were drawn and not evaluated; None without a surrogate.
        raced_out: candidates that left a stage before its end; None without racing.
        archive_hits: losses that were known already; None without an archive.
        surrogate_rank_correlation: Spearman's, of predicted and measured losses of the first
            stage's new candidates; None when nothing was predicted, or in a single stage.
    """

    iteration: int
    generation: int
    generations: int
    seconds: float
    evaluated_tokens: int
    sublayer_evaluations: int
    dense_sublayer_evaluations: int
    best_loss: float
    parent_loss: float
    stages: tuple[StageLosses, ...]
    allocation: Allocation
    screened: int | None = None
    raced_out: int | None = None
    archive_hits: int | None = None
    surrogate_rank_correlation: float | None = None


@dataclass(frozen=True)
class SearchFinished:
    """The allocation an iteration ends with."""

    iteration: int
    allocation: Allocation
    loss: float


@dataclass(frozen=True)
class TaskScore:
    """How often a model picks the right choice of a multiple-choice task.

    Args:
        metric: `acc`, or `acc_norm` when choices are compared by log-probability per character.
        value: fraction of the examples, in [0, 1].
        stderr: standard error of `value`.
        examples: how many were asked.
        chance: fraction that guessing gets right.
    """

    metric: str
    value: float
    stderr: float
    examples: int
    chance: float


@dataclass(frozen=True)
class EvaluationRow:
    """One line of the final table.

    Args:
        perplexity: exp of the mean next-token loss on the evaluation windows.
        kl: mean KL(dense || this) per token, nats; 0 for the dense model.
        parameters: all parameters, tied ones once.
        backbone_parameters: parameters of the decoder blocks.
        bytes: tensor bytes in the stored dtype.
        tasks: score per task; empty unless the evaluator asks tasks.
        latency: rows of latency.csv about this model, and about the dense one measured in turns
            with it; empty unless the evaluator measures speed.
    """

    perplexity: float
    kl: float
    parameters: int
    backbone_parameters: int
    bytes: int
    tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    latency: Sequence[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluationFinished:
    """One model was evaluated: `dense`, `uniform`, `tyr`, or a diagnostic variant."""

    name: str
    row: EvaluationRow


@dataclass(frozen=True)
class RunFinished:
    """A run ended well; `summary` is what `summary.json` holds."""

    run_dir: Path
    rows: Mapping[str, EvaluationRow]
    allocation: Allocation
    uniform: Allocation
    units: UnitCounts
    seconds: Mapping[str, float]
    peak_rss_bytes: int
    export_dir: Path | None
    removed_units: Mapping[Kind, int] = field(default_factory=dict)


def silent(event: object) -> None:
    """A report that nobody reads."""


class Callback:
    """Hooks of a run; override what you need. The order of a run is the order below."""

    def on_run_start(self, event: RunStarted) -> None:
        """Before any work."""

    def on_stage_start(self, event: StageStarted) -> None:
        """Before a stage."""

    def on_sublayer_pruned(self, event: SublayerPruned) -> None:
        """After each sublayer of a supernet or finishing pass."""

    def on_start_round(self, event: StartRound) -> None:
        """After each round of a computed start; the first generation comes next."""

    def on_generation_end(self, event: GenerationFinished) -> None:
        """After each generation."""

    def on_search_end(self, event: SearchFinished) -> None:
        """After each iteration's search."""

    def on_evaluation_end(self, event: EvaluationFinished) -> None:
        """After each evaluated model."""

    def on_stage_end(self, event: StageFinished) -> None:
        """After a stage."""

    def on_run_end(self, event: RunFinished) -> None:
        """After everything, with the final table."""

    def on_run_error(self, error: BaseException) -> None:
        """When the run stops early; close files and displays, do not raise."""


class CallbackList(Callback):
    """Forwards every hook to several callbacks, in order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks = tuple(callbacks)

    def on_run_start(self, event: RunStarted) -> None:
        for callback in self.callbacks:
            callback.on_run_start(event)

    def on_stage_start(self, event: StageStarted) -> None:
        for callback in self.callbacks:
            callback.on_stage_start(event)

    def on_sublayer_pruned(self, event: SublayerPruned) -> None:
        for callback in self.callbacks:
            callback.on_sublayer_pruned(event)

    def on_start_round(self, event: StartRound) -> None:
        for callback in self.callbacks:
            callback.on_start_round(event)

    def on_generation_end(self, event: GenerationFinished) -> None:
        for callback in self.callbacks:
            callback.on_generation_end(event)

    def on_search_end(self, event: SearchFinished) -> None:
        for callback in self.callbacks:
            callback.on_search_end(event)

    def on_evaluation_end(self, event: EvaluationFinished) -> None:
        for callback in self.callbacks:
            callback.on_evaluation_end(event)

    def on_stage_end(self, event: StageFinished) -> None:
        for callback in self.callbacks:
            callback.on_stage_end(event)

    def on_run_end(self, event: RunFinished) -> None:
        for callback in self.callbacks:
            callback.on_run_end(event)

    def on_run_error(self, error: BaseException) -> None:
        for callback in self.callbacks:
            callback.on_run_error(error)
