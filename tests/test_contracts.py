"""What every pluggable class must keep, whoever wrote it: parametrised over the YAML files.

A new criterion, target, accumulation, objective or finish is tested as soon as its file exists.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.test_config import choices, with_choice
from tests.tiny import random_tokens
from tyr.calibrate.statistics import Statistics, collect
from tyr.calibrate.stream import Stream
from tyr.model.decoder import Decoder, PrunedDecoder
from tyr.prune.criterion import Criterion, UnitBlocks
from tyr.prune.local import LocalPruner
from tyr.prune.target import SelfTarget, Target
from tyr.randomness import derive_generator
from tyr.run import build
from tyr.search.objective import Objective, dense_reference
from tyr.sparsity import Allocation, stream_order, uniform_allocation
from tyr.supernet.accumulation import Accumulation, ExpectationAccumulation
from tyr.supernet.builder import SupernetBuilder
from tyr.supernet.finish import BuiltSupernet, Finish, Found
from tyr.supernet.settings import SupernetSettings


def blocks(units: int, size: int, *, width: int = 5) -> UnitBlocks:
    """A consistent random problem cut into units."""
    rng = torch.Generator().manual_seed(units)
    rows = units * size
    features = torch.randn(4 * rows, rows, generator=rng, dtype=torch.float64)
    weight = torch.randn(rows, width, generator=rng, dtype=torch.float64)
    hessian = features.mT @ features
    inverse = torch.linalg.inv(hessian).view(units, size, units, size)
    return UnitBlocks(
        torch.arange(units),
        weight.view(units, size, width),
        (hessian @ weight).view(units, size, width),
        torch.stack([inverse[u, :, u] for u in range(units)]),
    )


@pytest.fixture(scope="module")
def statistics(decoder: Decoder) -> Statistics:
    """Moments of the first FFN, with those of a dense stream."""
    tokens = random_tokens(6, 16)
    streams = Stream(decoder, tokens), Stream(decoder, tokens)
    with torch.no_grad():
        for stream in streams:
            stream.advance(decoder.sublayers[0], 0.9 * decoder.sublayers[0].output_weight)
        pruned, dense = (stream.batches(decoder.sublayers[1]) for stream in streams)
        return collect(pruned, dense)


@pytest.fixture
def supernet(decoder: Decoder, tokens: Tensor, tmp_path: Path) -> BuiltSupernet:
    """A supernet of the shared decoder around 50 %."""
    settings = SupernetSettings(ExpectationAccumulation(), interval=0.25, levels=3)
    builder = make_builder(decoder, tokens, settings)
    grid = settings.grid(uniform_allocation(0.5, decoder.units), decoder.units, iteration=0)
    mode = settings.accumulation
    store = builder.open_store(tmp_path / "supernet", grid, label="test", accumulation=mode)
    builder.build(store, grid, accumulation=mode, label="test")
    return BuiltSupernet(store, grid)


def make_builder(decoder: Decoder, tokens: Tensor, settings: SupernetSettings) -> SupernetBuilder:
    """A builder with the paper's pruner."""
    criterion: Criterion = build(with_choice("criterion", "taylor").pruner.criterion, "criterion")
    pruner = LocalPruner(criterion, SelfTarget(), ffn_group=4)
    return SupernetBuilder(decoder, tokens, pruner=pruner, seed=0, settings=settings)


@pytest.mark.parametrize("choice", choices("criterion"))
@pytest.mark.parametrize(("units", "size"), [(7, 1), (4, 3), (1, 2)])
def test_a_criterion_scores_every_unit_finitely_and_repeatably(
    choice: str, units: int, size: int
) -> None:
    criterion: Criterion = build(with_choice("criterion", choice).pruner.criterion, choice)
    first, second = (
        criterion.score(blocks(units, size), rng=derive_generator(0, "test")) for _ in range(2)
    )
    assert first.shape == (units,)
    assert torch.isfinite(first).all()
    assert (first >= 0).all()
    assert torch.equal(first, second)


