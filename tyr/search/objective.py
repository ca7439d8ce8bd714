"""What the search minimises (Eq. 8): distance to the dense model's behaviour, or a task's loss.

The teacher is the dense model's final hidden states, computed once for the search text; logits are
formed from hidden states in chunks (tyr/losses.py), so teacher logits are never stored.

Letters: N sequences, T positions, C hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tyr.devices import widest_float
from tyr.errors import ConfigError
from tyr.losses import kl_divergences, next_token_losses
from tyr.memory import return_freed
from tyr.model.decoder import Decoder
from tyr.model.states import leave_memory
from tyr.model.sublayer import Sublayer


@dataclass(frozen=True)
class Reference:
    """Search text and the dense model's states on it.

    Args:
        tokens: (N, T), int64.
        final: (N, T, C), dense hidden states after the final norm.
        hidden: block to (N, T, C), dense residual stream after that block.

    States of a whole search text live where the model's byte budgets put them; those of a sample
    are beside its tokens.
    """

    tokens: Tensor
    final: Tensor
    hidden: Mapping[int, Tensor]

    def sample(self, rows: Tensor, length: int) -> Reference:
        """The given sequences, cut to their first `length` positions."""
        hidden = {block: self._pick(kept, rows, length) for block, kept in self.hidden.items()}
        final = self._pick(self.final, rows, length)
        return Reference(self.tokens[rows, :length], final, hidden)

    def _pick(self, states: Tensor, rows: Tensor, length: int) -> Tensor:
        """Rows of states that may be elsewhere, where the tokens are."""
        picked = states[rows, :length].to(self.tokens.device)
        leave_memory(states)
        return picked


class Objective(Protocol):
    """Scores candidates from their hidden states; lower is better."""

    min_positions: int  # of a sequence, for the loss to be defined
    averages_sequences: bool  # whether the loss is the mean of its values on single sequences

    def observed_blocks(self, num_blocks: int) -> tuple[int, ...]:
        """Blocks whose output `path_loss` wants to see."""

    def path_loss(self, block: int, hidden: Tensor, reference: Reference) -> float:
        """Loss term of a block's output (N, T, C); terms add up along a candidate's path."""

    def final_losses(
        self, states: Sequence[Tensor], reference: Reference, head: Tensor
    ) -> list[float]:
        """Loss term of each candidate's final hidden states, nats per token.

        Args:
            states: per candidate (N, T, C), after the final norm.
            reference: the same positions of the search text.
            head: (V, C), vocabulary projection.
        """


@torch.no_grad()
def dense_reference(
    decoder: Decoder, tokens: Tensor, *, blocks: Sequence[int] = (), batch_tokens: int = 8192
) -> Reference:
    """Run the dense model over the search text, keeping the states an objective needs.

    Args:
        decoder: the dense model.
        tokens: (N, T).
        blocks: blocks whose output is kept.
        batch_tokens: positions per forward batch.
    """
    sequences = max(1, batch_tokens // tokens.shape[1])
    shape = (*tokens.shape, decoder.config.hidden_size)
    final = decoder.states.tensor(shape, decoder.dtype)
    kept = {block: decoder.states.tensor(shape, decoder.dtype) for block in blocks}

    def keep(states: Tensor, batch: int, hidden: Tensor) -> None:
        states[batch * sequences : batch * sequences + len(hidden)] = hidden
        leave_memory(states)

    def observe(sublayer: Sublayer, batch: int, hidden: Tensor) -> None:
        if sublayer.id.kind == "ffn" and sublayer.id.block in kept:
            keep(kept[sublayer.id.block], batch, hidden)

    dense = decoder.walk(tokens.split(sequences), lambda _: None, observe)
    for batch, hidden in enumerate(dense):
        keep(final, batch, hidden)
    return_freed()
    return Reference(tokens.to(decoder.device), final, kept)


class KdLogits:
    """KL(dense ‖ sparse) on the logits: the paper's default (Section 3.3, "logits-only")."""

    min_positions = 1
    averages_sequences = True

    def observed_blocks(self, num_blocks: int) -> tuple[int, ...]:
        """None."""
        return ()

    def path_loss(self, block: int, hidden: Tensor, reference: Reference) -> float:
        """No term."""
        return 0.0

    def final_losses(
        self, states: Sequence[Tensor], reference: Reference, head: Tensor
    ) -> list[float]:
        """See `Objective.final_losses`."""
        return kl_divergences(reference.final, states, head)


class KdHidden:
    """Eq. 8 in full: hidden-state distances of the first, median and last block, plus logit KL.

    Each distance is relative to the dense state's squared norm, so that one α serves models of any
    scale (experiments/DEVIATIONS.md).

    Args:
        alpha: weight of each hidden-state term.
        beta: weight of the KL term.
    """

    min_positions = 1
    averages_sequences = False  # a ratio of sums

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        if min(alpha, beta) < 0 or alpha + beta == 0:
            raise ConfigError(
                f"search.objective.alpha and beta must not be negative, nor both zero; got "
                f"{alpha} and {beta}"
            )
        self.alpha = alpha
        self.beta = beta

    def observed_blocks(self, num_blocks: int) -> tuple[int, ...]:
        """First, median and last."""
        return tuple(sorted({0, num_blocks // 2, num_blocks - 1}))

    def path_loss(self, block: int, hidden: Tensor, reference: Reference) -> float:
        """α·‖h − ĥ‖² / ‖h‖² of the block's output."""
        dense = reference.hidden[block].float()
        wide = widest_float(dense.device)
        distance = (dense - hidden.float()).square().sum(dtype=wide)
        return self.alpha * float(distance / dense.square().sum(dtype=wide))

    def final_losses(
        self, states: Sequence[Tensor], reference: Reference, head: Tensor
    ) -> list[float]:
        """β·KL."""
        return [self.beta * kl for kl in kl_divergences(reference.final, states, head)]


class Perplexity:
    """Next-token loss on the search text (Table 5's single-task direction); exp of it is ppl."""

    min_positions = 2
    averages_sequences = True

    def observed_blocks(self, num_blocks: int) -> tuple[int, ...]:
        """None."""
        return ()

    def path_loss(self, block: int, hidden: Tensor, reference: Reference) -> float:
        """No term."""
        return 0.0

    def final_losses(
        self, states: Sequence[Tensor], reference: Reference, head: Tensor
    ) -> list[float]:
        """See `Objective.final_losses`."""
        return next_token_losses(reference.tokens, states, head)
