"""Windows are disjoint, contiguous, counted in bytes and fingerprinted; reading is lazy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from tests.data.text import assert_no_marker_is_shared, byte_bpe, in_stream_order, numbered, spelled
from tests.references.whole_stream import whole_stream
from tyr.data import SplitSizes, TokenSplits, check_context
from tyr.data.tokens import TokenStream, Windows
from tyr.errors import DataError

SIZES = SplitSizes(8, 40, 24, 16)


class CharacterTokenizer(PreTrainedTokenizer):
    """A tokenizer without a fast twin: one token per character."""

    vocab_size = 0x3000

    def get_vocab(self) -> dict[str, int]:
        return {}

    def _tokenize(self, text: str, **_: object) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def splits_of(
    *documents: str, sizes: SplitSizes = SIZES, eos: bool = False, evaluation: str | None = None
) -> TokenSplits:
    elsewhere = None if evaluation is None else [evaluation]
    return TokenSplits.from_documents(documents, byte_bpe(eos), sizes, evaluation=elsewhere)


@given(
    documents=st.lists(
        st.text(alphabet="ab <1>\n é\u4e2d🙂", max_size=40), min_size=1, max_size=40
    ),
    length=st.integers(2, 7),
    counts=st.tuples(*[st.integers(1, 4)] * 3),
    eos=st.booleans(),
)
def test_streamed_splits_equal_slices_of_the_whole_stream(
    documents: list[str], length: int, counts: tuple[int, int, int], eos: bool
) -> None:
    tokens, sizes = whole_stream(documents, byte_bpe(eos))
    wanted = SplitSizes(length, *(count * length for count in counts))
    if len(tokens) < wanted.total_tokens:
        with pytest.raises(DataError, match=rf"too little text: {len(tokens)} tokens in all"):
            splits_of(*documents, sizes=wanted, eos=eos)
        return
    splits = splits_of(*documents, sizes=wanted, eos=eos)
    flat = torch.cat([splits.evaluation, splits.search, splits.calibration]).flatten()
    assert flat.tolist() == tokens[: wanted.total_tokens]
    assert flat.dtype == torch.int64
    assert splits.evaluation_bytes == sum(sizes[: splits.evaluation.numel()])


def test_splits_lie_end_to_end_and_share_no_sentence() -> None:
    text = numbered(0, 400)
    splits = splits_of(text, sizes=SplitSizes(16, 640, 320, 160))
    assert text.startswith(in_stream_order(splits))
    assert_no_marker_is_shared(splits)


def test_evaluation_text_does_not_depend_on_the_other_splits() -> None:
    text = numbered(0, 400)
    small = splits_of(text, sizes=SplitSizes(16, 160, 160, 160))
    large = splits_of(text, sizes=SplitSizes(16, 1600, 320, 160))
    assert torch.equal(small.evaluation, large.evaluation)
    assert small.evaluation_bytes == large.evaluation_bytes


def test_evaluation_from_elsewhere_leaves_the_head_to_the_search() -> None:
    splits = splits_of(numbered(0, 99), evaluation=numbered(500, 99))
    assert numbered(500, 99).startswith(spelled(splits.evaluation))
    assert numbered(0, 99).startswith(spelled(splits.search) + spelled(splits.calibration))


def test_too_little_evaluation_text_is_not_filled_from_the_other_text() -> None:
    with pytest.raises(DataError, match="the evaluation split still misses"):
        splits_of(numbered(0, 99), evaluation="short")


@pytest.mark.parametrize("eos", [False, True])
def test_evaluation_bytes_count_the_text_and_not_the_separators(eos: bool) -> None:
    words = [numbered(n, 1) for n in range(60)]
    splits = splits_of(*words, eos=eos)
    assert splits.evaluation_bytes == len(spelled(splits.evaluation).encode())
    assert (byte_bpe(eos).eos_token_id in splits.evaluation.flatten().tolist()) == eos


@given(text=st.text(alphabet="ab é\u4e2d", min_size=SIZES.total_tokens, max_size=200))
def test_a_slow_tokenizer_counts_the_same_bytes(text: str) -> None:
    splits = TokenSplits.from_documents([text], CharacterTokenizer(), SIZES)
    head = text[: splits.evaluation.numel()]
    assert splits.evaluation.flatten().tolist() == list(map(ord, head))
    assert splits.evaluation_bytes == len(head.encode())


def test_documents_that_tokenise_to_nothing_are_skipped() -> None:
    vocabulary = {"a": 0, "b": 1, "?": 2}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    splits = TokenSplits.from_documents(
        [" \n", "a b a", "\n"] * 3, tokenizer, SplitSizes(3, 3, 3, 3)
    )
    assert splits.calibration.tolist() == splits.evaluation.tolist() == [[0, 1, 0]]
    assert splits.calibration.dtype == torch.int64


def test_blanks_that_a_tokenizer_drops_at_the_end_count_as_bytes() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    stream = TokenStream(["a a  \n", "a a"], tokenizer)
    assert stream.take("evaluation", SplitSizes(2, 2, 2, 4)).num_bytes == len("a a  \na a")


@given(
    split=st.sampled_from(["calibration", "search", "evaluation"]),
    row=st.integers(0, 1),
    column=st.integers(0, 7),
    step=st.integers(1, 10**6),
)
def test_the_fingerprint_changes_with_any_token(
    split: str, row: int, column: int, step: int
) -> None:
    tokens = torch.arange(48).view(3, 2, 8)
    names = ("calibration", "search", "evaluation")
    windows = {name: Windows(part, 8) for name, part in zip(names, tokens, strict=True)}
    before = TokenSplits.from_windows(**windows).fingerprint
    assert TokenSplits.from_windows(**windows).fingerprint == before
    changed = windows[split].tokens.clone()
    changed[row, column] += step
    windows[split] = replace(windows[split], tokens=changed)
    assert TokenSplits.from_windows(**windows).fingerprint != before


def test_the_fingerprint_sees_where_one_split_ends_and_the_next_begins() -> None:
    text = numbered(0, 99)
    one = splits_of(text, sizes=SplitSizes(8, 40, 24, 16))
    other = splits_of(text, sizes=SplitSizes(8, 24, 40, 16))
    assert one.fingerprint != other.fingerprint


def test_loading_twice_gives_the_same_splits() -> None:
    one, two = (splits_of(numbered(0, 99)) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.calibration, two.calibration)


def test_no_more_documents_are_read_than_are_needed() -> None:
    read: list[str] = []

    def endless() -> Iterator[str]:
        while True:
            read.append("")
            yield numbered(0, 3)

    TokenSplits.from_documents(endless(), byte_bpe(), SIZES)
    assert len(read) <= 16


def test_long_documents_are_tokenised_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tyr.data.tokens._CHARACTERS_PER_BATCH", 100)
    documents = iter([numbered(0, 50)] * 3)
    TokenSplits.from_documents(documents, byte_bpe(), SIZES)
    assert len(list(documents)) == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 8, 8, 8), "data.sequence_length must be at least 2 tokens, got 1"),
        ((8, 7, 8, 8), "data.calibration_tokens=7 is less than one window"),
        ((8, 8, 0, 8), "data.search_tokens=0 is less than one window"),
        ((8, 8, 8, -8), "data.evaluation_tokens=-8 is less than one window"),
        ((8, 8.0, 8, 8), "data.calibration_tokens must be a whole number, got 8.0"),
        ((True, 8, 8, 8), "data.sequence_length must be a whole number, got True"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SplitSizes(*sizes)


def test_sizes_are_rounded_down_to_whole_windows() -> None:
    sizes = SplitSizes(8, 47, 8, 23)
    assert [sizes.windows(s) for s in ("calibration", "search", "evaluation")] == [5, 1, 2]
    assert sizes.total_tokens == 64


def test_too_little_text_says_what_there_is_and_what_to_lower() -> None:
    message = (
        r"too little text: 3 tokens in all, and the evaluation split still misses 13 of its 16.*"
        r"data.calibration_tokens=40, data.search_tokens=24, data.evaluation_tokens=16.*Lower"
    )
    with pytest.raises(DataError, match=message):
        splits_of("abc")


def test_windows_longer_than_the_context_are_refused() -> None:
    check_context(512, 512)
    with pytest.raises(DataError, match=r"set data\.sequence_length to at most 512"):
        check_context(513, 512)
