from __future__ import annotations

import torch

from tyr.randomness import derive_generator


def first_draws(*labels: str | int, seed: int = 0) -> list[int]:
    rng = derive_generator(seed, *labels)
    return torch.randint(1 << 30, (4,), generator=rng).tolist()


def test_the_same_seed_and_labels_draw_the_same() -> None:
    assert first_draws("search", 0, 12) == first_draws("search", 0, 12)


def test_another_seed_or_label_draws_differently() -> None:
    draws = [
        first_draws("search", 0, 12),
        first_draws("search", 0, 12, seed=1),
        first_draws("search", 1, 12),
        first_draws("search", 0, 13),
        first_draws("search"),
        first_draws(),
    ]
    assert len({tuple(numbers) for numbers in draws}) == len(draws)


def test_numbers_that_only_concatenate_alike_are_different_labels() -> None:
    assert first_draws("search", 1, 12) != first_draws("search", 11, 2)


def test_draws_are_fixed_for_all_time() -> None:
    # A run of last year must continue today: changing the derivation would change its search.
    rng = derive_generator(7, "search", 0, 12)
    assert int(torch.randint(1000, (), generator=rng)) == 764


def test_the_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first_draws("anything")
    assert torch.equal(torch.random.get_rng_state(), before)