@pytest.mark.parametrize("criterion", choices("criterion"))
@pytest.mark.parametrize("target", choices("target"))
def test_pruning_meets_every_count_and_nests(
    criterion: str, target: str, decoder: Decoder, statistics: Statistics
) -> None:
    pruner = LocalPruner(
        build(with_choice("criterion", criterion).pruner.criterion, criterion),
        build(with_choice("target", target).pruner.target, target),
        ffn_group=4,
    )
    sublayer = decoder.sublayers[1]
    counts = [0, 1, 5, 12, sublayer.num_units]
    levels = pruner.prune(
        sublayer,
        statistics,
        counts,
        storage_dtype=torch.float32,
        rng=derive_generator(0, "test"),
    )
    assert list(levels) == counts
    kept = [set(levels[count].structure.kept.tolist()) for count in counts]
    for count, units, sparser in zip(counts, kept, [*kept[1:], set()], strict=True):
        assert len(units) == sublayer.num_units - count
        assert sparser <= units
        assert levels[count].structure.weight.shape == (32, len(units))


@pytest.mark.parametrize("choice", choices("target"))
def test_a_targets_problem_is_solved_by_its_own_start(
    choice: str, decoder: Decoder, statistics: Statistics
) -> None:
    target: Target = build(with_choice("target", choice).pruner.target, choice)
    weight = decoder.sublayers[1].output_weight.mT
    problem = target.problem(statistics, weight, damping=0.01, unit_size=1, name="001.ffn")
    assert problem.num_units == len(weight)
    solved = torch.linalg.solve(problem.hessian, problem.gradient)
    start = solved if problem.weight is None else problem.weight
    torch.testing.assert_close(problem.hessian @ start, problem.gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("choice", choices("accumulation"))
def test_an_accumulation_mixes_within_the_span_of_its_structures(
    choice: str, decoder: Decoder, supernet: BuiltSupernet
) -> None:
    accumulation: Accumulation = build(
        with_choice("accumulation", choice).supernet.accumulation, choice
    )
    for sublayer in decoder.sublayers:
        structures = supernet.store.read(sublayer.id)
        first, second = (
            accumulation.mix(sublayer, structures, rng=derive_generator(0, sublayer.name))
            for _ in range(2)
        )
        assert first.shape == sublayer.output_weight.shape
        assert first.dtype == decoder.dtype
        assert torch.equal(first, second)
        assert torch.isfinite(first).all()


@pytest.mark.parametrize("choice", choices("objective"))
def test_an_objective_prefers_the_dense_model_to_a_broken_one(
    choice: str, decoder: Decoder, tokens: Tensor
) -> None:
    objective: Objective = build(with_choice("objective", choice).search.objective, choice)
    blocks_seen = objective.observed_blocks(decoder.units.num_blocks)
    text = decoder_text(decoder, tokens)
    reference = dense_reference(decoder, text, blocks=blocks_seen)
    noise = torch.randn(reference.final.shape, generator=torch.Generator().manual_seed(0))
    states = [reference.final, reference.final + noise]
    losses = objective.final_losses(states, reference, decoder.head)
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[0] < losses[1]
    for block in blocks_seen:
        hidden = reference.hidden[block]
        assert objective.path_loss(block, hidden, reference) == 0
        assert objective.path_loss(block, hidden + noise, reference) > 0


def decoder_text(decoder: Decoder, tokens: Tensor) -> Tensor:
    """Text the dense model itself finds likely: its own greedy choices after random tokens."""
    with torch.no_grad():
        logits = decoder.final_hidden(tokens) @ decoder.head.mT
    return torch.cat([tokens[:, :1], logits.argmax(dim=-1)[:, :-1]], dim=1)


@pytest.mark.parametrize("choice", choices("finish"))
def test_a_finish_gives_the_allocation_to_the_unit(
    choice: str, decoder: Decoder, tokens: Tensor, supernet: BuiltSupernet, tmp_path: Path
) -> None:
    finish: Finish = build(with_choice("finish", choice).finish, choice)
    assert finish.name == choice
    assert finish.other().name != choice
    levels = [1 if sublayer.block == 0 else -1 for sublayer in stream_order(3)]
    levels[4:] = [0, 0]
    allocation = supernet.grid.allocation(levels)
    builder = make_builder(decoder, tokens, SupernetSettings(ExpectationAccumulation()))
    read = finish.assemble(Found(builder, allocation, supernet, tmp_path / "finish"))
    removed = Allocation.from_stream(
        [s.num_units - len(read(s.id).kept) for s in decoder.sublayers]
    )
    assert removed == allocation
    with torch.no_grad():
        assert torch.isfinite(PrunedDecoder(decoder, read).final_hidden(tokens)).all()
