"""The algorithm as the paper's authors released it, in our own words, to measure tyr against.

Local pruning starts afresh for every level, each with its own inverse Hessian, in float32: 16
rounds, or as many as there are units to remove. A block's statistics are taken in one forward pass
and its hidden states move on in a second one, with the centre structure in place. The supernet is
one file of dense, zero-filled weight per (sublayer, level). The search loads a candidate's weights
into the stock model and runs it alone, against teacher logits kept in memory for the whole text.

Made no slower than need be: batched forwards, one gain matrix per round, batched head scores, only
changed weights are read. Not done here: offloading, several processes, top-k teacher logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tyr.model.decoder import Decoder
from tyr.search.mutation import Levels
from tyr.search.population import PopulationLosses
from tyr.search.selection import Sample
from tyr.sparsity import LevelGrid, SublayerId, stream_order
from tyr.supernet.store import SupernetStore

ROUNDS = 16
DAMPING = 0.01
KL_POSITIONS = 1024  # positions per softmax, as released


def prune_level(
    weight: Tensor, hessian: Tensor, gradient: Tensor, *, unit_size: int, removed: int, rounds: int
) -> Tensor:
    """One level of one sublayer, from scratch.

    Args:
        weight: (d_in, C), dense.
        hessian: (d_in, d_in), damped.
        gradient: (d_in, C), hessian @ weight.
        unit_size: rows per unit.
        removed: units to remove.
        rounds: most rounds to remove them in.

    Returns:
        (d_in, C), with zeros for the removed rows.
    """
    num_units = len(weight) // unit_size
    if removed == 0:
        return weight.clone()
    if removed == num_units:
        return torch.zeros_like(weight)
    inverse, weight = torch.linalg.inv(hessian), weight.clone()
    alive = torch.ones(num_units, dtype=torch.bool)
    for count in round_sizes(removed, rounds):
        units = alive.nonzero()[:, 0]
        scores = saliency(weight, gradient, inverse, units=units, unit_size=unit_size)
        chosen = units[scores.argsort()[:count]]
        rows = rows_of(chosen, unit_size)
        gain = inverse[:, rows] @ torch.linalg.inv(inverse[rows][:, rows])
        weight -= gain @ weight[rows]
        inverse -= gain @ inverse[rows]
        weight[rows] = inverse[rows] = 0
        inverse[:, rows] = 0
        alive[chosen] = False
    kept = rows_of(alive.nonzero()[:, 0], unit_size)
    pruned = torch.zeros_like(weight)
    pruned[kept] = torch.linalg.inv(hessian[kept][:, kept]) @ gradient[kept]
    return pruned


def round_sizes(removed: int, rounds: int) -> list[int]:
    """Units per round, as even as possible, the larger rounds first."""
    rounds = min(rounds, removed)
    base, extra = divmod(removed, rounds)
    return [base + (index < extra) for index in range(rounds)]


def saliency(
    weight: Tensor, gradient: Tensor, inverse: Tensor, *, units: Tensor, unit_size: int
) -> Tensor:
    """Σ W ⊙ (½ (H⁻¹_uu)⁻¹ W + G) of the given units; the first-order part keeps its sign."""
    if unit_size == 1:
        curvature = weight / (2 * inverse.diagonal().clamp_min(1e-12)[:, None])
        return (weight * (curvature + gradient)).sum(dim=1)[units]
    num_units = len(weight) // unit_size
    blocks = inverse.view(num_units, unit_size, num_units, unit_size)[units, :, units]
    rows = weight.view(num_units, unit_size, -1)[units]
    slope = gradient.view(num_units, unit_size, -1)[units]
    return (rows * (torch.linalg.inv(blocks) @ rows / 2 + slope)).sum(dim=(1, 2))


def rows_of(units: Tensor, unit_size: int) -> Tensor:
    """Rows of the given units."""
    return (units[:, None] * unit_size + torch.arange(unit_size)).reshape(-1)


def level_file(directory: Path, sublayer: SublayerId, level: int) -> Path:
    """Where the dense weight of a level lies."""
    return directory / sublayer.name / f"{level}.safetensors"


def write_level(directory: Path, sublayer: SublayerId, level: int, weight: Tensor) -> None:
    """Store a (C, d_in) weight with its zeros."""
    path = level_file(directory, sublayer, level)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": weight.contiguous()}, path)


def output_projections(model: Any) -> dict[SublayerId, nn.Linear]:
    """The linear layers that pruning changes, in stream order."""
    layers = model.model.layers
    return {
        sublayer: layers[sublayer.block].self_attn.o_proj
        if sublayer.kind == "attn"
        else layers[sublayer.block].mlp.down_proj
        for sublayer in stream_order(len(layers))
    }


class ReleasedBuilder:
    """Prune-to-supernet as released. The model's weights are changed on the way.

    Args:
        model: stock transformers Llama, float32.
        tokens: (N, T), calibration sequences.
        batch_tokens: positions per forward call.
    """

    def __init__(self, model: Any, tokens: Tensor, *, batch_tokens: int) -> None:
        self._model = model
        self._batches = tokens.split(max(1, batch_tokens // tokens.shape[1]))

    @torch.inference_mode()
    def build(self, directory: Path, grid: LevelGrid) -> None:
        """Write every level of every sublayer."""
        backbone = self._model.model
        hidden = [backbone.embed_tokens(batch) for batch in self._batches]
        positions = torch.arange(hidden[0].shape[1])[None]
        rotary = backbone.rotary_emb(hidden[0], position_ids=positions)
        projections = output_projections(self._model)
        for index, block in enumerate(backbone.layers):
            own = {key: linear for key, linear in projections.items() if key.block == index}
            hessians = self._hessians(block, own, hidden, rotary)
            for sublayer, linear in own.items():
                self._prune(directory, grid, sublayer, linear, hessians[sublayer])
            hidden = [block(states, position_embeddings=rotary) for states in hidden]

    def _hessians(
        self, block: Any, own: dict[SublayerId, nn.Linear], hidden: list[Tensor], rotary: Any
    ) -> dict[SublayerId, Tensor]:
        """XᵀX of each output projection's input, from one pass through the block."""
        totals: dict[SublayerId, Tensor] = {}
        handles = [
            linear.register_forward_pre_hook(_accumulate(totals, sublayer))
            for sublayer, linear in own.items()
        ]
        for states in hidden:
            block(states, position_embeddings=rotary)
        for handle in handles:
            handle.remove()
        return totals

    def _prune(
        self,
        directory: Path,
        grid: LevelGrid,
        sublayer: SublayerId,
        linear: nn.Linear,
        hessian: Tensor,
    ) -> None:
        hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
        weight = linear.weight.mT.contiguous()
        gradient = hessian @ weight
        for level, removed in grid.levels(sublayer).items():
            pruned = prune_level(
                weight,
                hessian,
                gradient,
                unit_size=len(weight) // grid.units[sublayer],
                removed=removed,
                rounds=ROUNDS,
            ).mT
            write_level(directory, sublayer, level, pruned)
            if level == 0:
                linear.weight.data = pruned.contiguous()


