"""The few HTML elements the report needs; every text that goes in is escaped here.

Functions return finished markup. Only their own output may be passed where markup is expected.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Sequence
from html import escape
from urllib.parse import quote


def text(value: object) -> str:
    """Any value as escaped text."""
    return escape(str(value), quote=True)


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    strong: Collection[str] = (),
    words: bool = False,
) -> str:
    """A table of escaped cells.

    Args:
        headers: column titles; none for a table without a head.
        rows: cells, turned into text.
        strong: first cells of the rows to emphasise.
        words: cells hold prose or paths: left-aligned and wrapping.
    """
    head = "".join(f"<th>{text(header)}</th>" for header in headers)
    body = "".join(_table_row(row, strong) for row in rows)
    kind = ' class="words"' if words else ""
    thead = f"<thead><tr>{head}</tr></thead>" if headers else ""
    return f'<div class="scroll"><table{kind}>{thead}<tbody>{body}</tbody></table></div>'


def figure(svg: bytes, *, title: str, caption: str) -> str:
    """An SVG embedded as an image, so that ids and scripts of one cannot reach the page."""
    source = "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")
    return (
        f'<figure><img src="{source}" alt="{text(title)}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def section(title: str, body: str) -> str:
    """A headed section; nothing at all when its body is empty."""
    return f"<h2>{text(title)}</h2>\n{body}" if body else ""


def folded(title: str, body: str) -> str:
    """Markup behind a line to click."""
    return f"<details><summary>{text(title)}</summary>{body}</details>"


def file_list(files: Iterable[tuple[str, str]]) -> str:
    """Links to (relative path, what it is)."""
    items = (f'<li><a href="{quote(p)}">{text(p)}</a>: {text(what)}</li>' for p, what in files)
    return f"<ul>{''.join(items)}</ul>"


def _table_row(cells: Sequence[object], strong: Collection[str]) -> str:
    emphasis = ' class="strong"' if str(cells[0]) in strong else ""
    return f"<tr{emphasis}>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>"
