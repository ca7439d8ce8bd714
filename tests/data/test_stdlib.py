"""The standard library's splits: by module, large enough, and the same on every machine."""

from __future__ import annotations

import ast
import sysconfig
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.text import byte_bpe, spelled
from tyr.data import StdlibData, TokenSplits
from tyr.data.stdlib import (
    StdlibSplit,
    split_at_statements,
    split_of,
    stdlib_documents,
)
from tyr.errors import DataError

ROOT = Path(sysconfig.get_path("stdlib"))
HELD_OUT: tuple[StdlibSplit, ...] = ("calibration", "search", "evaluation")
SIZES = {
    "sequence_length": 32,
    "calibration_tokens": 3200,
    "search_tokens": 1600,
    "evaluation_tokens": 1600,
}


def library(root: Path, **files: str) -> Path:
    """A standard library of our own; keys spell paths with __ for a slash."""
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("split", HELD_OUT)
def test_every_held_out_split_is_large_enough(split: StdlibSplit) -> None:
    assert sum(len(text.encode()) for text in stdlib_documents(split)) >= 600_000


def test_no_package_nor_private_twin_is_in_two_splits() -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for top in ROOT.iterdir():
        if (split := split_of(top.relative_to(ROOT))) is not None:
            splits[top.name.removesuffix(".py").lstrip("_").removeprefix("py")].add(split)
    assert len(splits) > 100
    assert {name for name, found in splits.items() if len(found) > 1} <= {"", "main"}


@pytest.mark.parametrize(
    "name",
    ["decimal _pydecimal", "io _pyio", "datetime _pydatetime", "collections _collections_abc"],
)
def test_a_module_and_its_private_twin_stay_together(name: str) -> None:
    one, two = name.split()
    assert split_of(Path(f"{one}.py")) == split_of(Path(f"{two}.py")) is not None


def test_the_split_of_a_module_never_moves() -> None:
    # Every recorded number of the tiny model depends on these.
    known = {
        "argparse": "train",
        "email/message": "calibration",
        "pathlib": "search",
        "json/decoder": "evaluation",
    }
    assert {name: split_of(Path(f"{name}.py")) for name in known} == known


@pytest.mark.parametrize(
    "path", ["site-packages/a.py", "encodings/utf_8.py", "_sysconfigdata__linux.py", "this.py"]
)
def test_what_is_no_library_code_is_in_no_split(path: str) -> None:
    assert split_of(Path(path)) is None


def test_tests_of_the_library_are_at_most_trained_on() -> None:
    assert split_of(Path("test/test_json.py")) == "train"
    held_out = [top for top in ROOT.iterdir() if split_of(top.relative_to(ROOT)) in HELD_OUT]
    assert held_out
    for path in (path for top in held_out for path in top.rglob("tests/*.py")):
        assert split_of(path.relative_to(ROOT)) is None
    assert split_of(Path("json/tests/test_decode.py")) is None


def test_documents_come_in_the_same_order_every_time() -> None:
    one, two = (list(stdlib_documents("evaluation")) for _ in range(2))
    assert one == two
    assert len(one) > 100


def test_the_first_documents_come_from_many_modules() -> None:
    tops = [top for top in ROOT.iterdir() if split_of(top.relative_to(ROOT)) == "evaluation"]
    pieces = {
        piece: top
        for top in tops
        for path in (top.rglob("*.py") if top.is_dir() else [top])
        for piece in split_at_statements(path.read_text(encoding="utf-8"))
    }
    first = list(stdlib_documents("evaluation"))[:16]
    assert len({pieces[text] for text in first}) >= 8


@pytest.fixture(scope="module")
def loaded() -> TokenSplits:
    return StdlibData(**SIZES).load(byte_bpe())


def test_splits_are_windows_of_their_own_documents(loaded: TokenSplits) -> None:
    for split in HELD_OUT:
        tokens = getattr(loaded, split)
        assert tuple(tokens.shape) == (SIZES[f"{split}_tokens"] // 32, 32)
        text = "".join(stdlib_documents(split))
        assert text.startswith(spelled(tokens).rstrip("\ufffd"))
    assert loaded.evaluation_bytes == len(spelled(loaded.evaluation).encode())


def test_loading_twice_gives_the_same_fingerprint(loaded: TokenSplits) -> None:
    again = StdlibData(**SIZES).load(byte_bpe())
    assert again.fingerprint == loaded.fingerprint
    assert torch.equal(again.search, loaded.search)


@given(
    lines=st.lists(
        st.sampled_from(["x = 1\n", "    pass\n", "\n", ")\n", "é = '🙂'\n"]), max_size=60
    ),
    characters=st.integers(1, 60),
)
def test_pieces_join_to_the_module(lines: list[str], characters: int) -> None:
    text = "".join(lines)
    pieces = split_at_statements(text, characters)
    assert "".join(pieces).strip() == text.strip()
    longest = max(map(len, lines), default=0)
    assert all(len(piece) <= 2 * characters + longest for piece in pieces)
    assert all(len(piece) >= characters for piece in pieces[:-1])


def test_pieces_begin_at_statements() -> None:
    text = "".join(f"def function_{n}():\n    return {n}\n\n\n" for n in range(50))
    pieces = split_at_statements(text, 100)
    assert len(pieces) > 5
    assert [len(ast.parse(piece).body) > 0 for piece in pieces] == [True] * len(pieces)


def test_installed_packages_and_files_that_are_no_utf8_are_not_read(tmp_path: Path) -> None:
    root = library(tmp_path, argparse="a = 1\n", **{"site-packages__argparse": "secret = 1\n"})
    (root / "json").mkdir()
    (root / "json" / "latin.py").write_bytes(b"# caf\xe9\n")
    assert list(stdlib_documents("train", root)) == ["a = 1\n"]


def test_a_library_without_sources_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no source text of the search split.*data=text"):
        list(stdlib_documents("search", tmp_path))


def test_an_unknown_split_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'dev'; known: train, calibration, search, evaluation"):
        list(stdlib_documents("dev"))  # type: ignore[arg-type]
