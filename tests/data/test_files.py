"""Local files: every kind gives the same splits, and every fault names its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch

from tests.data.text import assert_no_marker_is_shared, byte_bpe, in_stream_order, numbered
from tyr.data import TextFileData
from tyr.data.files import read_jsonl, read_parquet, read_txt
from tyr.errors import DataError, TyrError

ROWS = [numbered(10 * index, 10) for index in range(40)]


def source(path: Path | str, field: str = "text", calibration: int = 640) -> TextFileData:
    return TextFileData(
        path,
        field,
        sequence_length=16,
        calibration_tokens=calibration,
        search_tokens=320,
        evaluation_tokens=160,
    )


def written(path: Path, content: bytes | str | list[object]) -> Path:
    """A file of bytes, of text, or of one JSON value per line."""
    if isinstance(content, list):
        content = "".join(json.dumps(value) + "\n" for value in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(path: Path, **columns: list[object]) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


def file_of(kind: str, folder: Path) -> Path:
    """The same rows as a file of each kind."""
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        return table(path, n=list(range(len(ROWS))), text=list(ROWS))
    return written(path, "".join(ROWS) if kind == "txt" else [{"text": row} for row in ROWS])


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_splits_are_consecutive_regions_of_the_file(kind: str, tmp_path: Path) -> None:
    splits = source(file_of(kind, tmp_path)).load(byte_bpe())
    shapes = [tuple(t.shape) for t in (splits.calibration, splits.search, splits.evaluation)]
    assert shapes == [(40, 16), (20, 16), (10, 16)]
    assert "".join(ROWS).startswith(in_stream_order(splits))
    assert_no_marker_is_shared(splits)


def test_rows_are_documents_and_a_txt_is_one(tmp_path: Path) -> None:
    end = byte_bpe(eos=True).eos_token_id
    ends = {
        kind: int(
            (source(file_of(kind, tmp_path)).load(byte_bpe(eos=True)).calibration == end).sum()
        )
        for kind in ("txt", "jsonl", "parquet")
    }
    assert ends["txt"] == 0
    assert ends["jsonl"] == ends["parquet"] > 0


def test_a_file_has_sizes_and_the_name_of_its_stem(tmp_path: Path) -> None:
    data = source(file_of("txt", tmp_path))
    assert data.name == "rows"
    assert data.sizes.windows("calibration") == 40


def test_the_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file_of("txt", tmp_path)
    assert source("~/rows.txt").path == tmp_path / "rows.txt"


def test_text_keeps_its_line_endings_and_loses_its_byte_order_mark(tmp_path: Path) -> None:
    path = written(tmp_path / "a.TXT", b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert list(read_txt(path, "text")) == ["one\r\ntwo\r\n"]
    source(path)


def test_long_text_is_cut_at_line_ends_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tyr.data.files._PIECE_BYTES", 64)
    text = "".join(f"{index}: naïve 🙂 café\n" for index in range(50))
    pieces = list(read_txt(written(tmp_path / "a.txt", text), "text"))
    assert "".join(pieces) == text
    assert len(pieces) > 10
    assert all(piece.endswith("\n") for piece in pieces)


def test_blank_lines_of_jsonl_are_skipped_and_other_fields_ignored(tmp_path: Path) -> None:
    content = '\ufeff{"body": "a", "n": 1}\n\n  \r\n{"body": "é"}'
    assert list(read_jsonl(written(tmp_path / "a.jsonl", content), "body")) == ["a", "é"]


def test_a_character_cut_by_the_end_of_the_head_is_no_fault(tmp_path: Path) -> None:
    source(written(tmp_path / "a.txt", "a" + "é" * (1 << 16)))


def test_bytes_behind_the_head_are_checked_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "line of text\n" * 6000
    assert len(head) > 1 << 16
    monkeypatch.setattr("tyr.data.files._PIECE_BYTES", 1000)
    for bad, message in (
        (b"\xff", "not UTF-8: invalid start byte at byte"),
        (b"\0", "NUL byte at"),
    ):
        data = source(written(tmp_path / "a.txt", head.encode() + b"ok " + bad), calibration=10**6)
        with pytest.raises(DataError, match=rf"{message}.* {len(head) + 3};"):
            data.load(byte_bpe())


REFUSED: dict[str, tuple[bytes | str | list[object] | None, str]] = {
    "missing.txt": (None, r"missing\.txt does not exist \(looked from"),
    "no_suffix": ("text", r"ends in nothing; known: \.txt, \.jsonl, \.parquet"),
    "notes.md": ("text", r"ends in \.md; known: \.txt, \.jsonl, \.parquet"),
    "empty.txt": ("", r"is empty"),
    "blank.jsonl": (" \n\n", r"is empty"),
    "utf16.txt": ("text".encode("utf-16-le"), r"is binary: a NUL byte at offset 1; expected UTF-8"),
    "latin.txt": (b"caf\xe9 au lait", r"not UTF-8: invalid continuation byte at byte 3"),
    "cut.txt": (b"caf\xc3", r"not UTF-8: unexpected end of data at byte 3"),
    "plain.jsonl": ("just text", r"line 1 is not JSON .*holds one object per line"),
    "list.jsonl": ([["text"]], r"line 1 is a list; expected an object"),
    "field.jsonl": ([{"body": "a", "n": 1}], r"line 1 has no field 'text'; it has: body, n"),
    "bare.jsonl": ([{}], r"line 1 has no field 'text'; it has: none"),
    "null.jsonl": ([{"text": None}], r"line 1: 'text' is NoneType, expected text"),
    "half.jsonl": ('{"text": "\\ud800"}', r"line 1: 'text' is not valid Unicode"),
    "deep.jsonl": ("[" * 100_000, r"line 1 is not JSON"),
    "text.parquet": ("not parquet", r"cannot be read as parquet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_head_shows_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    path = tmp_path / name
    if content is not None:
        written(path, content)
    with pytest.raises(DataError, match=message) as caught:
        source(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, TyrError)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file; name one file"):
        source(tmp_path)


def test_a_parquet_file_without_the_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no field 'text'; it has: body, n"):
        source(table(tmp_path / "a.parquet", body=["a"], n=[1]))


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no rows"):
        source(table(tmp_path / "a.parquet", text=[]))


def test_a_parquet_row_without_text_is_named(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", text=["a"] * 300 + [None])
    with pytest.raises(DataError, match=r"row 300: 'text' is NoneType"):
        list(read_parquet(path, "text"))


def test_a_bad_line_further_down_is_named_when_it_is_reached(tmp_path: Path) -> None:
    rows: list[object] = [{"text": "a few words"}, {"text": "more"}, {"txt": "a"}]
    data = source(written(tmp_path / "a.jsonl", rows))
    with pytest.raises(DataError, match=r"line 3 has no field 'text'; it has: txt"):
        data.load(byte_bpe())


def test_too_little_text_names_all_sizes(tmp_path: Path) -> None:
    data = source(file_of("txt", tmp_path), calibration=10**6)
    with pytest.raises(
        DataError, match=r"too little text: \d+ tokens in all.*calibration"
    ) as caught:
        data.load(byte_bpe())
    there = re.search(r"(\d+) tokens in all", str(caught.value))
    assert there is not None
    assert int(there[1]) == len(byte_bpe()("".join(ROWS))["input_ids"])


def test_a_changed_word_changes_the_fingerprint(tmp_path: Path) -> None:
    one = source(file_of("txt", tmp_path)).load(byte_bpe())
    text = "".join(ROWS).replace("<7> is", "<7> was", 1)
    two = source(written(tmp_path / "other.txt", text)).load(byte_bpe())
    again = source(file_of("txt", tmp_path)).load(byte_bpe())
    assert one.fingerprint == again.fingerprint != two.fingerprint
    assert torch.equal(one.evaluation, again.evaluation)
