"""The tensors of a GGUF file: their names, their shapes, and how each is made from stored ones.

Three things change on the way. `deci` rotates neighbouring rows of a query or key head, where
transformers rotates rows half a head apart, so rows are reordered head by head. KV heads that are
shared unevenly are written several times. A sublayer that llama.cpp cannot leave out becomes one of
zeros. Nothing is read before `GgufTensor.make` is called.

Letters: D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tyr.errors import ModelError
from tyr.export.gguf.layout import BlockLayout, ModelLayout
from tyr.export.gguf.source import ModelDirectory


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file, not made yet.

    Args:
        name: its name in the file.
        shape: torch order.
        make: returns it on the CPU.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def row_width(self) -> int:
        """Values per row, which quantised types cut into blocks."""
        return self.shape[-1]


def rope_order(head_size: int) -> Tensor:
    """(D,): which row of a transformers head stands at each place of a `deci` head."""
    return torch.arange(head_size).view(2, head_size // 2).mT.reshape(-1)


def head_rows(copies: tuple[int, ...], head_size: int, *, permuted: bool) -> Tensor:
    """Rows of a projection with every head written `copies` times.

    Args:
        copies: one count per stored head.
        head_size: rows per head.
        permuted: reorder the rows of each head as `rope_order` says.
    """
    heads = torch.repeat_interleave(torch.arange(len(copies)), torch.tensor(copies))
    inner = rope_order(head_size) if permuted else torch.arange(head_size)
    return (heads[:, None] * head_size + inner).reshape(-1)


def gguf_tensors(source: ModelDirectory, layout: ModelLayout) -> list[GgufTensor]:
    """Every tensor of the file, in order.

    Raises:
        ModelError: a stored tensor is missing, or its shape is not what config.json says.
    """
    config = source.config
    vocabulary = (int(config.vocab_size), int(config.hidden_size))
    reader = _Reader(source)
    tensors = [reader.plain("token_embd.weight", "model.embed_tokens.weight", vocabulary)]
    if layout.rope.divisors is not None:
        divisors = layout.rope.divisors
        tensors.append(GgufTensor("rope_freqs.weight", tuple(divisors.shape), lambda: divisors))
    for index, block in enumerate(layout.blocks):
        writer = _Block(reader, layout, index)
        tensors += writer.attention(block)
        tensors += writer.ffn(block)
    tensors.append(reader.plain("output_norm.weight", "model.norm.weight", (vocabulary[1],)))
    if not layout.tied:
        tensors.append(reader.plain("output.weight", "lm_head.weight", vocabulary))
    return tensors


class _Reader:
    """Makes tensors of the file from stored ones, checking shapes before anything is read."""

    def __init__(self, source: ModelDirectory) -> None:
        self.source = source

    def has(self, name: str) -> bool:
        return name in self.source.tensors

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        stored = self.source.tensors.get(name)
        if stored is None:
            raise ModelError(f"{self.source.path} lacks {name}: the checkpoint is incomplete")
        if stored.shape != shape:
            raise ModelError(
                f"{self.source.path}: {name} is {list(stored.shape)} but config.json asks for "
                f"{list(shape)}; config.json and weights are not of the same model"
            )

    def plain(self, target: str, name: str, shape: tuple[int, ...]) -> GgufTensor:
        self.check(name, shape)
        return GgufTensor(target, shape, lambda: self.source.load(name))

    def rows(self, target: str, name: str, shape: tuple[int, ...], rows: Tensor) -> GgufTensor:
        self.check(name, shape)
        return GgufTensor(target, (rows.numel(), *shape[1:]), lambda: self.source.load(name)[rows])


class _Block:
    """The tensors of one block."""

    def __init__(self, reader: _Reader, layout: ModelLayout, index: int) -> None:
        self._reader = reader
        self._arch = layout.arch
        self._head_size = layout.head_size
        self._width = int(reader.source.config.hidden_size)
        self._from = f"model.layers.{index}"
        self._to = f"blk.{index}"

    def attention(self, block: BlockLayout) -> Iterator[GgufTensor]:
        """Norm, projections and biases; nothing for an attention that is left out."""
        if block.zero_attention:
            yield from self._zero_attention(block)
            return
        if block.query_heads == 0:
            return
        yield self._norm("attn_norm", "input_layernorm")
        if self._arch == "openelm":
            yield self._fused(block)
            for which in ("q", "k"):
                name = f"{self._from}.self_attn.{which}_norm.weight"
                yield self._reader.plain(
                    f"{self._to}.attn_{which}_norm.weight", name, (self._head_size,)
                )
        else:
            yield from self._separate(block)
        yield from self._linear("attn_output", "self_attn.o_proj", block.query_heads, columns=True)

    def ffn(self, block: BlockLayout) -> Iterator[GgufTensor]:
        """Norm, gate, up and down projections with their biases."""
        if block.zero_ffn:
            yield self._ones("ffn_norm", self._width)
            yield self._zeros("ffn_gate", block.neurons, self._width)
            yield self._zeros("ffn_up", block.neurons, self._width)
            yield self._zeros("ffn_down", self._width, block.neurons)
            yield from self._bias("ffn_down", "mlp.down_proj", self._width)
            return
        yield self._norm("ffn_norm", "post_attention_layernorm")
        for target, name, columns in (
            ("ffn_gate", "mlp.gate_proj", False),
            ("ffn_up", "mlp.up_proj", False),
            ("ffn_down", "mlp.down_proj", True),
        ):
            yield from self._linear(target, name, block.neurons, columns=columns, unit=1)

    def _separate(self, block: BlockLayout) -> Iterator[GgufTensor]:
        """Query, key and value projections; only the first two are rotated."""
        once = (1,) * block.query_heads
        for which, copies in (("q", once), ("k", block.kv_copies), ("v", block.kv_copies)):
            rows = head_rows(copies, self._head_size, permuted=which != "v")
            stored = len(copies) * self._head_size
            name, target = f"{self._from}.self_attn.{which}_proj", f"{self._to}.attn_{which}"
            shape = (stored, self._width)
            yield self._reader.rows(f"{target}.weight", f"{name}.weight", shape, rows)
            if self._reader.has(f"{name}.bias"):
                yield self._reader.rows(f"{target}.bias", f"{name}.bias", (stored,), rows)

    def _fused(self, block: BlockLayout) -> GgufTensor:
        """Query, key and value rows in one tensor, as openelm reads them, unrotated."""
        parts = []
        once = (1,) * block.query_heads
        for which, copies in (("q", once), ("k", block.kv_copies), ("v", block.kv_copies)):
            name = f"{self._from}.self_attn.{which}_proj.weight"
            shape = (len(copies) * self._head_size, self._width)
            rows = head_rows(copies, self._head_size, permuted=False)
            parts.append(self._reader.rows("", name, shape, rows))
        shape = (sum(part.shape[0] for part in parts), self._width)
        name = f"{self._to}.attn_qkv.weight"
        return GgufTensor(name, shape, lambda: torch.cat([part.make() for part in parts]))

    def _zero_attention(self, block: BlockLayout) -> Iterator[GgufTensor]:
        """One head that adds nothing but the output bias."""
        rows = self._head_size
        yield self._ones("attn_norm", self._width)
        if self._arch == "openelm":
            yield self._zeros("attn_qkv", 3 * rows, self._width)
            yield self._ones("attn_q_norm", rows)
            yield self._ones("attn_k_norm", rows)
        else:
            for which in ("q", "k", "v"):
                yield self._zeros(f"attn_{which}", rows, self._width)
        yield self._zeros("attn_output", self._width, rows)
        yield from self._bias("attn_output", "self_attn.o_proj", self._width)

    def _linear(
        self, target: str, name: str, units: int, *, columns: bool, unit: int | None = None
    ) -> Iterator[GgufTensor]:
        """A projection from (columns) or to units, `unit` (default: D) values each."""
        size = units * (self._head_size if unit is None else unit)
        shape = (self._width, size) if columns else (size, self._width)
        stored = f"{self._from}.{name}.weight"
        yield self._reader.plain(f"{self._to}.{target}.weight", stored, shape)
        yield from self._bias(target, name, shape[0])

    def _bias(self, target: str, name: str, size: int) -> Iterator[GgufTensor]:
        stored = f"{self._from}.{name}.bias"
        if self._reader.has(stored):
            yield self._reader.plain(f"{self._to}.{target}.bias", stored, (size,))

    def _norm(self, target: str, name: str) -> GgufTensor:
        stored = f"{self._from}.{name}.weight"
        return self._reader.plain(f"{self._to}.{target}.weight", stored, (self._width,))

    def _zeros(self, target: str, *shape: int) -> GgufTensor:
        return GgufTensor(f"{self._to}.{target}.weight", shape, lambda: torch.zeros(shape))

    def _ones(self, target: str, size: int) -> GgufTensor:
        return GgufTensor(f"{self._to}.{target}.weight", (size,), lambda: torch.ones(size))
