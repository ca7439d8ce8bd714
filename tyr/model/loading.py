"""Load a dense causal LM: from a directory, from the hub, or with random weights.

Every check that can be made from the configuration alone is made before a single weight is read.
Weights are computed in `compute_dtype` (float32 on CPU) and stored in the checkpoint's own dtype.
No model is downloaded unless its path is a hub name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tyr.errors import ConfigError, ModelError, first_line
from tyr.model.architecture import architecture_of
from tyr.model.checkpoint_files import (
    check_complete,
    check_ties,
    find_checkpoint,
    is_tied,
    two_matrices,
    weights_dtype,
)
from tyr.model.decoder import Decoder
from tyr.model.offload import FileWeights, Weights
from tyr.model.placement import MemorySettings
from tyr.model.random_weights import RandomFiles, random_weights
from tyr.model.skeleton import leave_on_host, place, skeleton
from tyr.model.source import compute_dtype, parse_dtype
from tyr.model.sublayer import AttentionUnit

logger = logging.getLogger(__name__)

# What the stock classes raise for a configuration that makes no sense to them.
CONFIG_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    ZeroDivisionError,
    StrictDataclassError,
)

BUILT_IN = Path(__file__).parent.parent / "assets" / "tiny"


class PretrainedModel:
    """A checkpoint in a local directory or on the hub.

    Args:
        path: directory or hub name; `built-in` is the model shipped with tyr.
        name: short name for reports and run directories; default: last part of the path.
        revision: hub revision.
        dtype: precision of structures and exports; auto: the checkpoint's.
        compute_dtype: auto: float32 on CPU, `dtype` elsewhere.
        offload: see `MemorySettings`, as the next three.
        device_state_bytes: most bytes of hidden states on the device.
        host_state_bytes: most bytes of hidden states in host memory.
        memory_budget: most bytes of the device's memory.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str | None = None,
        revision: str = "main",
        dtype: str = "auto",
        compute_dtype: str = "auto",
        offload: str = "none",
        device_state_bytes: float | None = None,
        host_state_bytes: float | None = None,
        memory_budget: float | None = None,
    ) -> None:
        self.memory = MemorySettings(offload, device_state_bytes, host_state_bytes, memory_budget)
        parse_dtype(dtype, key="model.dtype", auto=torch.float32)
        parse_dtype(compute_dtype, key="model.compute_dtype", auto=torch.float32)
        self.path = str(BUILT_IN) if path == "built-in" else _expanded(path)
        self.name = name or Path(self.path).name
        self.revision = revision
        self._dtype = dtype
        self._compute_dtype = compute_dtype

    def configuration(self) -> PretrainedConfig:
        """The checked configuration. See `source.ModelSource.configuration`."""
        self._check_directory()
        try:
            config = AutoConfig.from_pretrained(self.path, revision=self.revision)
        except CONFIG_ERRORS as error:
            raise ModelError(
                f"cannot read a model configuration from {self.path}: {_one_line(error)}; "
                f"give a directory that holds config.json (model=local model.path=DIR) or a hub "
                f"name that this machine can reach"
            ) from error
        architecture_of(config, source=self.path)
        return cast(PretrainedConfig, config)

    def precisions(self, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
        """See `source.ModelSource.precisions`."""
        named = getattr(self.configuration(), "dtype", None)
        storage = parse_dtype(self._dtype, key="model.dtype", auto=named or self._stored_dtype)
        return storage, compute_dtype(self._compute_dtype, storage, device)

    @cached_property
    def _stored_dtype(self) -> torch.dtype:
        """Precision of a checkpoint whose configuration names none."""
        found = weights_dtype(Path(self.path))
        if found is None:
            logger.warning(
                "the configuration of %s names no dtype: taken to be float32; say model.dtype=... "
                "if its weights are shorter",
                self.path,
            )
        return found or torch.float32

    def load(
        self,
        *,
        device: torch.device,
        attention_unit: AttentionUnit = "head",
        scratch: Path | None = None,
    ) -> Decoder:
        """Read weights and tokenizer. See `source.ModelSource.load`."""
        config = self.configuration()
        tokenizer = self.tokenizer()
        storage, compute = self.precisions(device)
        offload = self.memory.on(device)
        make = self._skeleton if offload == "disk" else self._whole
        model = make(config, compute)
        weights: Weights | None = None
        if offload == "disk":
            checkpoint = find_checkpoint(self.path, self.revision)
            check_complete(checkpoint, model, source=self.path)
            check_ties(checkpoint, model, source=self.path)
            weights = FileWeights(checkpoint.files, dtype=compute, device=device)
        elif offload == "cpu":
            weights = leave_on_host(model, device)
        logger.info("loaded %s: %s weights, computing in %s", self.path, storage, compute)
        return Decoder(
            model,
            tokenizer,
            architecture=architecture_of(config, source=self.path),
            storage_dtype=storage,
            attention_unit=attention_unit,
            name=self.name,
            placement=place(model, weights, self.memory, device=device, scratch=scratch),
        )

    def _whole(self, config: PretrainedConfig, compute: torch.dtype) -> PreTrainedModel:
        """The stock model with its weights, on the CPU."""
        try:
            model, loading = AutoModelForCausalLM.from_pretrained(
                self.path,
                revision=self.revision,
                dtype=compute,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"cannot read the weights of {self.path}: {first_line(error)}"
            ) from error
        if loading["missing_keys"]:  # transformers would fill them with random numbers
            missing = sorted(loading["missing_keys"])
            raise ModelError(
                f"{self.path} lacks {len(missing)} weights of its own configuration, e.g. "
                f"{missing[0]}: the checkpoint is incomplete"
            )
        if config.tie_word_embeddings and not is_tied(model):
            raise ModelError(two_matrices(self.path))
        return cast(PreTrainedModel, model)

    def _skeleton(self, config: PretrainedConfig, compute: torch.dtype) -> PreTrainedModel:
        """The stock model without weights, with the generation settings that come with them."""
        model = skeleton(config, dtype=compute)
        try:
            settings = GenerationConfig.from_pretrained(self.path, revision=self.revision)
        except OSError:  # the checkpoint has none; the stock loader goes on too
            return model
        cast(Any, model).generation_config = settings
        return model

    def _check_directory(self) -> None:
        path = Path(self.path)
        looks_local = self.path.startswith((".", "/", "~")) or path.exists()
        if not looks_local:
            return
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise ModelError(
                f"model.path={self.path} {what}: expected a directory with config.json, "
                f"safetensors weights and a tokenizer"
            )
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{self.path} holds no config.json: not a Hugging Face model directory"
            )
        if '"model_type": "tyr_' in (path / "config.json").read_text(encoding="utf-8"):
            raise ModelError(
                f"{self.path} was already pruned by tyr: start from the dense model and ask for a "
                f"higher sparsity"
            )

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See `source.ModelSource.tokenizer`."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, revision=self.revision)
        except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
            raise ModelError(_no_tokenizer(self.path, first_line(error))) from error
        if len(tokenizer) == 0:
            raise ModelError(_no_tokenizer(self.path, "the tokenizer has no entries"))
        return cast(PreTrainedTokenizerBase, tokenizer)


