"""Prune-to-supernet (Algorithm 2): one walk of the calibration stream, every sublayer in order.

At each sublayer: read its features, solve all levels in one greedy pass, store them, and move the
stream on with the mixed weight of Eq. 7 — attention before the FFN statistics of the same block are
taken. A sublayer that the store already holds is not solved again, only passed, so an interrupted
build continues where it stopped and ends with the same bytes: the mixed weight is always formed
from structures as stored, rounded to storage precision. Files are written behind.

Several processes share the calibration sequences. Statistics are summed over all; the first process
alone solves, stores and mixes, and sends the mixed weight to the others. One greedy pass gives all
levels and cannot be divided; only their final solves could, a fraction of what is under one percent
of the FLOPs at the paper's size, at the price of sending structures about.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tyr.calibrate.statistics import Statistics, add_up, collect
from tyr.calibrate.stream import Stream
from tyr.errors import StoreError
from tyr.events import SublayerPruned, silent
from tyr.memory import freed_memory_kept
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Structure, Sublayer
from tyr.precision import matmul_precision
from tyr.processes import ALONE, Processes
from tyr.prune.local import LocalPruner
from tyr.randomness import derive_generator
from tyr.sparsity import LevelGrid, UnitCounts
from tyr.supernet.accumulation import Accumulation
from tyr.supernet.attached import AttachedStore
from tyr.supernet.settings import SupernetSettings
from tyr.supernet.store import SupernetStore
from tyr.supernet.write_behind import WriteBehind

Report = Callable[[SublayerPruned], None]

# Batches per process from which one batch more or less is no burden.
EVEN = 8


@dataclass(frozen=True)
class _Walk:
    """One build: where structures go, and what decides them."""

    store: SupernetStore
    writer: WriteBehind
    grid: LevelGrid
    accumulation: Accumulation
    label: str


class SupernetBuilder:
    """Builds supernets of one model from one calibration text.

    Args:
        decoder: the dense model.
        tokens: (N, T), calibration sequences.
        pruner: local pruning.
        seed: of the run.
        settings: batch sizes.
        fingerprint: of the calibration text, recorded beside the structures.
        processes: who share the work.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokens: Tensor,
        *,
        pruner: LocalPruner,
        seed: int,
        settings: SupernetSettings,
        fingerprint: str = "",
        processes: Processes = ALONE,
    ) -> None:
        self._decoder = decoder
        self._fingerprint = fingerprint
        self._processes = processes
        self._tokens = shard(tokens, settings.batch_tokens, processes)
        self._pruner = pruner
        self._seed = seed
        self._settings = settings

    @property
    def units(self) -> UnitCounts:
        """Prunable units of the model."""
        return self._decoder.units

    def open_store(
        self, directory: Path, grid: LevelGrid, *, label: str, accumulation: Accumulation
    ) -> SupernetStore:
        """The store of a build, after a check of its files and of the disk's free space.

        Only the first process's can be written.

        Its header holds all that the structures depend on, so those of another model, text or
        setting are never taken for these.

        Raises:
            StoreError: the structures still missing would not fit on the disk.
        """
        header = {
            "grid": grid.as_dict(),
            "label": label,
            "seed": self._seed,
            "model": self._decoder.fingerprint,
            "pruner": as_record(self._pruner),
            "accumulation": as_record(accumulation),
            "dtype": str(self._decoder.storage_dtype),
            "matmul_precision": self._settings.matmul_precision,
            "attention_unit": self._decoder.attention_unit,
            "calibration": self._fingerprint,
        }

        def opened() -> SupernetStore:
            store = SupernetStore(directory, header)
            store.forget_damaged()
            needed = supernet_bytes(self._decoder, grid) - store.bytes_on_disk
            check_disk(needed, directory)
            return store

        return self._processes.alone(opened) or AttachedStore(directory, header)

    @torch.no_grad()
    def build(
        self,
        store: SupernetStore,
        grid: LevelGrid,
        *,
        accumulation: Accumulation,
        label: str,
        report: Report = silent,
        iteration: int | None = None,
    ) -> None:
        """Fill the store with every level of every sublayer.

        Args:
            store: where to; sublayers it holds are kept. Complete and on disk when this returns.
            grid: levels.
            accumulation: what the stream moves on with.
            label: names the randomness of this build.
            report: called after each sublayer, in the first process.
            iteration: for the report.
        """
        sublayers, processes = self._decoder.sublayers, self._processes
        stored = processes.broadcast(lambda: [sublayer.id in store for sublayer in sublayers])
        if all(stored):
            return
        with (
            freed_memory_kept(),
            matmul_precision(self._settings.matmul_precision),
            WriteBehind(store) as writer,
        ):
            walk = _Walk(store, writer, grid, accumulation, label)
            pruned = self._stream()
            dense = self._stream() if self._pruner.target.needs_dense_stream else None
            for sublayer, resumed in zip(sublayers, stored, strict=True):
                started = time.perf_counter()
                statistics = None if resumed else self._statistics(sublayer, pruned, dense)
                weight, errors = self._passing_weight(sublayer, statistics, walk)
                pruned.advance(sublayer, weight)
                if dense is not None:
                    dense.advance(sublayer, sublayer.output_weight)
                if processes.first:
                    seconds = time.perf_counter() - started
                    report(SublayerPruned(sublayer.id, seconds, errors, iteration, resumed))
        processes.barrier()

    def _stream(self) -> Stream:
        return Stream(
            self._decoder,
            self._tokens,
            batch_tokens=self._settings.batch_tokens,
            feature_bytes=self._settings.feature_bytes,
        )

    def _statistics(self, sublayer: Sublayer, pruned: Stream, dense: Stream | None) -> Statistics:
        """Moments over the calibration sequences of all processes."""
        others = dense.batches(sublayer) if dense is not None else None
        return add_up(collect(pruned.batches(sublayer), others), self._processes)

    def _passing_weight(
        self, sublayer: Sublayer, statistics: Statistics | None, walk: _Walk
    ) -> tuple[Tensor, dict[int, float]]:
        """What the stream passes with, (C, d_in), the same in every process, and the errors.

        The first process makes it from what is stored; with `statistics`, it solves and stores
        first. Only it knows the errors.
        """

        def mixed() -> tuple[Tensor, dict[int, float]]:
            structures, errors = self._structures(sublayer, statistics, walk)
            rng = derive_generator(self._seed, walk.label, "accumulation", sublayer.name)
            return walk.accumulation.mix(sublayer, structures, rng=rng), errors

        made = self._processes.alone(mixed)
        weight, errors = made or (torch.empty_like(sublayer.output_weight), {})
        self._processes.copy_from_first(weight)
        return weight, errors

    def _structures(
        self, sublayer: Sublayer, statistics: Statistics | None, walk: _Walk
    ) -> tuple[dict[int, Structure], dict[int, float]]:
        """Structures of every level and their errors: as stored, or solved and on their way."""
        if statistics is None:
            return walk.store.read(sublayer.id), walk.store.errors(sublayer.id)
        structures, errors = self._solve(sublayer, statistics, walk)
        walk.writer.write(sublayer.id, structures, errors)
        return structures, errors

    def _solve(
        self, sublayer: Sublayer, statistics: Statistics, walk: _Walk
    ) -> tuple[dict[int, Structure], dict[int, float]]:
        """Structures of every level, as a store would give them back, and their errors."""
        levels = walk.grid.levels(sublayer.id)
        with matmul_precision("highest"):  # short factors are for the forward and the Hessians
            solved = self._pruner.prune(
                sublayer,
                statistics,
                list(levels.values()),
                storage_dtype=self._decoder.storage_dtype,
                rng=derive_generator(self._seed, walk.label, "criterion", sublayer.name),
            )
        structures = {level: solved[removed].structure for level, removed in levels.items()}
        return structures, {level: solved[removed].error for level, removed in levels.items()}


