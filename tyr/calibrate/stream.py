"""Hidden states of the calibration text on their way through the sublayers.

A stream stands in front of one sublayer. It can show that sublayer's features (the input of its
output projection) and it can advance past it with any output weight, which is what error
accumulation needs (Section 2.3): `o_proj` and `down_proj` are linear, so a mixture of structures is
one weight. Features are kept between the two when they fit the byte budget, else computed again;
the numbers are the same either way. Hidden states live where the model's byte budgets put them
(`tyr/model/states.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tyr.errors import NumericsError
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Sublayer


class Stream:
    """Calibration sequences in front of a sublayer.

    Args:
        decoder: the dense model.
        tokens: (N, T), int64.
        batch_tokens: positions per batch (at least one sequence goes in a batch).
        feature_bytes: most bytes of features to keep between `features` and `advance`.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokens: Tensor,
        *,
        batch_tokens: int = 8192,
        feature_bytes: int = 1 << 28,
    ) -> None:
        sequences = max(1, batch_tokens // tokens.shape[1])
        batches = tokens.split(sequences)
        shape = (tokens.shape[1], decoder.config.hidden_size)
        self._hidden = decoder.states.batches([len(b) for b in batches], shape, decoder.dtype)
        for index, batch in enumerate(batches):
            self._hidden[index] = decoder.embed(batch)
        self._context = decoder.context(tokens.shape[1])
        self._feature_bytes = feature_bytes
        self._features: dict[int, Tensor] = {}
        self._position = 0
        self.num_tokens = tokens.numel()

    @property
    def position(self) -> int:
        """Index of the sublayer that comes next."""
        return self._position

    def batches(self, sublayer: Sublayer) -> Iterator[tuple[Tensor, Tensor]]:
        """Hidden states and features of every batch: (B, T, C) and (B, T, d_in).

        Raises:
            NumericsError: weights or features are NaN or infinite.
        """
        self._expect(sublayer)
        for name, weight in sublayer.parameters():
            # Features do not always tell: CPU attention turns a NaN query or key into zeros.
            check_finite(weight, f"{sublayer.name}: {name}")
        kept = 0
        for index, hidden in enumerate(self._hidden):
            features = self._features.get(index)
            if features is None:
                features = sublayer.features(hidden, self._context)
                check_finite(features, f"{sublayer.name}: input of the output projection")
            kept += features.nbytes
            if kept <= self._feature_bytes:
                self._features[index] = features
            yield hidden, features

    def advance(self, sublayer: Sublayer, weight: Tensor) -> None:
        """Pass the sublayer, using `weight` (C, d_in) as its output projection.

        Raises:
            NumericsError: hidden states become NaN or infinite.
        """
        for index, (hidden, features) in enumerate(self.batches(sublayer)):
            moved = sublayer.project(hidden, features, weight)
            check_finite(moved, f"{sublayer.name}: hidden states")
            self._hidden[index] = moved
        self._features.clear()
        self._position += 1

    def _expect(self, sublayer: Sublayer) -> None:
        if sublayer.id.index != self._position:
            raise RuntimeError(
                f"the stream stands before sublayer {self._position}, not {sublayer.name}"
            )


def check_finite(values: Tensor, what: str) -> None:
    """Raise NumericsError naming `what` when any value is NaN or infinite."""
    # A finite sum has finite terms, and is read off in a third of the time; an infinite one may
    # come from large terms.
    if torch.isfinite(values.sum()) or torch.isfinite(values).all():
        return
    bad = int((~torch.isfinite(values)).sum())
    raise NumericsError(
        f"{what}: {bad} of {values.numel()} values are NaN or infinite; check the checkpoint, "
        f"or compute in more precision (model.compute_dtype=float32)"
    )
