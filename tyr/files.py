"""Files that are either whole or absent: written to a temporary name, then renamed.

A killed process leaves the old file or the new one, and so does a full disk. With `sync` that holds
for a power cut too; it costs milliseconds, so files that are rewritten after every step go without.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tyr.errors import StoreError

logger = logging.getLogger(__name__)

T = TypeVar("T")

UNRECORDED = "going on without what it recorded"
SEAL = "sha256"  # key of a sealed object


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says while `path` is written into a StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another "
            f"place (a run is then continued with resume=true)"
        ) from error


def write_bytes(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Replace `path` by `content`, creating its directory when needed.

    Raises:
        StoreError: the disk is full or not writable; the old file is left as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                if sync:
                    stream.flush()
                    os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Replace `path` by UTF-8 text; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), sync=sync)


def write_json(path: Path, content: object, *, sync: bool = False) -> None:
    """Replace `path` by JSON; infinities and NaN become null, as JSON has neither."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", sync=sync)


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Replace `path` by a JSON object that holds its own SHA-256, synced; see `read_json`.

    For what a continued run believes: a digit that changed on the disk would change its results.
    """
    finite = _finite(content)
    write_json(path, {**finite, SEAL: _digest(finite)}, sync=True)


def read_json(
    path: Path, parse: Callable[[dict[str, Any]], T], *, without: str, sealed: bool = False
) -> T | None:
    """What a JSON object written here says, or None when the file is absent or damaged.

    Damage is said aloud: a power cut may leave an empty file, which is no reason to stop a run.

    Args:
        path: of the file.
        parse: what to make of the object; an error of a lookup, a type or a value is damage.
        without: what follows from damage, to end the sentence `FILE is damaged: ...`.
        sealed: written by `write_sealed`; another digest than the one it holds is damage.
    """
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        if sealed and content.pop(SEAL) != _digest(content):
            raise ValueError("the digest is that of another content")
        return parse(content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError, AttributeError):
        logger.warning("%s is damaged: %s", path, without)
        return None


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object that only a report or a display needs; empty when absent or damaged."""
    return read_json(path, dict, without=UNRECORDED) or {}


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of an object as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
