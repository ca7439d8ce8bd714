from __future__ import annotations

from typing import Any

import pytest

from tyr.errors import ConfigError
from tyr.sparsity import SublayerId, UnitCounts, uniform_allocation
from tyr.supernet.accumulation import ExpectationAccumulation
from tyr.supernet.settings import SupernetSettings


def settings(**changes: Any) -> SupernetSettings:
    return SupernetSettings(**{"accumulation": ExpectationAccumulation(), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": 0}, r"supernet.interval must be in \(0, 0.5\], got 0"),
        ({"interval": 0.51}, r"got 0.51"),
        ({"levels": 8}, "supernet.levels must be odd and at least 1, got 8"),
        ({"levels": -1}, "got -1"),
        ({"attention_unit": "heads"}, "must be head or kv_group, got 'heads'"),
        ({"ffn_alignment": 0}, "ffn_alignment must be at least 1, got 0"),
        ({"equal_blocks": True}, "equal_blocks=true needs supernet.attention_unit=kv_group, got"),
        ({"keep": "some"}, "supernet.keep must be one of last, all, none, got 'some'"),
        ({"batch_tokens": 0}, "batch_tokens >= 1"),
        ({"feature_bytes": -1}, "feature_bytes >= 0"),
        ({"matmul_precision": "low"}, "supernet.matmul_precision must be one of .* got 'low'"),
        ({"accumulation": "uniform"}, "write accumulation=uniform"),
    ],
)
def test_a_setting_out_of_range_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


def test_the_defaults_are_those_of_the_paper() -> None:
    paper = settings()
    assert (paper.interval, paper.levels, paper.attention_unit) == (0.125, 9, "head")


def test_the_grid_of_an_iteration_halves_the_interval_around_the_allocation() -> None:
    units = UnitCounts((32,) * 2, (64,) * 2)
    centre = uniform_allocation(0.375, units)
    first, second = (settings(levels=5).grid(centre, units, iteration) for iteration in (0, 1))
    sublayer = SublayerId(1, "ffn")
    assert list(first.levels(sublayer).values()) == [8, 16, 24, 32, 40]
    assert list(second.levels(sublayer).values()) == [16, 20, 24, 28, 32]


def test_the_grid_of_an_aligned_layout_has_aligned_levels_only() -> None:
    units, aligned = UnitCounts((4,) * 2, (172,) * 2), settings(ffn_alignment=32, allow_empty=False)
    grid = aligned.grid(uniform_allocation(0.5, units, aligned.layout), units, 1)
    assert grid.step == {"attn": 1, "ffn": 32}
    assert all((172 - gone) % 32 == 0 for gone in grid.levels(SublayerId(1, "ffn")).values())
    assert 4 not in grid.levels(SublayerId(1, "attn")).values()
