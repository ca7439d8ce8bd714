"""Candidates evaluated one at a time on the stock model, with every logit at once.

Nothing is sliced, shared, cached or chunked: each candidate is a copy of the dense transformers
model whose `o_proj` and `down_proj` have zero columns, run by its own `forward`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.references.masked_model import masked_model
from tyr.model.decoder import Decoder
from tyr.search.mutation import Levels
from tyr.search.population import PopulationLosses
from tyr.search.selection import Sample
from tyr.sparsity import stream_order
from tyr.supernet.store import SupernetStore


def stock_model(decoder: Decoder, store: SupernetStore, levels: Levels) -> Any:
    """The masked stock model of a candidate."""
    order = stream_order(decoder.units.num_blocks)
    chosen = {
        sublayer: store.read(sublayer)[level] for sublayer, level in zip(order, levels, strict=True)
    }
    return masked_model(decoder, chosen)


def logits_kl(teacher: Tensor, student: Tensor) -> float:
    """Mean KL(teacher ‖ student) per position, from (N, T, V) logits."""
    log_p, log_q = (
        functional.log_softmax(logits.double(), dim=-1).flatten(0, 1)
        for logits in (teacher, student)
    )
    return float(functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))


def block_outputs(model: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the residual stream after every block (before the final norm)."""
    outputs: list[Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in model.model.layers
    ]
    logits = model(tokens).logits
    for handle in handles:
        handle.remove()
    return logits, outputs


class OneByOneEvaluator:
    """The slow twin of `PopulationEvaluator`.

    Args:
        decoder: the dense model.
        store: the supernet.
        tokens: (N, T), search text.
        objective: `kl`, `perplexity`, or (α, β) of Eq. 8.
    """

    def __init__(
        self,
        decoder: Decoder,
        store: SupernetStore,
        tokens: Tensor,
        objective: str | tuple[float, float] = "kl",
    ) -> None:
        self._decoder = decoder
        self._store = store
        self._tokens = tokens
        self._objective = objective

    @property
    def num_sequences(self) -> int:
        return len(self._tokens)

    @property
    def length(self) -> int:
        return self._tokens.shape[1]

    @torch.no_grad()
    def evaluate(self, candidates: Sequence[Levels], sample: Sample) -> PopulationLosses:
        tokens = self._tokens[sample.rows][:, : sample.length]
        losses = [self._loss(levels, tokens) for levels in candidates]
        prefixes = {levels[:end] for levels in candidates for end in range(1, len(levels) + 1)}
        return PopulationLosses(losses, len(prefixes))

    def _loss(self, levels: Levels, tokens: Tensor) -> float:
        model = stock_model(self._decoder, self._store, levels)
        if self._objective == "perplexity":
            return float(model(tokens, labels=tokens).loss)
        teacher, dense = block_outputs(self._decoder.model, tokens)
        student, sparse = block_outputs(model, tokens)
        kl = logits_kl(teacher, student)
        if isinstance(self._objective, str):
            return kl
        alpha, beta = self._objective
        blocks = sorted({0, len(dense) // 2, len(dense) - 1})
        distances = [
            float((dense[b] - sparse[b]).double().square().sum() / dense[b].double().square().sum())
            for b in blocks
        ]
        return alpha * sum(distances) + beta * kl
