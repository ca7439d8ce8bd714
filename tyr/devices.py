"""What differs between accelerators, asked of the device instead of guessed from its name.

ROCm presents itself as `cuda`, Intel as `xpu`, Apple as `mps`; what one of them lacks is found by
asking torch for it. Nothing here chooses a device or changes a global setting.
"""

from __future__ import annotations

import functools
import logging
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from tyr.errors import first_line
from tyr.memory import available_bytes

logger = logging.getLogger(__name__)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything asked of it; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_name(device: torch.device) -> str:
    """Its product name, or its type where the backend does not tell; empty for a CPU."""
    if device.type == "cpu":
        return ""
    name = getattr(_backend(device), "get_device_name", None)
    return str(name(device)) if name is not None else device.type


def free_bytes(device: torch.device, *, processes: int = 1) -> int | None:
    """Memory that is free where tensors of this device live, or None if unknown.

    Args:
        device: an accelerator is one process's own.
        processes: that share the memory of a CPU.
    """
    if device.type == "cpu":
        return available_bytes(processes=processes)
    backend = _backend(device)
    if not hasattr(backend, "mem_get_info"):
        return None
    free, _ = backend.mem_get_info(device)
    if hasattr(backend, "memory_reserved"):  # what torch keeps for tensors to come is free to us
        free += backend.memory_reserved(device) - backend.memory_allocated(device)
    return int(free)


def peak_bytes(device: torch.device) -> int | None:
    """Most memory that tensors took on an accelerator since `reset_peak`, or None if not counted.

    A CPU has no such counter: see `tyr.memory.peak_rss_bytes`.
    """
    ask = None if device.type == "cpu" else getattr(_backend(device), "max_memory_allocated", None)
    return int(ask(device)) if ask is not None else None


def reset_peak(device: torch.device) -> None:
    """Start counting `peak_bytes` anew."""
    reset = getattr(_backend(device), "reset_peak_memory_stats", None)
    if device.type != "cpu" and reset is not None:
        reset(device)


def pins_memory(device: torch.device) -> bool:
    """Whether copies to the device are faster from page-locked memory; not where it shares ours."""
    return device.type not in ("cpu", "mps", "meta")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; the program does not wait for an accelerator to receive it.

    Work that is asked of the device afterwards sees the values. The source may be released at once:
    page-locked memory is held back by torch until the copy is done, other memory is read before
    this returns. Its values must not be changed meanwhile.
    """
    return tensor.to(device, non_blocking=pins_memory(device))


@functools.cache
def widest_float(device: torch.device) -> torch.dtype:
    """float64 where the device has it (Apple's and some of Intel's do not), else float32."""
    try:
        torch.zeros(1, device=device, dtype=torch.float64)
    except (RuntimeError, TypeError) as error:
        logger.info("%s: sums in float32 (%s)", device, first_line(error))
        return torch.float32
    return torch.float64


def new_stream(device: torch.device) -> Any:
    """A queue for copies beside the products, or None where the device has but one."""
    make = None if device.type == "cpu" else getattr(_backend(device), "Stream", None)
    return make(device) if make is not None else None


def on_stream(device: torch.device, stream: Any) -> AbstractContextManager[Any]:
    """Work goes to a queue of `new_stream` while the context lasts."""
    chosen: AbstractContextManager[Any] = _backend(device).stream(stream)
    return chosen


def wide_mm(left: Tensor, right: Tensor) -> Tensor:
    """Product of half-precision matrices in float32: (a, n), (n, b) -> (a, b).

    Products of bf16 or fp16 are exact in float32, so where the device can multiply in them and
    return float32, that is the float32 result several times faster than casting first. Elsewhere
    the operands are cast; the mathematics is the same.
    """
    if left.dtype == right.dtype and widens_products(left.device, left.dtype):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


@functools.cache
def widens_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `torch.mm` returns float32 for half-precision operands here; tried once."""
    if device.type == "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return False
    probe = torch.ones(16, 16, device=device, dtype=dtype)
    try:
        product = torch.mm(probe, probe, out_dtype=torch.float32)
    except (RuntimeError, TypeError) as error:  # TypeError: a torch without the argument
        logger.info("%s: no float32 products of %s (%s)", device, dtype, first_line(error))
        return False
    return product.dtype == torch.float32 and bool((product == 16).all())


def _backend(device: torch.device) -> Any:
    return torch.get_device_module(device)
