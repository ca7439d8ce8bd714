from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.references.slow_supernet import SlowSettings, build_slowly
from tests.supernet.building import Build
from tests.tolerance import assert_close
from tyr.errors import ConfigError
from tyr.model.decoder import Decoder
from tyr.sparsity import Allocation, SublayerId, stream_order
from tyr.supernet.finish import (
    BuiltSupernet,
    Found,
    FromSupernet,
    Repruned,
    prune_along,
    read_allocation,
    single_level_grid,
)

LEVELS = (-1, 2, 1, -3, 0, 1)


@pytest.fixture
def build(decoder: Decoder, tokens: Tensor, tmp_path: Path) -> Build:
    return Build(decoder, tokens, tmp_path / "supernet")


def test_a_single_level_grid_has_the_allocation_as_its_only_level(decoder: Decoder) -> None:
    allocation = Allocation((1, 2, 3), (0, 12, 24))
    grid = single_level_grid(decoder.units, allocation)
    for sublayer in stream_order(3):
        assert grid.levels(sublayer) == {0: allocation[sublayer]}


def test_the_supernet_s_structures_are_read_by_their_allocation(build: Build) -> None:
    store = build.run()
    allocation = build.grid.allocation(LEVELS)
    read = read_allocation(BuiltSupernet(store, build.grid), allocation)
    for sublayer, level in zip(stream_order(3), LEVELS, strict=True):
        structure, expected = read(sublayer), store.read(sublayer)[level]
        assert torch.equal(structure.kept, expected.kept)
        assert torch.equal(structure.weight, expected.weight)


def test_an_allocation_between_two_levels_is_a_fault_of_the_caller(build: Build) -> None:
    supernet = BuiltSupernet(build.run(), build.grid)
    removed = list(build.grid.centre)
    removed[1] += 1  # a level is three neurons
    read = read_allocation(supernet, Allocation.from_stream(removed))
    with pytest.raises(ValueError, match="000.ffn: 13 units is not a level"):
        read(SublayerId(0, "ffn"))


def test_pruning_along_a_path_solves_every_sublayer_for_the_input_it_gets(
    build: Build, decoder: Decoder, tokens: Tensor, tmp_path: Path
) -> None:
    allocation = build.grid.allocation(LEVELS)
    grid = single_level_grid(decoder.units, allocation)
    read = prune_along(build.builder, grid, tmp_path / "finish")
    settings = SlowSettings(shares=lambda kept: [1.0], group_size={"attn": 1, "ffn": 2})
    for sublayer, levels in build_slowly(decoder, tokens, grid, settings).items():
        structure = read(sublayer)
        assert structure.kept.tolist() == levels[0].kept
        rows = decoder.sublayers[sublayer.index].rows(structure.kept)
        reason = "float32 activations and Hessian products"
        assert_close(structure.weight, levels[0].weight.mT[:, rows], tolerance=1e-4, reason=reason)


def test_both_ways_of_finishing_meet_the_allocation_and_name_each_other(
    build: Build, decoder: Decoder, tmp_path: Path
) -> None:
    supernet = BuiltSupernet(build.run(), build.grid)
    allocation = build.grid.allocation(LEVELS)
    for finish in (Repruned(), FromSupernet()):
        assert finish.other().name != finish.name
        assert finish.other().other().name == finish.name
        read = finish.assemble(Found(build.builder, allocation, supernet, tmp_path / finish.name))
        for sublayer in decoder.sublayers:
            removed = sublayer.num_units - read(sublayer.id).kept.numel()
            assert removed == allocation[sublayer.id]


def test_finishing_from_a_supernet_needs_one(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="finish=supernet needs iterations >= 1"):
        FromSupernet().assemble(Found(build.builder, build.grid.centre, None, tmp_path))
