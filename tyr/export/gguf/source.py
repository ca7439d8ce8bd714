"""A model directory as the GGUF export reads it: configuration, tokenizer, tensors one at a time.

Takes directories that tyr exported and stock directories of the same model families. The weights
stay on disk; only file headers are read here. What llama.cpp can do with them is not decided here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

import tyr.export
from tyr.errors import ModelError
from tyr.export.shards import weight_files
from tyr.model.architecture import ARCHITECTURES, architecture_of
from tyr.model.directory import check_model_directory

PRUNED_PREFIX = "tyr_"

# What transformers raises on files it cannot use; RuntimeError for stock Llama configurations with
# sizes per block that do not allow to read the dense ones.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    ImportError,
    TypeError,
    AttributeError,
    RuntimeError,
)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Args:
        file: safetensors file.
        shape: its shape.
    """

    file: Path
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelDirectory:
    """A complete model directory.

    Args:
        path: the directory.
        config: its configuration.
        family: `llama`, `mistral`, `qwen2` or `qwen3`.
        tensors: every stored tensor by name.
        tokenizer: its tokenizer.
        eos_ids: tokens that end a text, most important first.
    """

    path: Path
    config: PretrainedConfig
    family: str
    tensors: Mapping[str, StoredTensor]
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]

    def load(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the precision of the file."""
        try:
            with safe_open(self.tensors[name].file, framework="pt") as handle:
                tensor: Tensor = handle.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read {name} from {self.path}: {error}") from error
        return tensor


def open_directory(path: Path) -> ModelDirectory:
    """Read everything but the weights.

    Raises:
        ModelError: not a complete model directory, or of a family that tyr does not know.
    """
    check_model_directory(path)
    tyr.export.register()
    try:
        config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"cannot read configuration and tokenizer of {path}: {reason}; expected config.json, "
            f"tokenizer.json and tokenizer_config.json of a Llama, Mistral, Qwen2 or Qwen3 model"
        ) from error
    # A stock configuration with sizes per block then gives the dense ones where a block has none.
    config.allow_global_per_layer_attribute_access = True
    return ModelDirectory(
        path=path,
        config=config,
        family=_family(config, path),
        tensors=_stored_tensors(path),
        tokenizer=tokenizer,
        eos_ids=_end_tokens(path, config, tokenizer),
    )


def _family(config: PretrainedConfig, path: Path) -> str:
    family = str(config.model_type).removeprefix(PRUNED_PREFIX)
    if family == config.model_type:
        return architecture_of(config, source=str(path)).model_type
    if family not in ARCHITECTURES:
        raise ModelError(
            f"{path} has model_type {config.model_type!r}; known pruned families: "
            f"{', '.join(ARCHITECTURES)}"
        )
    return family


def _stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Names and shapes from the file headers."""
    files = weight_files(path)
    if not files:
        raise ModelError(
            f"{path} holds no safetensors weights: expected model.safetensors or shards"
        )
    tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                names: Any = handle.keys()
                for name in names:
                    shape = tuple(handle.get_slice(name).get_shape())
                    tensors[name] = StoredTensor(file, shape)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"cannot read {file}: {error}; the file is damaged or half written"
            ) from error
    return tensors


def _end_tokens(
    path: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """The tokenizer's own end token first, if generation stops at it."""
    listed: Any = getattr(config, "eos_token_id", None)
    generation = path / "generation_config.json"
    if generation.is_file():
        listed = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id", listed)
    ids = [listed] if isinstance(listed, int) else list(listed or [])
    own: Any = tokenizer.eos_token_id
    if own is not None and (own in ids or not ids):
        ids = [own, *(token for token in ids if token != own)]
    return tuple(ids)
