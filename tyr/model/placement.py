"""Settings of where a model's weights and hidden states are kept, and the objects that keep them.

Checked before anything is read. Which of them a run needs is counted in `tyr/footprint.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tyr.errors import ConfigError
from tyr.memory import is_whole_bytes
from tyr.model.offload import Residency
from tyr.model.states import StatePool

OFFLOADS = ("none", "cpu", "disk")


@dataclass(frozen=True)
class MemorySettings:
    """How much of a model is in memory at once.

    Args:
        offload: where blocks are that are not at work: `none` (all of them stay on the computing
            device), `cpu` (host memory) or `disk` (the checkpoint's own files).
        device_state_bytes: most bytes of hidden states kept on the device; None: no limit.
        host_state_bytes: most bytes of the others kept in host memory, the rest goes to a file;
            None: no limit.
        memory_budget: bytes of the computing device's memory the run may take; None: what the
            system has free.

    Raises:
        ConfigError: a setting is out of range.
    """

    offload: str = "none"
    device_state_bytes: float | None = None
    host_state_bytes: float | None = None
    memory_budget: float | None = None

    def __post_init__(self) -> None:
        if self.offload not in OFFLOADS:
            raise ConfigError(
                f"model.offload must be one of {', '.join(OFFLOADS)}, got {self.offload!r}"
            )
        for key in ("device_state_bytes", "host_state_bytes", "memory_budget"):
            value = getattr(self, key)
            if value is not None and not is_whole_bytes(value):
                raise ConfigError(
                    f"model.{key} must be a whole number of bytes, e.g. 8e9, or null for no "
                    f"limit; got {value!r}"
                )

    def on(self, device: torch.device) -> str:
        """What offloading means there: beside a CPU device there is no other host memory."""
        return "none" if self.offload == "cpu" and device.type == "cpu" else self.offload

    def states(self, device: torch.device, folder: Path | None) -> StatePool:
        """Room for hidden states, with files in `folder`."""
        device_bytes, host_bytes = self.device_state_bytes, self.host_state_bytes
        return StatePool(
            device,
            device_bytes=None if device_bytes is None else int(device_bytes),
            host_bytes=None if host_bytes is None else int(host_bytes),
            folder=folder,
        )


@dataclass(frozen=True)
class Placement:
    """Where the parts of a loaded model are.

    Args:
        states: room for hidden states.
        residency: lends blocks their parameters; None if they have them.
    """

    states: StatePool
    residency: Residency | None = None
