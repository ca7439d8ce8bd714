"""Random generators derived from the run's seed and a label, never from global state.

A generator for `("search", iteration, generation)` is the same whether the run was interrupted or
not, so nothing about randomness needs to be saved for a run to continue exactly.
"""

from __future__ import annotations

import hashlib

import torch


def derive_generator(seed: int, *labels: str | int) -> torch.Generator:
    """A CPU generator that depends on the seed and the labels only.

    Args:
        seed: the run's seed.
        labels: what the randomness is for, e.g. `"search", 0, 12`.
    """
    text = "/".join(str(part) for part in (seed, *labels))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
