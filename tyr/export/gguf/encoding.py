"""Number types of a GGUF file: which one each tensor gets, and its bytes.

Vectors stay float32, because llama.cpp adds them to float32 activations. Q8_0 cuts rows into blocks
of 32 and cannot hold rows of another width: those become F16, which is what llama.cpp's own
quantiser does, too. K-quants are left to that quantiser.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tyr.errors import ConfigError, NumericsError
from tyr.export.gguf.library import gguf_library
from tyr.export.gguf.tensors import GgufTensor

logger = logging.getLogger(__name__)

DTYPES = ("f32", "f16", "bf16", "q8_0")
Q8_BLOCK = 32
K_BLOCK = 256


def check_dtype(dtype: str, *, key: str) -> None:
    """Raise for an unknown number type.

    Raises:
        ConfigError: the known ones are listed.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"{key} must be one of {', '.join(DTYPES)}, got {dtype!r}")


def number_type(tensor: GgufTensor, dtype: str) -> Any:
    """The `gguf.GGMLQuantizationType` of a tensor in a file of this type."""
    types = gguf_library().GGMLQuantizationType
    if len(tensor.shape) == 1:
        return types.F32
    if dtype == "q8_0" and tensor.row_width % Q8_BLOCK:
        return types.F16
    return types[dtype.upper()]


def encoded_bytes(tensor: GgufTensor, kind: Any) -> int:
    """Bytes of a tensor in a number type."""
    block, size = gguf_library().GGML_QUANT_SIZES[kind]
    values = 1
    for extent in tensor.shape:
        values *= extent
    return values // int(block) * int(size)


def encode(name: str, values: Tensor, kind: Any) -> Any:
    """The numpy array that is written, values rounded to nearest.

    Raises:
        NumericsError: a value is not finite, or too large for F16.
    """
    library = gguf_library()
    values = values.to(torch.float32).contiguous()
    largest = float(values.abs().max()) if values.numel() else 0.0
    limit = torch.finfo(torch.float16).max
    # Q8_0 holds one F16 scale per block: its largest value over 127.
    reach = {"F16": limit, "Q8_0": 127 * limit}.get(kind.name, torch.finfo(torch.float32).max)
    if not largest <= reach:  # also true for NaN
        raise NumericsError(
            f"{name} holds {largest:g}, which {kind.name} cannot represent (at most {reach:g}): "
            f"choose bf16 or f32, or check the model for infinite weights"
        )
    return library.quants.quantize(values.numpy(), kind)


def report_widths(tensors: Sequence[GgufTensor], dtype: str) -> None:
    """Say which matrices will not be quantised as asked, because of their widths."""
    matrices = [t for t in tensors if len(t.shape) == 2]
    odd = [t for t in matrices if t.row_width % Q8_BLOCK]
    coarse = [t for t in matrices if t.row_width % K_BLOCK]
    if odd:
        now = "are written as F16" if dtype == "q8_0" else "stay F16 whenever they are quantised"
        advice = (
            "layout=portable aligns FFN widths"
            if any("ffn" in tensor.name for tensor in odd)
            else "attention widths are whole heads, so this comes from the head size"
        )
        logger.warning(
            "%d of %d matrices (e.g. %s, rows of %d) have rows that are no multiple of %d and %s; "
            "%s",
            *(len(odd), len(matrices), odd[0].name, odd[0].row_width, Q8_BLOCK, now, advice),
        )
    if coarse:
        logger.info(
            "%d of %d matrices have rows that are no multiple of %d: llama.cpp gives them a larger "
            "type than the K-quant it is asked for",
            *(len(coarse), len(matrices), K_BLOCK),
        )
