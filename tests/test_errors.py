from __future__ import annotations

import pytest

from tyr.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such file\nat 0x7f"), "no such file"),
        (OSError("\n  damaged  \n"), "damaged"),
        (KeyError(), "KeyError"),
    ],
    ids=["lines", "blank first line", "silent"],
)
def test_the_first_line_of_an_error_says_something(error: Exception, line: str) -> None:
    assert first_line(error) == line
