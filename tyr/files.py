"""Files that are either whole or absent: written to a temporary name, synced, renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`; a crash leaves the old file or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_json(path: Path, content: object) -> None:
    """Replace `path` by JSON; see `write_text`."""
    write_text(path, json.dumps(content, indent=1) + "\n")
