from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch import Tensor

from tests.tiny import random_matrix, tiny_decoder
from tests.tolerance import assert_close
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Structure, Sublayer
from tyr.randomness import derive_generator
from tyr.supernet.accumulation import (
    Accumulation,
    CompleteAccumulation,
    ExpectationAccumulation,
    NoAccumulation,
    RandomAccumulation,
    UniformAccumulation,
    kept_fraction,
    weighted_sum,
)

YAML = sorted((Path(__file__).parents[2] / "conf" / "accumulation").glob("*.yaml"))


@pytest.fixture(scope="module")
def wide() -> Decoder:
    return tiny_decoder(blocks=1, dtype=torch.float64)


def some_structures(sublayer: Sublayer) -> dict[int, Structure]:
    """Levels -1, 0, 1 and 2; the sparsest keeps nothing."""
    keep = sublayer.num_units
    structures = {}
    for level, fraction in ((-1, 1.0), (0, 0.5), (1, 0.25), (2, 0.0)):
        kept = torch.arange(int(keep * fraction)) + (keep - int(keep * fraction))
        weight = random_matrix(32, len(kept) * sublayer.unit_size, seed=level + 5)
        structures[level] = Structure(kept, weight)
    return structures


def full_width(sublayer: Sublayer, structure: Structure) -> Tensor:
    """(C, d_in) with a loop over the columns."""
    weight = torch.zeros(32, sublayer.num_units * sublayer.unit_size, dtype=torch.float64)
    for place, unit in enumerate(structure.kept.tolist()):
        for row in range(sublayer.unit_size):
            column = structure.weight[:, place * sublayer.unit_size + row]
            weight[:, unit * sublayer.unit_size + row] = column
    return weight


def mixed(mode: Accumulation, sublayer: Sublayer, seed: int = 0) -> Tensor:
    return mode.mix(sublayer, some_structures(sublayer), rng=derive_generator(seed))


@pytest.mark.parametrize("place", [0, 1])
def test_passing_the_mixed_weight_is_mixing_the_outputs(wide: Decoder, place: int) -> None:
    sublayer = wide.sublayers[place]
    structures = list(some_structures(sublayer).values())
    features = random_matrix(7, sublayer.num_units * sublayer.unit_size)
    shares = [0.1, 0.2, 0.3, 0.4]
    together = features @ weighted_sum(sublayer, structures, shares).mT
    apart = sum(
        share * (features @ full_width(sublayer, structure).mT)
        for share, structure in zip(shares, structures, strict=True)
    )
    assert isinstance(apart, Tensor)
    assert_close(together, apart)


def test_a_mixture_in_bfloat16_is_summed_in_float32_and_rounded_once() -> None:
    decoder = tiny_decoder(blocks=1, dtype=torch.bfloat16)
    sublayer = decoder.sublayers[1]
    kept = torch.arange(sublayer.num_units)
    members = [Structure(kept, random_matrix(32, 24, seed=n).bfloat16()) for n in range(9)]
    mixture = weighted_sum(sublayer, members, [1 / 9] * 9)
    exact = torch.stack([member.weight.double() for member in members]).mean(dim=0)
    assert mixture.dtype == torch.bfloat16
    half_a_step = 2**-8  # relative: 8 significant bits
    assert ((mixture.double() - exact).abs() <= 1.01 * half_a_step * exact.abs() + 1e-7).all()


@pytest.mark.parametrize("place", [0, 1])
def test_expectation_weighs_each_structure_by_what_it_keeps(wide: Decoder, place: int) -> None:
    sublayer = wide.sublayers[place]
    structures = some_structures(sublayer)
    assert [kept_fraction(sublayer, s) for s in structures.values()] == [1.0, 0.5, 0.25, 0.0]
    expected = sum(
        kept / 1.75 * full_width(sublayer, structures[level])
        for level, kept in ((-1, 1.0), (0, 0.5), (1, 0.25))
    )
    assert isinstance(expected, Tensor)
    assert_close(mixed(ExpectationAccumulation(), sublayer), expected)


def test_expectation_over_empty_structures_is_nothing(wide: Decoder) -> None:
    sublayer = wide.sublayers[1]
    empty = {0: some_structures(sublayer)[2]}
    weight = ExpectationAccumulation().mix(sublayer, empty, rng=derive_generator(0))
    assert not weight.any()


def test_uniform_is_the_mean_of_all_structures(wide: Decoder) -> None:
    sublayer = wide.sublayers[0]
    members = [full_width(sublayer, s) for s in some_structures(sublayer).values()]
    assert_close(mixed(UniformAccumulation(), sublayer), torch.stack(members).mean(dim=0))


def test_random_passes_one_structure_of_any_level(wide: Decoder) -> None:
    sublayer = wide.sublayers[0]
    members = [full_width(sublayer, s) for s in some_structures(sublayer).values()]
    passed = set()
    for seed in range(40):
        weight = mixed(RandomAccumulation(), sublayer, seed)
        matches = [place for place, member in enumerate(members) if torch.equal(weight, member)]
        assert len(matches) == 1
        passed.add(matches[0])
    assert passed == {0, 1, 2, 3}


def test_complete_follows_level_0_bit_for_bit(wide: Decoder) -> None:
    for sublayer in wide.sublayers:
        weight = mixed(CompleteAccumulation(), sublayer)
        assert torch.equal(weight, full_width(sublayer, some_structures(sublayer)[0]))


def test_none_passes_the_dense_weight(wide: Decoder) -> None:
    for sublayer in wide.sublayers:
        assert mixed(NoAccumulation(), sublayer) is sublayer.output_weight


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.stem)
class TestAccumulationContract:
    """What every mode promises; a new YAML file is tested by being there."""

    def mode(self, path: Path) -> Accumulation:
        built: Accumulation = instantiate(yaml.safe_load(path.read_text(encoding="utf-8")))
        return built

    @pytest.mark.parametrize("place", [0, 1])
    @pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])
    def test_the_mixture_is_full_width_in_compute_precision(
        self, path: Path, place: int, storage: torch.dtype
    ) -> None:
        decoder = tiny_decoder(blocks=1, storage_dtype=storage)
        sublayer = decoder.sublayers[place]
        structures = {
            level: Structure(s.kept, s.weight.to(storage))
            for level, s in some_structures(sublayer).items()
        }
        weight = self.mode(path).mix(sublayer, structures, rng=derive_generator(0))
        assert weight.shape == sublayer.output_weight.shape
        assert weight.dtype == torch.float32

    def test_mixing_repeats_and_changes_nothing(self, path: Path, wide: Decoder) -> None:
        sublayer = wide.sublayers[0]
        dense = sublayer.output_weight.clone()
        first = mixed(self.mode(path), sublayer).clone()
        assert torch.equal(mixed(self.mode(path), sublayer), first)
        assert torch.equal(sublayer.output_weight, dense)


def test_every_mode_of_table_4_has_a_yaml_file() -> None:
    expected = {"none", "random", "uniform", "expectation", "complete"}
    assert expected <= {path.stem for path in YAML}
