"""Reordering, repetition and number types, without the engine."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.export.gguf.models import export_pruned, small_decoder
from tyr.errors import ConfigError, ModelError, NumericsError
from tyr.export.gguf.encoding import check_dtype, encode, encoded_bytes, number_type, report_widths
from tyr.export.gguf.layout import model_layout
from tyr.export.gguf.source import open_directory
from tyr.export.gguf.tensors import GgufTensor, gguf_tensors, head_rows, rope_order

gguf = pytest.importorskip("gguf", reason="gguf is not installed (pip install -e '.[gguf]')")


def rotate_halves(vector: Tensor, angles: Tensor) -> Tensor:
    """The rotary embedding of transformers: row i turns with row i + D/2."""
    left, right = vector.chunk(2)
    sines, cosines = angles.sin(), angles.cos()
    return torch.cat([left * cosines - right * sines, right * cosines + left * sines])


def rotate_pairs(vector: Tensor, angles: Tensor) -> Tensor:
    """The rotary embedding of `deci`: row 2i turns with row 2i + 1."""
    left, right = vector[0::2], vector[1::2]
    sines, cosines = angles.sin(), angles.cos()
    turned = torch.stack([left * cosines - right * sines, right * cosines + left * sines], dim=1)
    return turned.reshape(-1)


def test_reordered_rows_turn_to_the_same_products() -> None:
    rng = torch.Generator().manual_seed(0)
    query, key = (torch.randn(8, generator=rng) for _ in range(2))
    angles = torch.rand(4, generator=rng)
    order = rope_order(8)
    wanted = rotate_halves(query, 3 * angles) @ rotate_halves(key, angles)
    got = rotate_pairs(query[order], 3 * angles) @ rotate_pairs(key[order], angles)
    torch.testing.assert_close(got, wanted)


def test_heads_are_repeated_next_to_each_other() -> None:
    assert head_rows((2, 1), 2, permuted=False).tolist() == [0, 1, 0, 1, 2, 3]
    assert head_rows((1, 1), 4, permuted=True).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def matrix(*shape: int) -> GgufTensor:
    return GgufTensor("blk.0.ffn_up.weight", shape, lambda: torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((8,), "f16", "F32"),
        ((8,), "q8_0", "F32"),
        ((4, 7), "f16", "F16"),
        ((4, 7), "bf16", "BF16"),
        ((4, 7), "f32", "F32"),
        ((4, 64), "q8_0", "Q8_0"),
        ((4, 48), "q8_0", "F16"),
    ],
)
def test_the_number_type_follows_shape_and_request(
    shape: tuple[int, ...], dtype: str, kind: str
) -> None:
    tensor = matrix(*shape)
    chosen = number_type(tensor, dtype)
    assert chosen.name == kind
    written = encode(tensor.name, tensor.make(), chosen)
    assert written.nbytes == encoded_bytes(tensor, chosen)


def test_bfloat16_weights_are_kept_bit_for_bit() -> None:
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    kind = gguf.GGMLQuantizationType.BF16
    stored = gguf.quants.dequantize(encode("w", values, kind), kind)
    assert torch.equal(torch.from_numpy(stored), values.float())


def test_q8_is_within_half_a_step_of_each_block() -> None:
    values = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    kind = gguf.GGMLQuantizationType.Q8_0
    stored = torch.from_numpy(gguf.quants.dequantize(encode("w", values, kind), kind))
    step = values.view(3, 2, 32).abs().amax(-1) / 127
    error = (stored - values).view(3, 2, 32).abs().amax(-1)
    assert (error <= 0.51 * step + 127 * step * 2**-11).all()  # the scale itself is an F16
    assert (error > 0).any()


@pytest.mark.parametrize(
    ("value", "kind"), [(7e4, "F16"), (float("inf"), "F32"), (float("nan"), "BF16"), (1e7, "Q8_0")]
)
def test_a_value_that_does_not_fit_is_refused(value: float, kind: str) -> None:
    with pytest.raises(NumericsError, match=r"blk\.1\.w holds .* which " + kind):
        encode("blk.1.w", torch.full((1, 32), value), gguf.GGMLQuantizationType[kind])


def test_an_unknown_number_type_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"export\.dtype must be one of f32, f16, bf16, q8_0"):
        check_dtype("q4_k_m", key="export.dtype")


@pytest.mark.parametrize(("dtype", "said"), [("q8_0", "are written as F16"), ("f16", "stay F16")])
def test_odd_widths_are_said(dtype: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tyr"):
        report_widths([matrix(4, 64), matrix(4, 48), matrix(4, 256)], dtype)
    first, second = caplog.messages
    assert first.startswith("1 of 3 matrices (e.g. blk.0.ffn_up.weight, rows of 48)")
    assert said in first
    assert first.endswith("layout=portable aligns FFN widths")
    assert second.startswith("2 of 3 matrices have rows that are no multiple of 256")


def test_odd_widths_of_attention_are_put_down_to_its_heads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd = GgufTensor("blk.0.attn_output.weight", (64, 48), lambda: torch.zeros(64, 48))
    report_widths([odd], "q8_0")
    assert caplog.messages[0].endswith("so this comes from the head size")


def test_even_widths_need_no_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tyr"):
        report_widths([matrix(4, 512)], "q8_0")
    assert caplog.messages == []


def test_a_missing_or_misshapen_tensor_is_found_before_anything_is_read(tmp_path: Path) -> None:
    source = open_directory(export_pruned(small_decoder("llama"), {}, tmp_path / "m"))
    layout = model_layout(source.config, family="llama")
    name = "model.layers.1.mlp.up_proj.weight"
    stored = dict(source.tensors)
    object.__setattr__(source, "tensors", {k: v for k, v in stored.items() if k != name})
    with pytest.raises(ModelError, match=f"lacks {name}"):
        gguf_tensors(source, layout)
    source.config.intermediate_size = 21
    object.__setattr__(source, "tensors", stored)
    source.config.per_layer_config = None
    with pytest.raises(ModelError, match=r"\[20, 32\] but config.json asks for \[21, 32\]"):
        gguf_tensors(source, model_layout(source.config, family="llama"))
