"""The plan of a run as records: its stages, what they consist of, and the most held at once.

Made by `tyr/planner.py`, printed by `tyr/plan_table.py`, stored as plan.json by a run. Nothing is
counted here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tyr.ceilings import Ceilings
from tyr.disk_use import DiskUse
from tyr.footprint import NOTHING, Footprint, Held, WeightBytes


@dataclass(frozen=True)
class Part:
    """A part of a stage.

    Args:
        name: e.g. Hessians, start, or stage 1 of a generation.
        times: how often it comes in a run.
        tokens: positions that it computes, of all candidates, in a whole run.
        compute: floating-point operations in compute precision, in a whole run.
        solve: floating-point operations in the precision of factorisations, in a whole run.
    """

    name: str
    times: int
    tokens: float = 0.0
    compute: float = 0.0
    solve: float = 0.0


@dataclass(frozen=True)
class StagePlan:
    """Work of one stage.

    Args:
        name: as in the clock of a run: dense, supernet, search, finish, evaluation.
        times: how often it comes.
        compute: floating-point operations in compute precision, once (the mean over all times).
        solve: floating-point operations in the precision of factorisations, once.
        disk: bytes written, once.
        held: most bytes held beside the dense weights.
        tokens: positions that it computes, once; of a search, those of all candidates.
        alone: of `compute`, what every process does for itself, or the first while others wait.
        devices: that share the rest and do not take each other's time.
        parts: what it consists of, where that is worth telling.
        memory: bytes beside the dense weights, on the device and in host memory, of one process.
    """

    name: str
    times: int
    compute: float
    solve: float = 0.0
    disk: float = 0.0
    held: Held = NOTHING
    tokens: float = 0.0
    alone: float = 0.0
    devices: int = 1
    parts: tuple[Part, ...] = ()
    memory: float = 0.0

    def seconds(self, ceilings: Ceilings) -> float:
        """Least time for all of it."""
        compute = self.alone + (self.compute - self.alone) / self.devices
        return self.times * (compute / ceilings.compute + self.solve / ceilings.solve)


@dataclass(frozen=True)
class RunPlan:
    """Work of a run.

    Args:
        stages: in order.
        weights: in compute precision.
        resident: bytes of them in memory at once, of one process.
        footprint: most memory held at once, by all processes on this machine.
        process: the same of the first process.
        processes: on this machine.
        disk: most bytes on disk at once.
        shares: distinct trie nodes per search stage, as a fraction of the candidates' nodes.
        upper: options of the search that can only lower its count of work.
    """

    stages: tuple[StagePlan, ...]
    weights: WeightBytes
    resident: float
    footprint: Footprint
    process: Footprint
    processes: int
    disk: DiskUse
    shares: tuple[float, ...]
    upper: tuple[str, ...] = ()


def as_content(plan: RunPlan, ceilings: Ceilings) -> dict[str, object]:
    """The plan as plain values, for plan.json."""
    return {
        "ceilings": asdict(ceilings),
        "model_bytes": plan.weights.total,
        "memory_bytes": plan.process.memory,  # to be compared with the process's own peak
        "process": asdict(plan.process),
        "processes": plan.processes,
        "footprint": asdict(plan.footprint),
        "disk_bytes": plan.disk.bytes,
        "disk_moment": plan.disk.moment,
        "distinct_nodes": list(plan.shares),
        "upper_bounds_for": list(plan.upper),
        "stages": [{**asdict(stage), "seconds": stage.seconds(ceilings)} for stage in plan.stages],
        "seconds": sum(stage.seconds(ceilings) for stage in plan.stages),
    }
