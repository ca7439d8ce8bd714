"""The run directory: what a run leaves on disk so that it can continue, be audited and plotted.

    config.yaml  environment.json  evaluation.json  allocation.json  metrics.csv  summary.json
    iteration-<t>/supernet/  iteration-<t>/search.json  finish/  model/  figures/  report.html

A run directory answers to one configuration. `resume=true` continues it under the same one; any
other is refused with the keys that differ. Which files callbacks write is their business.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tyr.errors import ResumeError
from tyr.events import EvaluationRow, TaskScore
from tyr.files import read_json, write_json, write_sealed, write_text, writing
from tyr.search.archive import Evaluation
from tyr.search.evolution import SearchState
from tyr.sparsity import Allocation, LevelGrid

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Keys that may differ between a run and its continuation: they do not touch its results (`trainer`:
# up to the order of sums).
FREE_KEYS = ("resume", "run_dir", "callbacks", "logger", "trainer")
FREE_SETTINGS = (
    "model.offload",
    "model.device_state_bytes",
    "model.host_state_bytes",
    "model.memory_budget",
)

# What a continued run believes; none of it is there before config.yaml.
RESULTS = ("finished.json", "evaluation.json", "inputs.json", "iteration-*", "model")

# What a run works on beside its configuration, and what is wrong when it has changed.
INPUTS = {
    "tokens": "the calibration, search or evaluation text is not the one {path} was begun with: "
    "restore the file, or start a new run_dir",
    "weights": "the weights of the model are not those {path} was begun with: restore the "
    "checkpoint, or start a new run_dir",
    "compute_dtype": "{path} was begun computing in {was}, and this device computes in {now}: "
    "continue it on a device like the first, or start a new run_dir",
    "solve_dtype": "{path} was begun solving local pruning in {was}, and this device solves in "
    "{now}: continue it on a device like the first, or start a new run_dir",
}


class RunDirectory:
    """Paths and small state files of one run.

    Args:
        path: the directory; created by `start`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def model(self) -> Path:
        """The exported model."""
        return self.path / "model"

    def supernet(self, iteration: int) -> Path:
        """Supernet of an iteration."""
        return self.path / f"iteration-{iteration}" / "supernet"

    def start(self, config_yaml: str, *, resume: bool) -> bool:
        """Open the directory for a configuration.

        Args:
            config_yaml: resolved configuration.
            resume: continue what is there.

        Returns:
            True when earlier work was found.

        Raises:
            ResumeError: the directory holds a run and `resume` is false, or holds a run of another
                configuration or of one that is not known.
        """
        written = self.path / "config.yaml"
        if written.is_file():
            if not resume:
                raise ResumeError(
                    f"{self.path} already holds a run: continue it with resume=true or choose "
                    f"another run_dir"
                )
            self._check_same(written.read_text(encoding="utf-8"), config_yaml)
            return True
        found = (left for pattern in RESULTS for left in self.path.glob(pattern))
        if (left := next(found, None)) is not None:
            raise ResumeError(
                f"{self.path} holds {left.name} but no config.yaml to say what of: choose "
                f"another run_dir, or empty this one"
            )
        write_text(written, config_yaml, sync=True)
        return False

    def is_of(self, config_yaml: str) -> bool:
        """Whether a run of this configuration is here, to be continued."""
        written = self.path / "config.yaml"
        try:
            self._check_same(written.read_text(encoding="utf-8"), config_yaml)
        except (OSError, ResumeError):
            return False
        return True

    def abandon(self, *, also: Sequence[str] = ()) -> None:
        """Forget a run that could not begin, so that a corrected command finds room here.

        Args:
            also: names of other files that were written before the work.
        """
        for name in ("config.yaml", "inputs.json", *also):
            (self.path / name).unlink(missing_ok=True)

    def check_input(self, name: str, value: str) -> None:
        """Record what the run works on, or compare it with what was recorded.

        Args:
            name: of `INPUTS`.
            value: its fingerprint, or its name.

        Raises:
            ResumeError: it changed since the run began.
        """
        recorded = self._read("inputs.json", dict) or {}
        if name not in recorded:
            write_json(self.path / "inputs.json", {**recorded, name: value}, sync=True)
        elif recorded[name] != value:
            facts = {"path": self.path, "was": recorded[name], "now": value}
            raise ResumeError(INPUTS[name].format(**facts))

    def evaluations(self) -> dict[str, EvaluationRow]:
        """Rows measured so far."""
        return self._read("evaluation.json", _evaluation_rows, sealed=True) or {}

    def save_evaluation(self, name: str, row: EvaluationRow) -> None:
        """Add a row to evaluation.json."""
        rows = {**self.evaluations(), name: row}
        content = {key: asdict(measured) for key, measured in rows.items()}
        write_sealed(self.path / "evaluation.json", {"rows": content})

    def search_state(self, iteration: int, grid: LevelGrid) -> SearchState:
        """Where an iteration's search stands; its start when nothing usable is recorded."""
        name = f"iteration-{iteration}/search.json"
        recorded = self._read(name, _search_record, sealed=True)
        if recorded is None or recorded[0] != json.loads(json.dumps(grid.as_dict())):
            return SearchState(0, (0,) * (2 * grid.units.num_blocks))
        return recorded[1]

    def save_search(self, iteration: int, grid: LevelGrid, state: SearchState) -> None:
        """Replace an iteration's search.json."""
        path = self.path / f"iteration-{iteration}" / "search.json"
        write_sealed(path, {"grid": grid.as_dict(), "state": _search_content(state)})

    def drop_supernets(self, before: int) -> None:
        """Delete the supernets of earlier iterations."""
        for iteration in range(before):
            shutil.rmtree(self.supernet(iteration), ignore_errors=True)

    def finish(self, allocation: Allocation) -> None:
        """Mark the run as finished.

        Args:
            allocation: removed units of every sublayer.
        """
        write_sealed(self.path / "finished.json", allocation.as_dict())

    def tidy(self, *, keep: str) -> None:
        """Delete what only a running run needs; nothing is left where a kill cut this short.

        Args:
            keep: supernets to leave: `last`, `all` or `none`.
        """
        for name in ("finish", "uniform"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        if keep == "none":
            for folder in self.path.glob("iteration-*/supernet"):
                shutil.rmtree(folder, ignore_errors=True)

    def finished_allocation(self) -> Allocation | None:
        """The allocation of a finished run, else None."""
        return self._read("finished.json", Allocation.from_dict, sealed=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working here; a lock ends with its process, however that ends.

        Raises:
            ResumeError: another process works here.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ResumeError(
                f"another process works on {self.path}: wait until it ends, or choose another "
                f"run_dir"
            ) from None
        except OSError:
            logger.info("%s is on a file system without locks", self.path)
        try:
            yield
        finally:
            os.close(handle)

    def _read(
        self, name: str, parse: Callable[[dict[str, Any]], T], *, sealed: bool = False
    ) -> T | None:
        """A JSON file written here, or None when it is absent or damaged (said aloud)."""
        without = "what it recorded will be done again"
        return read_json(self.path / name, parse, without=without, sealed=sealed)

    def _check_same(self, earlier: str, config_yaml: str) -> None:
        try:
            before = flatten(dict(yaml.safe_load(earlier)))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise ResumeError(
                f"{self.path / 'config.yaml'} is damaged, so it is not known what this run was: "
                f"choose another run_dir"
            ) from error
        now = flatten(yaml.safe_load(config_yaml))
        differing = sorted(
            key
            for key in before.keys() | now.keys()
            if key.split(".")[0] not in FREE_KEYS
            and key not in FREE_SETTINGS
            and before.get(key) != now.get(key)
        )
        if differing:
            shown = "; ".join(f"{k}: was {before.get(k)!r}, now {now.get(k)!r}" for k in differing)
            raise ResumeError(
                f"{self.path} was made by a different configuration ({shown}): give the same "
                f"settings to continue it, or choose another run_dir"
            )


def _evaluation_rows(content: Mapping[str, Any]) -> dict[str, EvaluationRow]:
    return {name: _evaluation_row(row) for name, row in content["rows"].items()}


def _evaluation_row(row: Mapping[str, Any]) -> EvaluationRow:
    facts = dict(row)
    tasks = {task: TaskScore(**score) for task, score in dict(facts.pop("tasks", {})).items()}
    return EvaluationRow(**facts, tasks=tasks)


def _search_record(content: Mapping[str, Any]) -> tuple[object, SearchState]:
    """The grid as it was recorded, and the state."""
    state = content["state"]
    loss = state["loss"]
    return content["grid"], SearchState(
        generation=state["generation"],
        parent=tuple(state["parent"]),
        loss=math.inf if loss is None else loss,  # JSON has no infinity
        sample_key=tuple(state["sample_key"]),
        evaluations=_evaluations(state.get("evaluations")),
    )


def _search_content(state: SearchState) -> dict[str, object]:
    """A state as plain values; each level vector and each sample of its evaluations once."""
    content: dict[str, object] = {
        "generation": state.generation,
        "parent": state.parent,
        "loss": state.loss,
        "sample_key": state.sample_key,
    }
    if state.evaluations:
        content["evaluations"] = _evaluations_content(state.evaluations)
    return content


def _evaluations_content(evaluations: Sequence[Evaluation]) -> dict[str, object]:
    """Three columns; they point into lists of the level vectors and samples, one line each."""
    candidates: dict[tuple[int, ...], int] = {}
    samples: dict[tuple[int, ...], int] = {}
    for one in evaluations:
        candidates.setdefault(one.levels, len(candidates))
        samples.setdefault(one.sample, len(samples))
    return {
        "candidates": [" ".join(map(str, levels)) for levels in candidates],
        "samples": [" ".join(map(str, key)) for key in samples],
        "candidate": [candidates[one.levels] for one in evaluations],
        "sample": [samples[one.sample] for one in evaluations],
        "loss": [one.loss for one in evaluations],
    }


def _evaluations(content: Mapping[str, Any] | None) -> tuple[Evaluation, ...]:
    """Inverse of `_evaluations_content`; none were recorded by a search without options."""
    if content is None:
        return ()
    candidates, samples = (
        [tuple(map(int, line.split())) for line in content[name]]
        for name in ("candidates", "samples")
    )
    columns = (content["candidate"], content["sample"], content["loss"])
    return tuple(
        Evaluation(candidates[c], samples[s], loss) for c, s, loss in zip(*columns, strict=True)
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
