"""Losses over the full vocabulary, from hidden states, a chunk of positions at a time.

Neither a (tokens, vocabulary) tensor for a batch nor stored teacher logits ever exist (Eq. 8 for a
search text of 131,072 tokens and a vocabulary of 128,256 would need 67 GB in float32). Logits are
formed in the precision of the head and reduced in float32; sums over positions are float64.

Letters: N sequences, T positions, C hidden width, V vocabulary, P positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tyr.devices import wide_mm, widens_products, widest_float

TILE = 128  # rows of a product that accelerators compute together


def position_chunks(num_positions: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Slices of positions whose logits fit the cache of a CPU or a small part of a GPU."""
    elements = 1 << 21 if device.type == "cpu" else 1 << 27
    width = max(1, elements // vocabulary)
    if device.type != "cpu" and width > TILE:
        width -= width % TILE
    return (slice(start, start + width) for start in range(0, num_positions, width))


def kl_divergences(teacher: Tensor, students: Sequence[Tensor], head: Tensor) -> list[float]:
    """Mean KL(teacher ‖ student) over positions with the full vocabulary, nats.

    KL = Σ p·log p − Σ p·log q, each sum of terms of one sign: of each student only the logits of
    one chunk exist.

    Args:
        teacher: (N, T, C), final hidden states of the dense model.
        students: each (N, T, C).
        head: (V, C).
    """
    dense = teacher.flatten(0, 1)
    sparse = [student.flatten(0, 1) for student in students]
    wide = widest_float(head.device)
    totals = torch.zeros(len(students), dtype=wide, device=head.device)
    for chunk in position_chunks(len(dense), len(head), head.device):
        log_p = torch.log_softmax(_logits(dense[chunk], head), dim=-1)  # (P, V)
        p = log_p.exp()
        negentropy = torch.linalg.vecdot(p, log_p).sum(dtype=wide)
        del log_p  # half a gigabyte on an accelerator
        for index, student in enumerate(sparse):
            log_q = torch.log_softmax(_logits(student[chunk], head), dim=-1)
            totals[index] += negentropy - torch.linalg.vecdot(p, log_q).sum(dtype=wide)
    return [total / len(dense) for total in totals.tolist()]


def next_token_losses(tokens: Tensor, students: Sequence[Tensor], head: Tensor) -> list[float]:
    """Mean next-token cross entropy of each student, nats; T − 1 predictions per sequence.

    Args:
        tokens: (N, T).
        students: each (N, T, C), final hidden states.
        head: (V, C).
    """
    labels = tokens[:, 1:].flatten()
    wide = widest_float(head.device)
    losses = []
    for student in students:
        hidden = student[:, :-1].flatten(0, 1)
        total = torch.zeros((), dtype=wide, device=head.device)
        for chunk in position_chunks(len(labels), len(head), head.device):
            logits = _logits(hidden[chunk], head)
            chosen = logits.gather(1, labels[chunk, None])[:, 0]
            total += (logits.logsumexp(dim=-1) - chosen).sum(dtype=wide)
        losses.append(float(total) / len(labels))
    return losses


def _logits(states: Tensor, head: Tensor) -> Tensor:
    """(P, C), (V, C) -> (P, V), float32; not rounded to the head's precision where avoidable."""
    states = states.to(head.dtype)
    if widens_products(head.device, head.dtype):
        return wide_mm(states, head.mT)
    return (states @ head.mT).float()
