"""The plan of a run: what each stage will compute, hold and write, before anything runs.

Counts come from `tyr/cost.py`, `tyr/holding.py`, `tyr/disk_use.py` and `tyr/search/counts.py` for
the shapes and settings of this run; grids are those around the uniform allocation, as nobody knows
where a search will go. Seconds are counts over measured ceilings (`tyr/ceilings.py`): what an idle
machine could do at best, not a forecast. Tasks and latency of an evaluator are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from transformers import PretrainedConfig

from tyr.calibrate.statistics import strip_width
from tyr.cost import Shape, greedy_flops, hessian_flops, inverse_flops
from tyr.data import SplitSizes
from tyr.disk_use import DiskUse, most_on_disk, supernet_bytes
from tyr.export.checkpoint import NoExport
from tyr.footprint import NOTHING, WeightBytes, footprint, placed
from tyr.holding import (
    Workload,
    also_working,
    beside,
    held_to_measure,
    held_to_prune,
    held_to_search,
    larger,
)
from tyr.linalg import solve_dtype
from tyr.model.architecture import head_size, unit_counts
from tyr.model.placement import MemorySettings
from tyr.pipeline import Method
from tyr.prune.progressive import carries_weights
from tyr.run_plan import Part, RunPlan, StagePlan
from tyr.search.counts import SearchCounts, count_search
from tyr.search_plan import TEACHER, search_parts
from tyr.sparsity import KINDS, LevelGrid, SublayerId, uniform_allocation
from tyr.supernet.finish import single_level_grid
from tyr.trainer import Machines

_IN_MEMORY = MemorySettings()
_CPU = torch.device("cpu")
_ALONE = Machines(devices=1, num_nodes=1, started=True)


def shape_of(config: PretrainedConfig, attention_unit: str = "head") -> Shape:
    """Sizes of a transformers configuration, and how its attention is pruned."""
    return Shape(
        hidden=config.hidden_size,
        blocks=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=head_size(config),
        ffn=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        whole_groups=attention_unit == "kv_group",
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
        baseline: whether the uniform allocation is pruned and measured too.
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
        baseline: bool = True,
    ) -> None:
        self._baseline = baseline
        self.method = method
        self.shape = shape_of(config, method.supernet.attention_unit)
        self.sizes = sizes
        self.kept = 1 - sparsity
        self.storage, self.compute = storage.itemsize, compute.itemsize
        units = unit_counts(config, method.supernet.attention_unit)
        uniform = uniform_allocation(sparsity, units, method.supernet.layout)
        self.single = single_level_grid(units, uniform)
        # Without a generation nothing moves, and only the last iteration builds its supernet.
        first = 0 if method.search.generations else max(0, method.iterations - 1)
        self.grids = [
            method.supernet.grid(uniform, units, iteration)
            for iteration in range(first, method.iterations)
        ]

    def plan(
        self,
        memory: MemorySettings = _IN_MEMORY,
        device: torch.device = _CPU,
        machines: Machines = _ALONE,
    ) -> RunPlan:
        """Every stage.

        Args:
            memory: where weights and hidden states are kept.
            device: computing device.
            machines: processes that share the work.
        """
        load = Workload(
            self.shape, self.sizes, self.storage, self.compute, device.type, machines.size
        )
        weights, local = self._weights(), machines.devices
        resident = placed(weights, NOTHING, memory, device).memory
        # Processes on one CPU share its cores; every accelerator has its own.
        devices = machines.num_nodes if device.type == "cpu" else machines.size
        stages = [
            replace(
                stage,
                devices=devices,
                memory=placed(weights, stage.held, memory, device).memory - resident,
            )
            for stage in self._stages(load)
        ]
        held = [stage.held for stage in stages]
        files = {
            stage.name: placed(weights, stage.held, memory, device, processes=local).file
            for stage in stages
        }
        return RunPlan(
            stages=tuple(stages),
            weights=weights,
            resident=resident,
            footprint=footprint(weights, held, memory, device, processes=local),
            process=footprint(weights, held, memory, device),
            processes=local,
            disk=self._disk(files),
            shares=tuple(call.share for call in self.searches[0].stages) if self.searches else (),
            upper=self._upper(),
        )

    @cached_property
    def searches(self) -> list[SearchCounts]:
        """What each iteration's search evaluates."""
        search, counted = self.method.search, dict[tuple[tuple[int, int], ...], SearchCounts]()
        for bounds in (grid.bounds() for grid in self.grids):
            if bounds not in counted:
                counted[bounds] = count_search(search, bounds, self.sizes)
        return [counted[grid.bounds()] for grid in self.grids]

    def _stages(self, load: Workload) -> list[StagePlan]:
        """In order, with the teacher's states, once they are there, in all that follow."""
        once = self._pruning("finish", [self.single], load)
        finish = once if self._reprunes() else StagePlan("finish", 1, 0.0)
        stages, teacher = [self._dense(load)], 0.0
        if self.grids:
            supernet = self._pruning("supernet", self.grids, load)
            if self.method.search.generations:
                teacher = (1 + self._observed()) * load.search_states
            again = teacher if len(self.grids) > 1 else 0.0
            stages += [replace(supernet, held=beside(supernet.held, again))]
            stages += [self._search(load)] if teacher else []
        last = (finish, self._evaluation(once, load))
        return [*stages, *(replace(stage, held=beside(stage.held, teacher)) for stage in last)]

    def _kept(self, grid: LevelGrid) -> list[float]:
        """Fraction of units that each level keeps, for a sublayer at the centre of the grid."""
        sublayer = SublayerId(self.shape.blocks // 2, "ffn")
        width = grid.units[sublayer]
        return [1 - removed / width for removed in grid.levels(sublayer).values()]

    def _weights(self) -> WeightBytes:
        blocks, block = self.shape.blocks, self.shape.block_parameters
        outside = self.shape.parameters - blocks * block
        return WeightBytes(float(outside * self.compute), float(block * self.compute), blocks)

    def _observed(self) -> int:
        return len(self.method.search.objective.observed_blocks(self.shape.blocks))

    def _dense(self, load: Workload) -> StagePlan:
        tokens, length = self.sizes.evaluation_tokens, self.sizes.sequence_length
        flops = self.shape.forward_flops(tokens, length) + self.shape.vocabulary_flops(tokens)
        held = held_to_measure(load)
        return StagePlan("dense", 1, flops, held=held, tokens=tokens, alone=flops)

    def _pruning(self, name: str, grids: Sequence[LevelGrid], load: Workload) -> StagePlan:
        """Walks of the calibration stream with a greedy pass at every sublayer, one per grid."""
        tokens, length = self.sizes.calibration_tokens, self.sizes.sequence_length
        settings, corrected = self.method.supernet, self.method.pruner.target.needs_dense_stream
        streams = 2 if corrected else 1
        positions = streams * tokens
        carries = carries_weights(solve_dtype(torch.device(load.device_type)))
        levels = [self._kept(grid) for grid in grids]
        forward = hessians = inverses = solve = 0.0
        for kind in KINDS:
            width = self.shape.inputs(kind)
            features = self.shape.feature_flops(kind, tokens, length)
            again = max(0.0, 1 - settings.feature_bytes / (tokens * width * self.compute))
            moved = features * (1 + again) + self.shape.output_flops(kind, tokens)
            outputs = self.shape.hidden
            moments = hessian_flops(width, tokens, strip_width(load.device_type))
            if corrected:
                moments += 2.0 * tokens * width * (width + outputs)
            forward += self.shape.blocks * streams * moved
            hessians += self.shape.blocks * moments
            inverses += self.shape.blocks * inverse_flops(width)
            solves = [
                greedy_flops(width, outputs, kept, carries=carries, corrected=corrected)
                for kept in levels
            ]
            solve += self.shape.blocks * sum(solves) / len(grids)
        most = max(levels, key=sum)
        held = held_to_prune(load, settings, most, corrected=corrected)
        disk = max(supernet_bytes(self.shape, grid, self.storage) for grid in grids)
        times = len(grids)
        parts = (
            Part("forward", times, times * positions, times * forward),
            Part("Hessians", times, times * positions, times * hessians),
            Part("inverses", times, solve=times * inverses),
            Part("greedy steps", times, solve=times * (solve - inverses)),
        )
        compute = forward + hessians
        return StagePlan(name, times, compute, solve, disk, held, positions, parts=parts)

    def _search(self, load: Workload) -> StagePlan:
        """All generations, and the teacher's states."""
        counts, iterations = self.searches, len(self.grids)
        parts = search_parts(self.shape, counts, self.sizes, kept=self.kept)
        search = self.method.search
        held = held_to_search(
            load,
            [call for count in counts for call in count.calls],
            max((self._kept(grid) for grid in self.grids), key=sum),
            batch_tokens=search.batch_tokens,
            observed=self._observed(),
            by_sequence=search.objective.averages_sequences,
        )
        supernets = [supernet_bytes(self.shape, grid, self.storage) for grid in self.grids]
        held = also_working(held, min(search.structure_cache_bytes, max(supernets)))
        return StagePlan(
            "search",
            iterations,
            sum(part.compute for part in parts) / iterations,
            held=held,
            tokens=sum(count.evaluated_tokens for count in counts) / iterations,
            alone=sum(p.compute for p in parts if p.name == TEACHER) / iterations,
            parts=tuple(parts),
        )

    def _evaluation(self, pruning: StagePlan, load: Workload) -> StagePlan:
        """The baselines are pruned, then each model is measured beside the teacher."""
        tokens, length = self.sizes.evaluation_tokens, self.sizes.sequence_length
        models = 1 + self._baseline + self._compares()
        prunings = self._single_level_stores() - self._reprunes()
        pair = self.shape.forward_flops(tokens, length) * (1 + self.kept)
        measured = models * (pair + 3 * self.shape.vocabulary_flops(tokens))
        return StagePlan(
            "evaluation",
            1,
            prunings * pruning.compute + measured,
            prunings * pruning.solve,
            prunings * pruning.disk,
            larger(pruning.held, held_to_measure(load, pruned=self.kept)),
            prunings * pruning.tokens + 2.0 * models * tokens,
            alone=measured,
        )

    def _compares(self) -> bool:
        """Whether the other way to finish is measured too."""
        return self.method.finish.compare and self.method.iterations > 0

    def _reprunes(self) -> bool:
        return self.method.finish.prunes

    def _single_level_stores(self) -> int:
        """Walks with one level: the uniform baseline's, and that of a way to finish."""
        return self._baseline + (self._reprunes() or self._compares())

    def _disk(self, files: dict[str, float]) -> DiskUse:
        export = not isinstance(self.method.exporter, NoExport)
        return most_on_disk(
            [supernet_bytes(self.shape, grid, self.storage) for grid in self.grids],
            supernet_bytes(self.shape, self.single, self.storage),
            prunings=self._single_level_stores(),
            keep=self.method.supernet.keep,
            exported=self._exported_bytes() if export else 0.0,
            states=files,
        )

    def _upper(self) -> tuple[str, ...]:
        """Options that let a search do less than was counted, which nobody knows before."""
        economy = self.method.search.economy
        options = {"racing": economy.racing.races, "archive": economy.archive.keeps}
        return tuple(name for name, chosen in options.items() if chosen and self.grids)

    def _exported_bytes(self) -> float:
        blocks = self.shape.blocks * self.shape.block_parameters
        return (blocks * self.kept + self.shape.parameters - blocks) * self.storage
