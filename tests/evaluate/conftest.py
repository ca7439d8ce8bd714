"""What the tests that run lm-eval share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from unittest.mock import patch

import pytest


@pytest.fixture(scope="session")
def templates() -> Iterator[None]:
    """Each prompt template compiled once; lm-eval does it for every example."""
    from lm_eval.utils import env

    with patch.object(env, "from_string", cache(env.from_string)):
        yield
