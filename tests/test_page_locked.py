"""Many page-locked tensors in few pieces: nothing overlaps, and little is lost."""

from __future__ import annotations

import math

import pytest
import torch

from tests.accelerator import accelerator
from tyr import page_locked as module
from tyr.page_locked import PIECE, page_locked, page_locked_bytes, pieces

# hidden width, FFN width, KV heads x head size, blocks, vocabulary; bf16
MODELS = {
    "llama 2 7B": (4096, 11008, 4096, 32, 32000),
    "llama 2 13B": (5120, 13824, 5120, 40, 32000),
    "llama 3.1 8B": (4096, 14336, 1024, 32, 128256),
    "llama 3.1 70B": (8192, 28672, 1024, 80, 128256),
    "qwen 2.5 32B": (5120, 27648, 1024, 64, 152064),
    "mistral nemo": (5120, 14336, 1024, 40, 131072),
}


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ordinary memory instead; bytes of the pieces."""
    locked: list[int] = []

    def lock(size: int) -> torch.Tensor:
        locked.append(size)
        return torch.zeros(size, dtype=torch.uint8)

    monkeypatch.setattr(module, "_lock", lock)
    return locked


def block(hidden: int, ffn: int, narrow: int) -> list[int]:
    """Bytes of the tensors of one block."""
    attention = [hidden * hidden, narrow * hidden, narrow * hidden, hidden * hidden]
    return [2 * count for count in (*attention, *[ffn * hidden] * 3, hidden, hidden)]


def taken(sizes: list[int]) -> int:
    """Bytes that torch locks for the pieces, each rounded up to a power of two."""
    found = [sum(sizes[index] for index in members) for members in pieces(sizes)]
    return sum(1 << (size - 1).bit_length() for size in found)


@pytest.mark.parametrize("name", MODELS)
def test_the_blocks_of_a_model_take_little_more_than_their_bytes(name: str) -> None:
    hidden, ffn, narrow, blocks, _ = MODELS[name]
    sizes = block(hidden, ffn, narrow) * blocks
    total = sum(sizes)
    assert total <= taken(sizes) <= page_locked_bytes(total) <= 1.13 * total + PIECE


def test_every_tensor_is_in_one_piece(unlocked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 4096)
    shapes = [(3, 5), (600,), (2, 2, 2), (1000,), (7,), (33, 9), (0, 4)]
    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.float64, torch.uint8] * 2
    wanted = list(zip(shapes, dtypes, strict=False))
    rooms = dict(page_locked(wanted))
    assert sorted(rooms) == list(range(len(shapes)))
    for index, room in rooms.items():
        assert (room.shape, room.dtype) == (torch.Size(shapes[index]), dtypes[index])
        room.fill_(index)
    assert all(bool((room == index).all()) for index, room in rooms.items()), "some overlap"
    assert sum(size > 4096 for size in unlocked) == 1, "only what is larger than a piece"
    bytes_asked = sum(math.prod(shape) * dtype.itemsize for shape, dtype in wanted)
    assert bytes_asked <= sum(unlocked) <= bytes_asked + 512 * len(shapes)


def test_a_piece_is_locked_when_its_first_tensor_is_asked_for(
    unlocked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that weights that move here are never there twice.
    monkeypatch.setattr(module, "PIECE", 1024)
    coming = page_locked([((1024,), torch.uint8)] * 3)
    assert unlocked == []
    for count in (1, 2, 3):
        next(coming)
        assert unlocked == [1024] * count


def test_counted_bytes_are_whole_pieces_and_a_power_of_two() -> None:
    assert page_locked_bytes(0) == 0
    assert page_locked_bytes(900) == 1024
    assert page_locked_bytes(PIECE) == 2 * PIECE
    assert page_locked_bytes(16 * PIECE) == 18 * PIECE


@pytest.mark.gpu
def test_tensors_are_page_locked_beside_an_accelerator() -> None:
    accelerator()
    for _, room in page_locked([((3, 5), torch.float32), ((7,), torch.bfloat16)]):
        assert room.is_pinned()
