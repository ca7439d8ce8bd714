"""A sublayer: one attention or FFN module that can run dense, or with some of its units removed.

The *stock* transformers module computes everything up to the output projection, with sliced
parameters handed in through `torch.func.functional_call`; the output projection itself is applied
here, because it is the weight that pruning changes. Removing columns of that projection and the
matching rows of q/k/v or gate/up gives exactly the masked dense module (Section 2.2).

Letters: B sequences, T positions, C hidden width, U kept units, D rows of the projection per unit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from tyr.devices import send
from tyr.errors import ConfigError
from tyr.model.architecture import Architecture
from tyr.model.norm import apply_norm
from tyr.sparsity import SublayerId

AttentionUnit = Literal["head", "kv_group"]


@dataclass(frozen=True)
class Structure:
    """One pruned copy of a sublayer.

    Args:
        kept: (U,), int64, ascending: the units that stay.
        weight: (C, U·D), output-projection weight restricted to the kept units, torch orientation.
    """

    kept: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Context:
    """What attention needs beside the hidden states; shared by all blocks.

    Args:
        position_embeddings: cos and sin, each (1, T, D).
        attention_masks: sliding window (or None) to mask (1, 1, T, T), or None for plain causal.
    """

    position_embeddings: tuple[Tensor, Tensor]
    attention_masks: Mapping[int | None, Tensor | None]


@dataclass(frozen=True)
class SlicedWeights:
    """Parameters of a sublayer restricted to a structure, all in one precision.

    Args:
        parameters: input-side parameters by name (q/k/v or gate/up, with biases).
        output: (C, U·D), the output projection.
        query_groups: query heads per KV head; 0 for an FFN.
        key_value: (query heads,), int64, the computed KV head that each query head looks at, where
            they do not share evenly; else None.
    """

    parameters: Mapping[str, Tensor]
    output: Tensor
    query_groups: int
    key_value: Tensor | None = None


@dataclass(frozen=True)
class HeadLayout:
    """Which query and KV heads a pruned attention runs, and how they pair up.

    Args:
        query: kept query heads, ascending.
        key_value: for each KV head that runs, its dense index (repeats when groups are uneven).
        query_groups: query heads per running KV head.
    """

    query: tuple[int, ...]
    key_value: tuple[int, ...]
    query_groups: int


def head_layout(kept_heads: list[int], groups: int) -> HeadLayout:
    """Pair kept query heads with KV heads.

    KV heads without a query go. If every remaining KV head serves equally many queries, grouped
    attention stays grouped; otherwise each query head gets its own copy of its KV head, which is
    exact and which the stock module runs as `num_key_value_groups = 1`. A checkpoint stores these
    copies; here keys and values are computed once and copied (`_RepeatedHeads`).
    """
    used = sorted({head // groups for head in kept_heads})
    sizes = {kv: sum(head // groups == kv for head in kept_heads) for kv in used}
    if len(set(sizes.values())) <= 1:
        return HeadLayout(tuple(kept_heads), tuple(used), next(iter(sizes.values()), 1))
    return HeadLayout(tuple(kept_heads), tuple(head // groups for head in kept_heads), 1)


class _RepeatedHeads(nn.Module):
    """A linear layer that computes some heads and gives them out in the order of `heads`.

    Its tensors always come through functional_call: those here only have the names.

    Args:
        head_size: width of a head.
        bias: whether there is one.
    """

    def __init__(self, head_size: int, *, bias: bool) -> None:
        super().__init__()
        self._head_size = head_size
        self.weight = nn.Parameter(torch.empty(0))
        self.bias = nn.Parameter(torch.empty(0)) if bias else None
        self.heads: Tensor
        self.register_buffer("heads", torch.empty(0, dtype=torch.int64), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, heads·D)."""
        computed = functional.linear(hidden, self.weight, self.bias)
        each: Tensor = computed.unflatten(-1, (-1, self._head_size))
        return each.index_select(-2, self.heads).flatten(-2)


