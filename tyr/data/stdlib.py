"""The Python standard library's own source as a corpus: always there, offline, never licensed away.

Serves the built-in tiny model (no counterpart in the paper, which calibrates on FineWeb-Edu). The
split is fixed by the SHA-256 of a top-level module's name, so it is the same on every machine and
no module, package or private twin (`_pydecimal` / `decimal`) is in two splits. The text itself
follows the interpreter's version; `TokenSplits.fingerprint` records which text a number was
measured on. It deliberately reads nothing outside the standard library's folder.
"""

from __future__ import annotations

import hashlib
import logging
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from transformers import PreTrainedTokenizerBase

from tyr.data.tokens import SplitName, SplitSizes, TokenSplits, TokenStream, Windows
from tyr.errors import DataError

logger = logging.getLogger(__name__)

StdlibSplit = Literal["train", "calibration", "search", "evaluation"]

# Distributions strip or move these, or their text is mostly boilerplate: never measured on, at
# most trained on.
TRAIN_ONLY = frozenset(
    (
        *("distutils", "ensurepip", "html", "idlelib", "lib2to3", "msilib", "test", "tkinter"),
        *("turtle", "turtledemo", "unittest", "venv"),
    )
)
# Character tables, topic dumps and build settings: no code to learn, and the last hold paths of
# one machine.
EXCLUDED = frozenset(
    ("encodings", "pydoc_data", "this", "antigravity", "__phello__", "__hello__", "lib-dynload")
)
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-", "site-packages", "dist-packages", "__pycache__")

_HELD_OUT: tuple[StdlibSplit, ...] = ("evaluation", "search", "calibration")
_BUCKETS, _BUCKETS_PER_SPLIT = 100, 12
_PIECE_CHARACTERS = 4096


class StdlibData:
    """Calibration, search and evaluation text from held-out modules of the running interpreter.

    Documents are pieces of modules of about 4,096 characters in hash order, so that the first few
    thousand tokens already come from many modules.

    Args:
        sequence_length: tokens per window.
        calibration_tokens: tokens to calibrate on; whole windows are taken.
        search_tokens: tokens of the largest search stage.
        evaluation_tokens: tokens that perplexity is measured on.
    """

    name = "stdlib"

    def __init__(
        self,
        *,
        sequence_length: int,
        calibration_tokens: int,
        search_tokens: int,
        evaluation_tokens: int,
    ) -> None:
        self.sizes = SplitSizes(
            sequence_length, calibration_tokens, search_tokens, evaluation_tokens
        )

    def load(self, tokenizer: PreTrainedTokenizerBase) -> TokenSplits:
        """Tokenise as much of each held-out split as was asked for.

        Raises:
            DataError: a split holds fewer tokens than asked for.
        """

        def windows(split: SplitName) -> Windows:
            return TokenStream(stdlib_documents(split), tokenizer).take(split, self.sizes)

        return TokenSplits.from_windows(
            calibration=windows("calibration"),
            search=windows("search"),
            evaluation=windows("evaluation"),
        )


def stdlib_documents(split: StdlibSplit, root: Path | None = None) -> Iterator[str]:
    """Yield the pieces of one split's modules in a fixed, mixed order.

    Args:
        split: `train`, `calibration`, `search` or `evaluation`.
        root: the standard library's folder; the running interpreter's own by default.

    Raises:
        DataError: unknown split, or no module of this split under `root`.
    """
    if split not in get_args(StdlibSplit):
        raise DataError(
            f"unknown stdlib split {split!r}; known: {', '.join(get_args(StdlibSplit))}"
        )
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    pieces: list[tuple[str, str]] = []
    for relative in _modules(root, split):
        if (text := _read_source(root / relative)) is not None:
            pieces += [
                (_digest(f"{relative.as_posix()}#{index}"), piece)
                for index, piece in enumerate(split_at_statements(text))
            ]
    if not pieces:
        raise DataError(
            f"no source text of the {split} split under {root}: this Python ships its standard "
            "library without sources; use data=text data.path=FILE instead"
        )
    yield from (piece for _, piece in sorted(pieces))


def split_of(relative: Path) -> StdlibSplit | None:
    """The split of a module, from its path relative to the standard library; None if unused."""
    top = relative.parts[0].removesuffix(".py")
    if top in EXCLUDED or top.startswith(EXCLUDED_PREFIXES):
        return None
    if top in TRAIN_ONLY:
        return "train"
    bucket = int(_digest(f"tyr/{_family(top)}")[:8], 16) % _BUCKETS // _BUCKETS_PER_SPLIT
    split = _HELD_OUT[bucket] if bucket < len(_HELD_OUT) else "train"
    if split != "train" and {"test", "tests"} & set(relative.parts[1:]):
        return None  # packages that carry their tests lose them in some distributions
    return split


def split_at_statements(text: str, characters: int = _PIECE_CHARACTERS) -> list[str]:
    """Cut a module into pieces of at least `characters`, each starting at a top-level statement.

    A piece is cut hard at twice the size when no line begins in the first column before that.
    """
    pieces: list[str] = []
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        at_statement = not line[0].isspace() and line[0] not in ")]}#\"'"
        if size >= 2 * characters or (size >= characters and at_statement):
            pieces.append("".join(lines))
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    rest = "".join(lines)
    return [*pieces, rest] if rest.strip() else pieces


def _modules(root: Path, split: StdlibSplit) -> Iterator[Path]:
    """Modules of one split, relative to `root`, in a fixed order; enters no other folder."""
    for top in sorted(root.iterdir()):
        if split_of(top.relative_to(root)) != split:
            continue
        paths = sorted(top.rglob("*.py")) if top.is_dir() else [top] * (top.suffix == ".py")
        relatives = (path.relative_to(root) for path in paths)
        yield from (relative for relative in relatives if split_of(relative) == split)


def _family(top: str) -> str:
    """One name for a module and its private twins, as `_pydecimal`, `_decimal` and `decimal`."""
    if top.startswith("__"):
        return top
    return top.removeprefix("_py").lstrip("_").removesuffix("_abc")


def _read_source(path: Path) -> str | None:
    """A module's text, or None for the few files (tests of the tokenizer) that are not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        logger.debug("skipping %s: not UTF-8", path)
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