def gram(features: Tensor) -> Tensor:
    """XᵀX: (N, d_in) -> (d_in, d_in)."""
    return features.mT @ features


def divergence(student: Tensor, teacher: Tensor) -> float:
    """Σ KL(teacher ‖ student) over positions: both (N, V), logits."""
    total = 0.0
    for q, p in zip(student.split(KL_POSITIONS), teacher.split(KL_POSITIONS), strict=True):
        log_q, log_p = q.log_softmax(dim=-1), p.log_softmax(dim=-1)
        total += float(functional.kl_div(log_q, log_p, reduction="sum", log_target=True))
    return total


def _accumulate(totals: dict[SublayerId, Tensor], sublayer: SublayerId) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        flat = inputs[0].flatten(0, 1)
        product = gram(flat)
        totals[sublayer] = totals[sublayer].add_(product) if sublayer in totals else product

    return hook


def write_dense(store: SupernetStore, decoder: Decoder, directory: Path) -> None:
    """The structures of a tyr supernet as dense, zero-filled files."""
    for sublayer in decoder.sublayers:
        for level, structure in store.read(sublayer.id).items():
            dense = torch.zeros_like(sublayer.output_weight, dtype=structure.weight.dtype)
            dense[:, sublayer.rows(structure.kept)] = structure.weight
            write_level(directory, sublayer.id, level, dense)


class ReleasedEvaluator:
    """Scores candidates one by one; an `Evaluator` of tyr's own search, so both see equal draws.

    Args:
        model: stock transformers Llama; its output projections are replaced.
        directory: dense supernet.
        tokens: (N, T), search text.
        batch_tokens: positions per forward call.
    """

    def __init__(self, model: Any, directory: Path, tokens: Tensor, *, batch_tokens: int) -> None:
        self._model = model
        self._directory = directory
        self._tokens = tokens
        self._batch_tokens = batch_tokens
        self._projections = output_projections(model)
        self._loaded: dict[SublayerId, int] = {}
        self._teacher = torch.empty(*tokens.shape, model.config.vocab_size)  # (N, T, V) float32
        for rows in self._batches(torch.arange(len(tokens)), self.length):
            self._teacher[rows] = self._logits(tokens[rows])

    @property
    def num_sequences(self) -> int:
        """Sequences of the search text."""
        return len(self._tokens)

    @property
    def length(self) -> int:
        """Positions per sequence."""
        return self._tokens.shape[1]

    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        """Loss of every candidate on the sample, each on its own.

        The released search never draws a candidate twice, so duplicates are not charged to it.
        """
        known: dict[Levels, float] = {}
        for candidate in candidates:
            if candidate not in known:
                self._load(candidate)
                known[candidate] = self._loss(sample)
        losses = [known[candidate] for candidate in candidates]
        return PopulationLosses(losses, len(known) * len(self._projections))

    @torch.inference_mode()
    def _load(self, candidate: Levels) -> None:
        """Read the weights of the levels that differ from those in the model."""
        for (sublayer, linear), level in zip(self._projections.items(), candidate, strict=True):
            if self._loaded.get(sublayer) != level:
                linear.weight.data = load_file(level_file(self._directory, sublayer, level))[
                    "weight"
                ]
                self._loaded[sublayer] = level

    @torch.inference_mode()
    def _loss(self, sample: Sample) -> float:
        """Mean KL(dense ‖ sparse) over the sample, nats per token."""
        total = 0.0
        for rows in self._batches(sample.rows, sample.length):
            student = self._logits(self._tokens[rows, : sample.length]).flatten(0, 1)
            teacher = self._teacher[rows, : sample.length].flatten(0, 1)
            total += divergence(student, teacher)
        return total / sample.num_tokens

    @torch.inference_mode()
    def _logits(self, tokens: Tensor) -> Tensor:
        return self._model(tokens, use_cache=False).logits.float()

    def _batches(self, rows: Tensor, length: int) -> Iterator[Tensor]:
        yield from rows.split(max(1, self._batch_tokens // length))
