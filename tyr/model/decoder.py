"""A decoder LLM seen as a stream: embed, pass through sublayers, read logits in chunks.

Everything tyr computes pushes hidden states through `Decoder.sublayers` in order (design: one idea
carries the architecture). This wrapper adds no arithmetic of its own; embeddings, rotary tables,
masks and head are the stock model's, and so are the norms' weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tyr.model.architecture import Architecture, unit_counts
from tyr.model.norm import apply_norm
from tyr.model.placement import Placement
from tyr.model.states import HiddenStates, StatePool
from tyr.model.sublayer import AttentionUnit, Context, SlicedWeights, Structure, Sublayer
from tyr.sparsity import SublayerId, UnitCounts, stream_order

_PROBES = 1024  # values of each parameter that the fingerprint reads

# The weights to pass a sublayer with; None for the dense ones.
ChooseWeights = Callable[[Sublayer], SlicedWeights | None]
# Told of a sublayer, a batch's number, and the batch's hidden states after that sublayer.
Observe = Callable[[Sublayer, int, Tensor], None]


class Decoder:
    """A loaded causal LM and its sublayers.

    Args:
        model: stock transformers model, in compute precision, on its device; the blocks may be on
            the meta device if `placement` has a residency.
        tokenizer: its tokenizer.
        architecture: its adapter.
        storage_dtype: precision of structures and exports (the checkpoint's).
        attention_unit: `head` or `kv_group`.
        name: short name for reports.
        placement: where blocks and hidden states are; default: all on the model's device.
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
        placement: Placement | None = None,
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
        self._placement = placement or Placement(StatePool(self.device))
        residency = self._placement.residency
        blocks = architecture.blocks(model)
        self.sublayers = tuple(
            Sublayer(
                sublayer_id,
                blocks[sublayer_id.block],
                architecture=architecture,
                attention_unit=attention_unit,
                require=None if residency is None else residency.require,
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

    @property
    def states(self) -> StatePool:
        """Room for hidden states."""
        return self._placement.states

    @property
    def offloaded(self) -> bool:
        """Whether blocks come and go, so that many batches should pass one before the next."""
        return self._placement.residency is not None

    def parameter(self, name: str) -> Tensor:
        """A parameter by its name in the checkpoint, on the computing device."""
        prefix = f"{self.architecture.blocks_name(self.model)}."
        if self._placement.residency is not None and name.startswith(prefix):
            self._placement.residency.require(int(name.removeprefix(prefix).split(".")[0]))
        return cast(Tensor, self.model.get_parameter(name))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every parameter's name and shape and `_PROBES` of its values.

        Tells a checkpoint that was trained on or replaced from the one a run began with, at a cost
        that does not grow with the model's width; it is no proof against forgery.
        """
        digest = hashlib.sha256()
        for name in [name for name, _ in self.model.named_parameters()]:
            parameter = self.parameter(name)
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            flat = parameter.detach().flatten()
            probes = torch.linspace(0, len(flat) - 1, min(len(flat), _PROBES), dtype=torch.float64)
            values = flat[probes.long().to(flat.device)].cpu().double()  # not all devices have it
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, C)."""
        return cast(Tensor, self._backbone.embed_tokens(tokens.to(self.device)))

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Hidden states after the last block -> input of the vocabulary projection."""
        return apply_norm(self._backbone.norm, hidden)

    def final_hidden(self, tokens: Tensor) -> Tensor:
        """Dense forward: (N, T) int64 -> (N, T, C), hidden states after the final norm."""
        return next(self.final_states([tokens]))

    def final_states(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """`final_hidden` of every batch; cheaper than one by one when blocks come and go."""
        return self.walk(batches, lambda _: None)

    def walk(
        self, batches: Sequence[Tensor], weights: ChooseWeights, observe: Observe | None = None
    ) -> Iterator[Tensor]:
        """Forward of batches with chosen weights, up to the final norm.

        Batch after batch when the model is in memory; sublayer after sublayer when blocks come and
        go, so that each comes once. Either way the same numbers.

        Args:
            batches: each (n, T) int64; T may differ between them.
            weights: asked before each pass of a sublayer.
            observe: told of every sublayer's output.

        Yields:
            Per batch (n, T, C), in order.
        """
        tell = observe or (lambda *_: None)
        contexts = {length: self.context(length) for length in {b.shape[1] for b in batches}}
        if self.offloaded:
            yield from self._walk_together(batches, contexts, weights, tell)
            return
        for index, batch in enumerate(batches):
            hidden = self.embed(batch)
            for sublayer in self.sublayers:
                hidden = sublayer.forward(hidden, contexts[batch.shape[1]], weights(sublayer))
                tell(sublayer, index, hidden)
            yield self.final_norm(hidden)

    def _walk_together(
        self,
        batches: Sequence[Tensor],
        contexts: Mapping[int, Context],
        weights: ChooseWeights,
        tell: Observe,
    ) -> Iterator[Tensor]:
        shapes = [(*batch.shape, self.config.hidden_size) for batch in batches]
        states = HiddenStates(self.states, shapes, self.dtype)
        for index, batch in enumerate(batches):
            states[index] = self.embed(batch)
        for sublayer in self.sublayers:
            sliced = weights(sublayer)
            for index, batch in enumerate(batches):
                hidden = sublayer.forward(states[index], contexts[batch.shape[1]], sliced)
                tell(sublayer, index, hidden)
                states[index] = hidden
        for hidden in states:
            yield self.final_norm(hidden)

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
    """A decoder with one structure per sublayer.

    Sliced in memory as a whole, or one sublayer at a time if the decoder's blocks come and go.

    Args:
        decoder: the dense model.
        read: gives the structure of a sublayer.
    """

    def __init__(self, decoder: Decoder, read: Callable[[SublayerId], Structure]) -> None:
        self._decoder = decoder
        self.read = read
        kept = () if decoder.offloaded else decoder.sublayers
        self._weights = {sublayer.id: sublayer.slice(read(sublayer.id)) for sublayer in kept}

    @property
    def head(self) -> Tensor:
        """(V, C): the vocabulary projection, which pruning leaves alone."""
        return self._decoder.head

    def final_hidden(self, tokens: Tensor) -> Tensor:
        """(N, T) int64 -> (N, T, C), hidden states after the final norm."""
        return next(self.final_states([tokens]))

    def final_states(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """`final_hidden` of every batch; see `Decoder.final_states`."""
        return self._decoder.walk(batches, self._choose)

    def _choose(self, sublayer: Sublayer) -> SlicedWeights:
        if self._decoder.offloaded:
            return sublayer.slice(self.read(sublayer.id))
        return self._weights[sublayer.id]
