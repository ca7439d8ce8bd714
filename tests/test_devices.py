from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.accelerator import DEVICES, named_device
from tests.tiny import random_matrix
from tests.tolerance import assert_close
from tyr import devices

CPU = torch.device("cpu")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return named_device(request.param)


def test_a_device_says_what_it_can(device: torch.device) -> None:
    devices.synchronize(device)
    on_cpu = device.type == "cpu"
    assert (devices.device_name(device) == "") == on_cpu
    assert devices.pins_memory(device) == (device.type not in ("cpu", "mps"))
    free = devices.free_bytes(device)
    assert free is None or free > 0


def test_peak_memory_counts_tensors_on_the_device(device: torch.device) -> None:
    devices.reset_peak(device)
    before = devices.peak_bytes(device)
    if before is None:
        assert device.type in ("cpu", "mps")
        return
    kept = torch.empty(1 << 22, dtype=torch.uint8, device=device)
    peak = devices.peak_bytes(device)
    assert peak is not None
    assert peak >= before + kept.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_half_precision_are_exact_in_float32(
    device: torch.device, dtype: torch.dtype
) -> None:
    left, right = random_matrix(6, 40).to(dtype), random_matrix(40, 5, seed=1).to(dtype)
    product = devices.wide_mm(left.to(device), right.to(device))
    assert product.dtype == torch.float32
    assert_close(
        product.cpu(), left.double() @ right.double(), tolerance=1e-6, reason="sums in float32"
    )


def test_mixed_precisions_are_cast() -> None:
    left, right = random_matrix(3, 4).bfloat16(), random_matrix(4, 2, seed=1).float()
    assert_close(
        devices.wide_mm(left, right), left.double() @ right.double(), tolerance=1e-6, reason="fp32"
    )


@pytest.mark.parametrize("refusal", [RuntimeError("not on this device\nmore"), TypeError("no")])
def test_a_device_that_cannot_widen_products_is_found_by_asking(
    monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise refusal

    monkeypatch.setattr(torch, "mm", refuse)
    monkeypatch.setattr(torch, "ones", lambda *size, **more: None)
    devices.widens_products.cache_clear()
    assert not devices.widens_products(torch.device("cuda"), torch.bfloat16)
    devices.widens_products.cache_clear()


def test_a_product_that_is_widened_is_asked_for_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def mm(left: torch.Tensor, right: torch.Tensor, *, out_dtype: torch.dtype) -> torch.Tensor:
        asked.append((left.dtype, out_dtype))
        return left.to(out_dtype) @ right.to(out_dtype)

    monkeypatch.setattr(devices, "widens_products", lambda device, dtype: True)
    monkeypatch.setattr(torch, "mm", mm)
    half = random_matrix(4, 4).bfloat16()
    assert devices.wide_mm(half, half).dtype == torch.float32
    assert asked == [(torch.bfloat16, torch.float32)]


def test_backends_without_counters_are_said_not_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    device = torch.device("mps")
    assert devices.device_name(device) == "mps"
    assert devices.free_bytes(device) is None
    assert devices.peak_bytes(device) is None
    devices.reset_peak(device)
    assert devices.new_stream(device) is None


def test_what_torch_keeps_for_tensors_to_come_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    # An earlier run of the same process may have left most of an accelerator reserved.
    backend = SimpleNamespace(
        mem_get_info=lambda device: (10, 100),
        memory_reserved=lambda device: 85,
        memory_allocated=lambda device: 5,
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: backend)
    assert devices.free_bytes(torch.device("cuda")) == 90


def test_what_is_sent_arrives_though_nobody_waits(device: torch.device) -> None:
    for kept in (random_matrix(64, 64), torch.arange(7)):
        pinned = kept.pin_memory() if devices.pins_memory(device) else kept.clone()
        for source in (kept.clone(), pinned):
            there = devices.send(source, device)
            del source
            assert there.device.type == device.type
            assert torch.equal(there.cpu(), kept)


def test_the_widest_float_can_be_summed_in(device: torch.device) -> None:
    wide = devices.widest_float(device)
    assert torch.full((3,), 0.5, device=device).sum(dtype=wide).item() == 1.5
    assert wide == torch.float64 or device.type != "cpu"


def test_a_device_without_float64_is_found_by_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*size: int, dtype: torch.dtype, **more: object) -> None:
        raise TypeError(f"{dtype} is not on this device")

    monkeypatch.setattr(torch, "zeros", refuse)
    devices.widest_float.cache_clear()
    assert devices.widest_float(torch.device("mps")) == torch.float32
    devices.widest_float.cache_clear()


def test_copies_have_a_queue_of_their_own_on_an_accelerator(device: torch.device) -> None:
    stream = devices.new_stream(device)
    if stream is None:
        assert device.type in ("cpu", "mps")
        return
    numbers = random_matrix(8, 8).float()
    with devices.on_stream(device, stream):
        there = numbers.to(device)
        stream.synchronize()
    assert torch.equal(there.cpu(), numbers)


def test_no_module_asks_whether_a_device_is_cuda() -> None:
    """ROCm, Intel and Apple count too: what is asked for is the ability."""
    package = Path(devices.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("torch.cuda", ".is_cuda", '== "cuda"', ".cuda("):
            assert word not in text, f"{path.name} says {word}"
