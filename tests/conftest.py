"""What every test shares: a reproducible Hypothesis, one thread, and tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from unittest.mock import patch

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from tests.tiny import random_tokens, tiny_decoder
from tyr import ceilings
from tyr.model.decoder import Decoder

# Derandomized: the same examples on every machine, and no database of earlier failures.
settings.register_profile("tyr", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("tyr")


def pytest_configure(config: pytest.Config) -> None:
    """One thread: matrices here are too small to share, and sums must repeat bit for bit."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def rates_of_this_machine() -> Iterator[None]:
    """Measured once, not once for the plan of every run; a fifth of a second each."""
    names = ("gemm_rate", "copy_rate")
    with patch.multiple(ceilings, **{name: cache(getattr(ceilings, name)) for name in names}):
        yield


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    """Three float32 blocks. Shared by all tests: do not change its weights."""
    return tiny_decoder()


@pytest.fixture(scope="session")
def other() -> Decoder:
    """A decoder of the same sizes with other weights."""
    return tiny_decoder(seed=1)


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    """(6, 16): calibration or search text."""
    return random_tokens(6, 16)


@pytest.fixture
def no_grad() -> Iterator[None]:
    """For tests that call model parts directly; tyr's own entry points do this themselves."""
    with torch.no_grad():
        yield
