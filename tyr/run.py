"""The command line: `python -m tyr.run [group=choice] [key=value] ...` (Hydra).

The composition root: the only module that knows Hydra. It composes the configuration, builds every
object, checks all that can be checked before any work, and hands over to the pipeline. Heavy
libraries are imported only once the configuration is valid.

Exit status: 0 on success, 2 with one paragraph on bad input, 1 with a traceback on a fault of tyr,
and of several processes that of the one that failed.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tyr.config import TyrConfig, check_values, register_resolvers
from tyr.errors import ConfigError, ProcessError, TyrError, first_line
from tyr.hints import explain
from tyr.spawn import announced_rank

if TYPE_CHECKING:
    from tyr.events import CallbackList
    from tyr.pipeline import Method

PACKAGE = Path(__file__).resolve().parent
# In a checkout the configuration lies beside the package, in a wheel inside it.
CONFIG_DIR = next(d for d in (PACKAGE / "conf", PACKAGE.parent / "conf") if d.is_dir())

USER_ERRORS = (TyrError, HydraException, OmegaConfBaseException)

register_resolvers()
ConfigStore.instance().store(name="tyr_schema", node=TyrConfig)


def build(node: Any, key: str) -> Any:
    """Instantiate one node of the configuration.

    Raises:
        ConfigError: the node's arguments do not fit its class.
        TyrError: its constructor refused them.
    """
    if not isinstance(node, DictConfig):
        raise ConfigError(f"{key} must be an object with its settings, got {node!r}")
    if "_target_" not in node:
        raise ConfigError(f"{key} must be given: it has no _target_, the class that it stands for")
    check_values(cast(Mapping[str, Any], OmegaConf.to_container(node, resolve=True)), key)
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, TyrError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        said = f"{key}: {first_line(error)} {error.__cause__ or ''}".rstrip()
        raise ConfigError(said) from error


def build_method(config: DictConfig) -> Method:
    """Every part of the method, with its ranges checked."""
    from tyr.pipeline import Method

    return Method(
        iterations=config.iterations,
        seed=config.seed,
        pruner=build(config.pruner, "pruner"),
        supernet=build(config.supernet, "supernet"),
        search=build(config.search, "search"),
        finish=build(config.finish, "finish"),
        exporter=build(config.export, "export"),
    )


def build_callbacks(config: DictConfig) -> CallbackList:
    """Loggers first, so that what others read from their files is there."""
    from tyr.events import CallbackList

    groups = {"logger": config.logger, "callbacks": config.callbacks}
    return CallbackList(
        [
            build(node, f"{group}.{name}")
            for group, nodes in groups.items()
            for name, node in nodes.items()
        ]
    )


def command_line(overrides: list[str]) -> str:
    """The command that repeats this run."""
    kept = [word for word in overrides if not word.startswith("resume=")]
    return shlex.join(["python", "-m", "tyr.run", *kept])


def run_directory(config: DictConfig, overrides: list[str]) -> Path:
    """Where this run lives; `resume=true` without a run_dir means the newest of the same settings.

    If none has the same, the newest of the same name, to be refused with what differs. A job of a
    sweep that finds none is one that the interrupted sweep had not begun.

    Raises:
        ConfigError: no run matches.
    """
    hydra_config = HydraConfig.get()
    chosen = Path(hydra_config.runtime.output_dir)
    folders = ("run_dir", "hydra.run.dir", "hydra.sweep.dir")
    named = any(word.split("=")[0] in folders for word in overrides)
    if named or not config.resume:
        return chosen
    sweep = hydra_config.mode == RunMode.MULTIRUN
    name = glob.escape(Path(config.model.name).name)  # what precedes a slash names folders
    place, pattern = chosen.parent, f"{name}-{config.sparsity}-*"
    if sweep:  # RUN/JOB: the same job of an earlier sweep has the same name
        place, pattern = place.parent, f"{pattern}/{glob.escape(chosen.name)}"
    found = (folder for folder in place.glob(pattern) if (folder / "config.yaml").is_file())
    if earlier := sorted(found, reverse=True):
        from tyr.rundir import RunDirectory

        settings = OmegaConf.to_yaml(config, resolve=True)
        same = (folder for folder in earlier if RunDirectory(folder).is_of(settings))
        return next(same, earlier[0])
    if sweep:
        return chosen
    raise ConfigError(f"resume=true found no run {place / pattern}: name one with run_dir=DIR")


def execute(config: DictConfig) -> None:
    """One run, from a configuration that Hydra composed."""
    if not config.run_dir.strip():
        raise ConfigError("run_dir must name a directory, got nothing")
    overrides = list(HydraConfig.get().overrides.task)
    start(config, path=run_directory(config, overrides), command=command_line(overrides))


def start(config: DictConfig, *, path: Path, command: str) -> None:
    """One run, or this process's part of one.

    Args:
        config: composed configuration.
        path: run directory.
        command: command line that repeats the run.
    """
    trainer = build(config.trainer, "trainer")
    method = build_method(config)
    evaluator = build(config.evaluator, "evaluator")
    source = build(config.model, "model")
    data = build(config.data, "data")

    from tyr.launch import Job, launch, plain_libraries

    plain_libraries()
    resolved: Mapping[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    launch(
        method,
        evaluator,
        source,
        data,
        callbacks=build_callbacks(config),
        trainer=trainer,
        job=Job(path, resolved, OmegaConf.to_yaml(config, resolve=True), command),
    )


def join(line: str) -> None:
    """This process's part of a run that another process started (`tyr/worker.py`).

    Args:
        line: the job as `tyr.trainer.job_line` wrote it.
    """
    job = json.loads(line)
    config = OmegaConf.create(job["config"])
    start(cast(DictConfig, config), path=Path(job["path"]), command=job["command"])


def show_plan(config: DictConfig) -> None:
    """Print what a run of this configuration would cost."""
    trainer = build(config.trainer, "trainer")
    method = build_method(config)
    evaluator = build(config.evaluator, "evaluator")
    source = build(config.model, "model")
    data = build(config.data, "data")

    from tyr.ceilings import measure_ceilings
    from tyr.evaluate.perplexity import PerplexityEvaluator
    from tyr.launch import check_plan, check_shares, plain_libraries, plan_run
    from tyr.plan_table import show
    from tyr.trainer import choose_device

    plain_libraries()
    device = choose_device(trainer.accelerator, key="trainer.accelerator")
    check_plan(method, source, data, sparsity=config.sparsity)
    check_shares(data.sizes, trainer)
    machines, dtype = trainer.machines(), source.precisions(device)[1]
    plan = plan_run(
        method,
        evaluator,
        source,
        data,
        sparsity=config.sparsity,
        device=device,
        machines=machines,
    )
    plain = isinstance(evaluator, PerplexityEvaluator)
    notes = () if plain else ("Of what the evaluator measures only perplexity is counted.",)
    show(plan, measure_ceilings(device, dtype), device=device, dtype=dtype, notes=notes)


@hydra.main(  # type: ignore[untyped-decorator]
    config_path=str(CONFIG_DIR), config_name="config", version_base="1.3"
)
def plan_task(config: DictConfig) -> None:
    """Hydra's entry of `python -m tyr.plan`."""
    guarded(show_plan, config)


