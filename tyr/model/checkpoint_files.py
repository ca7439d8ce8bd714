"""Where the tensors of a safetensors checkpoint lie: a directory or the hub's cache, in one file
or several.

Finding and downloading files is transformers' own business. Only headers are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from tyr.errors import ModelError, first_line

_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class CheckpointFiles:
    """Tensors of a checkpoint.

    Args:
        files: name of a tensor to the file that holds it.
        shapes: name of a tensor to its shape.
    """

    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]


def find_checkpoint(path: str, revision: str) -> CheckpointFiles:
    """Locate a checkpoint's tensors.

    Args:
        path: directory or hub name.
        revision: hub revision.

    Raises:
        ModelError: there are no safetensors files, or one is missing or damaged.
    """
    try:
        files = _weight_files(path, revision)
        if not files:
            raise ModelError(
                f"{path} holds neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}: "
                f"model.offload=disk reads safetensors only; use model.offload=none, or convert it"
            )
        return _read_headers(files)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise _unreadable(path, error) from error


def weights_dtype(directory: Path) -> torch.dtype | None:
    """Precision of the first weights of a directory in safetensors; None where there are none.

    Raises:
        ModelError: a file is damaged.
    """
    if not directory.is_dir():  # a name on the hub, from where nothing is fetched for this
        return None
    try:
        for file in _weight_files(str(directory), revision="main"):
            with safe_open(file, framework="pt") as handle:
                kinds = [handle.get_slice(name).get_dtype() for name in sorted(handle.keys())]
            if floats := [_FLOATS[kind] for kind in kinds if kind in _FLOATS]:
                return floats[0]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unreadable(str(directory), error) from error
    return None


def check_complete(checkpoint: CheckpointFiles, model: PreTrainedModel, *, source: str) -> None:
    """Compare a checkpoint with the model of its configuration.

    Raises:
        ModelError: a tensor is missing or has another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    missing = sorted(expected.keys() - checkpoint.shapes.keys())
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} weights of its own configuration, e.g. {missing[0]}: "
            f"the checkpoint is incomplete, or has other names for them, which only "
            f"model.offload=none understands"
        )
    for name, shape in expected.items():
        if checkpoint.shapes[name] != shape:
            raise ModelError(
                f"{source} does not fit its own configuration: {name} has shape "
                f"{checkpoint.shapes[name]}, expected {shape}"
            )


def is_tied(model: PreTrainedModel) -> bool:
    """Whether embedding and vocabulary projection are one matrix."""
    embedding, head = (cast(Any, m).weight for m in _ends(model))
    return embedding is head


def check_ties(checkpoint: CheckpointFiles, model: PreTrainedModel, *, source: str) -> None:
    """Compare the two matrices of a checkpoint that stores both, though they should be one.

    Raises:
        ModelError: they differ.
    """
    ends = {id(module) for module in _ends(model)}
    named = [f"{name}.weight" for name, module in model.named_modules() if id(module) in ends]
    stored = [name for name in named if name in checkpoint.files]
    if not is_tied(model) or len(stored) < 2:
        return
    matrices = []
    for name in stored:
        with safe_open(checkpoint.files[name], framework="pt") as handle:
            matrices.append(handle.get_tensor(name))
    if not torch.equal(*matrices):
        raise ModelError(two_matrices(source))


def two_matrices(source: str) -> str:
    """What is wrong with a checkpoint that is tied by its configuration and not by its weights."""
    return (
        f"config.json of {source} says tie_word_embeddings, but the weights of embedding and "
        f"vocabulary projection differ: set tie_word_embeddings to false there, or remove "
        f"lm_head.weight from the weights if the embedding is to be used for both"
    )


def _ends(model: PreTrainedModel) -> tuple[object, object]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def _unreadable(path: str, error: Exception) -> ModelError:
    return ModelError(f"cannot read the weights of {path}: {first_line(error)}")


def _weight_files(path: str, revision: str) -> list[Path]:
    """The single file, or those that the index names; none if there is neither."""
    optional: dict[str, Any] = {
        "revision": revision,
        "_raise_exceptions_for_missing_entries": False,
    }
    single = cached_file(path, SAFE_WEIGHTS_NAME, **optional)
    if single is not None:
        return [Path(single)]
    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **optional)
    if index is None:
        return []
    shards, _ = get_checkpoint_shard_files(path, index, revision=revision)
    return [Path(shard) for shard in shards]


def _read_headers(files: list[Path]) -> CheckpointFiles:
    where: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(file, framework="pt") as handle:
            names: Any = handle.keys()
            for name in names:
                where[name] = file
                shapes[name] = tuple(handle.get_slice(name).get_shape())
    return CheckpointFiles(where, shapes)
