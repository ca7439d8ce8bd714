"""Writes a GGUF file: metadata first, then one tensor after another.

Sizes are known from the shapes, so the head of the file is complete before any weight is read, and
one tensor is in memory at a time. The file appears under its name only when it is whole.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from tyr.errors import StoreError
from tyr.export.gguf.encoding import encode, encoded_bytes, number_type
from tyr.export.gguf.layout import ModelLayout
from tyr.export.gguf.library import gguf_library
from tyr.export.gguf.tensors import GgufTensor
from tyr.export.gguf.vocabulary import Vocabulary


@dataclass(frozen=True)
class GgufFile:
    """What was written.

    Args:
        path: where it is.
        arch: GGUF architecture.
        dtype: number type that was asked for.
        bytes: size of the file.
        parameters: values in all tensors, stand-ins and copies included.
        tensors: number of tensors of each number type.
    """

    path: Path
    arch: str
    dtype: str
    bytes: int
    parameters: int
    tensors: dict[str, int]


def write_gguf(
    config: PretrainedConfig,
    layout: ModelLayout,
    *,
    tensors: Sequence[GgufTensor],
    vocabulary: Vocabulary,
    path: Path,
    dtype: str,
) -> GgufFile:
    """Write the file.

    Args:
        config: of the model.
        layout: how its blocks are written.
        tensors: all tensors, in order.
        vocabulary: its tokenizer.
        path: where to.
        dtype: number type of the matrices.

    Raises:
        StoreError: the file cannot be written.
        NumericsError: a value does not fit the number type.
    """
    library = gguf_library()
    partial = path.with_name(f".{path.name}.partial")
    kinds = [number_type(tensor, dtype) for tensor in tensors]
    with _quiet_library():
        writer = library.GGUFWriter(None, layout.arch)
    try:
        _add_model(writer, config, layout, name=path.stem, dtype=dtype)
        _add_vocabulary(writer, vocabulary)
        _add_sizes(writer, tensors, kinds)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _quiet_library():
            writer.write_header_to_file(partial)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        for tensor, kind in zip(tensors, kinds, strict=True):
            writer.write_tensor_data(encode(tensor.name, tensor.make(), kind))
        writer.close()
        partial.replace(path)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"cannot write {path}: {error}; free disk space or choose another place"
        ) from error
    finally:
        writer.close()
        with suppress(OSError):  # there may be nothing, or not even a directory
            partial.unlink()
    return GgufFile(
        path=path,
        arch=layout.arch,
        dtype=dtype,
        bytes=path.stat().st_size,
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        tensors=dict(Counter(kind.name for kind in kinds)),
    )


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Its announcements name the temporary file; warnings come through."""
    logger = logging.getLogger("gguf")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _add_sizes(writer: Any, tensors: Sequence[GgufTensor], kinds: Sequence[Any]) -> None:
    for tensor, kind in zip(tensors, kinds, strict=True):
        # The dtype argument is not read when the type is given.
        size = encoded_bytes(tensor, kind)
        writer.add_tensor_info(tensor.name, tensor.shape, None, size, raw_dtype=kind)


def _add_model(
    writer: Any, config: PretrainedConfig, layout: ModelLayout, *, name: str, dtype: str
) -> None:
    library = gguf_library()
    writer.add_type(library.GGUFType.MODEL)
    writer.add_name(name)
    names = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(int(library.LlamaFileType[names[dtype]]))
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    writer.add_block_count(len(layout.blocks))
    writer.add_context_length(int(config.max_position_embeddings))
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_vocab_size(int(config.vocab_size))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    # Written although llama.cpp could divide: block 0 may have lost heads.
    writer.add_key_length(layout.head_size)
    writer.add_value_length(layout.head_size)
    writer.add_rope_dimension_count(layout.head_size)
    writer.add_head_count([block.query_heads for block in layout.blocks])
    writer.add_head_count_kv([block.kv_heads for block in layout.blocks])
    writer.add_feed_forward_length([block.neurons for block in layout.blocks])
    _add_rope(writer, layout)


def _add_rope(writer: Any, layout: ModelLayout) -> None:
    rope, kinds = layout.rope, gguf_library().RopeScalingType
    writer.add_rope_freq_base(rope.theta)
    if rope.scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(kinds[rope.scaling.upper()])
        writer.add_rope_scaling_factor(rope.factor)
    if rope.scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        writer.add_rope_scaling_yarn_beta_fast(rope.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(rope.beta_slow)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "gpt2":
        writer.add_token_merges(vocabulary.merges)
    else:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    for role, index in vocabulary.special.items():
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
