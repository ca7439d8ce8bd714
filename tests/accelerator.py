"""The device that `gpu` tests run on; they skip with the reason where there is none."""

from __future__ import annotations

import pytest
import torch


def accelerator() -> torch.device:
    """The accelerator of this machine: CUDA, ROCm or another."""
    if not torch.accelerator.is_available():
        pytest.skip("this machine has no accelerator that torch can use")
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found


# For `@pytest.fixture(params=DEVICES)`: the same test on the CPU, in the fast tier, and with
# `-m gpu` on an accelerator.
DEVICES = ["cpu", pytest.param("accelerator", marks=pytest.mark.gpu)]


def named_device(name: str) -> torch.device:
    """A member of `DEVICES`."""
    return torch.device("cpu") if name == "cpu" else accelerator()
