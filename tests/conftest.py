"""What every test shares: a reproducible Hypothesis, one thread, and tiny models.

Torch and transformers are imported where they are used: of the processes of `pytest -n`, the one
that only hands tests out does without, and the others need not wait ten seconds for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from torch import Tensor

    from tyr.model.decoder import Decoder

# Derandomized: the same examples on every machine, and no database of earlier failures.
settings.register_profile("tyr", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("tyr")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Matrices here are too small to share, and sums must repeat bit for bit."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def rates_of_this_machine() -> Iterator[None]:
    """Measured once, not once for the plan of every run; a fifth of a second each."""
    from tyr import ceilings

    names = ("gemm_rate", "copy_rate")
    with patch.multiple(ceilings, **{name: cache(getattr(ceilings, name)) for name in names}):
        yield


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files of tests need not outlast a power cut; on a busy disk every `fsync` would be felt."""
    with patch.object(os, "fsync", lambda descriptor: None):
        yield


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    """Three float32 blocks. Shared by all tests: do not change its weights."""
    from tests.tiny import tiny_decoder

    return tiny_decoder()


@pytest.fixture(scope="session")
def other() -> Decoder:
    """A decoder of the same sizes with other weights."""
    from tests.tiny import tiny_decoder

    return tiny_decoder(seed=1)


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    """(6, 16): calibration or search text."""
    from tests.tiny import random_tokens

    return random_tokens(6, 16)


@pytest.fixture
def no_grad() -> Iterator[None]:
    """For tests that call model parts directly; tyr's own entry points do this themselves."""
    import torch

    with torch.no_grad():
        yield
