"""A decoder LLM seen as a stream: embed, pass through sublayers, read logits in chunks.

Everything tyr computes pushes hidden states through `Decoder.sublayers` in order (design: one idea
carries the architecture). This wrapper adds no arithmetic of its own; embeddings, rotary tables,
masks, final norm and head are the stock model's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tyr.model.architecture import Architecture, unit_counts
from tyr.model.sublayer import AttentionUnit, Context, SlicedWeights, Structure, Sublayer
from tyr.sparsity import SublayerId, UnitCounts, stream_order

_PROBES = 1024  # values of each parameter that the fingerprint reads


class Decoder:
    """A loaded causal LM and its sublayers.

    Args:
        model: stock transformers model, in compute precision, on its device.
        tokenizer: its tokenizer.
        architecture: its adapter.
        storage_dtype: precision of structures and exports (the checkpoint's).
        attention_unit: `head` or `kv_group`.
        name: short name for reports.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        architecture: Architecture,
        storage_dtype: torch.dtype,
        attention_unit: AttentionUnit = "head",
        name: str = "model",
    ) -> None:
        if model.config._attn_implementation != "sdpa":
            # `_mask` speaks to sdpa. Eager attention, given no mask, would not be causal.
            model.set_attn_implementation("sdpa")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.storage_dtype = storage_dtype
        self.attention_unit: AttentionUnit = attention_unit
        self.name = name
        self._backbone: Any = architecture.backbone(model)
        blocks = architecture.blocks(model)
        self.sublayers = tuple(
            Sublayer(
                sublayer_id,
                blocks[sublayer_id.block],
                architecture=architecture,
                attention_unit=attention_unit,
            )
            for sublayer_id in stream_order(len(blocks))
        )

    @property
    def config(self) -> PretrainedConfig:
        """The stock configuration."""
        return cast(PretrainedConfig, self.model.config)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return cast(torch.device, self._backbone.embed_tokens.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """Compute precision."""
        return cast(torch.dtype, self._backbone.embed_tokens.weight.dtype)

    @property
    def units(self) -> UnitCounts:
        """Prunable units of every sublayer."""
        return unit_counts(self.config, self.attention_unit)

    @property
    def head(self) -> Tensor:
        """(V, C): the vocabulary projection."""
        return cast(Tensor, cast(Any, self.model).lm_head.weight)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every parameter's name and shape and `_PROBES` of its values.

        Tells a checkpoint that was trained on or replaced from the one a run began with, at a cost
        that does not grow with the model's width; it is no proof against forgery.
        """
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            flat = parameter.detach().flatten()
            probes = torch.linspace(0, len(flat) - 1, min(len(flat), _PROBES), dtype=torch.float64)
            values = flat[probes.long().to(flat.device)].double().cpu()
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, C)."""
        return cast(Tensor, self._backbone.embed_tokens(tokens.to(self.device)))

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Hidden states after the last block -> input of the vocabulary projection."""
        return cast(Tensor, self._backbone.norm(hidden))

    def final_hidden(self, tokens: Tensor) -> Tensor:
        """Dense forward: (N, T) int64 -> (N, T, C), hidden states after the final norm."""
        return self.stream(tokens, [None] * len(self.sublayers))

    def stream(self, tokens: Tensor, weights: Sequence[SlicedWeights | None]) -> Tensor:
        """Forward with the given weights per sublayer (None: dense), up to the final norm."""
        context = self.context(tokens.shape[1])
        hidden = self.embed(tokens)
        for sublayer, sliced in zip(self.sublayers, weights, strict=True):
            hidden = sublayer.forward(hidden, context, sliced)
        return self.final_norm(hidden)

    def context(self, length: int) -> Context:
        """Rotary tables and masks for sequences of `length` positions starting at 0."""
        probe = torch.empty(
            1, length, self.config.hidden_size, device=self.device, dtype=self.dtype
        )
        positions = torch.arange(length, device=self.device)[None]
        windows = {s.window for s in self.sublayers if s.id.kind == "attn"}
        masks = {window: self._mask(window, positions[0]) for window in windows}
        return Context(self._backbone.rotary_emb(probe, position_ids=positions), masks)

    @staticmethod
    def _mask(window: int | None, positions: Tensor) -> Tensor | None:
        """(1, 1, T, T), True where a query may look, or None for plain causal.

        Not taken from transformers, whose mask functions change their arguments between releases;
        the attention kernels have plain causal attention built in.
        """
        if window is None or positions.numel() <= window:
            return None
        distance = positions[:, None] - positions[None, :]
        return ((distance >= 0) & (distance < window))[None, None]


class PrunedDecoder:
    """A decoder with one structure per sublayer, sliced in memory.

    Args:
        decoder: the dense model.
        read: gives the structure of a sublayer.
    """

    def __init__(self, decoder: Decoder, read: Callable[[SublayerId], Structure]) -> None:
        self._decoder = decoder
        self.read = read
        self._weights = [sublayer.slice(read(sublayer.id)) for sublayer in decoder.sublayers]

    @property
    def head(self) -> Tensor:
        """(V, C): the vocabulary projection, which pruning leaves alone."""
        return self._decoder.head

    def final_hidden(self, tokens: Tensor) -> Tensor:
        """(N, T) int64 -> (N, T, C), hidden states after the final norm."""
        return self._decoder.stream(tokens, self._weights)
