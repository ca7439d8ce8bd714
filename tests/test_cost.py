"""Counted against what torch counts while it computes, and against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from tests.tiny import random_tokens, tiny_decoder
from tyr.calibrate.statistics import Statistics, gram
from tyr.ceilings import measure_ceilings
from tyr.cost import Shape, greedy_flops, hessian_flops, inverse_flops
from tyr.data import SplitSizes
from tyr.disk_use import supernet_bytes
from tyr.export.checkpoint import NoExport
from tyr.model.sublayer import AttentionUnit, Structure
from tyr.pipeline import Method
from tyr.planner import Planner, shape_of
from tyr.prune.criterion import Magnitude, Taylor
from tyr.prune.local import LocalPruner
from tyr.prune.progressive import prune_progressively
from tyr.prune.target import CorrectedTarget, SelfTarget, Target
from tyr.search.evolution import EvolutionarySearch
from tyr.search.objective import KdLogits
from tyr.supernet.accumulation import ExpectationAccumulation
from tyr.supernet.finish import Repruned
from tyr.supernet.settings import SupernetSettings

LLAMA_8B = Shape(4096, 32, 32, 8, 128, 14336, 128256)


def test_parameters_are_those_of_the_model() -> None:
    decoder = tiny_decoder()
    matrices = sum(p.numel() for p in decoder.model.parameters() if p.dim() == 2)
    assert shape_of(decoder.config).parameters == matrices
    assert LLAMA_8B.parameters == pytest.approx(8.03e9, rel=1e-3)


def test_a_forward_pass_multiplies_as_often_as_torch_counts() -> None:
    decoder, tokens = tiny_decoder(), random_tokens(3, 16)
    shape = shape_of(decoder.config)
    with FlopCounterMode(display=False) as counter:
        decoder.final_hidden(tokens)
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if "attention" not in str(op))
    scores = 2.0 * 48 * 16 * shape.inputs("attn") * shape.blocks  # half of what is not causal
    assert shape.forward_flops(48, 16) == products + scores


@pytest.mark.parametrize(
    ("unit", "kept"),
    [("head", [0, 2]), ("head", [0, 1, 3]), ("head", [1]), ("kv_group", [1])],
    ids=["grouped", "uneven", "one head", "whole group"],
)
def test_a_pruned_attention_multiplies_as_often_as_torch_counts(
    unit: AttentionUnit, kept: list[int]
) -> None:
    decoder = tiny_decoder(attention_unit=unit)
    attention = decoder.sublayers[0]
    rows = attention.rows(torch.tensor(kept))
    weight = attention.output_weight[:, rows]
    sliced = attention.slice(Structure(torch.tensor(kept), weight))
    hidden = decoder.embed(random_tokens(3, 16))
    context = decoder.context(16)
    with FlopCounterMode(display=False) as counter:
        attention.branch(hidden, context, sliced)
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if "attention" not in str(op))
    shape = shape_of(decoder.config, unit)
    scores = 2.0 * 48 * 16 * len(rows)
    share = len(kept) / attention.num_units
    assert shape.sublayer_flops("attn", 48, 16, share) == products + scores


@pytest.mark.parametrize("width", [100, 448, 1000])
def test_a_hessian_multiplies_as_often_as_torch_counts(width: int) -> None:
    with FlopCounterMode(display=False) as counter:
        gram(torch.ones(8, width))
    assert hessian_flops(width, 8, strip=448) == counter.get_total_flops()
    assert hessian_flops(width, 8, strip=448) <= 2 * 8 * width**2


@pytest.mark.parametrize("carries", [True, False])
def test_a_pass_to_more_levels_costs_less_than_a_pass_each(carries: bool) -> None:
    levels = [1.0, 0.75, 0.5, 0.25]
    together = greedy_flops(512, 128, levels, carries=carries)
    assert together < sum(greedy_flops(512, 128, [kept], carries=carries) for kept in levels)
    if carries:  # the levels lie on the way
        assert greedy_flops(512, 128, [0.25], carries=True) == together
    else:
        assert greedy_flops(512, 128, [0.25], carries=False) < together


def products_of(total: list[int], left: list[int], right: list[int], **_: object) -> int:
    """Operations of total += left @ right, from the shapes."""
    return 2 * math.prod(left) * right[-1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("target", [SelfTarget(), CorrectedTarget()])
@pytest.mark.parametrize("size", [1, 32])
def test_a_pass_multiplies_about_as_often_as_torch_counts(
    size: int, target: Target, dtype: torch.dtype
) -> None:
    # Torch counts no factorisations and substitutions; they are taken off. The formula leaves out
    # that the rows of a group are brought up to date with those that wait, and that the last ones
    # wait for ever.
    width, outputs = 768, 128
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1024, width, generator=generator, dtype=dtype)
    hessian = features.mT @ features
    weight = torch.randn(width, outputs, generator=generator, dtype=dtype)
    moments = Statistics(hessian, hessian.clone(), torch.zeros_like(weight), 1024)
    in_place = {torch.ops.aten.addmm_: products_of, torch.ops.aten.baddbmm_: products_of}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        problem = target.problem(moments, weight, damping=0.01, unit_size=size, name="s")
        prune_progressively(
            problem,
            [0, width // size // 2, width // size],
            criterion=Magnitude(),
            group_size=32 // size,
            rng=generator,
        )
    levels, corrected = [1.0, 0.5, 0.0], target.needs_dense_stream
    products = greedy_flops(width, outputs, levels, carries=True, corrected=corrected)
    products -= inverse_flops(width)
    assert counter.get_total_flops() == pytest.approx(products, rel=0.2)


def test_levels_that_are_solved_at_the_end_cost_their_solves() -> None:
    width, outputs, levels = 512, 128, [1.0, 0.5, 0.25]
    carried, solved = (greedy_flops(width, outputs, levels, carries=c) for c in (True, False))
    nested = 256**3 / 3 + 256**2 * outputs  # a factor, and L⁻¹G of the largest level
    assert solved - carried == pytest.approx(nested + (256**2 + 128**2) * outputs)


def planner(
    target: Target,
    config: LlamaConfig,
    sizes: SplitSizes,
    search: EvolutionarySearch | None = None,
) -> Planner:
    """The paper's settings (A.3)."""
    method = Method(
        iterations=4,
        seed=0,
        pruner=LocalPruner(Taylor(), target),
        supernet=SupernetSettings(ExpectationAccumulation()),
        search=search or EvolutionarySearch(KdLogits()),
        finish=Repruned(),
        exporter=NoExport(),
    )
    dtype = torch.bfloat16
    return Planner(method, config, sizes, sparsity=0.5, storage=dtype, compute=dtype)


