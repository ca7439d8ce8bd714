"""Which tensors a pruned model consists of, sublayer by sublayer, and how large it is.

A tensor is described before it is gathered, so counting the parameters of a pruned 70B model moves
no data. Query heads stay in dense order; a KV head that no kept query uses is dropped, and one that
several use is written once. Nothing is written here.

Letters: C hidden width, U kept units, D rows of the output projection per unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tyr.model.decoder import Decoder
from tyr.model.sublayer import Structure, Sublayer, head_layout
from tyr.sparsity import SublayerId

ReadStructure = Callable[[SublayerId], Structure]


@dataclass(frozen=True)
class ModelSize:
    """How large a model is.

    Args:
        parameters: all of them; tied embeddings count once.
        backbone_parameters: without token embedding and vocabulary head, which are never pruned.
        bytes: of all tensors in the checkpoint's precision.
    """

    parameters: int
    backbone_parameters: int
    bytes: int


@dataclass(frozen=True)
class ExportedTensor:
    """A tensor of the pruned model, not gathered yet.

    Args:
        name: its name in the checkpoint.
        shape: of the source.
        read: gives the source; its block may have to come from the disk.
        rows: which rows of the source it takes, or None for all.
    """

    name: str
    shape: torch.Size
    read: Callable[[], Tensor]
    rows: Tensor | None = None

    @property
    def numel(self) -> int:
        """Number of values."""
        if self.rows is None:
            return self.shape.numel()
        return self.rows.numel() * math.prod(self.shape[1:])

    def gather(self, dtype: torch.dtype) -> Tensor:
        """The values on the CPU, contiguous; the source itself where nothing has to change."""
        values = self.read().detach()
        if self.rows is not None:
            values = values[self.rows.to(values.device)]
        return values.to(device="cpu", dtype=dtype).contiguous()


@dataclass(frozen=True)
class SublayerPart:
    """What one sublayer contributes to the exported model.

    Args:
        tensors: its tensors, its norm included; only an output bias if no unit is left.
        sizes: its `per_layer_config` keys.
        query_to_kv: KV head of each query head, if they are shared unevenly.
    """

    tensors: Sequence[ExportedTensor]
    sizes: Mapping[str, Any]
    query_to_kv: Sequence[int] | None = None


def sublayer_part(decoder: Decoder, sublayer: Sublayer, structure: Structure) -> SublayerPart:
    """Tensors and sizes of one pruned sublayer, together with its norm."""
    names = decoder.architecture
    block = names.blocks(decoder.model)[sublayer.id.block]
    attention = sublayer.id.kind == "attn"
    module_name = names.attention if attention else names.ffn
    output = names.attention_output if attention else names.ffn_output
    module: nn.Module = getattr(block, module_name)
    assert structure.weight.shape[1] == structure.kept.numel() * sublayer.unit_size, sublayer.name
    prefix = f"{blocks_prefix(decoder)}.{sublayer.id.block}"
    rows, sizes, query_to_kv = (_attention if attention else _ffn)(decoder, sublayer, structure)
    if structure.kept.numel() == 0:
        skipped = "attention" if attention else "mlp"
        if getattr(module, output).bias is None:
            return SublayerPart((), {**sizes, "skip": [skipped]})
        return SublayerPart([_stored(decoder, f"{prefix}.{module_name}.{output}.bias")], sizes)
    tensors = []
    for name, _ in module.named_parameters():
        full = f"{prefix}.{module_name}.{name}"
        if name == f"{output}.weight":
            weight = structure.weight
            tensors.append(ExportedTensor(full, weight.shape, partial(_same, weight)))
        else:
            tensors.append(_stored(decoder, full, rows.get(name.partition(".")[0])))
    norm = names.attention_norm if attention else names.ffn_norm
    for name, _ in getattr(block, norm).named_parameters():
        tensors.append(_stored(decoder, f"{prefix}.{norm}.{name}"))
    return SublayerPart(tensors, sizes, query_to_kv)


def _stored(decoder: Decoder, name: str, rows: Tensor | None = None) -> ExportedTensor:
    """A parameter of the dense model, described by its shape and read when it is gathered."""
    shape = decoder.model.get_parameter(name).shape
    return ExportedTensor(name, shape, partial(decoder.parameter, name), rows)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def other_tensors(decoder: Decoder) -> Iterator[ExportedTensor]:
    """Every tensor outside the blocks; a tied vocabulary head is not a tensor of its own."""
    prefix = f"{blocks_prefix(decoder)}."
    for name, _ in decoder.model.named_parameters():
        if not name.startswith(prefix):
            yield _stored(decoder, name)


def embedding_names(decoder: Decoder) -> frozenset[str]:
    """Checkpoint names of the token embedding and, unless tied, the vocabulary head."""
    model: Any = decoder.model
    ends = (model.get_input_embeddings().weight, decoder.head)
    named = decoder.model.named_parameters()
    return frozenset(name for name, parameter in named if any(parameter is end for end in ends))


def model_size(decoder: Decoder, read: ReadStructure | None = None) -> ModelSize:
    """Size of the model that `read` describes, as it would be exported, without writing it.

    Args:
        decoder: the dense model.
        read: structure of a sublayer; None for the dense model itself.
    """
    if read is None:
        total = sum(parameter.numel() for parameter in decoder.model.parameters())
    else:
        total = sum(tensor.numel for tensor in other_tensors(decoder))
        for sublayer in decoder.sublayers:
            part = sublayer_part(decoder, sublayer, read(sublayer.id))
            total += sum(tensor.numel for tensor in part.tensors)
    ends = embedding_names(decoder)
    outside = sum(tensor.numel for tensor in other_tensors(decoder) if tensor.name in ends)
    return ModelSize(total, total - outside, total * decoder.storage_dtype.itemsize)


def blocks_prefix(decoder: Decoder) -> str:
    """Name of the list of blocks in the checkpoint, e.g. `model.layers`."""
    return decoder.architecture.blocks_name(decoder.model)


def _ffn(
    decoder: Decoder, sublayer: Sublayer, structure: Structure
) -> tuple[dict[str, Tensor], dict[str, int], None]:
    names, kept = decoder.architecture, structure.kept
    return {names.gate: kept, names.up: kept}, {"intermediate_size": kept.numel()}, None


def _attention(
    decoder: Decoder, sublayer: Sublayer, structure: Structure
) -> tuple[dict[str, Tensor], dict[str, int], list[int] | None]:
    names = decoder.architecture
    heads = sublayer.kept_heads(structure.kept)
    layout = head_layout(heads, sublayer.dense_groups)
    used = sorted(set(layout.key_value))
    query, key_value = (_head_rows(chosen, sublayer.head_size) for chosen in (heads, used))
    rows = {names.query: query, names.key: key_value, names.value: key_value}
    sizes = {"num_attention_heads": len(heads), "num_key_value_heads": len(used)}
    if len(used) == len(layout.key_value):  # one entry per KV head: shared evenly
        return rows, sizes, None
    return rows, sizes, [used.index(head) for head in layout.key_value]


def _head_rows(heads: Sequence[int], head_size: int) -> Tensor:
    offsets = torch.arange(head_size)
    return (torch.tensor(heads, dtype=torch.int64)[:, None] * head_size + offsets).reshape(-1)
