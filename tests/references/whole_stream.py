"""Splits cut from a list of all tokens: every document tokenised alone, everything held at once."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def whole_stream(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """All tokens of the documents, and the UTF-8 bytes that each spells (separators: none)."""
    tokens: list[int] = []
    sizes: list[int] = []
    for text in filter(None, documents):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in offsets["offset_mapping"]]
        starts = [0, *ends[:-1]]
        tokens += ids
        sizes += [len(text[a:b].encode()) for a, b in zip(starts, ends, strict=True)]
        if tokenizer.eos_token_id is not None:
            tokens.append(tokenizer.eos_token_id)
            sizes.append(0)
    return tokens, sizes
