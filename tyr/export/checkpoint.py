"""Write a pruned model as a Hugging Face directory that transformers loads by itself.

This is the canonical artefact of a run: the sparse model that Algorithm 4 of the paper returns,
with its columns really gone. One sublayer is read and held in memory at a time. The directory
appears under its name only when it is complete. What the numbers in the returned record say was
read back from the files.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig

from tyr.errors import ModelError, StoreError, TyrError
from tyr.export import modeling_tyr
from tyr.export.base import base_model
from tyr.export.card import CardFacts, model_card
from tyr.export.config import PrunedSizes, pruned_config
from tyr.export.shards import ShardWriter, check_shard_bytes, stored_shapes
from tyr.export.tensors import (
    ExportedTensor,
    ReadStructure,
    blocks_prefix,
    embedding_names,
    model_size,
    other_tensors,
    sublayer_part,
)
from tyr.layout import Layout
from tyr.model.decoder import Decoder
from tyr.model.source import ModelSource
from tyr.model.sublayer import Structure
from tyr.sparsity import SublayerId, UnitCounts

logger = logging.getLogger(__name__)

GENERATION = "generation_config.json"
SHARD_BYTES = 5_000_000_000  # what transformers and the hubs use

Configure = Callable[[Decoder, PrunedSizes], PretrainedConfig]


@dataclass(frozen=True)
class ExportedModel:
    """What was written. All counts come from the shapes in the files.

    Args:
        directory: where it is.
        parameters: all of them; tied embeddings count once.
        backbone_parameters: without token embedding and vocabulary head.
        bytes: of all tensors.
        removed: units that every sublayer lost.
    """

    directory: Path
    parameters: int
    backbone_parameters: int
    bytes: int
    removed: UnitCounts


class HuggingFaceExport:
    """Exports to a Hugging Face directory; `export=hf`.

    Args:
        max_shard_bytes: largest safetensors file, unless a single tensor is larger.
        configure: see `export_checkpoint`.
    """

    def __init__(
        self, max_shard_bytes: int = SHARD_BYTES, *, configure: Configure = pruned_config
    ) -> None:
        self._max_shard_bytes = check_shard_bytes(max_shard_bytes)
        self._configure = configure

    def check(
        self, source: ModelSource, units: UnitCounts, *, sparsity: float, layout: Layout
    ) -> None:
        """Every model that can be pruned can be written."""

    def export(
        self,
        decoder: Decoder,
        read: ReadStructure,
        directory: Path,
        provenance: Mapping[str, object],
    ) -> ExportedModel:
        """See `export_checkpoint`."""
        return export_checkpoint(
            decoder,
            read,
            directory,
            provenance=provenance,
            max_shard_bytes=self._max_shard_bytes,
            configure=self._configure,
        )

    def finished(self, directory: Path) -> bool:
        """Whether it is there: a directory has its final name only when it is complete."""
        return directory.exists()


class NoExport:
    """Writes no model; `export=none`."""

    def check(
        self, source: ModelSource, units: UnitCounts, *, sparsity: float, layout: Layout
    ) -> None:
        """Nothing to refuse."""

    def export(
        self,
        decoder: Decoder,
        read: ReadStructure,
        directory: Path,
        provenance: Mapping[str, object],
    ) -> None:
        """Do nothing."""

    def finished(self, directory: Path) -> bool:
        """There is nothing to do."""
        return True


def export_checkpoint(
    decoder: Decoder,
    read: ReadStructure,
    directory: Path,
    *,
    provenance: Mapping[str, object],
    max_shard_bytes: int = SHARD_BYTES,
    configure: Configure = pruned_config,
) -> ExportedModel:
    """Write the model whose sublayers `read` returns.

    Args:
        decoder: the dense model, which gives everything but the output projections.
        read: structure of a sublayer, called once for each in stream order.
        directory: must not exist or be empty.
        provenance: for the model card; see `card.model_card`.
        max_shard_bytes: largest safetensors file, unless a single tensor is larger.
        configure: makes config.json; the code of `modeling_tyr` comes along if that refers to it.

    Raises:
        ModelError: block 0 has no attention left.
        StoreError: the directory holds something, or writing failed.
    """
    directory = Path(directory)
    check_target(directory)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed export
    try:
        partial.mkdir(parents=True)
        writer = ShardWriter(partial, max_shard_bytes=max_shard_bytes)
        _write(decoder, read, partial, writer, provenance=provenance, configure=configure)
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except TyrError:
        raise
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"cannot write the pruned model to {directory}: {error}; free disk space and continue "
            f"with resume=true, or choose another directory"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _measure(decoder, directory)


def check_target(directory: Path) -> None:
    """Refuse to write into what is there.

    Raises:
        StoreError: it is a file, or a directory that holds something.
    """
    if directory.is_dir() and not any(directory.iterdir()):
        return
    if directory.exists():
        raise StoreError(
            f"{directory} already exists: expected a new or empty directory for the pruned model; "
            f"remove it or choose another one"
        )


def _write(
    decoder: Decoder,
    read: ReadStructure,
    directory: Path,
    writer: ShardWriter,
    *,
    provenance: Mapping[str, object],
    configure: Configure,
) -> None:
    sizes = PrunedSizes.dense(decoder.units.num_blocks)
    parameters = _add_all(writer, other_tensors(decoder), decoder.storage_dtype)
    for sublayer in decoder.sublayers:
        structure = read(sublayer.id)
        _check_cache(sublayer.id, structure)
        part = sublayer_part(decoder, sublayer, structure)
        parameters += _add_all(writer, part.tensors, decoder.storage_dtype)
        sizes.add(sublayer.id.block, part)
    writer.finish()
    config = configure(decoder, sizes)
    code = hasattr(config, "auto_map")
    _write_code(decoder, directory, config, code=code)
    _write_card(
        decoder, directory, provenance, parameters=parameters, layers=sizes.rows(), code=code
    )


def _check_cache(sublayer_id: SublayerId, structure: Structure) -> None:
    if sublayer_id == SublayerId(0, "attn") and structure.kept.numel() == 0:
        raise ModelError(
            "block 0 has no attention left, but transformers reads the length of the KV cache "
            "there and would generate wrongly; keep at least one attention unit in block 0"
        )


def _add_all(writer: ShardWriter, tensors: Iterable[ExportedTensor], dtype: torch.dtype) -> int:
    parameters = 0
    for tensor in tensors:
        writer.add(tensor.name, tensor.gather(dtype))
        parameters += tensor.numel
    return parameters


def _write_card(
    decoder: Decoder,
    directory: Path,
    provenance: Mapping[str, object],
    *,
    parameters: int,
    layers: Sequence[Mapping[str, object]],
    code: bool,
) -> None:
    base = base_model(decoder.config)
    facts = CardFacts(
        base=base,
        dense_parameters=model_size(decoder).parameters,
        parameters=parameters,
        layers=layers,
        code=code,
    )
    (directory / "README.md").write_text(model_card(facts, provenance), encoding="utf-8")
    for file in base.licence_files:
        shutil.copyfile(file, directory / file.name)


def _write_code(decoder: Decoder, directory: Path, config: PretrainedConfig, *, code: bool) -> None:
    """Everything that is not a weight, but for the model card."""
    config.to_json_file(directory / "config.json")
    if code:
        source = Path(modeling_tyr.__file__)
        shutil.copyfile(source, directory / source.name)
    _write_tokenizer(decoder, directory)
    generation: Any = getattr(decoder.model, "generation_config", None)
    if generation is not None and _has_generation_file(decoder, generation):
        # Not `save_pretrained`: it refuses settings that published models do have.
        generation.to_json_file(directory / GENERATION)


def _write_tokenizer(decoder: Decoder, directory: Path) -> None:
    try:
        decoder.tokenizer.save_pretrained(directory)
    except Exception as error:
        if type(error) is not Exception:
            raise
        # The tokenizers library says so of a full disk, and of nothing else while it writes.
        raise OSError(str(error)) from error


def _has_generation_file(decoder: Decoder, generation: Any) -> bool:
    """Whether the base model came with generation settings; else they follow from its config."""
    local = _local_base(decoder)
    in_directory = local is not None and (local / GENERATION).is_file()
    return in_directory or not getattr(generation, "_from_model_config", True)


def _local_base(decoder: Decoder) -> Path | None:
    """Directory of the dense model, if it was read from one."""
    base = str(decoder.config.name_or_path or "")
    return Path(base) if base and Path(base).is_dir() else None


def _measure(decoder: Decoder, directory: Path) -> ExportedModel:
    ends, stored = embedding_names(decoder), list(stored_shapes(directory))
    counts = {name: math.prod(shape) for name, shape, _ in stored}
    shapes = {name: shape for name, shape, _ in stored}
    exported = ExportedModel(
        directory=directory,
        parameters=sum(counts.values()),
        backbone_parameters=sum(count for name, count in counts.items() if name not in ends),
        bytes=sum(size for *_, size in stored),
        removed=_removed_units(decoder, shapes),
    )
    logger.info("wrote %s: %d parameters", directory, exported.parameters)
    return exported


def _removed_units(decoder: Decoder, shapes: Mapping[str, tuple[int, ...]]) -> UnitCounts:
    """Units that each sublayer lost, from the input width of its output projection."""
    names, removed = decoder.architecture, []
    for sublayer in decoder.sublayers:
        attention = sublayer.id.kind == "attn"
        module = names.attention if attention else names.ffn
        output = names.attention_output if attention else names.ffn_output
        name = f"{blocks_prefix(decoder)}.{sublayer.id.block}.{module}.{output}.weight"
        width = shapes[name][1] if name in shapes else 0
        removed.append(sublayer.num_units - width // sublayer.unit_size)
    return UnitCounts.from_stream(removed)
