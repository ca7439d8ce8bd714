"""The plan of a run: what each stage will compute, hold and write, before anything runs.

Counts come from `tyr/cost.py` for the shapes and settings of this run; the distinct trie nodes of
the search are found by drawing populations with the search's own mutation. Seconds are counts over
measured ceilings (`tyr/ceilings.py`): what an idle machine could do at best, not a forecast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from transformers import PretrainedConfig

from tyr.calibrate.statistics import strip_width
from tyr.ceilings import Ceilings
from tyr.cost import Shape, greedy_flops, hessian_flops, structure_bytes
from tyr.data import SplitSizes
from tyr.footprint import (
    NOTHING,
    Footprint,
    Held,
    WeightBytes,
    activation_bytes,
    footprint,
    held_to_measure,
    logit_bytes,
    solving_bytes,
)
from tyr.model.architecture import head_size, unit_counts
from tyr.model.placement import MemorySettings
from tyr.pipeline import Method
from tyr.randomness import derive_generator
from tyr.search.mutation import Levels, mutate
from tyr.sparsity import KINDS, SublayerId, uniform_allocation

SIMULATED_POPULATIONS = 3

_IN_MEMORY = MemorySettings()
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class StagePlan:
    """Work of one stage.

    Args:
        name: as in the clock of a run: dense, supernet, search, finish, evaluation.
        times: how often it comes.
        compute: floating-point operations in compute precision, once.
        solve: floating-point operations in the precision of factorisations, once.
        disk: bytes written, once.
        held: most bytes held beside the dense weights.
    """

    name: str
    times: int
    compute: float
    solve: float = 0.0
    disk: float = 0.0
    held: Held = NOTHING

    @property
    def memory(self) -> float:
        """Bytes beside the dense weights, wherever they are."""
        return self.held.working + self.held.states

    def seconds(self, ceilings: Ceilings) -> float:
        """Least time for all of it."""
        return self.times * (self.compute / ceilings.compute + self.solve / ceilings.solve)


@dataclass(frozen=True)
class RunPlan:
    """Work of a run.

    Args:
        stages: in order.
        weights: in compute precision.
        footprint: most memory held at once.
        disk_bytes: the largest supernet and the exported model.
        shares: distinct trie nodes per search stage, as a fraction of the candidates' nodes.
    """

    stages: tuple[StagePlan, ...]
    weights: WeightBytes
    footprint: Footprint
    disk_bytes: float
    shares: tuple[float, ...]

    @property
    def memory_bytes(self) -> float:
        """Weights and the largest stage, on the device and in host memory."""
        return self.footprint.memory


def shape_of(config: PretrainedConfig) -> Shape:
    """Sizes of a transformers configuration."""
    return Shape(
        hidden=config.hidden_size,
        blocks=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=head_size(config),
        ffn=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )


class Planner:
    """Counts the stages of a run.

    Args:
        method: the parts of the method.
        config: the model's configuration.
        sizes: tokens of the splits.
        sparsity: fraction to remove.
        storage: precision of structures and export.
        compute: precision of the forward passes.
    """

    def __init__(
        self,
        method: Method,
        config: PretrainedConfig,
        sizes: SplitSizes,
        *,
        sparsity: float,
        storage: torch.dtype,
        compute: torch.dtype,
    ) -> None:
        self.method = method
        self.shape = shape_of(config)
        self.sizes = sizes
        self.kept = 1 - sparsity
        self.storage, self.compute = storage.itemsize, compute.itemsize
        units = unit_counts(config, method.supernet.attention_unit)
        uniform = uniform_allocation(sparsity, units, method.supernet.layout)
        self.grid = method.supernet.grid(uniform, units, iteration=0)

    def plan(self, memory: MemorySettings = _IN_MEMORY, device: torch.device = _CPU) -> RunPlan:
        """Every stage.

        Args:
            memory: where weights and hidden states are kept.
            device: computing device.
        """
        levels = self._levels()
        finish = self._pruning("finish", [self.kept], device)
        iterations = self.method.iterations
        stages = [self._dense(device)]
        if iterations:
            stages += [replace(self._pruning("supernet", levels, device), times=iterations)]
            stages += [replace(self._search(levels, device), times=iterations)]
        stages += [finish, self._evaluation(finish, device)]
        weights = self._weights()
        written = structure_bytes(self.shape, levels, self.storage) if iterations else 0.0
        return RunPlan(
            stages=tuple(stages),
            weights=weights,
            footprint=footprint(weights, [stage.held for stage in stages], memory, device),
            disk_bytes=written + self._exported_bytes(),
            shares=self._shares(),
        )

    def _levels(self) -> list[float]:
        """Fraction of units that each level keeps, for a sublayer at the centre of the grid."""
        sublayer = SublayerId(self.shape.blocks // 2, "ffn")
        width = self.grid.units[sublayer]
        return [1 - removed / width for removed in self.grid.levels(sublayer).values()]

    def _weights(self) -> WeightBytes:
        blocks, block = self.shape.blocks, self.shape.block_parameters
        outside = self.shape.parameters - blocks * block
        return WeightBytes(float(outside * self.compute), float(block * self.compute), blocks)

    def _dense(self, device: torch.device) -> StagePlan:
        tokens, length = self.sizes.evaluation_tokens, self.sizes.sequence_length
        flops = self.shape.forward_flops(tokens, length) + self.shape.vocabulary_flops(tokens)
        held = held_to_measure(self.shape, tokens, self.compute, device_type=device.type)
        return StagePlan("dense", 1, flops, held=held)

    def _pruning(self, name: str, levels: Sequence[float], device: torch.device) -> StagePlan:
        """One walk of the calibration stream with a greedy pass at every sublayer."""
        tokens, length = self.sizes.calibration_tokens, self.sizes.sequence_length
        settings, target = self.method.supernet, self.method.pruner.target
        streams = 2 if target.needs_dense_stream else 1
        compute = solve = 0.0
        for kind in KINDS:
            width = self.shape.inputs(kind)
            features = self.shape.feature_flops(kind, tokens, length)
            again = max(0.0, 1 - settings.feature_bytes / (tokens * width * self.compute))
            moved = features * (1 + again) + self.shape.output_flops(kind, tokens)
            hessian = hessian_flops(width, tokens, strip_width(device.type))
            compute += self.shape.blocks * (streams * moved + hessian)
            if streams == 2:
                compute += self.shape.blocks * 2.0 * tokens * width * (width + self.shape.hidden)
            solve += self.shape.blocks * greedy_flops(width, self.shape.hidden, levels)
        widest = max(self.shape.inputs(kind) for kind in KINDS)
        hidden = float(streams * tokens * self.shape.hidden * self.compute)
        working = float(streams * min(settings.feature_bytes, tokens * widest * self.compute))
        batch = min(tokens, settings.batch_tokens)
        working += activation_bytes(self.shape, batch, self.compute)
        working += solving_bytes(
            self.shape, widest, levels, storage=self.storage, corrected=streams == 2
        )
        disk = structure_bytes(self.shape, levels, self.storage)
        return StagePlan(name, 1, compute, solve, disk, Held(working, hidden))

    def _search(self, levels: Sequence[float], device: torch.device) -> StagePlan:
        """All generations of one iteration, and the teacher's states."""
        search, shape, length = self.method.search, self.shape, self.sizes.sequence_length
        one = frontier = 0.0
        for stage, share, count in zip(search.stages, self._shares(), self._counts(), strict=True):
            tokens = stage.num_tokens
            sliced = shape.forward_flops(tokens, min(length, tokens), self.kept)
            one += count * share * sliced + (count + 1) * shape.vocabulary_flops(tokens)
            # States before and after a sublayer; the copies after the final norm come later.
            frontier = max(frontier, 2 * count * tokens * shape.hidden * self.compute)
        # The teacher's states are computed once and serve every iteration.
        teacher = shape.forward_flops(self.sizes.search_tokens, length) / self.method.iterations
        observed = len(search.objective.observed_blocks(shape.blocks))
        states = float(self.sizes.search_tokens * shape.hidden * self.compute)
        largest = max(stage.num_tokens for stage in search.stages)
        working = frontier + logit_bytes(shape, largest, device.type)
        working += activation_bytes(shape, min(largest, search.batch_tokens), self.compute)
        sliced = shape.block_parameters * self.compute * max(levels)
        stored = shape.ffn * shape.hidden * self.storage * sum(levels)
        kept = min(search.structure_cache_bytes, structure_bytes(shape, levels, self.storage))
        working += sliced + stored + kept
        held = Held(working, (1 + observed) * states, walking=states)
        return StagePlan("search", 1, search.generations * one + teacher, held=held)

    def _evaluation(self, pruning: StagePlan, device: torch.device) -> StagePlan:
        """The uniform baseline is pruned, then each model is measured beside the teacher."""
        tokens, length = self.sizes.evaluation_tokens, self.sizes.sequence_length
        pair = self.shape.forward_flops(tokens, length) * (1 + self.kept)
        measured = pair + 3 * self.shape.vocabulary_flops(tokens)
        one = pruning.held
        two = held_to_measure(
            self.shape, tokens, self.compute, device_type=device.type, pruned=self.kept
        )
        held = Held(
            max(one.working, two.working),
            states=one.states,
            walking=max(0.0, two.walking - one.states),
            sliced=two.sliced,
        )
        flops = pruning.compute + 3 * measured
        return StagePlan("evaluation", 1, flops, pruning.solve, held=held)

    def _counts(self) -> list[int]:
        """Candidates that enter each stage; the parent joins the last."""
        search = self.method.search
        entering = [search.offspring, *(stage.survivors for stage in search.stages[:-1])]
        entering[-1] += 1
        return entering

    def _shares(self) -> tuple[float, ...]:
        """Distinct trie nodes over all nodes, mean over a few drawn populations."""
        bounds, search = self.grid.bounds(), self.method.search
        parent: Levels = (0,) * len(bounds)
        totals = [0.0] * len(search.stages)
        for number in range(SIMULATED_POPULATIONS):
            rng = derive_generator(0, "plan", number)
            population = [
                mutate(parent, bounds, rng, max_shifts=search.max_shifts)
                for _ in range(search.offspring)
            ]
            for index, count in enumerate(self._counts()):
                chosen = [
                    population[int(i)] for i in torch.randperm(len(population), generator=rng)
                ]
                totals[index] += distinct_share(chosen[:count]) / SIMULATED_POPULATIONS
        return tuple(totals)

    def _exported_bytes(self) -> float:
        blocks = self.shape.blocks * self.shape.block_parameters
        return (blocks * self.kept + self.shape.parameters - blocks) * self.storage


def as_content(plan: RunPlan, ceilings: Ceilings) -> dict[str, object]:
    """The plan as plain values, for plan.json."""
    return {
        "ceilings": asdict(ceilings),
        "model_bytes": plan.weights.total,
        "memory_bytes": plan.memory_bytes,
        "footprint": asdict(plan.footprint),
        "disk_bytes": plan.disk_bytes,
        "distinct_nodes": list(plan.shares),
        "stages": [{**asdict(stage), "seconds": stage.seconds(ceilings)} for stage in plan.stages],
        "seconds": sum(stage.seconds(ceilings) for stage in plan.stages),
    }


def distinct_share(candidates: Sequence[Levels]) -> float:
    """Distinct prefixes of the level vectors, over the sublayers of all of them."""
    prefixes = {levels[: end + 1] for levels in candidates for end in range(len(levels))}
    return len(prefixes) / sum(len(levels) for levels in candidates)
