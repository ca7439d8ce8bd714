"""Short ways to build small supernets in these tests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from tyr.events import silent
from tyr.model.decoder import Decoder
from tyr.processes import ALONE, Processes
from tyr.prune.criterion import Taylor
from tyr.prune.local import LocalPruner
from tyr.prune.target import SelfTarget
from tyr.sparsity import LevelGrid, uniform_allocation
from tyr.supernet.accumulation import Accumulation, ExpectationAccumulation
from tyr.supernet.builder import Report, SupernetBuilder
from tyr.supernet.settings import SupernetSettings
from tyr.supernet.store import SupernetStore

LABEL = "iteration-0"


def small_pruner() -> LocalPruner:
    """The paper's method with groups that suit 24 neurons."""
    return LocalPruner(Taylor(), SelfTarget(), ffn_group=2)


class Build:
    """One supernet: its builder, grid, accumulation and directory."""

    def __init__(
        self,
        decoder: Decoder,
        tokens: Tensor,
        directory: Path,
        *,
        pruner: LocalPruner | None = None,
        accumulation: Accumulation | None = None,
        seed: int = 0,
        fingerprint: str = "",
        processes: Processes = ALONE,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.accumulation = accumulation or ExpectationAccumulation()
        self.settings = SupernetSettings(self.accumulation, **settings)
        self.builder = SupernetBuilder(
            decoder,
            tokens,
            pruner=pruner or small_pruner(),
            seed=seed,
            settings=self.settings,
            fingerprint=fingerprint,
            processes=processes,
        )
        units = decoder.units
        self.grid: LevelGrid = self.settings.grid(uniform_allocation(0.5, units), units, 0)

    def open(self) -> SupernetStore:
        return self.builder.open_store(
            self.directory, self.grid, label=LABEL, accumulation=self.accumulation
        )

    def run(self, report: Report = silent) -> SupernetStore:
        """Build to the end (or until `report` raises)."""
        store = self.open()
        self.builder.build(
            store,
            self.grid,
            accumulation=self.accumulation,
            label=LABEL,
            report=report,
            iteration=0,
        )
        return store


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
