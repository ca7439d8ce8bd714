"""A disk that runs full while a supernet is being written: a clear error, and nothing lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from tests.full_disk import MIB, fill, largest_file, small_disk
from tests.supernet.building import Build, hashes
from tyr.errors import StoreError
from tyr.events import SublayerPruned
from tyr.model.decoder import Decoder

Report = Callable[[SublayerPruned], None]


def after(count: int, act: Callable[[], object]) -> Report:
    """A report that acts once, at the given sublayer."""
    seen: list[SublayerPruned] = []

    def report(event: SublayerPruned) -> None:
        seen.append(event)
        if len(seen) == count:
            act()

    return report


def check_what_is_left(directory: Path, complete: int) -> None:
    """Nothing half written, and the manifest names whole files only."""
    names = {path.name for path in directory.iterdir()}
    assert not [name for name in names if name.endswith(".tmp")]
    assert len([name for name in names if name.endswith(".safetensors")]) == complete


@pytest.mark.parametrize("leave", [0, 6000], ids=["nothing left", "half a file left"])
def test_a_full_disk_stops_a_build_that_then_continues_to_the_same_bytes(
    tmp_path: Path, decoder: Decoder, tokens: Tensor, leave: int
) -> None:
    Build(decoder, tokens, tmp_path / "whole").run()
    with small_disk(tmp_path / "disk", MIB) as disk:
        supernet = disk / "supernet"
        build = Build(decoder, tokens, supernet)
        with pytest.raises(StoreError, match="No space left on device.*free some space.*resume"):
            build.run(after(2, lambda: fill(disk, leave=leave)))
        check_what_is_left(supernet, complete=len(list(supernet.glob("*.safetensors"))))
        assert 1 <= len(list(supernet.glob("*.safetensors"))) <= 2
        (disk / "ballast").unlink()
        resumed: list[bool] = []
        build.run(lambda event: resumed.append(event.resumed))
        assert any(resumed), "what was on disk is kept"
        assert hashes(supernet) == hashes(tmp_path / "whole")


def test_a_file_that_may_not_grow_stops_a_build_that_then_continues_to_the_same_bytes(
    tmp_path: Path, decoder: Decoder, tokens: Tensor
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    store = Build(decoder, tokens, whole).run()
    sizes = {store.path(s.id).name: store.path(s.id).stat().st_size for s in decoder.sublayers}
    limit = sizes["000.ffn.safetensors"] - 1
    assert sizes["000.attn.safetensors"] <= limit
    child = os.fork()  # the limit is the child's alone
    if child == 0:
        _build_and_exit(Build(decoder, tokens, parts), limit)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    check_what_is_left(parts, complete=1)
    resumed: list[bool] = []
    Build(decoder, tokens, parts).run(lambda event: resumed.append(event.resumed))
    assert resumed == [True, False, False, False, False, False]
    assert hashes(parts) == hashes(whole)


def _build_and_exit(build: Build, limit: int) -> None:
    """Exit status 0 if the build was refused as it should be."""
    status = 3
    try:
        with largest_file(limit):
            build.run()
    except StoreError as error:
        message = str(error)
        expected = ("000.ffn", "File too large", "free some space", "resume=true")
        status = 0 if all(words in message for words in expected) else 4
    finally:
        os._exit(status)


def test_a_full_disk_at_the_manifest_forgets_what_it_could_not_name(
    tmp_path: Path, decoder: Decoder, tokens: Tensor
) -> None:
    store = Build(decoder, tokens, tmp_path / "whole").run()
    first = decoder.sublayers[0].id
    structures, errors = store.read(first), store.errors(first)
    empty = Build(decoder, tokens, tmp_path / "parts").open()
    (tmp_path / "parts" / "manifest.json").unlink()
    (tmp_path / "parts" / "manifest.json").mkdir()  # cannot be replaced
    with pytest.raises(StoreError, match=r"cannot write .*manifest.json"):
        empty.write(first, structures, errors)
    assert first not in empty
    assert not list((tmp_path / "parts").glob("*.tmp"))
