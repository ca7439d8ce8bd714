"""A byte-level BPE trained on a few sentences, and text whose every word is different."""

from __future__ import annotations

import re
from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tyr.data import TokenSplits

SENTENCES = ["the marker of a word is its number", "<17> is a marker; so is <290>", "naïve café"]


@cache
def byte_bpe(eos: bool = False) -> PreTrainedTokenizerFast:
    """Any text round-trips; `eos` also gives it an end-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    names = {"eos_token": "<|end|>"} if eos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def numbered(first: int, count: int) -> str:
    """`count` sentences, none of which comes twice."""
    return "".join(f"<{number}> is a marker.\n" for number in range(first, first + count))


def spelled(tokens: Tensor) -> str:
    """The text under windows laid end to end; ends of text spell nothing."""
    return str(byte_bpe(eos=True).decode(tokens.flatten().tolist(), skip_special_tokens=True))


def markers(tokens: Tensor) -> set[int]:
    """Numbers of the whole markers in the windows."""
    return {int(number) for number in re.findall(r"<(\d+)> is", spelled(tokens))}


def in_stream_order(splits: TokenSplits) -> str:
    """The text of all three splits in the order in which they were cut."""
    return "".join(map(spelled, (splits.evaluation, splits.search, splits.calibration)))


def assert_no_marker_is_shared(splits: TokenSplits) -> None:
    """No sentence lies in two splits; each split holds some."""
    found = [markers(t) for t in (splits.calibration, splits.search, splits.evaluation)]
    assert all(found)
    assert sum(map(len, found)) == len(set().union(*found))
