from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.references.greedy import prune_greedily, self_regression
from tests.tiny import random_tokens, tiny_decoder
from tests.tolerance import assert_close
from tyr.calibrate.statistics import collect
from tyr.calibrate.stream import Stream
from tyr.errors import ConfigError
from tyr.model.decoder import Decoder
from tyr.prune.criterion import Taylor
from tyr.prune.local import LocalPruner, PrunedLevel
from tyr.prune.target import SelfTarget
from tyr.randomness import derive_generator

pytestmark = pytest.mark.usefixtures("no_grad")
HALF_A_BFLOAT16_STEP = 2**-8  # relative: 8 significant bits


def pruner(**settings: Any) -> LocalPruner:
    return LocalPruner(Taylor(), SelfTarget(), **settings)


def pruned(
    decoder: Decoder, place: int, counts: list[int], *, storage: torch.dtype, **settings: Any
) -> tuple[dict[int, PrunedLevel], Tensor]:
    """Levels of one sublayer of the dense stream, and the features they were solved on."""
    stream = Stream(decoder, random_tokens(6, 16))
    for sublayer in decoder.sublayers[:place]:
        stream.advance(sublayer, sublayer.output_weight)
    sublayer = decoder.sublayers[place]
    features = torch.cat([part for _, part in stream.batches(sublayer)]).flatten(0, 1)
    statistics = collect(stream.batches(sublayer), None)
    levels = pruner(**settings).prune(
        sublayer, statistics, counts, storage_dtype=storage, rng=derive_generator(0)
    )
    return levels, features


@pytest.mark.parametrize(("place", "unit_size"), [(2, 8), (3, 1)])
def test_a_structure_is_the_least_squares_weight_in_torch_s_orientation(
    decoder: Decoder, place: int, unit_size: int
) -> None:
    sublayer = decoder.sublayers[place]
    counts = [0, 1, sublayer.num_units // 2, sublayer.num_units]
    levels, features = pruned(decoder, place, counts, storage=torch.float32, ffn_group=4)
    regression = self_regression(
        features.double(), sublayer.output_weight.double().mT, damping=0.01, unit_size=unit_size
    )
    group = 1 if unit_size > 1 else 4
    expected = prune_greedily(
        regression, counts, criterion="taylor", group_size=group, rng=derive_generator(0)
    )
    assert list(levels) == counts
    for count, (kept, weight) in expected.items():
        structure = levels[count].structure
        assert structure.kept.tolist() == kept
        assert structure.weight.shape == (32, len(kept) * unit_size)
        assert structure.weight.is_contiguous()
        assert_close(structure.weight, weight.mT, tolerance=1e-4, reason="float32 Hessian products")


def test_a_whole_structure_is_the_dense_weight_bit_for_bit(decoder: Decoder) -> None:
    levels, _ = pruned(decoder, 0, [0], storage=torch.float32)
    assert torch.equal(levels[0].structure.weight, decoder.sublayers[0].output_weight)


def test_structures_are_rounded_once_to_the_storage_precision() -> None:
    decoder = tiny_decoder(storage_dtype=torch.bfloat16)
    narrow, _ = pruned(decoder, 1, [0, 12], storage=torch.bfloat16)
    wide, _ = pruned(decoder, 1, [0, 12], storage=torch.float64)
    assert narrow[12].structure.weight.dtype == torch.bfloat16
    assert torch.equal(narrow[12].structure.kept, wide[12].structure.kept)
    exact, rounded = wide[12].structure.weight, narrow[12].structure.weight.double()
    assert ((rounded - exact).abs() <= HALF_A_BFLOAT16_STEP * exact.abs()).all()
    assert not torch.equal(rounded, exact)
    assert torch.equal(narrow[0].structure.weight.float(), decoder.sublayers[1].output_weight)


def test_the_group_of_each_kind_is_its_own(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def spy(problem: object, counts: object, *, group_size: int, **rest: object) -> dict[int, Any]:
        seen.append(group_size)
        return {}

    monkeypatch.setattr("tyr.prune.local.prune_progressively", spy)
    for place in (0, 1):
        pruned(decoder, place, [0], storage=torch.float32, attention_group=2, ffn_group=3)
    assert seen == [2, 3]
    assert pruner().group_size == {"attn": 1, "ffn": 16}, "the paper's A.3"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention_group": 0}, "at least 1, got 0 and 16"),
        ({"ffn_group": -1}, "at least 1, got 1 and -1"),
        ({"damping": -0.1}, "damping must not be negative"),
        ({"damping": float("nan")}, "damping must not be negative"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pruner(**settings)


@pytest.mark.parametrize("key", ["criterion", "target"])
def test_a_word_in_place_of_an_object_is_refused_with_the_right_key(key: str) -> None:
    parts: dict[str, Any] = {"criterion": Taylor(), "target": SelfTarget(), key: "taylor"}
    with pytest.raises(ConfigError, match=f"write {key}=taylor"):
        LocalPruner(**parts)
