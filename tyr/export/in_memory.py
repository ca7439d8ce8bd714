"""The exported model without a detour over the disk: the same class, the same tensors.

For measuring how fast a pruned model runs, which needs real layers and a KV cache rather than the
stream of sublayers that pruning works on. Costs the memory of the pruned blocks; embeddings and
norms are shared with the dense model. Nothing is written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tyr.export import modeling_tyr
from tyr.export.config import PrunedSizes, pruned_config
from tyr.export.tensors import ExportedTensor, ReadStructure, other_tensors, sublayer_part
from tyr.model.decoder import Decoder
from tyr.model.skeleton import complete


def pruned_model(decoder: Decoder, read: ReadStructure) -> PreTrainedModel:
    """The pruned model as transformers would load it, in the decoder's precision and device.

    Args:
        decoder: the dense model.
        read: structure of a sublayer, called once for each in stream order.
    """
    sizes = PrunedSizes.dense(decoder.units.num_blocks)
    state = {tensor.name: _here(tensor, decoder) for tensor in other_tensors(decoder)}
    for sublayer in decoder.sublayers:
        part = sublayer_part(decoder, sublayer, read(sublayer.id))
        state.update({tensor.name: _here(tensor, decoder) for tensor in part.tensors})
        sizes.add(sublayer.id.block, part)
    config: Any = pruned_config(decoder, sizes)
    config._attn_implementation = decoder.config._attn_implementation
    with torch.device("meta"):  # it would be drawn first, dense and in float32
        model: Any = getattr(modeling_tyr, config.architectures[0])(config)
    whole = not config.tie_word_embeddings
    complete(model, decoder.architecture, state, decoder.device, strict=whole)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:  # stands for a weight without inputs
                module.register_buffer(name, torch.empty_like(buffer, device="cpu"), False)
    model = model.to(decoder.device)
    pruned: PreTrainedModel = model.eval().requires_grad_(False)
    return pruned


def _here(tensor: ExportedTensor, decoder: Decoder) -> Tensor:
    """Gathered in compute precision, where the dense model is."""
    return tensor.gather(decoder.dtype).to(decoder.device)
