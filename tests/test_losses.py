from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.tiny import random_matrix, random_tokens
from tests.tolerance import FLOAT32, assert_close
from tyr import losses
from tyr.losses import kl_divergences, next_token_losses, position_chunks

VOCABULARY, WIDTH = 64, 16


def states(sequences: int = 3, length: int = 5, *, seed: int = 0) -> Tensor:
    return random_matrix(sequences, length, WIDTH, seed=seed).float()


HEAD = random_matrix(VOCABULARY, WIDTH, seed=99).float()


def full_softmax_kl(teacher: Tensor, student: Tensor, head: Tensor) -> float:
    """The definition, in float64, with every logit of every position at once."""
    log_p, log_q = (
        functional.log_softmax(hidden.double() @ head.double().mT, dim=-1).flatten(0, 1)
        for hidden in (teacher, student)
    )
    return float(functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))


def test_kl_is_that_of_the_full_softmax() -> None:
    teacher = states()
    students = [states(seed=seed) for seed in (1, 2, 3)]
    expected = [full_softmax_kl(teacher, student, HEAD) for student in students]
    actual = kl_divergences(teacher, students, HEAD)
    assert_close(actual, expected, tolerance=FLOAT32, reason="float32 logits")


@pytest.mark.parametrize("noise", [1e-2, 1e-3])
def test_a_small_kl_is_still_accurate(noise: float) -> None:
    teacher = states(16, 16)
    student = teacher + noise * states(16, 16, seed=1)
    expected = full_softmax_kl(teacher, student, HEAD)
    actual = kl_divergences(teacher, [student], HEAD)[0]
    assert abs(actual - expected) < 1e-7


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_chunks_cover_every_position_once(device: str) -> None:
    for positions, vocabulary in ((5, 64), (131072, 128256), (3000, 1 << 28)):
        chunks = list(position_chunks(positions, vocabulary, torch.device(device)))
        assert [i for c in chunks for i in range(*c.indices(positions))] == list(range(positions))


def test_an_accelerator_gets_whole_tiles_of_positions() -> None:
    first = next(position_chunks(131072, 128256, torch.device("cuda")))
    assert first == slice(0, 1024)


def test_logits_are_not_rounded_where_a_device_can_return_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher, student = (states(seed=seed).bfloat16() for seed in (0, 1))
    rounded = kl_divergences(teacher, [student], HEAD.bfloat16())[0]
    monkeypatch.setattr(losses, "widens_products", lambda device, dtype: True)
    kl = kl_divergences(teacher, [student], HEAD.bfloat16())[0]
    expected = full_softmax_kl(teacher, student, HEAD.bfloat16())
    assert_close(kl, expected, tolerance=FLOAT32, reason="float32 logits")
    assert abs(rounded - expected) > abs(kl - expected)


def test_kl_of_the_teacher_itself_is_nothing() -> None:
    teacher = states(16, 16)
    assert abs(kl_divergences(teacher, [teacher.clone()], HEAD)[0]) < 1e-7


def test_next_token_loss_is_cross_entropy_of_the_following_token() -> None:
    tokens, hidden = random_tokens(3, 5), states()
    logits = (hidden.double() @ HEAD.double().mT)[:, :-1].flatten(0, 1)
    expected = float(functional.cross_entropy(logits, tokens[:, 1:].flatten()))
    actual = next_token_losses(tokens, [hidden, hidden + 1], HEAD)
    assert_close(actual[0], expected, tolerance=FLOAT32, reason="float32 logits")
    assert actual[1] != actual[0]


@pytest.mark.parametrize("width", [1, 2, 7, 15, 1000])
def test_losses_do_not_depend_on_the_chunk(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student, tokens = states(), states(seed=1), random_tokens(3, 5)
    kl = kl_divergences(teacher, [student], HEAD)
    loss = next_token_losses(tokens, [student], HEAD)

    def chunks(num_positions: int, vocabulary: int, device: torch.device) -> list[slice]:
        return [slice(start, start + width) for start in range(0, num_positions, width)]

    monkeypatch.setattr(losses, "position_chunks", chunks)
    reason = "float32 logits; a chunk may take another matrix kernel"
    assert_close(kl_divergences(teacher, [student], HEAD), kl, tolerance=1e-6, reason=reason)
    assert_close(next_token_losses(tokens, [student], HEAD), loss, tolerance=1e-6, reason=reason)


@given(st.integers(1, 5000), st.integers(1, 3_000_000))
def test_chunks_cover_every_position_once_and_stay_small(positions: int, vocabulary: int) -> None:
    chunks = list(position_chunks(positions, vocabulary, torch.device("cpu")))
    covered = [place for chunk in chunks for place in range(*chunk.indices(positions))]
    assert covered == list(range(positions))
    widest = max(chunk.stop - chunk.start for chunk in chunks)
    assert widest == 1 or widest * vocabulary <= 1 << 21


def test_no_tensor_spans_all_positions_and_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def log_softmax(logits: Tensor, dim: int) -> Tensor:
        shapes.append(tuple(logits.shape))
        return functional.log_softmax(logits, dim=dim)

    monkeypatch.setattr(torch, "log_softmax", log_softmax)
    wide_head = random_matrix(1 << 18, WIDTH).float()
    kl_divergences(states(), [states(seed=1)], wide_head)
    assert len(shapes) == 2 * 2, "two chunks of teacher and student"
    assert max(rows for rows, _ in shapes) == 8


def test_bfloat16_states_are_reduced_in_float32() -> None:
    teacher, student = states(16, 16).bfloat16(), states(16, 16, seed=1).bfloat16()
    head = HEAD.bfloat16()
    logits = [(hidden @ head.mT).float() for hidden in (teacher, student)]
    log_p, log_q = (functional.log_softmax(z.double(), dim=-1).flatten(0, 1) for z in logits)
    expected = float(functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))
    actual = kl_divergences(teacher, [student], head)[0]
    assert_close(actual, expected, tolerance=FLOAT32, reason="float32 reduction of bf16 logits")
