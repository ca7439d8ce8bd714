"""Files that are either whole or absent: written to a temporary name, then renamed.

A killed process leaves the old file or the new one. With `sync` that holds for a power cut too; it
costs milliseconds, so files that are rewritten after every step go without.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_bytes(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Replace `path` by `content`, creating its directory when needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        if sync:
            stream.flush()
            os.fsync(stream.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Replace `path` by UTF-8 text; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def write_json(path: Path, content: object, *, sync: bool = False) -> None:
    """Replace `path` by JSON; infinities and NaN become null, as JSON has neither."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", sync=sync)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
