"""Token windows: what every data source hands to the pipeline.

Calibration (paper section 4.1, A.3), search (Algorithm 3) and evaluation each get non-overlapping,
contiguous windows of one length. Protocol: no special token is added inside a document, documents
are joined by the tokenizer's end-of-text token if it has one, and a window begins wherever the
previous one ended (no BOS is forced on it). Documents are tokenised a few at a time and only as
many as are needed. It does not read files; its callers do.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tyr.errors import DataError

SplitName = Literal["calibration", "search", "evaluation"]

_DOCUMENTS_PER_BATCH = 16
_CHARACTERS_PER_BATCH = 1 << 20


@dataclass(frozen=True)
class SplitSizes:
    """How much of each split is wanted; counts below one window are errors.

    Args:
        sequence_length: tokens per window, at least 2 (a prediction needs a predecessor).
        calibration_tokens: calibration tokens; rounded down to whole windows, as are the other two.
        search_tokens: tokens of the largest search stage.
        evaluation_tokens: tokens that perplexity is measured on.
    """

    sequence_length: int
    calibration_tokens: int
    search_tokens: int
    evaluation_tokens: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise DataError(f"data.{field.name} must be a whole number, got {value!r}")
        if self.sequence_length < 2:
            raise DataError(
                f"data.sequence_length must be at least 2 tokens, got {self.sequence_length}"
            )
        for field in fields(self)[1:]:
            if (value := getattr(self, field.name)) < self.sequence_length:
                raise DataError(
                    f"data.{field.name}={value} is less than one window of data.sequence_length="
                    f"{self.sequence_length} tokens; raise the first or lower the second"
                )

    def windows(self, split: SplitName) -> int:
        """Whole windows of `split`."""
        tokens: int = getattr(self, f"{split}_tokens")
        return tokens // self.sequence_length

    @property
    def total_tokens(self) -> int:
        """Tokens of all three splits together, in whole windows."""
        splits: tuple[SplitName, ...] = ("calibration", "search", "evaluation")
        return sum(map(self.windows, splits)) * self.sequence_length

    def __str__(self) -> str:
        return (
            f"data.calibration_tokens={self.calibration_tokens}, "
            f"data.search_tokens={self.search_tokens}, "
            f"data.evaluation_tokens={self.evaluation_tokens}"
        )


@dataclass(frozen=True)
class Windows:
    """Windows of one split.

    Args:
        tokens: (windows, sequence_length), int64.
        num_bytes: UTF-8 bytes of the text that these tokens spell; separators spell none.
    """

    tokens: Tensor
    num_bytes: int


@dataclass(frozen=True)
class TokenSplits:
    """The three disjoint splits of one data source.

    Args:
        calibration: (N, T), int64.
        search: (M, T), int64.
        evaluation: (K, T), int64.
        evaluation_bytes: UTF-8 bytes of the text under all K·T evaluation tokens, counted on the
            text itself. A loss over the K·(T-1) predicted tokens becomes bits per byte as
            mean_nll · K·T / (evaluation_bytes · ln 2).
        fingerprint: SHA-256 over the three splits, hexadecimal.
    """

    calibration: Tensor
    search: Tensor
    evaluation: Tensor
    evaluation_bytes: int
    fingerprint: str

    @classmethod
    def from_windows(
        cls, *, calibration: Windows, search: Windows, evaluation: Windows
    ) -> TokenSplits:
        """Join three splits and fingerprint them."""
        digest = hashlib.sha256()
        for split in (calibration, search, evaluation):
            digest.update(repr(tuple(split.tokens.shape)).encode())
            digest.update(split.tokens.contiguous().numpy().astype("<i8").tobytes())
        return cls(
            calibration.tokens,
            search.tokens,
            evaluation.tokens,
            evaluation.num_bytes,
            digest.hexdigest(),
        )

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[str],
        tokenizer: PreTrainedTokenizerBase,
        sizes: SplitSizes,
        *,
        evaluation: Iterable[str] | None = None,
    ) -> TokenSplits:
        """Cut one run of documents: evaluation, then search, then calibration.

        In this order the evaluation text does not depend on how much the other two ask for.

        Args:
            documents: texts, read lazily.
            tokenizer: any tokenizer.
            sizes: how much of each.
            evaluation: texts to evaluate on instead of the head of `documents`.

        Raises:
            DataError: too little text.
        """
        stream = TokenStream(documents, tokenizer)
        held_out = stream if evaluation is None else TokenStream(evaluation, tokenizer)
        evaluated = held_out.take("evaluation", sizes)
        search = stream.take("search", sizes)
        calibration = stream.take("calibration", sizes)
        return cls.from_windows(calibration=calibration, search=search, evaluation=evaluated)


@dataclass(frozen=True)
class _Document:
    """A tokenised document; token i spells text[ends[i-1]:ends[i]], with ends[-1] meaning 0."""

    text: str
    tokens: Tensor
    ends: Tensor


class TokenStream:
    """Documents as one stream of tokens, cut into splits from its head on.

    Args:
        documents: texts, read lazily.
        tokenizer: any tokenizer; a fast one also knows the text under each token.
    """

    def __init__(self, documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self._documents: Iterator[str] = iter(documents)
        self._tokenizer = tokenizer
        self._pending: deque[tuple[_Document, int]] = deque()
        self._tokens_read = 0

    def take(self, split: SplitName, sizes: SplitSizes) -> Windows:
        """The next windows of the stream.

        Raises:
            DataError: the text ends before `split` is full.
        """
        wanted = missing = sizes.windows(split) * sizes.sequence_length
        parts: list[Tensor] = []
        num_bytes = 0
        while missing:
            while not self._pending:  # a batch of empty documents adds nothing
                if not self._encode_more():
                    raise DataError(
                        f"too little text: {self._tokens_read} tokens in all, and the {split} "
                        f"split still misses {missing} of its {wanted}. Asked for: {sizes}. Lower "
                        "one of them or give more text"
                    )
            document, start = self._pending.popleft()
            stop = min(start + missing, len(document.tokens))
            parts.append(document.tokens[start:stop])
            num_bytes += _spelled_bytes(document, start, stop)
            missing -= stop - start
            if stop < len(document.tokens):
                self._pending.appendleft((document, stop))
        return Windows(torch.cat(parts).view(-1, sizes.sequence_length), num_bytes)

    def _encode_more(self) -> bool:
        """Tokenise the next batch of documents; False at the end of the text."""
        texts, characters = list[str](), 0
        # Long documents are not collected: offsets cost about a hundred bytes per token.
        while len(texts) < _DOCUMENTS_PER_BATCH and characters < _CHARACTERS_PER_BATCH:
            if (text := next(self._documents, None)) is None:
                break
            texts.append(text)
            characters += len(text)
        for document in _encode(texts, self._tokenizer):
            self._pending.append((document, 0))
            self._tokens_read += len(document.tokens)
        return bool(texts)


def check_context(sequence_length: int, max_position_embeddings: int) -> None:
    """Reject windows that a model cannot read.

    Raises:
        DataError: `sequence_length` exceeds `max_position_embeddings`.
    """
    if sequence_length > max_position_embeddings:
        raise DataError(
            f"data.sequence_length={sequence_length} exceeds the model's context of "
            f"{max_position_embeddings} tokens; set data.sequence_length to at most "
            f"{max_position_embeddings}"
        )


def _encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[_Document]:
    """Tokenise a batch of texts, each followed by the end-of-text token where there is one."""
    separator = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    kept = [text for text in texts if text]
    if not kept:
        return
    fast = tokenizer.is_fast
    # verbose=False: a document longer than the model's context is cut into windows, no mistake.
    encoded = tokenizer(
        kept,
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=fast,
        verbose=False,
    )
    for index, text in enumerate(kept):
        ids: list[int] = list(encoded["input_ids"][index])
        if fast:
            ends = [end for _, end in encoded["offset_mapping"][index]]
        else:
            ends = _ends_by_decoding(ids, text, tokenizer)
        ids, ends = ids + separator, ends + [len(text)] * len(separator)
        if ids:  # a tokenizer may drop all of a text
            ends[-1] = len(text)  # and many trim the blanks at its end
            yield _Document(text, torch.tensor(ids), torch.tensor(ends))


def _ends_by_decoding(ids: list[int], text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where each token ends in the text, by the length of each decoded token, if unsaid."""
    ends, position = [], 0
    for token in ids:
        position = min(position + len(tokenizer.decode([token])), len(text))
        ends.append(position)
    return ends


def _spelled_bytes(document: _Document, start: int, stop: int) -> int:
    """UTF-8 bytes of the text under tokens [start, stop)."""
    first = int(document.ends[start - 1]) if start else 0
    return len(document.text[first : int(document.ends[stop - 1])].encode())