def test_structures_kept_on_the_device_are_planned_for() -> None:
    config = LlamaConfig()
    sizes = SplitSizes(4096, 1 << 20, 131072, 286720)

    def made(most: float) -> Planner:
        search = EvolutionarySearch(KdLogits(), structure_cache_bytes=most)
        return planner(SelfTarget(), config, sizes, search)

    def held(most: float) -> float:
        stages = made(most).plan().stages
        return next(stage.memory for stage in stages if stage.name == "search")

    supernet = max(supernet_bytes(shape_of(config), grid, 2) for grid in made(0).grids)
    assert held(1e9) == held(0) + 1e9
    assert held(1e15) == held(0) + supernet  # no more than there is


def test_an_accelerator_has_wider_strips_of_the_hessian_planned_for() -> None:
    plan = planner(SelfTarget(), LlamaConfig(), SplitSizes(4096, 1 << 20, 131072, 286720))
    stages = [plan.plan(device=torch.device(name)).stages for name in ("cpu", "cuda")]
    on_cpu, elsewhere = (next(s.compute for s in part if s.name == "supernet") for part in stages)
    assert on_cpu < elsewhere < 1.1 * on_cpu


@pytest.mark.parametrize("target", [SelfTarget(), CorrectedTarget()])
def test_the_parts_of_a_stage_are_all_of_it(target: Target) -> None:
    plan = planner(target, LlamaConfig(), SplitSizes(4096, 1 << 20, 131072, 286720)).plan()
    divided = [stage for stage in plan.stages if stage.parts]
    assert [stage.name for stage in divided] == ["supernet", "search", "finish"]
    for stage in divided:
        compute = sum(part.compute for part in stage.parts)
        assert compute == pytest.approx(stage.times * stage.compute)
        assert sum(part.solve for part in stage.parts) == pytest.approx(stage.times * stage.solve)


