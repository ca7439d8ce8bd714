"""Tokenizers: what llama.cpp cuts from our metadata against what the tokenizer itself cuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.export.gguf.engine import Engine, require_engine
from tests.export.gguf.models import (
    BYTE_LEVEL,
    HARD_TEXTS,
    byte_level,
    export_pruned,
    sentencepiece_style,
    small_decoder,
)
from tests.model_zoo import tiny_tokenizer
from tyr.errors import ModelError
from tyr.export.gguf.exporter import convert
from tyr.export.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    read_vocabulary,
)
from tyr.model.loading import BUILT_IN

STORIES = Path(__file__).resolve().parents[4] / "shared" / "models" / "stories260K"


def cuts_alike(directory: Path, tmp_path: Path, texts: tuple[str, ...] = HARD_TEXTS) -> None:
    """llama.cpp and the tokenizer of a directory give the same ids, special tokens included."""
    engine = Engine(convert(directory, tmp_path / "m.gguf").path)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for text in texts:
        wanted = tokenizer(text)["input_ids"]
        assert engine.tokenize(text) == wanted, text
    engine.close()


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_text_is_cut_as_by_the_tokenizer(name: str, bos: bool, tmp_path: Path) -> None:
    require_engine()
    tokenizer = byte_level(name, bos=bos, vocabulary=400)
    assert read_vocabulary(tokenizer, vocab_size=400).pre == name
    decoder = small_decoder("llama", tokenizer=tokenizer)
    texts = HARD_TEXTS
    if name == "tekken":  # llama.cpp has no \p{Lu}: it tells upper from lower case in ASCII only
        texts = tuple(text for text in texts if text.isascii())
    special = ("a<tool>b <tool>", "one<eos>two")
    cuts_alike(export_pruned(decoder, {}, tmp_path / "m"), tmp_path, (*texts, *special))


@pytest.mark.parametrize("scheme", ["first", "never"])
def test_sentencepiece_style_text_is_cut_as_by_the_tokenizer(scheme: str, tmp_path: Path) -> None:
    require_engine()
    decoder = small_decoder("llama", tokenizer=sentencepiece_style(scheme))
    texts = HARD_TEXTS
    if scheme == "first":  # llama.cpp prefixes a space even to a text that begins with one
        texts = tuple(text for text in texts if not text.startswith(" "))
    cuts_alike(export_pruned(decoder, {}, tmp_path / "m"), tmp_path, texts)


def test_the_built_in_model_is_cut_as_by_its_tokenizer(tmp_path: Path) -> None:
    require_engine()
    cuts_alike(BUILT_IN, tmp_path)


@pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/models/stories260K is not here")
def test_a_trained_sentencepiece_vocabulary_is_cut_as_by_its_tokenizer(tmp_path: Path) -> None:
    require_engine()
    cuts_alike(STORIES, tmp_path)


def test_every_token_has_its_type() -> None:
    found = read_vocabulary(byte_level(bos=True), vocab_size=310)
    assert len(found.tokens) == len(found.types) == 310
    assert found.types[:3] == (CONTROL, CONTROL, NORMAL)
    assert found.types[299:301] == (USER_DEFINED, UNUSED)
    assert found.tokens[299:301] == ("<tool>", "[PAD300]")
    assert (found.add_bos, found.add_eos) == (True, False)
    assert found.special == {"bos": 0, "eos": 1}
    found = read_vocabulary(sentencepiece_style(), vocab_size=400)
    assert found.types[:4] == (UNKNOWN, CONTROL, CONTROL, BYTE)
    assert found.special == {"bos": 1, "eos": 2, "unk": 0}
    assert found.merges == ()
    assert found.scores[3] == min(found.scores)


def test_the_end_token_is_the_one_at_which_generation_stops() -> None:
    found = read_vocabulary(byte_level(), vocab_size=300, eos_ids=[7, 1])
    assert found.special["eos"] == 7


def test_a_chat_template_comes_along() -> None:
    tokenizer = byte_level()
    assert read_vocabulary(tokenizer, vocab_size=300).chat_template is None
    tokenizer.chat_template = "{{ messages }}"
    assert read_vocabulary(tokenizer, vocab_size=300).chat_template == "{{ messages }}"


def changed(edit: Any, base: PreTrainedTokenizerFast | None = None) -> PreTrainedTokenizerFast:
    """A good tokenizer with one thing changed."""
    tokenizer = base or byte_level()
    edit(tokenizer.backend_tokenizer)
    return tokenizer


def lowercase(backend: Any) -> None:
    backend.normalizer = normalizers.Lowercase()


def whitespace(backend: Any) -> None:
    backend.pre_tokenizer = pre_tokenizers.Whitespace()


def prefix_space(backend: Any) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def two_special(backend: Any) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> <eos> $A", special_tokens=[("<bos>", 0), ("<eos>", 1)]
    )


def bert_processor(backend: Any) -> None:
    backend.post_processor = processors.BertProcessing(("<eos>", 1), ("<bos>", 0))


def split_words(backend: Any) -> None:
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=True)


REFUSED = {
    "word level": (tiny_tokenizer, "is a WordLevel model"),
    "normalizer": (lambda: changed(lowercase), "normalizer Lowercase"),
    "unknown rules": (lambda: changed(whitespace), "no pre-tokenizer with the rules.*known: gpt-2"),
    "prefix space": (lambda: changed(prefix_space), "no pre-tokenizer with the rules"),
    "two special tokens": (lambda: changed(two_special), "several special tokens"),
    "post-processor": (lambda: changed(bert_processor), "post-processor BertProcessing"),
    "words split": (lambda: changed(split_words, sentencepiece_style()), "Metaspace splits text"),
    "no end token": (
        lambda: PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer),
        "names an end token",
    ),
    "too large": (lambda: byte_level(vocabulary=301), "embedding has 300 rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tokenizer_without_a_mapping_is_refused_with_the_reason(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        read_vocabulary(build(), vocab_size=400 if case == "words split" else 300)


def test_missing_byte_tokens_are_refused() -> None:
    vocab = {"<unk>": 0, "</s>": 1, "a": 2}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    with pytest.raises(ModelError, match="no token <0x00>"):
        read_vocabulary(tokenizer, vocab_size=3)


def test_merges_that_scores_cannot_express_are_refused() -> None:
    pieces = ["a", "b", "c", "ab", "bc", "abc", "d", "cd"]
    names = ["<unk>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), *pieces]
    vocab = {name: index for index, name in enumerate(names)}
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("c", "d"), ("a", "bc")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    with pytest.raises(ModelError, match="joins 'abc' at two different ranks"):
        read_vocabulary(tokenizer, vocab_size=len(names))