class Sublayer:
    """A prunable module of one block, with its norm and residual connection.

    Args:
        sublayer_id: which one.
        block: the stock decoder block that owns the parameters.
        architecture: names of its parts.
        attention_unit: `head` or `kv_group`.
        require: called with the block's number before its parameters are touched; sizes and
            settings are read from the stock module without it.
    """

    def __init__(
        self,
        sublayer_id: SublayerId,
        block: nn.Module,
        *,
        architecture: Architecture,
        attention_unit: AttentionUnit = "head",
        require: Callable[[int], None] | None = None,
    ) -> None:
        if attention_unit not in ("head", "kv_group"):
            raise ConfigError(f"attention_unit must be head or kv_group, got {attention_unit!r}")
        self.id = sublayer_id
        self._arch = architecture
        self._require = require
        attention = sublayer_id.kind == "attn"
        self._stock: Any = getattr(block, architecture.attention if attention else architecture.ffn)
        norm = architecture.attention_norm if attention else architecture.ffn_norm
        self._norm: nn.Module = getattr(block, norm)
        self._output_name = architecture.attention_output if attention else architecture.ffn_output
        self._cores: dict[tuple[int, bool], nn.Module] = {}
        self.head_size = int(self._stock.head_dim) if attention else 1
        self.dense_groups = int(self._stock.num_key_value_groups) if attention else 0
        self.heads_per_unit = self.dense_groups if attention_unit == "kv_group" and attention else 1
        self.unit_size = self.head_size * self.heads_per_unit
        self.width: int
        self.width, inputs = getattr(self._stock, self._output_name).weight.shape  # C, d_in
        self.num_units: int = inputs // self.unit_size

    @property
    def name(self) -> str:
        """File-safe name, e.g. `003.attn`."""
        return self.id.name

    @property
    def output_weight(self) -> Tensor:
        """(C, d_in): the dense output projection, torch orientation."""
        return cast(Tensor, getattr(self._loaded(), self._output_name).weight)

    @property
    def output_bias(self) -> Tensor | None:
        """(C,) or None; never pruned."""
        return cast("Tensor | None", getattr(self._loaded(), self._output_name).bias)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every stock parameter by name, those of the norm included."""
        stock = self._loaded()
        yield from self._norm.named_parameters(prefix="norm")
        yield from stock.named_parameters()

    def rows(self, kept: Tensor) -> Tensor:
        """Rows of the output projection that belong to the given units: (U,) -> (U·D,)."""
        offsets = torch.arange(self.unit_size, device=kept.device)
        return (kept[:, None] * self.unit_size + offsets).reshape(-1)

    def kept_heads(self, kept: Tensor) -> list[int]:
        """Query heads of the given attention units."""
        per_unit = range(self.heads_per_unit)
        return [unit * self.heads_per_unit + head for unit in kept.tolist() for head in per_unit]

    def features(
        self, hidden: Tensor, context: Context, sliced: SlicedWeights | None = None
    ) -> Tensor:
        """Input of the output projection: (B, T, C) -> (B, T, d_in), or (B, T, U·D) if sliced."""
        self._loaded()
        normed = apply_norm(self._norm, hidden)
        core, parameters = self._core(self.dense_groups), {}
        if sliced is not None:
            normed = normed.to(sliced.output.dtype)
            parameters = dict(sliced.parameters)
            core = self._core(sliced.query_groups, repeated=sliced.key_value is not None)
            if sliced.key_value is not None:
                for name in (self._arch.key, self._arch.value):
                    parameters[f"{name}.heads"] = sliced.key_value
        if self.id.kind == "ffn":
            return cast(Tensor, functional_call(core, parameters, (normed,)))
        arguments = {
            "hidden_states": normed,
            "position_embeddings": [part.to(normed.dtype) for part in context.position_embeddings],
            "attention_mask": context.attention_masks[self.window],
        }
        return cast(Tensor, functional_call(core, parameters, (), arguments)[0])

    def project(self, hidden: Tensor, features: Tensor, weight: Tensor) -> Tensor:
        """Residual plus output projection: (B, T, C), (B, T, K), (C, K) -> (B, T, C).

        The residual stream keeps its precision, also where the product is in a shorter one.
        """
        return hidden + self._product(features, weight)

    def forward(
        self, hidden: Tensor, context: Context, sliced: SlicedWeights | None = None
    ) -> Tensor:
        """Hidden states after this sublayer, residual included; dense without `sliced`."""
        added = self.branch(hidden, context, sliced)
        return hidden if added is None else hidden + added

    def branch(
        self, hidden: Tensor, context: Context, sliced: SlicedWeights | None = None
    ) -> Tensor | None:
        """What this sublayer adds to the residual stream (B, T, C); None for nothing.

        For callers that own `hidden` and can add in place; `forward` is the plain form.
        """
        if sliced is None:
            return self._product(self.features(hidden, context), self.output_weight)
        if sliced.output.shape[1] == 0:  # nothing kept: only a bias can remain
            return None if self.output_bias is None else self.output_bias.expand_as(hidden)
        return self._product(self.features(hidden, context, sliced), sliced.output)

    def _product(self, features: Tensor, weight: Tensor) -> Tensor:
        """The output projection: (B, T, K), (C, K) -> (B, T, C)."""
        bias = self.output_bias
        return functional.linear(features, weight, None if bias is None else bias.to(weight))

    def slice(self, structure: Structure, dtype: torch.dtype | None = None) -> SlicedWeights:
        """Gather the parameters of a structure.

        Args:
            structure: what to keep.
            dtype: precision to compute in; default: the stock module's.
        """
        dense = self.output_weight
        output = send(structure.weight, dense.device).to(dtype or dense.dtype)
        gathered, query_groups, key_value = self._sliced_inputs(structure)
        if output.dtype != dense.dtype:  # also what is not sliced, such as Qwen3's q_norm
            inner = {n: p for n, p in self._stock.named_parameters() if n not in gathered}
            del inner[f"{self._output_name}.weight"]
            inner.pop(f"{self._output_name}.bias", None)
            gathered = {n: p.to(output.dtype) for n, p in {**inner, **gathered}.items()}
        return SlicedWeights(gathered, output, query_groups, key_value)

    def _sliced_inputs(self, structure: Structure) -> tuple[dict[str, Tensor], int, Tensor | None]:
        """Input-side parameters that lose rows, and how the heads pair up: see `SlicedWeights`."""
        dense = self.output_weight
        kept = send(structure.kept, dense.device)
        if self.id.kind == "ffn":
            rows = {self._arch.gate: kept, self._arch.up: kept}
            return self._gather(rows), 0, None
        layout = head_layout(self.kept_heads(structure.kept), self.dense_groups)
        used = sorted(set(layout.key_value))
        query, key_value = self._head_rows(layout.query), self._head_rows(used)
        names = {self._arch.query: query, self._arch.key: key_value, self._arch.value: key_value}
        repeats = None
        if len(used) < len(layout.key_value):
            order = torch.tensor([used.index(head) for head in layout.key_value])
            repeats = send(order, dense.device)
        return self._gather(names), layout.query_groups, repeats

    @property
    def window(self) -> int | None:
        """Sliding attention window of this block, or None for full causal attention."""
        config = self._stock.config
        if hasattr(self._stock, "sliding_window"):
            return cast("int | None", self._stock.sliding_window)
        if config.model_type == "mistral":
            return cast("int | None", getattr(config, "sliding_window", None))
        return None

    def _head_rows(self, heads: Sequence[int]) -> Tensor:
        index = send(torch.tensor(heads, dtype=torch.int64), self.output_weight.device)
        offsets = torch.arange(self.head_size, device=index.device)
        return (index[:, None] * self.head_size + offsets).reshape(-1)

    def _gather(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        gathered: dict[str, Tensor] = {}
        stock = self._loaded()
        for name, index in rows.items():
            linear = getattr(stock, name)
            # index_select copies whole rows: on a CPU three times as fast as indexing.
            gathered[f"{name}.weight"] = linear.weight.index_select(0, index)
            if linear.bias is not None:
                gathered[f"{name}.bias"] = linear.bias.index_select(0, index)
        return gathered

    def _loaded(self) -> Any:
        """The stock module with its parameters, and those of the norm, on the computing device."""
        if self._require is not None:
            self._require(self.id.block)
        return self._stock

    def _core(self, query_groups: int, *, repeated: bool = False) -> nn.Module:
        """The stock module without its output projection, for a given pairing of heads.

        A shallow copy that shares every parameter: functional_call swaps parameters but not the
        `num_key_value_groups` attribute.
        """
        pairing = query_groups, repeated
        if pairing not in self._cores:
            core = copy.copy(self._stock)
            core._modules = {**self._stock._modules, self._output_name: nn.Identity()}
            if self.id.kind == "attn":
                core.num_key_value_groups = query_groups
            if repeated:
                for name in (self._arch.key, self._arch.value):
                    bias = getattr(self._stock, name).bias is not None
                    core._modules[name] = _RepeatedHeads(self.head_size, bias=bias)
            self._cores[pairing] = core
        return self._cores[pairing]
