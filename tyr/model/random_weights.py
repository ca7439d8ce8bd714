"""Random weights, drawn parameter by parameter, so that no whole model need ever be in memory.

The draw of a parameter depends on the seed and its name only: a model drawn in memory and one
written to files a block at a time have the same weights. The distributions are those that the stock
classes start training from: normal matrices, ones for norms, zeros for biases.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from tyr.errors import StoreError
from tyr.model.architecture import architecture_of
from tyr.model.skeleton import complete, skeleton
from tyr.randomness import derive_generator

PREFIX = ".random-weights-"  # of temporary folders


def random_weights(
    config: PretrainedConfig,
    *,
    seed: int,
    storage: torch.dtype = torch.float32,
    compute: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A model on the CPU; the global random state is left as it was.

    Args:
        config: its configuration.
        seed: of the weights.
        storage: precision they are rounded to.
        compute: precision they are then held in.
    """
    model = skeleton(config, dtype=compute)
    named = model.named_parameters()
    state = {n: draw(n, like, config, seed).to(storage).to(compute) for n, like in named}
    complete(model, architecture_of(config, source="model"), state, torch.device("cpu"))
    return model


def draw(name: str, like: Tensor, config: PretrainedConfig, seed: int) -> Tensor:
    """The values of one parameter, float32.

    Args:
        name: of the parameter; decides, with the seed, what is drawn.
        like: a tensor of its shape.
        config: gives `initializer_range`.
        seed: of the model.
    """
    if "norm" in name:
        return torch.ones(like.shape)
    if name.endswith("bias"):
        return torch.zeros(like.shape)
    rng = derive_generator(seed, "weights", name)
    return torch.randn(like.shape, generator=rng).mul_(cast(Any, config).initializer_range)


def remove_leftovers(folder: Path) -> None:
    """Delete the files of `RandomFiles` of processes that were killed; none may be at work here."""
    for left in folder.glob(f"{PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)


class RandomFiles:
    """Random weights in a temporary folder, one file per block and one for the rest.

    Args:
        model: on the meta device.
        seed: of the weights.
        dtype: precision they are written in.
        folder: where the temporary folder goes; it is removed with this object, or when the
            process ends, but for a kill: see `remove_leftovers`.

    Raises:
        StoreError: they do not fit on the disk.
    """

    def __init__(
        self, model: PreTrainedModel, *, seed: int, dtype: torch.dtype, folder: Path | None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder)
        self.files: dict[str, Path] = {}
        for number, names in enumerate(_groups(model)):
            path = Path(self._folder.name) / f"{number:05d}.safetensors"
            parameters = ((name, model.get_parameter(name)) for name in names)
            tensors = {n: draw(n, p, model.config, seed).to(dtype) for n, p in parameters}
            try:
                save_file(tensors, path)
            except (OSError, SafetensorError) as error:
                raise StoreError(
                    f"cannot write the random weights to {path.parent}: {error}; free disk space, "
                    f"or use model.offload=none"
                ) from error
            self.files.update(dict.fromkeys(names, path))


def _groups(model: PreTrainedModel) -> Iterator[Sequence[str]]:
    """Names of what lies outside the blocks, then of every block's parameters."""
    prefix = architecture_of(model.config, source="random").blocks_name(model) + "."
    groups: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        block = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else ""
        groups.setdefault(block, []).append(name)
    yield from groups.values()