def test_pruning_consists_of_a_walk_and_the_moments_of_its_features() -> None:
    config, tokens = LlamaConfig(), 1 << 20
    shape = shape_of(config)
    plan = planner(SelfTarget(), config, SplitSizes(4096, tokens, 131072, 286720)).plan()
    supernet = next(stage for stage in plan.stages if stage.name == "supernet")
    parts = {part.name: part for part in supernet.parts}
    walk = 4 * shape.forward_flops(tokens, 4096)
    assert walk < parts["forward"].compute < 2 * walk, "features that do not fit are made twice"
    widths = [config.hidden_size, config.intermediate_size]
    moments = 4 * config.num_hidden_layers * sum(hessian_flops(w, tokens, 448) for w in widths)
    assert parts["Hessians"].compute == pytest.approx(moments)
    inverses = 4 * config.num_hidden_layers * sum(w**3 for w in widths)
    assert parts["inverses"].solve == pytest.approx(inverses)
    assert parts["greedy steps"].solve > inverses
    assert {part.times for part in parts.values()} == {4}


def test_measuring_a_model_is_its_forward_with_logits_beside_the_dense_ones() -> None:
    config, tokens = LlamaConfig(), 286720
    shape = shape_of(config)
    made = planner(SelfTarget(), config, SplitSizes(4096, 1 << 20, 131072, tokens))
    stages = {stage.name: stage for stage in made.plan().stages}
    forward, logits = shape.forward_flops(tokens, 4096), shape.vocabulary_flops(tokens)
    assert stages["dense"].compute == forward + logits
    # Uniform, tyr and what the other way to finish gives: each half as much as the dense model
    # beside it; two sets of logits for KL and one for perplexity.
    models = 3 * (forward + made.kept * forward + 3 * logits)
    assert made.kept == pytest.approx(0.5, abs=0.01)
    pruned = stages["finish"].compute  # the uniform baseline, along one path as the finish
    assert stages["evaluation"].compute == pytest.approx(models + pruned)
    assert stages["evaluation"].alone == pytest.approx(models)


def test_a_corrected_target_has_the_moments_of_both_streams() -> None:
    config, tokens = LlamaConfig(), 1 << 20
    sizes = SplitSizes(4096, tokens, 131072, 286720)
    found = []
    for target in (SelfTarget(), CorrectedTarget()):
        stages = planner(target, config, sizes).plan().stages
        parts = next(stage.parts for stage in stages if stage.name == "supernet")
        found.append(next(part.compute for part in parts if part.name == "Hessians"))
    widths, outputs = [config.hidden_size, config.intermediate_size], config.hidden_size
    crossed = sum(2 * tokens * width * (width + outputs) for width in widths)
    assert found[1] - found[0] == pytest.approx(4 * config.num_hidden_layers * crossed)


def test_the_plan_of_an_8b_model_has_the_known_magnitudes() -> None:
    """Worked out by hand: 59 PFLOP of forward, 55 of FFN Hessians before symmetry, 19 per dense
    generation, about 10 with slicing and sharing."""
    tokens = 4194304
    assert LLAMA_8B.forward_flops(tokens, 4096) == pytest.approx(59e15, rel=0.1)
    whole = 32 * hessian_flops(14336, tokens, strip=14336)
    assert whole == pytest.approx(55e15, rel=0.02)
    assert hessian_flops(14336, tokens, 448) == pytest.approx(whole / 32 / 2, rel=0.04)
    config = LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
        max_position_embeddings=131072,
    )
    plan = planner(SelfTarget(), config, SplitSizes(4096, tokens, 131072, 286720)).plan()
    stages = {stage.name: stage for stage in plan.stages}
    assert [stage.name for stage in plan.stages] == [
        *("dense", "supernet", "search", "finish", "evaluation")
    ]
    assert stages["search"].compute / 50 == pytest.approx(10e15, rel=0.2)
    assert all(0.5 < share < 1 for share in plan.shares)
    assert stages["supernet"].times == stages["search"].times == 4
    corrected = planner(CorrectedTarget(), config, SplitSizes(4096, tokens, 131072, 286720)).plan()
    both = {stage.name: stage for stage in corrected.stages}
    assert both["supernet"].compute > 1.5 * stages["supernet"].compute
    assert both["search"].compute == stages["search"].compute


def test_ceilings_are_positive_rates_of_this_machine() -> None:
    ceilings = measure_ceilings(torch.device("cpu"), torch.float32)
    assert min(ceilings.compute, ceilings.solve) > 1e8
    assert ceilings.bandwidth > 1e7
