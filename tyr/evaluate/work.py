"""How much arithmetic and memory traffic a forward takes: the limit of any speed-up.

Counted from the modules of a decoder, multiplications and additions apart (2 FLOP each pair). A
prefill is bound by arithmetic, decoding by the bytes that every step reads, so the ratios of these
two numbers between a dense and a pruned model are what Table 3 of the paper could reach at most.
Norms, rotary embeddings and softmax are left out: they are small, and pruning leaves most of them.

Letters: B sequences, T prompt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

QUERY, KEY, VALUE, HEAD = "q_proj", "k_proj", "v_proj", "lm_head"


@dataclass(frozen=True)
class Work:
    """What a model has to compute and read.

    Args:
        block_weights: values in the linear layers of the blocks.
        head_weights: values of the vocabulary projection.
        query_width: query columns of all blocks: heads times head size, summed.
        cache_width: key and value columns of all blocks, what one token adds to the KV cache.
        item_bytes: of one value.
    """

    block_weights: int
    head_weights: int
    query_width: int
    cache_width: int
    item_bytes: int

    def prefill_flops(self, batch: int, tokens: int) -> int:
        """FLOP of a prompt: (B, T) tokens in, logits of the last position out."""
        linear = 2 * (tokens * self.block_weights + self.head_weights)
        attention = 2 * tokens * (tokens + 1) * self.query_width  # QKᵀ and PV, causal half each
        return batch * (linear + attention)

    def decode_bytes(self, batch: int, context: float) -> float:
        """Bytes that one decoding step must read: all weights once, and the cache so far."""
        weights = self.block_weights + self.head_weights
        return self.item_bytes * (weights + batch * context * self.cache_width)


def count_work(model: nn.Module) -> Work:
    """Count a causal LM of transformers, stock or pruned."""
    widths = dict.fromkeys((QUERY, KEY, VALUE), 0)
    blocks = head = item_bytes = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        weight: Any = module.weight
        last = name.rpartition(".")[2]
        item_bytes = weight.element_size()
        if last == HEAD:
            head += weight.numel()
            continue
        blocks += weight.numel()
        if last in widths:
            widths[last] += module.out_features
    return Work(blocks, head, widths[QUERY], widths[KEY] + widths[VALUE], item_bytes)
