"""What can be asked: lm-eval's own tasks with data from the hub, or task files on this machine.

Both refuse what they can before any work: unknown names, missing files, rows that do not fit. A
dataset that the hub does not deliver is noticed when the dense model is measured, which is before
anything is pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tyr.errors import ConfigError, DataError, first_line
from tyr.evaluate.harness import check_installed, own_tasks, tasks_in
from tyr.evaluate.local_tasks import choose_tasks, find_tasks, write_tasks
from tyr.evaluate.task_layouts import check_file, layout_of
from tyr.hints import near

FEW_SHOT_SEED = 1234  # lm-eval's own
# Section 4.1 and table 1: tasks, and examples in their prompts.
PAPER = {
    "arc_easy": 0,
    "arc_challenge": 0,
    "boolq": 0,
    "hellaswag": 0,
    "openbookqa": 0,
    "rte": 0,
    "winogrande": 0,
    "mmlu": 5,
}


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names as given.

    Raises:
        ConfigError: there are none, or one text stands in place of a list.
    """
    if isinstance(names, str):
        raise ConfigError(f"evaluator.tasks must be a list: write evaluator.tasks=[{names}]")
    if not names:
        raise ConfigError("evaluator.tasks is empty; name at least one task")
    return tuple(names)


class HubTasks:
    """lm-eval's own tasks, with data from the hub.

    Args:
        names: tasks or groups; None means the paper's.
        shots: examples in the prompt, none for tasks that are not named; None means the paper's.

    Raises:
        ConfigError: lm-eval is not installed, or a name is unknown.
    """

    def __init__(
        self, names: Sequence[str] | None = None, shots: Mapping[str, int] | None = None
    ) -> None:
        check_installed()
        names = tuple(PAPER) if names is None else checked_names(names)
        shots = PAPER if shots is None else shots
        self._manager = own_tasks()
        known = [*self._manager.all_groups, *self._manager.all_subtasks]
        for name in dict.fromkeys([*names, *shots]):
            if name not in known:
                raise ConfigError(
                    f"task {name} is unknown{near(name, known)}; `lm_eval ls tasks` lists the "
                    f"{len(known)} of lm-eval"
                )
        if negative := [name for name, count in shots.items() if count < 0]:
            raise ConfigError(f"evaluator.shots.{negative[0]} must not be negative")
        self.names, self._shots = names, dict(shots)
        self._loaded: Mapping[str, Any] | None = None

    @contextmanager
    def load(self) -> Iterator[Mapping[str, Any]]:
        """See `Questions.load`; the data is fetched once.

        Raises:
            DataError: a dataset cannot be reached.
        """
        if self._loaded is None:
            self._loaded = self._fetch()
        yield self._loaded

    def _fetch(self) -> Mapping[str, Any]:
        import datasets
        from httpx import HTTPError

        tasks: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in self.names:
            try:
                loaded = self._manager.load([name])
            except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
                raise DataError(
                    f"task {name} cannot be loaded: {first_line(error)}. Check the connection, or "
                    f"evaluate on this machine's files: evaluator=lm_eval_local "
                    f"evaluator.data_dir=DIR"
                ) from error
            if shared := loaded["tasks"].keys() & tasks["tasks"].keys():
                raise ConfigError(f"task {min(shared)} is asked for twice; name each task once")
            for task in loaded["tasks"].values():
                task.set_config(key="num_fewshot", value=self._shots.get(name, 0))
                task.set_fewshot_seed(seed=FEW_SHOT_SEED)
            for part, found in loaded.items():
                tasks[part].update(found)
        return tasks


class FileTasks:
    """Files on this machine as tasks; see `local_tasks`.

    Args:
        data_dir: directory of task files.
        names: tasks; None takes all that are there.

    Raises:
        ConfigError: lm-eval is not installed, or a name is unknown.
        DataError: the directory or a row of a file is not what it must be.
    """

    def __init__(self, data_dir: Path, names: Sequence[str] | None) -> None:
        self._files = find_tasks(data_dir)
        self._parts = choose_tasks(self._files, None if names is None else checked_names(names))
        for part in (part for parts in self._parts.values() for part in parts):
            check_file(self._files[part], layout_of(part))
        check_installed()
        self.names = tuple(self._parts)

    @contextmanager
    def load(self) -> Iterator[Mapping[str, Any]]:
        """See `Questions.load`; YAML files and rows are in a temporary directory."""
        with TemporaryDirectory(prefix="tyr-tasks-") as directory:
            write_tasks(self._parts, self._files, Path(directory))
            yield tasks_in(Path(directory)).load(list(self.names))
