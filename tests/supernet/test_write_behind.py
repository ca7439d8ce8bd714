from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.supernet.test_store import ERRORS, FIRST, HEADER, SECOND, filled, reopened, structures
from tyr.errors import StoreError
from tyr.sparsity import SublayerId
from tyr.supernet.store import SupernetStore
from tyr.supernet.write_behind import WriteBehind


class Held(SupernetStore):
    """A store whose writing waits until it is let go."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, HEADER)
        self.let_go = threading.Event()

    def write(self, *args: object, **more: object) -> None:
        assert self.let_go.wait(10)
        super().write(*args, **more)  # type: ignore[arg-type]


class Full(SupernetStore):
    """A store on a full disk."""

    def write(self, sublayer: SublayerId, *args: object, **more: object) -> None:
        raise StoreError(f"cannot write {sublayer.name}: full")


def test_the_files_are_those_of_writing_at_once(tmp_path: Path) -> None:
    filled(tmp_path / "at once")
    with WriteBehind(SupernetStore(tmp_path / "behind", HEADER)) as writer:
        writer.write(FIRST, structures(), ERRORS)
        writer.write(SECOND, structures(columns=2), ERRORS)
    names = sorted(path.name for path in (tmp_path / "at once").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "behind").iterdir())
    for name in names:
        written = (tmp_path / "behind" / name).read_bytes()
        assert written == (tmp_path / "at once" / name).read_bytes()


def test_writing_does_not_wait_for_the_disk_but_closing_does(tmp_path: Path) -> None:
    store = Held(tmp_path)
    with WriteBehind(store) as writer:
        writer.write(FIRST, structures(), ERRORS)  # returns while the store is held
        assert FIRST not in store
        assert not store.path(FIRST).exists()
        store.let_go.set()
    assert FIRST in store
    assert FIRST in reopened(tmp_path)


def test_one_sublayer_at_a_time_is_on_its_way(tmp_path: Path) -> None:
    store = Held(tmp_path)
    with WriteBehind(store) as writer:
        writer.write(FIRST, structures(), ERRORS)
        threading.Timer(0.05, store.let_go.set).start()
        writer.write(SECOND, structures(columns=2), ERRORS)
        assert FIRST in store
    assert SECOND in store


def test_an_error_surfaces_at_the_next_write(tmp_path: Path) -> None:
    def write_twice() -> None:
        with WriteBehind(Full(tmp_path, HEADER)) as writer:
            writer.write(FIRST, structures(), ERRORS)
            writer.write(SECOND, structures(), ERRORS)
            raise AssertionError("the second write must not be reached")

    with pytest.raises(StoreError, match=r"cannot write 000\.attn"):
        write_twice()


def test_an_error_of_the_last_write_surfaces_at_the_end(tmp_path: Path) -> None:
    with (
        pytest.raises(StoreError, match=r"cannot write 000\.attn"),
        WriteBehind(Full(tmp_path, HEADER)) as writer,
    ):
        writer.write(FIRST, structures(), ERRORS)


def test_another_error_on_its_way_is_not_replaced_and_the_file_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupted(store: SupernetStore) -> None:
        with WriteBehind(store) as writer:
            writer.write(FIRST, structures(), ERRORS)
            raise KeyboardInterrupt

    for store in (SupernetStore(tmp_path / "good", HEADER), Full(tmp_path / "full", HEADER)):
        with pytest.raises(KeyboardInterrupt):
            interrupted(store)
    assert FIRST in reopened(tmp_path / "good")
    assert "cannot write 000.attn" in caplog.text


def test_no_thread_is_left(tmp_path: Path) -> None:
    before = threading.active_count()
    with WriteBehind(SupernetStore(tmp_path, HEADER)) as writer:
        writer.write(FIRST, structures(), ERRORS)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
