"""One supernet for all search tests."""

from __future__ import annotations

import pytest
from torch import Tensor

from tests.supernet.building import Build
from tests.tiny import random_tokens
from tyr.model.decoder import Decoder
from tyr.sparsity import LevelGrid
from tyr.supernet.store import SupernetStore


@pytest.fixture(scope="session")
def built(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Build:
    build = Build(decoder, random_tokens(6, 16), tmp_path_factory.mktemp("search") / "supernet")
    build.run()
    return build


@pytest.fixture(scope="session")
def store(built: Build) -> SupernetStore:
    return built.open()


@pytest.fixture(scope="session")
def grid(built: Build) -> LevelGrid:
    return built.grid


@pytest.fixture(scope="session")
def text() -> Tensor:
    """(5, 12): search text."""
    return random_tokens(5, 12, seed=7)