def shard(tokens: Tensor, batch_tokens: int, processes: Processes) -> Tensor:
    """This process's calibration sequences: (N, T) -> (n, T).

    Whole batches where that shares the work evenly: their float32 products are then those of a
    single process, and only the float64 sums come in another order.
    """
    sequences = max(1, batch_tokens // tokens.shape[1])
    batches = tokens.split(sequences)
    if len(batches) % processes.size and len(batches) < EVEN * processes.size:
        return processes.share(tokens)
    mine = processes.share(torch.arange(len(batches))).tolist()
    return torch.cat([batches[index] for index in mine])


def as_record(part: object) -> dict[str, object]:
    """Class and settings of an object of the method, and of the objects it is made of."""
    nested = {
        key: as_record(value) if hasattr(value, "__dict__") else value
        for key, value in vars(part).items()
    }
    return {"class": f"{type(part).__module__}.{type(part).__qualname__}", **nested}


def supernet_bytes(decoder: Decoder, grid: LevelGrid) -> int:
    """Bytes of all structures of a grid, before any is written (headers excluded)."""
    total = 0
    for sublayer in decoder.sublayers:
        column = sublayer.unit_size * sublayer.width
        for removed in grid.levels(sublayer.id).values():
            kept = sublayer.num_units - removed
            total += kept * (column * decoder.storage_dtype.itemsize + 4)
    return total


def check_disk(needed: int, directory: Path) -> None:
    """Raise StoreError when `directory`'s disk has less than `needed` bytes free."""
    existing = next(p for p in (directory, *directory.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise StoreError(
            f"the supernet needs about {needed / 1e6:,.1f} MB but {existing} has "
            f"{free / 1e6:,.1f} MB free: choose another run_dir, or fewer supernet.levels"
        )
