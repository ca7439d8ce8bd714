"""Rows with named fields: those of a JSON-lines file, and the text of one from any source.

A row that is not what was asked for stops the run with its place and with the fields that are
there; no row is skipped or turned into text silently.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tyr.errors import DataError


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place, for messages, and content of every line that is not blank.

    Raises:
        DataError: the file cannot be opened, or a line is not a JSON object in UTF-8.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    offset = 0
    with file:
        for number, raw in enumerate(file, start=1):
            line = decoded(raw, path, offset).removeprefix("\ufeff")
            offset += len(raw)
            if line.strip():
                where = f"{path}, line {number}"
                yield where, _object(line, where)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON ({error}); a .jsonl file holds one object per line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(row).__name__}; expected an object, {{...}}")
    return row


def decoded(raw: bytes, path: Path, offset: int, *, final: bool = True) -> str:
    """Text of bytes.

    Args:
        raw: some bytes of a file.
        path: the file, for messages.
        offset: where in the file they begin.
        final: whether a character that their end cuts in two is an error.

    Raises:
        DataError: a NUL byte, or not UTF-8.
    """
    expected = "expected UTF-8 text; convert it or name another file"
    if (nul := raw.find(b"\0")) >= 0:
        raise DataError(f"{path} is binary: a NUL byte at offset {offset + nul}; {expected}")
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(raw, final)
    except UnicodeDecodeError as error:
        bad = offset + error.start
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {bad}; {expected}") from error


def text_of(row: Mapping[str, object], field: str, *, where: str) -> str:
    """The text under `field`.

    Args:
        row: a record.
        field: the name asked for.
        where: the row's place, for messages.

    Raises:
        DataError: no such field, or it is not text that UTF-8 can hold.
    """
    if field not in row:
        raise missing_field(field, row, where=where)
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: {field!r} is {type(value).__name__}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, written as a JSON escape
        raise DataError(f"{where}: {field!r} is not valid Unicode ({error.reason})") from error
    return value


def missing_field(field: str, there: Iterable[str], *, where: str) -> DataError:
    """The error for a field that is not there, listing those that are."""
    names = ", ".join(there) or "none"
    return DataError(f"{where} has no field {field!r}; it has: {names}. Set data.field to one")
