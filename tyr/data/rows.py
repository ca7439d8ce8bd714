"""The text of one row: shared by every source that has named fields.

A row that is not what was asked for stops the run with its place and with the fields that are
there; no row is skipped or turned into text silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tyr.errors import DataError


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
