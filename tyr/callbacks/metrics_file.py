"""metrics.csv on disk: append, replace a row that comes again, repair a truncated end.

Delivery is at least once: a resumed run may report a generation that was already written, and a
killed run may leave half a line. Both are settled here, so readers see every fact once.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable
from pathlib import Path

from tyr.callbacks.rows import COLUMNS, Row, RowKey, row_key
from tyr.errors import ResumeError
from tyr.files import write_text, writing

METRICS_FILE = "metrics.csv"

logger = logging.getLogger(__name__)


def read_rows(path: Path) -> list[Row]:
    """Complete rows of a metrics file, first written first; of rows with one key the last counts.

    Raises:
        ResumeError: the header is not the one this version writes.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    # A line without its newline may end inside a number, so it is dropped even if it parses.
    complete = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(io.StringIO(complete)))
    if not lines:
        return []
    if tuple(lines[0]) != COLUMNS:
        raise ResumeError(
            f"{path} has other columns than this version of tyr writes: expected "
            f"{','.join(COLUMNS)}, got {','.join(lines[0])}; move the file away to continue"
        )
    whole = [fields for fields in lines[1:] if len(fields) == len(COLUMNS)]
    if dropped := len(lines) - 1 - len(whole) + (complete != text):
        logger.warning("%s: dropped %d damaged line(s)", path, dropped)
    rows: dict[RowKey, Row] = {}
    for fields in whole:
        row = dict(zip(COLUMNS, fields, strict=True))
        rows[row_key(row)] = row
    return list(rows.values())


class MetricsFile:
    """A metrics file open for writing; no handle is kept, so there is nothing to close.

    Args:
        path: the file; it is created, or replaced when `keep` is false.
        keep: whether rows already there are kept (a resumed run).
    """

    def __init__(self, path: Path, *, keep: bool) -> None:
        self.path = path
        kept = read_rows(path) if keep and path.exists() else []
        self.rows: dict[RowKey, Row] = {row_key(row): row for row in kept}
        self._rewrite()

    def put(self, row: Row) -> None:
        """Append the row, or replace the row that reports the same fact."""
        known = self.rows.get(row_key(row))
        if known == row:
            return
        self.rows[row_key(row)] = row
        if known is not None:
            self._rewrite()
            return
        with writing(self.path), self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(_text([row]))

    def _rewrite(self) -> None:
        header = dict(zip(COLUMNS, COLUMNS, strict=True))
        write_text(self.path, _text([header, *self.rows.values()]))


def _text(rows: Iterable[Row]) -> str:
    buffer = io.StringIO()
    csv.DictWriter(buffer, COLUMNS, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
