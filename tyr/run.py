"""The command line: `python -m tyr.run [group=choice] [key=value] ...` (Hydra).

The composition root: the only module that knows Hydra. It composes the configuration, builds every
object, checks all that can be checked before any work, and hands over to the pipeline. Heavy
libraries are imported only once the configuration is valid.

Exit status: 0 on success, 2 with one paragraph on bad input, 1 with a traceback on a fault of tyr.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tyr.config import TyrConfig, register_resolvers
from tyr.errors import ConfigError, TyrError
from tyr.hints import explain

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
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, TyrError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error


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

    nodes = {**config.logger, **config.callbacks}
    return CallbackList([build(node, f"callbacks.{name}") for name, node in nodes.items()])


def command_line(overrides: list[str]) -> str:
    """The command that repeats this run."""
    kept = [word for word in overrides if not word.startswith("resume=")]
    return shlex.join(["python", "-m", "tyr.run", *kept])


def run_directory(config: DictConfig, overrides: list[str]) -> Path:
    """Where this run lives; `resume=true` without a run_dir means the newest matching one."""
    chosen = Path(HydraConfig.get().runtime.output_dir)
    named = any(word.split("=")[0] in ("run_dir", "hydra.run.dir") for word in overrides)
    if config.resume and not named:
        pattern = f"{config.model.name}-{config.sparsity}-*"
        earlier = [d for d in chosen.parent.glob(pattern) if (d / "config.yaml").is_file()]
        if not earlier:
            raise ConfigError(
                f"resume=true found no run {chosen.parent / pattern}: name one with run_dir=DIR"
            )
        return max(earlier, key=lambda d: d.name)
    return chosen


def execute(config: DictConfig) -> None:
    """One run, from a composed configuration."""
    method = build_method(config)
    evaluator = build(config.evaluator, "evaluator")
    source = build(config.model, "model")
    data = build(config.data, "data")

    from tyr.launch import launch, plain_libraries

    plain_libraries()
    overrides = list(HydraConfig.get().overrides.task)
    resolved: Mapping[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    launch(
        method,
        evaluator,
        source,
        data,
        callbacks=build_callbacks(config),
        path=run_directory(config, overrides),
        config=resolved,
        config_yaml=OmegaConf.to_yaml(config, resolve=True),
        command=command_line(overrides),
    )


def show_plan(config: DictConfig) -> None:
    """Print what a run of this configuration would cost."""
    method = build_method(config)
    source = build(config.model, "model")
    data = build(config.data, "data")

    from tyr.launch import check_plan, choose_device, make_plan, plain_libraries
    from tyr.plan_table import show

    plain_libraries()
    device = choose_device(config.accelerator)
    check_plan(method, source, data, sparsity=config.sparsity)
    plan, ceilings = make_plan(method, source, data, sparsity=config.sparsity, device=device)
    show(plan, ceilings, device=device)


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
    """Do the work; bad input ends it with one paragraph."""
    output = Path(HydraConfig.get().runtime.output_dir)
    try:
        work(config)
    except USER_ERRORS as error:
        refuse(error)
    finally:
        if output.is_dir() and not any(output.iterdir()):
            output.rmdir()  # Hydra made it before anything was checked


def refuse(error: BaseException) -> NoReturn:
    """Say what is wrong in one paragraph and exit with 2.

    Leaving by SystemExit keeps Hydra from adding lines of its own.
    """
    print(f"tyr: {explain(error, CONFIG_DIR)}", file=sys.stderr)
    sys.exit(2)


def main(entry: Callable[[], None] = task) -> None:
    """Console entry with the exit statuses of the module docstring."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors to us instead of printing and exiting 1
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("tyr").setLevel(logging.WARNING)  # Hydra opens the root logger to INFO
    try:
        entry()
    except USER_ERRORS as error:
        refuse(error)
    except KeyboardInterrupt:
        print("tyr: interrupted; continue with the same command and resume=true", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
