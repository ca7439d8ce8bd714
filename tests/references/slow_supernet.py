"""A supernet built the straightforward way: every structure alone, outputs mixed as in Eq. 7.

For every sublayer and every level the greedy pruning starts again from the dense weight, the stock
module is run with that structure's weight, and the *outputs* X_{l+1,e} are averaged. Nothing is
shared between levels, and no weight is ever mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.references.greedy import (
    Regression,
    corrected_regression,
    prune_greedily,
    self_regression,
)
from tyr.model.decoder import Decoder
from tyr.randomness import derive_generator
from tyr.sparsity import LevelGrid, SublayerId, stream_order

# Shares of the structures' outputs, from their kept fractions 1 − S.
Shares = Callable[[Sequence[float]], Sequence[float]]


def by_expectation(kept_fractions: Sequence[float]) -> list[float]:
    return [fraction / sum(kept_fractions) for fraction in kept_fractions]


def by_mean(kept_fractions: Sequence[float]) -> list[float]:
    return [1 / len(kept_fractions)] * len(kept_fractions)


@dataclass(frozen=True)
class SlowSettings:
    """How to prune and accumulate; `alpha` and `beta` None mean the self target."""

    shares: Shares
    group_size: dict[str, int]
    criterion: str = "taylor"
    damping: float = 0.01
    alpha: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class SlowStructure:
    """Kept units, and the full-width (C, d_in) weight with zero columns where units are gone."""

    kept: list[int]
    weight: Tensor


class StockSublayer:
    """A stock module with its norm: what it projects, and what it gives for a full-width weight."""

    def __init__(self, decoder: Decoder, sublayer: SublayerId, length: int) -> None:
        backbone: Any = decoder.model.model
        block = backbone.layers[sublayer.block]
        attention = sublayer.kind == "attn"
        self.module = block.self_attn if attention else block.mlp
        self.linear = block.self_attn.o_proj if attention else block.mlp.down_proj
        self.norm = block.input_layernorm if attention else block.post_attention_layernorm
        self.unit_size = self.module.head_dim if attention else 1
        positions = torch.arange(length)[None]
        rotary = backbone.rotary_emb(backbone.embed_tokens.weight, position_ids=positions)
        self.arguments = (
            {"position_embeddings": rotary, "attention_mask": None} if attention else {}
        )

    def features(self, hidden: Tensor) -> Tensor:
        """Input of the output projection, caught on its way in."""
        caught: list[Tensor] = []
        handle = self.linear.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        self.module(self.norm(hidden), **self.arguments)
        handle.remove()
        return caught[0]

    def output(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Hidden states after the whole stock module has run with another projection weight."""
        dense = self.linear.weight.data
        self.linear.weight.data = weight.to(dense)
        result = self.module(self.norm(hidden), **self.arguments)
        self.linear.weight.data = dense
        added: Tensor = result[0] if isinstance(result, tuple) else result
        return hidden + added


@torch.no_grad()
def build_slowly(
    decoder: Decoder, tokens: Tensor, grid: LevelGrid, settings: SlowSettings
) -> dict[SublayerId, dict[int, SlowStructure]]:
    """Every level of every sublayer."""
    hidden = dense_hidden = decoder.embed(tokens)
    supernet = {}
    for sublayer in stream_order(grid.units.num_blocks):
        stock = StockSublayer(decoder, sublayer, tokens.shape[1])
        regression = _regression(stock, hidden, dense_hidden, settings)
        structures = {
            level: _structure(regression, removed, sublayer, settings)
            for level, removed in grid.levels(sublayer).items()
        }
        outputs = [stock.output(hidden, s.weight.mT) for s in structures.values()]
        kept = [len(s.kept) / regression.num_units for s in structures.values()]
        shares = settings.shares(kept)
        terms = [share * output for share, output in zip(shares, outputs, strict=True)]
        hidden = torch.stack(terms).sum(dim=0)
        dense_hidden = stock.output(dense_hidden, stock.linear.weight.data)
        supernet[sublayer] = structures
    return supernet


def _regression(
    stock: StockSublayer, hidden: Tensor, dense_hidden: Tensor, settings: SlowSettings
) -> Regression:
    features = stock.features(hidden).flatten(0, 1).double()
    weight = stock.linear.weight.double().mT
    common: dict[str, Any] = {"damping": settings.damping, "unit_size": stock.unit_size}
    if settings.alpha is None or settings.beta is None:
        return self_regression(features, weight, **common)
    return corrected_regression(
        features,
        weight,
        dense_features=stock.features(dense_hidden).flatten(0, 1).double(),
        residual_gap=(dense_hidden - hidden).flatten(0, 1).double(),
        alpha=settings.alpha,
        beta=settings.beta,
        **common,
    )


def _structure(
    regression: Regression, removed: int, sublayer: SublayerId, settings: SlowSettings
) -> SlowStructure:
    kept, weight = prune_greedily(
        regression,
        [removed],
        criterion=settings.criterion,
        group_size=settings.group_size[sublayer.kind],
        rng=derive_generator(0),
    )[removed]
    full = torch.zeros(regression.inputs.shape[1], weight.shape[1], dtype=torch.float64)
    full[regression.columns(kept)] = weight
    return SlowStructure(kept, full)
