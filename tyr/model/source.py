"""What a run asks of a model before and when it is loaded, whatever it is loaded from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tyr.errors import ConfigError
from tyr.model.decoder import Decoder
from tyr.model.placement import MemorySettings
from tyr.model.sublayer import AttentionUnit

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelSource(Protocol):
    """Something that can be checked cheaply and then loaded."""

    name: str
    memory: MemorySettings

    def configuration(self) -> PretrainedConfig:
        """The stock configuration, without weights.

        Raises:
            ModelError: missing, quantised or unsupported.
        """

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer.

        Raises:
            ModelError: there is none that can be used.
        """

    def precisions(self, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
        """Precision of structures and exports, and of the forward passes on a device.

        Raises:
            ConfigError: an unknown name of a precision.
        """

    def load(
        self, *, device: torch.device, attention_unit: AttentionUnit, scratch: Path | None
    ) -> Decoder:
        """The model, its tokenizer and its sublayers.

        Args:
            device: computing device.
            attention_unit: `head` or `kv_group`.
            scratch: folder for what does not fit in memory; None: the system's temporary one.
        """


def parse_dtype(name: str, *, key: str, auto: torch.dtype) -> torch.dtype:
    """A dtype by name; `auto` gives the default handed in.

    Raises:
        ConfigError: unknown name.
    """
    if name == "auto":
        return auto
    if name not in DTYPES:
        raise ConfigError(f"{key} must be auto or one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def compute_dtype(name: str, storage: torch.dtype, device: torch.device) -> torch.dtype:
    """Precision of the forward passes on a device, by name; see `parse_dtype`."""
    auto = torch.float32 if device.type == "cpu" else storage
    return parse_dtype(name, key="model.compute_dtype", auto=auto)
