"""Operations of one generation that exact sharing cannot avoid: those of distinct trie nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tyr.model.decoder import Decoder
from tyr.model.sublayer import Sublayer
from tyr.supernet.store import SupernetStore


def sublayer_flops(decoder: Decoder, store: SupernetStore, length: int) -> list[dict[int, float]]:
    """Per sublayer and level, floating-point operations of one position.

    Args:
        decoder: the dense model.
        store: a complete supernet.
        length: positions of a sequence, of which attention sees half on average.
    """
    return [
        {
            level: _flops(sublayer, sublayer.slice(structure), length)
            for level, structure in store.read(sublayer.id).items()
        }
        for sublayer in decoder.sublayers
    ]


def _flops(sublayer: Sublayer, sliced: Any, length: int) -> float:
    return _products(sublayer, (*sliced.parameters.values(), sliced.output), sliced.output, length)


def _dense_flops(sublayer: Sublayer, length: int) -> float:
    weights = [parameter for _, parameter in sublayer.parameters()]
    return _products(sublayer, weights, sublayer.output_weight, length)


def _products(
    sublayer: Sublayer, parameters: Sequence[Tensor], output: Tensor, length: int
) -> float:
    products = 2.0 * sum(weight.numel() for weight in parameters if weight.ndim == 2)
    if sublayer.id.kind == "ffn":
        return products
    return products + 2.0 * length * output.shape[1]  # QKᵀ and PV, the causal half


def one_by_one_flops(decoder: Decoder, length: int, stages: Sequence[Mapping[str, Any]]) -> float:
    """The same without sharing or slicing: every distinct candidate alone, its zeros multiplied.

    Args:
        decoder: the dense model.
        length: as of `sublayer_flops`.
        stages: each with `tokens` and `candidates`.
    """
    sublayers = sum(_dense_flops(sublayer, length) for sublayer in decoder.sublayers)
    dense = sublayers + 2.0 * decoder.head.numel()
    return sum(
        stage["tokens"] * len({tuple(levels) for levels in stage["candidates"]}) * dense
        for stage in stages
    )


def generation_flops(
    decoder: Decoder, costs: Sequence[Mapping[int, float]], stages: Sequence[Mapping[str, Any]]
) -> float:
    """Of all stages: every distinct prefix once, and the vocabulary for teacher and candidates.

    Args:
        decoder: the dense model.
        costs: of `sublayer_flops`.
        stages: each with `tokens` and `candidates`.
    """
    vocabulary = 2.0 * decoder.head.numel()
    total = 0.0
    for stage in stages:
        distinct = {tuple(levels) for levels in stage["candidates"]}
        for place, cost in enumerate(costs):
            prefixes = {levels[: place + 1] for levels in distinct}
            taken = Counter(prefix[-1] for prefix in prefixes)
            total += stage["tokens"] * sum(cost[level] * count for level, count in taken.items())
        total += stage["tokens"] * vocabulary * (len(distinct) + 1)
    return total
