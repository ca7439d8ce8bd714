"""Hidden states keep their values wherever a byte budget puts them."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import tiny_decoder
from tyr.calibrate.stream import Stream
from tyr.errors import ConfigError, StoreError
from tyr.model.decoder import Decoder
from tyr.model.placement import MemorySettings, Placement
from tyr.model.states import StatePool
from tyr.search.objective import dense_reference

CPU = torch.device("cpu")
BATCH = 3 * 5 * 4 * 4  # sequences x positions x width x float32


def filled(pool: StatePool) -> list[Tensor]:
    """Four batches that were written twice, as read back."""
    states = pool.batches([3, 3, 3, 1], (5, 4), torch.float32)
    values = [torch.randn(size, 5, 4) for size in (3, 3, 3, 1)]
    for _ in range(2):
        for index, batch in enumerate(values):
            states[index] = batch + 1
    for index, batch in enumerate(values):
        states[index] = batch
    assert all(torch.equal(left, right) for left, right in zip(states, values, strict=True))
    assert len(states) == 4
    return list(states)


def test_batches_go_to_the_first_place_with_room(tmp_path: Path) -> None:
    pool = StatePool(CPU, device_bytes=BATCH, host_bytes=BATCH + BATCH // 3, folder=tmp_path)
    states = pool.batches([3, 3, 3, 1], (5, 4), torch.float32)
    assert states.tiers == ("device", "host", "file", "host")
    filled(StatePool(CPU, device_bytes=BATCH, host_bytes=BATCH, folder=tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_has_no_name_and_keeps_every_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    pool = StatePool(CPU, device_bytes=0, host_bytes=0, folder=tmp_path)
    states = pool.batches([2, 1], (700, 3), dtype)  # more than a page each
    values = [torch.randn(size, 700, 3).to(dtype) for size in (2, 1)]
    for index, batch in enumerate(values):
        states[index] = batch
    assert states.tiers == ("file", "file")
    assert list(tmp_path.iterdir()) == []
    for index in (1, 0, 1):
        assert torch.equal(states[index], values[index])


def test_budgets_are_shared_and_given_back() -> None:
    pool = StatePool(CPU, device_bytes=BATCH)
    first = pool.batches([3], (5, 4), torch.float32)
    second = pool.batches([3], (5, 4), torch.float32)
    assert (first.tiers, second.tiers) == (("device",), ("host",))
    del first
    gc.collect()
    assert pool.batches([3], (5, 4), torch.float32).tiers == ("device",)
    whole = pool.tensor((3, 5, 4), torch.float32)
    assert whole.shape == (3, 5, 4)


def test_a_batch_that_was_not_written_cannot_be_read() -> None:
    states = StatePool(CPU).batches([1], (5, 4), torch.float32)
    with pytest.raises(RuntimeError, match="read before it was written"):
        states[0]


def test_a_disk_without_room_is_an_error_that_names_the_settings(tmp_path: Path) -> None:
    pool = StatePool(CPU, device_bytes=0, host_bytes=0, folder=tmp_path / "absent")
    with pytest.raises(StoreError, match=r"hidden states in .*absent.*model\.host_state_bytes"):
        pool.batches([3], (5, 4), torch.float32)


def tight(folder: Path) -> Decoder:
    """The tiny decoder, with its states in all three places."""
    decoder = tiny_decoder()
    states = StatePool(CPU, device_bytes=5000, host_bytes=5000, folder=folder)
    return Decoder(
        decoder.model,
        decoder.tokenizer,
        architecture=decoder.architecture,
        storage_dtype=torch.float32,
        placement=Placement(states),
    )


@pytest.mark.usefixtures("no_grad")
def test_the_calibration_stream_is_the_same_wherever_its_states_live(
    decoder: Decoder, tokens: Tensor, tmp_path: Path
) -> None:
    free, bound = (Stream(d, tokens, batch_tokens=32) for d in (decoder, tight(tmp_path)))
    assert set(bound._hidden.tiers) == {"device", "host", "file"}
    for sublayer in decoder.sublayers:
        for left, right in zip(free.batches(sublayer), bound.batches(sublayer), strict=True):
            assert torch.equal(left[0], right[0])
            assert torch.equal(left[1], right[1])
        for stream in (free, bound):
            stream.advance(sublayer, 0.7 * sublayer.output_weight)


def test_the_teacher_is_the_same_wherever_its_states_live(
    decoder: Decoder, tokens: Tensor, tmp_path: Path
) -> None:
    free = dense_reference(decoder, tokens, blocks=[0, 2])
    states = StatePool(CPU, device_bytes=0, host_bytes=len(tokens) * 16 * 32 * 4, folder=tmp_path)
    bound_decoder = tight(tmp_path)
    bound_decoder._placement = Placement(states)
    bound = dense_reference(bound_decoder, tokens, blocks=[0, 2])
    rows = torch.tensor([1, 4])
    left, right = free.sample(rows, 9), bound.sample(rows, 9)
    assert torch.equal(left.final, right.final)
    for block in (0, 2):
        assert torch.equal(left.hidden[block], right.hidden[block])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offload": "gpu"}, "model.offload must be one of none, cpu, disk, got 'gpu'"),
        ({"device_state_bytes": -1}, "model.device_state_bytes must be a whole number of bytes"),
        ({"host_state_bytes": 1.5}, "model.host_state_bytes must be a whole number"),
        ({"memory_budget": "8GB"}, "model.memory_budget must be .* e.g. 8e9, .* got '8GB'"),
        ({"memory_budget": True}, "model.memory_budget"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MemorySettings(**settings)  # type: ignore[arg-type]
