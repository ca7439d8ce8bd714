"""Every metric key a tracker sees, in one place: `stage/name`, numbers only.

Keys of the search are the same for all iterations; `search/step` counts generations through the
whole run and is their x axis. What is not a number (histograms, images, tables) is added by the
tracker under a key named here.
"""

from __future__ import annotations

from tyr.events import (
    EvaluationFinished,
    GenerationFinished,
    StageFinished,
    StageName,
    StartRound,
    SublayerPruned,
)

# Prefix of the keys -> the key that is their x axis.
STEP_OF = {f"{s}/*": f"{s}/step" for s in ("start", "search", "supernet", "finish", "evaluation")}
ALLOCATION_IMAGE = "search/allocation"
RESULT_TABLE = "eval/table"


def stage_losses_key(stage: int) -> str:
    """Histogram of the losses of one search stage."""
    return f"search/stage{stage}_losses"


def start_metrics(event: StartRound) -> dict[str, float]:
    """Numbers of one round of a computed start."""
    return {
        "start/step": event.iteration * event.rounds + event.round,
        "start/best_loss": event.best_loss,
        "start/parent_loss": event.parent_loss,
        "start/changes": event.changes,
        "start/seconds": event.seconds,
    }


def generation_metrics(event: GenerationFinished) -> dict[str, float]:
    """Numbers of one generation; losses as the objective reports them."""
    metrics: dict[str, float] = {
        "search/step": event.iteration * event.generations + event.generation,
        "search/iteration": event.iteration,
        "search/generation": event.generation,
        "search/best_loss": event.best_loss,
        "search/parent_loss": event.parent_loss,
        "search/seconds": event.seconds,
        "search/evaluated_tokens": event.evaluated_tokens,
        "search/sublayer_evaluations": event.sublayer_evaluations,
        "search/dense_sublayer_evaluations": event.dense_sublayer_evaluations,
    }
    optional = {
        "search/screened": event.screened,
        "search/raced_out": event.raced_out,
        "search/archive_hits": event.archive_hits,
        "search/surrogate_rank_correlation": event.surrogate_rank_correlation,
    }
    metrics.update({key: value for key, value in optional.items() if value is not None})
    for index, stage in enumerate(event.stages):
        if stage.losses:
            metrics[f"search/stage{index}_min"] = min(stage.losses)
            metrics[f"search/stage{index}_mean"] = sum(stage.losses) / len(stage.losses)
    return metrics


def sublayer_metrics(
    event: SublayerPruned, stage: StageName, num_sublayers: int
) -> dict[str, float]:
    """Numbers of one pruned sublayer: relative errors at level 0 and at the sparsest level."""
    metrics = {
        f"{stage}/step": float((event.iteration or 0) * num_sublayers + event.sublayer.index),
        f"{stage}/seconds": event.seconds,
    }
    if 0 in event.errors:
        metrics[f"{stage}/{event.sublayer.kind}_error"] = event.errors[0]
    if event.errors:
        metrics[f"{stage}/{event.sublayer.kind}_error_sparsest"] = event.errors[max(event.errors)]
    return metrics


def evaluation_metrics(event: EvaluationFinished) -> dict[str, float]:
    """Numbers of one evaluated model; the model's name is part of the key."""
    prefix, row = f"eval/{event.name}", event.row
    return {
        f"{prefix}_perplexity": row.perplexity,
        f"{prefix}_kl": row.kl,
        f"{prefix}_parameters": row.parameters,
        f"{prefix}_backbone_parameters": row.backbone_parameters,
        f"{prefix}_bytes": row.bytes,
        **{f"{prefix}_task_{task}": score.value for task, score in row.tasks.items()},
    }


def stage_metrics(event: StageFinished) -> dict[str, float]:
    """Duration of a stage in this process."""
    return {f"time/{event.stage}_seconds": event.seconds}
