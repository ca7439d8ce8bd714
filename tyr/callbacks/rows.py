"""The rows of metrics.csv: one flat schema for every kind of event.

A row holds strings exactly as the file does, so what is recorded live and what is read back after a
resume go through the same parsing (`history.py`). Nested values are JSON in one cell. Nothing here
touches the disk; `metrics_file.py` does, and `tracking.py` documents the columns.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import fmean

from tyr.events import (
    EvaluationFinished,
    GenerationFinished,
    SearchFinished,
    StageFinished,
    StageLosses,
    StageStarted,
    StartRound,
    SublayerPruned,
)

Row = dict[str, str]
RowKey = tuple[str, ...]

COLUMNS = (
    "event",
    "iteration",
    "generation",
    "generations",
    "stage",
    "sublayer",
    "name",
    "seconds",
    "evaluated_tokens",
    "sublayer_evaluations",
    "dense_sublayer_evaluations",
    "changes",
    "best_loss",
    "parent_loss",
    "stages",
    "allocation",
    "screened",
    "raced_out",
    "archive_hits",
    "surrogate_rank_correlation",
    "errors",
    "perplexity",
    "kl",
    "parameters",
    "backbone_parameters",
    "bytes",
    "tasks",
)
KEY_COLUMNS = ("event", "iteration", "generation", "stage", "sublayer", "name")


def row_key(row: Row) -> RowKey:
    """What identifies a row: two rows with one key report the same fact."""
    return tuple(row[column] for column in KEY_COLUMNS)


def stage_row(event: StageFinished, started: StageStarted | None) -> Row:
    """Row of a finished stage."""
    return _row(
        event="stage",
        iteration=event.iteration,
        stage=event.stage,
        name=started.label if started else "",
        seconds=event.seconds,
    )


def sublayer_row(event: SublayerPruned, started: StageStarted | None) -> Row:
    """Row of a pruned sublayer; the stage tells a supernet from a finishing pass."""
    return _row(
        event="sublayer",
        iteration=event.iteration,
        stage=started.stage if started else "",
        sublayer=event.sublayer.name,
        name=started.label if started else "",
        seconds=event.seconds,
        errors=_json({str(level): error for level, error in sorted(event.errors.items())}),
    )


def start_row(event: StartRound) -> Row:
    """Row of a round of a computed start."""
    return _row(
        event="start",
        iteration=event.iteration,
        name=f"{event.round + 1}/{event.rounds}",
        seconds=event.seconds,
        changes=event.changes,
        best_loss=event.best_loss,
        parent_loss=event.parent_loss,
    )


def generation_row(event: GenerationFinished) -> Row:
    """Row of a generation of the search."""
    return _row(
        event="generation",
        iteration=event.iteration,
        generation=event.generation,
        generations=event.generations,
        seconds=event.seconds,
        evaluated_tokens=event.evaluated_tokens,
        sublayer_evaluations=event.sublayer_evaluations,
        dense_sublayer_evaluations=event.dense_sublayer_evaluations,
        best_loss=event.best_loss,
        parent_loss=event.parent_loss,
        stages=_json([_stage_summary(stage) for stage in event.stages]),
        allocation=_json(event.allocation.as_dict()),
        screened=event.screened,
        raced_out=event.raced_out,
        archive_hits=event.archive_hits,
        surrogate_rank_correlation=event.surrogate_rank_correlation,
    )


def search_row(event: SearchFinished) -> Row:
    """Row of a finished search."""
    return _row(
        event="search",
        iteration=event.iteration,
        best_loss=event.loss,
        allocation=_json(event.allocation.as_dict()),
    )


def evaluation_row(event: EvaluationFinished) -> Row:
    """Row of an evaluated model."""
    row = event.row
    return _row(
        event="evaluation",
        name=event.name,
        perplexity=row.perplexity,
        kl=row.kl,
        parameters=row.parameters,
        backbone_parameters=row.backbone_parameters,
        bytes=row.bytes,
        tasks=_json({name: asdict(score) for name, score in row.tasks.items()})
        if row.tasks
        else None,
    )


def _stage_summary(stage: StageLosses) -> dict[str, object]:
    losses = stage.losses
    return {
        "num_tokens": stage.num_tokens,
        "candidates": len(losses),
        "best": min(losses, default=None),
        "mean": fmean(losses) if losses else None,
    }


def _row(**values: object) -> Row:
    # repr keeps a float to the last bit, so a row read back equals the row written.
    texts = {c: repr(v) if isinstance(v, float) else str(v) for c, v in values.items()}
    return {c: texts[c] if values.get(c) is not None else "" for c in COLUMNS}


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
