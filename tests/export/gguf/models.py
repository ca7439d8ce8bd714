"""Tiny random models with tokenizers that llama.cpp has, and structures to prune them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.normalizers import NFC
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tests.model_zoo import structures_from, zoo_decoder
from tyr.export.checkpoint import export_checkpoint
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Sublayer

VOCABULARY = 300
BLOCKS = 3

TEXT = (
    "Once upon a time there was a little girl, who didn't like rain. She'd walk 12 or 345 miles "
    "(6,789.50 of them!) to see the SUN...\n\n\tWas it 1999? They'll say: yes;  no.\r\nEnd   \n"
)
HARD_TEXTS = (
    TEXT,
    "Hello world",
    " leading space",
    "trailing space ",
    "two  spaces   three\n\n\nnewlines \t tab",
    "don't DON'T I'll we've x's",
    "naïve café – “quoted” …",
    "日本語のテキスト and русский текст",
    "emoji 🙂🙃 and ½ ² ५",
    "1234567890 3.14159 0x7f",
    "def f(x):\n    return x**2  # done",
)

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> pre_tokenizers.Sequence:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), byte_level]
    )


def _gpt2() -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


# llama.cpp's name to how the tokenizers library says the same; and whether words skip the merges.
BYTE_LEVEL: dict[str, tuple[Callable[[], Any], bool]] = {
    "gpt-2": (_gpt2, False),
    "smollm": (lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), _gpt2()]), False),
    "llama-bpe": (lambda: _split(_LLAMA3), True),
    "smaug-bpe": (lambda: _split(_LLAMA3), False),
    "qwen2": (lambda: _split(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), False),
    "tekken": (lambda: _split(_TEKKEN), True),
}


def byte_level(
    name: str = "gpt-2", *, bos: bool = False, vocabulary: int = VOCABULARY
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a few sentences.

    Args:
        name: llama.cpp's name of its pre-tokenizer.
        bos: texts begin with a bos token.
        vocabulary: number of tokens.
    """
    build, ignore_merges = BYTE_LEVEL[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = build()
    tokenizer.decoder = decoders.ByteLevel()
    if name == "qwen2":
        tokenizer.normalizer = NFC()
    trainer = BpeTrainer(
        vocab_size=vocabulary - 1,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    if bos:
        template = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


def sentencepiece_style(scheme: str = "first", *, vocabulary: int = 400) -> PreTrainedTokenizerFast:
    """A BPE tokenizer as Llama-2's: spaces as U+2581, bytes as tokens, merges over all the text."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    trainer = BpeTrainer(vocab_size=100, special_tokens=["<unk>", "<s>", "</s>"])
    words = [word for word in TEXT.replace("\n", " ").split(" ") if word]
    trained.train_from_iterator(words * 3, trainer)
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)[3:]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), *pieces]
    vocab = {name: index for index, name in enumerate(names[:vocabulary])}
    merges = _all_merges(vocab, [piece for piece in pieces if len(piece) > 1])
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _all_merges(vocab: Mapping[str, int], pieces: list[str]) -> list[tuple[str, str]]:
    """Every way to join two tokens into a piece, best piece first, as converted vocabularies do."""
    merges = []
    for piece in pieces:
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in halves if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return merges


Kept = Mapping[tuple[int, str], list[int]]


def small_decoder(
    name: str, *, tokenizer: PreTrainedTokenizerFast | None = None, **changes: Any
) -> Decoder:
    """A three-block zoo model that speaks byte-level BPE, or with the tokenizer given."""
    tokenizer = byte_level() if tokenizer is None else tokenizer
    fields = {"num_hidden_layers": BLOCKS, "vocab_size": len(tokenizer), **changes}
    decoder = zoo_decoder(name, **fields)
    decoder.tokenizer = tokenizer
    return decoder


def export_pruned(decoder: Decoder, kept: Kept, directory: Path) -> Path:
    """The Hugging Face export of a decoder with these units kept (all, where nothing is said)."""

    def keep(sublayer: Sublayer) -> list[int]:
        everything = list(range(sublayer.num_units))
        return list(kept.get((sublayer.id.block, sublayer.id.kind), everything))

    structures = structures_from(decoder, keep)
    assert {(s.block, s.kind) for s in structures} >= set(kept), "a sublayer that is not there"
    export_checkpoint(decoder, structures.__getitem__, directory, provenance={})
    return directory


def random_prompt(length: int, *, vocabulary: int = VOCABULARY, seed: int = 0) -> list[int]:
    """Token ids without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, vocabulary - 1, (length,), generator=generator).tolist()
