"""Prune-to-supernet (Algorithm 2): one walk of the calibration stream, every sublayer in order.

At each sublayer: read its features, solve all levels in one greedy pass, store them, and move the
stream on with the mixed weight of Eq. 7 — attention before the FFN statistics of the same block are
taken. A sublayer that the store already holds is not solved again, only passed, so an interrupted
build continues where it stopped and ends with the same bytes: the mixed weight is always formed
from structures as stored.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tyr.calibrate.statistics import collect
from tyr.calibrate.stream import Stream
from tyr.errors import StoreError
from tyr.events import SublayerPruned
from tyr.model.decoder import Decoder
from tyr.model.sublayer import Structure, Sublayer
from tyr.prune.local import LocalPruner
from tyr.randomness import derive_generator
from tyr.sparsity import LevelGrid, UnitCounts
from tyr.supernet.accumulation import Accumulation
from tyr.supernet.settings import SupernetSettings
from tyr.supernet.store import SupernetStore

Report = Callable[[SublayerPruned], None]


def silent(event: SublayerPruned) -> None:
    """A report that nobody reads."""


class SupernetBuilder:
    """Builds supernets of one model from one calibration text.

    Args:
        decoder: the dense model.
        tokens: (N, T), calibration sequences.
        pruner: local pruning.
        seed: of the run.
        settings: batch sizes.
        fingerprint: of the calibration text, recorded beside the structures.
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
    ) -> None:
        self._decoder = decoder
        self._fingerprint = fingerprint
        self._tokens = tokens
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
            "attention_unit": self._decoder.attention_unit,
            "calibration": self._fingerprint,
        }
        store = SupernetStore(directory, header)
        store.forget_damaged()
        needed = supernet_bytes(self._decoder, grid) - store.bytes_on_disk
        check_disk(needed, directory)
        return store

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
            store: where to; sublayers it holds are kept.
            grid: levels.
            accumulation: what the stream moves on with.
            label: names the randomness of this build.
            report: called after each sublayer.
            iteration: for the report.
        """
        if all(sublayer.id in store for sublayer in self._decoder.sublayers):
            return
        pruned = self._stream()
        dense = self._stream() if self._pruner.target.needs_dense_stream else None
        for sublayer in self._decoder.sublayers:
            started = time.perf_counter()
            resumed = sublayer.id in store
            if not resumed:
                self._solve(store, sublayer, grid, streams=(pruned, dense), label=label)
            rng = derive_generator(self._seed, label, "accumulation", sublayer.name)
            structures = store.read(sublayer.id)
            pruned.advance(sublayer, accumulation.mix(sublayer, structures, rng=rng))
            if dense is not None:
                dense.advance(sublayer, sublayer.output_weight)
            seconds = time.perf_counter() - started
            errors = store.errors(sublayer.id)
            report(SublayerPruned(sublayer.id, seconds, errors, iteration, resumed))

    def _stream(self) -> Stream:
        return Stream(
            self._decoder,
            self._tokens,
            batch_tokens=self._settings.batch_tokens,
            feature_bytes=self._settings.feature_bytes,
        )

    def _solve(
        self,
        store: SupernetStore,
        sublayer: Sublayer,
        grid: LevelGrid,
        *,
        streams: tuple[Stream, Stream | None],
        label: str,
    ) -> None:
        pruned, dense = streams
        others = dense.batches(sublayer) if dense is not None else None
        statistics = collect(pruned.batches(sublayer), others)
        levels = grid.levels(sublayer.id)
        solved = self._pruner.prune(
            sublayer,
            statistics,
            list(levels.values()),
            storage_dtype=self._decoder.storage_dtype,
            rng=derive_generator(self._seed, label, "criterion", sublayer.name),
        )
        structures: dict[int, Structure] = {e: solved[n].structure for e, n in levels.items()}
        store.write(sublayer.id, structures, {e: solved[n].error for e, n in levels.items()})


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
            f"the supernet needs about {needed / 1e9:.2f} GB but {existing} has "
            f"{free / 1e9:.2f} GB free: choose another run_dir, or fewer supernet.levels"
        )
