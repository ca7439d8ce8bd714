"""A tokenizer as llama.cpp's own tokenisers need it: byte-level BPE and SentencePiece-style BPE.

llama.cpp knows the splitting of text before BPE only by name, so the name is chosen by comparing
the tokenizer's own rules with those that llama.cpp has; a tokenizer with other rules is refused,
because text would be cut differently and no error would show. Unicode normalisation (Qwen's NFC) is
accepted although llama.cpp does not do it: text that is not NFC is tokenised differently there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tyr.errors import ModelError
from tyr.export.gguf.pretokenizer import adds_space_prefix, pretokenizer_name

# Token types of the format.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SPECIAL = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class Vocabulary:
    """What is written about a tokenizer.

    Args:
        model: `gpt2` for byte-level BPE, `llama` for SentencePiece-style BPE.
        pre: name of the rules that split text before BPE.
        tokens: text of every token, as long as the embedding.
        types: type of every token.
        merges: in order of rank; for `gpt2`.
        scores: one per token, a higher one is merged earlier; for `llama`.
        special: token ids by role.
        add_bos: a text begins with the bos token.
        add_eos: a text ends with the eos token.
        add_space_prefix: a text gets a space in front.
        chat_template: Jinja source, if any.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None


def read_vocabulary(
    tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, eos_ids: Sequence[int] = ()
) -> Vocabulary:
    """Translate a tokenizer.

    Args:
        tokenizer: of the model.
        vocab_size: rows of the token embedding.
        eos_ids: tokens at which generation stops, most important first.

    Raises:
        ModelError: llama.cpp has no tokeniser that would cut text the same way.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"the tokenizer ({type(tokenizer).__name__}) has no tokenizer.json, from which the "
            f"GGUF vocabulary is read: save it with a fast tokenizer first"
        )
    content: dict[str, Any] = json.loads(backend.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise ModelError(
            f"the tokenizer is a {model['type']} model: llama.cpp has BPE only for these "
            f"architectures, so this model has no GGUF mapping"
        )
    sentencepiece = bool(model.get("byte_fallback"))
    first, last = _template(content.get("post_processor"))
    tokens, types = _tokens(content, vocab_size, sentencepiece=sentencepiece)
    merges = [" ".join(m) if isinstance(m, list) else str(m) for m in model["merges"]]
    special = _special(tokenizer, eos_ids, first=first)
    template: Any = tokenizer.chat_template
    return Vocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre="default" if sentencepiece else pretokenizer_name(content),
        tokens=tokens,
        types=types,
        merges=() if sentencepiece else tuple(merges),
        scores=_scores(tokens, merges) if sentencepiece else (),
        special=special,
        add_bos=first is not None,
        add_eos=last is not None,
        add_space_prefix=sentencepiece and adds_space_prefix(content),
        chat_template=template if isinstance(template, str) else None,
    )


def _tokens(
    content: Mapping[str, Any], vocab_size: int, *, sentencepiece: bool
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Text and type of every token; rows of the embedding without a token are unused."""
    vocabulary: Mapping[str, int] = content["model"]["vocab"]
    texts = {index: text for text, index in vocabulary.items()}
    kinds = dict.fromkeys(texts, NORMAL)
    if sentencepiece:
        _mark_bytes(vocabulary, kinds)
    unknown = content["model"].get("unk_token")
    for added in content.get("added_tokens") or []:
        texts[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if sentencepiece and unknown in vocabulary:
        kinds[vocabulary[unknown]] = UNKNOWN
    beyond = sorted(index for index in texts if index >= vocab_size)
    if beyond:
        raise ModelError(
            f"the tokenizer has token {beyond[0]} ({texts[beyond[0]]!r}) but the model's embedding "
            f"has {vocab_size} rows: tokenizer and model do not belong together"
        )
    filled = tuple(texts.get(index, f"[PAD{index}]") for index in range(vocab_size))
    if len(set(filled)) != vocab_size:
        raise ModelError("two tokens of the tokenizer have the same text, which llama.cpp refuses")
    return filled, tuple(kinds.get(index, UNUSED) for index in range(vocab_size))


def _mark_bytes(vocabulary: Mapping[str, int], kinds: dict[int, int]) -> None:
    for value in range(256):
        name = f"<0x{value:02X}>"
        if name not in vocabulary:
            raise ModelError(
                f"the tokenizer falls back to bytes but has no token {name}: llama.cpp would abort "
                f"on text that holds this byte"
            )
        kinds[vocabulary[name]] = BYTE


def _scores(tokens: Sequence[str], merges: Sequence[str]) -> tuple[float, ...]:
    """llama.cpp joins the neighbours whose union scores highest: minus the rank of its first merge.

    Raises:
        ModelError: merges of one token are not next to each other, so no score says the same.
    """
    ranks: dict[str, int] = {}
    previous = None
    for rank, merge in enumerate(merges):
        union = merge.replace(" ", "", 1)
        if union in ranks and union != previous:
            raise ModelError(
                f"the tokenizer joins {union!r} at two different ranks, which llama.cpp cannot "
                f"express for SentencePiece vocabularies"
            )
        ranks.setdefault(union, rank)
        previous = union
    return tuple(float(-ranks.get(token, len(merges))) for token in tokens)


def _special(
    tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int], *, first: int | None
) -> dict[str, int]:
    eos: Any = eos_ids[0] if eos_ids else tokenizer.eos_token_id
    if eos is None:
        raise ModelError(
            "neither the tokenizer nor config.json names an end token: llama.cpp would take an "
            "arbitrary token for it and cut texts there; set eos_token in tokenizer_config.json"
        )
    found = {
        "bos": tokenizer.bos_token_id if first is None else first,
        "eos": eos,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    return {role: int(index) for role, index in found.items() if index is not None}


def _template(processor: Mapping[str, Any] | None) -> tuple[int | None, int | None]:
    """Ids of the special tokens put before and after a text."""
    steps = [processor] if processor else []
    if processor and processor["type"] == "Sequence":
        steps = list(processor["processors"])
    first: int | None = None
    last: int | None = None
    for step in steps:
        if step["type"] == "ByteLevel":  # changes offsets only
            continue
        if step["type"] != "TemplateProcessing":
            raise ModelError(f"the tokenizer's post-processor {step['type']} has no GGUF mapping")
        pieces = [next(iter(piece.items())) for piece in step["single"]]
        names = [kind for kind, _ in pieces]
        place = names.index("Sequence")
        if place > 1 or len(names) - place > 2:
            raise ModelError("the tokenizer adds several special tokens, llama.cpp only one a side")
        ids = [
            None if k == "Sequence" else step["special_tokens"][v["id"]]["ids"][0]
            for k, v in pieces
        ]
        first, last = (ids[0] if place == 1 else None), ids[-1]
    return first, last