class RandomModel:
    """A model with random weights, for benchmarks and tests.

    Args:
        config: `model_type` plus any fields of its transformers configuration.
        name: short name.
        seed: of the weights.
        dtype: as in `PretrainedModel`.
        compute_dtype: as in `PretrainedModel`.
        tokenizer_path: tokenizer to read text with; its ids must fit the vocabulary.
        offload: see `MemorySettings`, as the next three.
        device_state_bytes: most bytes of hidden states on the device.
        host_state_bytes: most bytes of hidden states in host memory.
        memory_budget: most bytes of the device's memory.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        name: str = "random",
        seed: int = 0,
        dtype: str = "float32",
        compute_dtype: str = "auto",
        tokenizer_path: str = "built-in",
        offload: str = "none",
        device_state_bytes: float | None = None,
        host_state_bytes: float | None = None,
        memory_budget: float | None = None,
    ) -> None:
        self.memory = MemorySettings(offload, device_state_bytes, host_state_bytes, memory_budget)
        fields = dict(config)
        if "model_type" not in fields:
            raise ConfigError("model.config needs a model_type, e.g. llama")
        self._model_type = str(fields.pop("model_type"))
        self._fields = fields
        self.name = name
        self._seed = seed
        self._dtype = dtype
        self._compute_dtype = compute_dtype
        self._tokenizer_source = PretrainedModel(tokenizer_path)

    def configuration(self) -> PretrainedConfig:
        """The configuration built from the given fields."""
        try:
            config = AutoConfig.for_model(self._model_type, **self._fields)
        except CONFIG_ERRORS as error:
            raise ModelError(f"model.config: {_one_line(error)}") from error
        architecture_of(config, source=self.name)
        return cast(PretrainedConfig, config)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The borrowed tokenizer. See `source.ModelSource.tokenizer`."""
        tokenizer = self._tokenizer_source.tokenizer()
        config = self.configuration()
        if len(tokenizer) > config.vocab_size:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} entries but model.config.vocab_size is "
                f"{config.vocab_size}: raise it or name another model.tokenizer_path"
            )
        return tokenizer

    def precisions(self, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
        """See `source.ModelSource.precisions`."""
        storage = parse_dtype(self._dtype, key="model.dtype", auto=torch.float32)
        return storage, compute_dtype(self._compute_dtype, storage, device)

    def load(
        self,
        *,
        device: torch.device,
        attention_unit: AttentionUnit = "head",
        scratch: Path | None = None,
    ) -> Decoder:
        """Draw the weights. See `source.ModelSource.load`."""
        config = self.configuration()
        tokenizer = self.tokenizer()
        storage, compute = self.precisions(device)
        offload = self.memory.on(device)
        weights: Weights | None = None
        if offload == "disk":
            model = skeleton(config, dtype=compute)
            drawn = RandomFiles(model, seed=self._seed, dtype=storage, folder=scratch)
            weights = FileWeights(drawn.files, dtype=compute, device=device, owner=drawn)
        else:
            model = random_weights(config, seed=self._seed, storage=storage, compute=compute)
            weights = leave_on_host(model, device) if offload == "cpu" else None
        return Decoder(
            model,
            tokenizer,
            architecture=architecture_of(config, source=self.name),
            storage_dtype=storage,
            attention_unit=attention_unit,
            name=self.name,
            placement=place(model, weights, self.memory, device=device, scratch=scratch),
        )


def _expanded(path: str) -> str:
    """A path with the home directory in it, where the shell left `~` alone (`model.path=~/x`)."""
    return str(Path(path).expanduser()) if str(path).startswith("~") else str(path)


def _one_line(error: BaseException) -> str:
    """What is wrong with a configuration: its checks name the field first and the reason below."""
    if isinstance(error, ZeroDivisionError):
        return "one of its sizes is 0"
    if isinstance(error, StrictDataclassError):
        return " ".join(str(error).split())
    return first_line(error)


def _no_tokenizer(path: str, reason: str) -> str:
    return (
        f"{path} has no usable tokenizer ({reason}): put tokenizer.json and tokenizer_config.json "
        f"beside config.json"
    )