@hydra.main(  # type: ignore[untyped-decorator]
    config_path=str(CONFIG_DIR), config_name="config", version_base="1.3"
)
def task(config: DictConfig) -> None:
    """Hydra's entry: one call per job of a multirun."""
    guarded(execute, config)


def guarded(work: Callable[[DictConfig], None], config: DictConfig) -> None:
    """Do the work; bad input ends it with one paragraph.

    In a sweep it ends one job: the others are run, and then Hydra raises the first job's error.
    """
    hydra_config = HydraConfig.get()
    output = Path(hydra_config.runtime.output_dir)
    try:
        work(config)
    except USER_ERRORS as error:
        if hydra_config.mode != RunMode.MULTIRUN:
            refuse(error)
        raise ProcessError(str(error), told=True, status=complain(error)) from error
    finally:
        # Hydra made it before anything was checked; it goes if it is empty.
        with suppress(OSError):
            if output != Path.cwd():
                output.rmdir()


def refuse(error: BaseException) -> NoReturn:
    """Say what is wrong and exit by SystemExit, which keeps Hydra from adding lines of its own."""
    sys.exit(complain(error))


def complain(error: BaseException) -> int:
    """Say what is wrong in one paragraph; the exit status, 2 or that of another process."""
    lost = error if isinstance(error, ProcessError) else None
    if lost is None or not lost.told:  # else the process that failed says why
        print(f"{prefix()}: {explain(error, CONFIG_DIR)}", file=sys.stderr)
    return lost.status if lost else 2


def prefix() -> str:
    """`tyr`, and which process speaks if it is not the first."""
    rank = announced_rank()
    return f"tyr (process {rank})" if rank else "tyr"


def _before_any_work(error: BaseException) -> bool:
    """Whether Hydra failed before it called us, which is when it makes the output directory."""
    frames = traceback.walk_tb(error.__traceback__)
    return all(frame.f_code is not guarded.__code__ for frame, _ in frames)


def main(entry: Callable[[], None] = task) -> None:
    """Console entry with the exit statuses of the module docstring."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors to us instead of printing and exiting 1
    level = logging.ERROR if announced_rank() else logging.WARNING  # said once is enough
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    logging.getLogger("tyr").setLevel(level)  # Hydra opens the root logger to INFO
    try:
        entry()
    except USER_ERRORS as error:
        refuse(error)
    except KeyboardInterrupt:
        if not announced_rank():
            said = "tyr: interrupted; continue with the same command and resume=true"
            print(said, file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and _before_any_work(error):
            reason = f"{error.filename}: {error.strerror}"
            refuse(ConfigError(f"cannot make the run directory {reason}; choose another run_dir"))
        if isinstance(error, ValueError) and "Config group override must be" in str(error):
            refuse(ConfigError(f"{str(error).lower()}: choose a group as group=NAME"))
        if isinstance(error, RuntimeError) and 'not detect "srun"' in str(error):  # submitit's
            refuse(ConfigError("launcher=submitit needs Slurm's srun, and this machine has none"))
        if announced_rank():
            print(f"{prefix()} failed:", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
