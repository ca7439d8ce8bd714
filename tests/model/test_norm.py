from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.model_zoo import ZOO, zoo_decoder
from tests.tolerance import assert_close
from tyr.model.norm import apply_norm


def states(dtype: torch.dtype = torch.float32, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(-4, 4, 5)[:, None, None]  # the first drowns in the epsilon
    return (torch.randn(5, 3, width, generator=generator) * scales).to(dtype)


@pytest.mark.parametrize("name", ZOO)
def test_the_norm_is_that_of_the_stock_model(name: str) -> None:
    decoder = zoo_decoder(name)
    stock = decoder.model.model.layers[0].input_layernorm
    hidden = states(width=decoder.config.hidden_size)
    kept = hidden.clone()
    for sequence in (hidden, hidden[:, :1], hidden[:0]):
        with torch.no_grad():
            expected = stock(sequence)
        reason = "float32; the squares are summed in another order"
        assert_close(apply_norm(stock, sequence), expected, tolerance=1e-6, reason=reason)
    assert torch.equal(hidden, kept), "the residual stream was written to"


def test_other_norms_and_precisions_are_the_stock_modules_own() -> None:
    stock = zoo_decoder("llama").model.model.norm
    short = states(torch.bfloat16)
    assert torch.equal(apply_norm(stock, short), stock(short))
    centred = nn.LayerNorm(32).requires_grad_(False)
    assert torch.equal(apply_norm(centred, states()), centred(states()))
