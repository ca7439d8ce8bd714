"""A layout's own answers; what grids and allocations make of them is in test_sparsity.py."""

from __future__ import annotations

import pytest

from tyr.errors import ConfigError
from tyr.layout import FREE, Layout


def test_the_free_layout_keeps_only_the_first_attention() -> None:
    assert FREE.removable("attn", 0, 4) == range(4)
    assert FREE.removable("attn", 1, 4) == range(5)
    assert FREE.removable("ffn", 0, 4) == range(5)


@pytest.mark.parametrize("kind", ["attn", "ffn"])
@pytest.mark.parametrize("block", [0, 4])
def test_without_empty_sublayers_every_block_keeps_a_granule(kind: str, block: int) -> None:
    layout = Layout(ffn_alignment=32, allow_empty=False)
    counts = layout.removable(kind, block, 64)  # type: ignore[arg-type]
    kept = [64 - gone for gone in counts]
    granule = 32 if kind == "ffn" else 1
    assert kept == list(range(64, 0, -granule))


def test_kept_widths_are_aligned_even_when_the_dense_one_is_not() -> None:
    assert [172 - gone for gone in Layout(32).removable("ffn", 3, 172)] == [160, 128, 96, 64, 32, 0]
    assert [172 - gone for gone in Layout(32, False).removable("ffn", 3, 172)][-1] == 32


def test_equal_blocks_are_never_empty() -> None:
    assert Layout(equal_blocks=True).removable("ffn", 1, 4) == range(4)


@pytest.mark.parametrize("alignment", [0, -32])
def test_an_alignment_below_one_is_refused(alignment: int) -> None:
    with pytest.raises(ConfigError, match=f"ffn_alignment must be at least 1, got {alignment}"):
        Layout(alignment)


def test_a_block_narrower_than_the_alignment_is_refused() -> None:
    with pytest.raises(ConfigError, match="block 2 has 20 ffn units, .* alignment of at most 20"):
        Layout(32, allow_empty=False).removable("ffn", 2, 20)


def test_only_settings_that_bind_are_named() -> None:
    assert FREE.binding() == ""
    assert Layout(8).binding() == " (with supernet.ffn_alignment=8)"
    both = " (with supernet.allow_empty=false, supernet.equal_blocks=true)"
    assert Layout(1, False, True).binding() == both
