from __future__ import annotations

import pytest
import torch

from tyr.errors import ConfigError
from tyr.precision import check_matmul_precision, matmul_precision


def test_the_precision_holds_within_the_block_and_ends_with_it() -> None:
    before = torch.get_float32_matmul_precision()
    with matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before


def test_the_precision_ends_with_an_error_too() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), matmul_precision("medium"):
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == before


def test_an_unknown_precision_is_refused_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"x\.y must be one of highest, high, medium, got 'bf16'"):
        check_matmul_precision("bf16", key="x.y")
