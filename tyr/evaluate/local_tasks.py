"""Multiple-choice files on this machine as lm-eval tasks, without a hub.

Every known task has one file of JSON lines (BLiMP: a folder with one per paradigm). For each a YAML
file is written that lm-eval reads like those of its own tasks. This module deliberately does not
import lm-eval, so that bad input is refused without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from tyr.errors import ConfigError, DataError
from tyr.evaluate.task_layouts import GROUP, LAYOUTS, layout_of
from tyr.hints import near


def find_tasks(data_dir: Path) -> dict[str, Path]:
    """Task name to file, for every known task that lies in a directory.

    Args:
        data_dir: holds `<task>.jsonl` or `<task>-<anything>.jsonl`, and `blimp/<paradigm>.jsonl`,
            which become `blimp_<paradigm>`.

    Raises:
        DataError: it is not a directory, or holds no task, or several files for one.
    """
    if not data_dir.is_dir():
        what = "is a file" if data_dir.exists() else "does not exist"
        raise DataError(
            f"data_dir={data_dir} {what}; expected a directory of task files, such as "
            f"arc_easy.jsonl (looked from {Path.cwd()})"
        )
    found: dict[str, Path] = {}
    for name in LAYOUTS:
        exact = data_dir / f"{name}.jsonl"
        files = [exact] if exact.is_file() else sorted(data_dir.glob(f"{name}-*.jsonl"))
        if len(files) > 1:
            raise DataError(
                f"{name} has several files ({', '.join(file.name for file in files)}) in "
                f"{data_dir}; call the one to use {exact.name}"
            )
        found.update((name, file) for file in files)
    paradigms = sorted((data_dir / GROUP).glob("*.jsonl"))
    found |= {f"{GROUP}_{file.stem}": file for file in paradigms}
    if not found:
        known = ", ".join(f"{name}.jsonl" for name in LAYOUTS if name != GROUP)
        raise DataError(f"data_dir={data_dir} holds no task file; known: {known}, {GROUP}/*.jsonl")
    return found


def choose_tasks(found: Mapping[str, Path], wanted: Sequence[str] | None) -> dict[str, list[str]]:
    """Each task asked for, to the files that make it up: itself, or the paradigms of BLiMP.

    Args:
        found: see `find_tasks`.
        wanted: names; None means all, BLiMP as one.

    Raises:
        ConfigError: a name is unknown, has no file, or comes twice.
    """
    members = [name for name in found if name.startswith(f"{GROUP}_")]
    choices = {name: [name] for name in found} | ({GROUP: members} if members else {})
    if wanted is None:
        return {name: parts for name, parts in choices.items() if name not in members}
    for name in wanted:
        if name in choices:
            continue
        here = f"here are: {', '.join(task for task in choices if task not in members)}"
        if name in LAYOUTS or name.startswith(f"{GROUP}_"):
            raise ConfigError(f"task {name} has no file in the data directory; {here}")
        hint = near(name, [*choices, *LAYOUTS])
        raise ConfigError(f"task {name} is unknown{hint}; {here}")
    parts = [part for name in wanted for part in choices[name]]
    if doubled := sorted({part for part in parts if parts.count(part) > 1}):
        raise ConfigError(f"task {doubled[0]} is asked for twice; name each task once")
    return {name: choices[name] for name in wanted}


def write_tasks(
    tasks: Mapping[str, Sequence[str]], files: Mapping[str, Path], directory: Path
) -> None:
    """Write one YAML file per task, and one for BLiMP as a group.

    Args:
        tasks: see `choose_tasks`.
        files: see `find_tasks`.
        directory: where the YAML files go, and what `datasets` keeps of the rows.
    """
    for name, parts in tasks.items():
        for part in parts:
            _write(directory / f"{part}.yaml", _task(part, files[part], directory / "cache"))
        if parts != [name]:
            mean = [{"metric": "acc", "aggregation": "mean", "weight_by_size": False}]
            group = {"group": name, "task": list(parts), "aggregate_metric_list": mean}
            _write(directory / f"{name}.yaml", {**group, "metadata": {"version": 1}})


def _task(name: str, file: Path, cache: Path) -> dict[str, object]:
    layout = layout_of(name)
    metrics = ["acc", "acc_norm"] if layout.normalised else ["acc"]
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file.resolve())}, "cache_dir": str(cache)},
        "test_split": "test",
        "output_type": "multiple_choice",
        **layout.prompt,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in metrics
        ],
        "num_fewshot": 0,
        "metadata": {"version": 1},
    }


def _write(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(yaml.safe_dump(dict(content), sort_keys=False), encoding="utf-8")
