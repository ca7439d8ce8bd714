from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tiny import random_matrix
from tests.tolerance import assert_close
from tyr.calibrate import statistics
from tyr.calibrate.statistics import STRIP, collect, gram, strip_width

Batch = tuple[Tensor, Tensor]
REASON = "products of a batch are formed in float32"


def batches(*sizes: int, seed: int = 0) -> list[Batch]:
    """(hidden (B, 4, 6), features (B, 4, 5)) per batch, float32."""
    return [
        (
            random_matrix(size, 4, 6, seed=seed + 2 * place).float(),
            random_matrix(size, 4, 5, seed=seed + 2 * place + 1).float(),
        )
        for place, size in enumerate(sizes)
    ]


def joined(parts: list[Batch]) -> Batch:
    """All tokens as rows, float64."""
    hidden, features = (
        torch.cat(tensors).flatten(0, 1).double() for tensors in zip(*parts, strict=True)
    )
    return hidden, features


def test_the_hessian_is_the_second_moment_over_all_batches() -> None:
    parts = batches(2, 3, 1)
    _, features = joined(parts)
    statistics = collect(iter(parts), None)
    assert statistics.hessian.dtype == torch.float64
    assert_close(statistics.hessian, features.mT @ features, tolerance=1e-6, reason=REASON)
    assert statistics.num_tokens == 24
    assert statistics.cross is None
    assert statistics.residual is None


def test_cross_moments_pair_the_pruned_stream_with_the_dense_one() -> None:
    pruned, dense = batches(2, 3), batches(2, 3, seed=50)
    hidden, features = joined(pruned)
    dense_hidden, dense_features = joined(dense)
    statistics = collect(iter(pruned), iter(dense))
    assert statistics.cross is not None
    assert statistics.residual is not None
    expected = features.mT @ dense_features
    assert_close(statistics.cross, expected, tolerance=1e-6, reason=REASON)
    expected = features.mT @ (dense_hidden - hidden)
    assert_close(statistics.residual, expected, tolerance=1e-6, reason=REASON)


def test_sums_over_many_batches_do_not_drift() -> None:
    # 4,000 equal terms in a float32 running sum would be off by about 1e-5 relative.
    ones = torch.full((1, 1, 1), 0.1)
    statistics = collect(((ones, ones) for _ in range(4000)), None)
    exact = 4000 * float(torch.tensor(0.1) * torch.tensor(0.1))
    assert_close(float(statistics.hessian), exact, tolerance=1e-12)


def test_a_repeated_run_is_bit_identical() -> None:
    first, second = (collect(iter(batches(3, 3, 3)), None) for _ in range(2))
    assert torch.equal(first.hessian, second.hessian)


def test_bfloat16_features_are_multiplied_in_float32() -> None:
    features = random_matrix(64, 5).bfloat16()
    product = gram(features)
    assert product.dtype == torch.float32
    exact = features.double().mT @ features.double()
    assert_close(product, exact, tolerance=1e-6, reason=REASON)


@pytest.mark.parametrize("width", [STRIP - 1, STRIP, STRIP + 1, 3 * STRIP])
def test_the_strips_of_a_wide_hessian_are_the_whole_product_and_exactly_symmetric(
    width: int,
) -> None:
    features = random_matrix(6, width).float()
    product = gram(features)
    assert_close(product, features.double().mT @ features.double(), tolerance=1e-6, reason=REASON)
    assert torch.equal(product, product.mT)


def test_moments_of_batches_are_the_sums_of_their_products_bit_for_bit() -> None:
    features = [random_matrix(2, 3, STRIP + 5, seed=seed).float() for seed in range(3)]
    moments = collect(((part[..., :2], part) for part in features), None)
    expected = sum(gram(part.flatten(0, 1)).double() for part in features)
    assert torch.equal(moments.hessian, expected)


def test_an_accelerator_works_in_wider_strips() -> None:
    assert strip_width("cpu") == STRIP
    assert strip_width("cuda") == strip_width("xpu") > 4 * STRIP


def test_streams_of_different_length_are_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="zip"):
        collect(iter(batches(2, 2)), iter(batches(2, 2, 2)))


def test_no_batches_are_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one batch"):
        collect(iter([]), None)


def test_a_device_that_sums_both_halves_in_two_orders_gives_a_symmetric_hessian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lopsided(left: Tensor, right: Tensor) -> Tensor:
        product = left.float().mT @ right.float()
        return product * torch.linspace(1, 1 + 1e-6, len(product))[:, None]

    monkeypatch.setattr(statistics, "cross_gram", lopsided)
    product = gram(random_matrix(6, STRIP + 3).float())
    assert torch.equal(product, product.mT)
