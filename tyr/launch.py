"""From built objects to a running pipeline: every check that needs no weights, then the work.

The order is the point: whatever can be refused is refused before weights are read, and nothing is
written before it is certain that the run can start. Of several processes the first one reads the
text, opens the run directory and writes; devices and processes come from trainer.py.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tyr.ceilings import measure_ceilings
from tyr.data import SplitSizes, TokenSplits, check_context
from tyr.devices import device_name
from tyr.errors import ConfigError, ModelError, TyrError
from tyr.evaluate.perplexity import Evaluator
from tyr.events import Callback
from tyr.files import write_json
from tyr.footprint import check_memory
from tyr.linalg import solve_dtype
from tyr.model.architecture import unit_counts
from tyr.model.decoder import Decoder
from tyr.model.random_weights import remove_leftovers
from tyr.model.source import ModelSource
from tyr.model.sublayer import AttentionUnit
from tyr.pipeline import Method, Pipeline
from tyr.planner import Planner
from tyr.processes import Processes
from tyr.run_plan import RunPlan, as_content
from tyr.rundir import RunDirectory
from tyr.session import Provenance, Session
from tyr.sparsity import Allocation, budget_notes, uniform_allocation
from tyr.trainer import Machines, Trainer, connect, job_line

logger = logging.getLogger(__name__)

PLAN_FILE, ENVIRONMENT_FILE = "plan.json", "environment.json"
PACKAGES = ("torch", "transformers", "datasets", "lightning", "hydra-core", "safetensors", "numpy")


class DataSource(Protocol):
    """Text that can be cut into splits."""

    sizes: SplitSizes

    def load(self, tokenizer: PreTrainedTokenizerBase) -> TokenSplits:
        """Calibration, search and evaluation tokens."""


@dataclass(frozen=True)
class Job:
    """One run as it was asked for.

    Args:
        path: run directory.
        config: resolved configuration.
        config_yaml: the same as text.
        command: command line that repeats the run.
    """

    path: Path
    config: Mapping[str, Any]
    config_yaml: str
    command: str


def launch(
    method: Method,
    evaluator: Evaluator,
    source: ModelSource,
    data: DataSource,
    *,
    callbacks: Callback,
    trainer: Trainer,
    job: Job,
) -> Allocation:
    """Check everything, open the run directory, run.

    Args:
        method: the parts of the method.
        evaluator: measures models.
        source: where the model comes from.
        data: where the text comes from.
        callbacks: told of every step, in the first process.
        trainer: devices and processes.
        job: the run as it was asked for.

    Raises:
        TyrError: something outside tyr is wrong; no work was done.
    """
    sparsity = job.config["sparsity"]
    check_plan(method, source, data, sparsity=sparsity)
    check_shares(data.sizes, trainer)
    machines = trainer.machines()
    line = job_line(job.config_yaml, job.path, job.command)
    with connect(trainer, line) as (device, processes), ExitStack() as held:
        prepared = processes.broadcast(
            partial(
                prepare,
                method,
                evaluator,
                source,
                data,
                job,
                device=device,
                machines=machines,
                held=held,
            )
        )
        session = Session(
            load_model(
                source,
                prepared,
                device=device,
                attention_unit=method.supernet.attention_unit,
                processes=processes,
            ),
            prepared.splits,
            run_dir=RunDirectory(prepared.path),
            callbacks=callbacks if processes.first else Callback(),
            evaluator=evaluator,
            sparsity=sparsity,
            layout=method.supernet.layout,
            processes=processes,
        )
        try:
            return Pipeline(method, session).run(prepared.provenance)
        except BaseException as error:
            session.callbacks.on_run_error(error)
            raise


@dataclass(frozen=True)
class Prepared:
    """What the first process found and decided before the work.

    Args:
        splits: the text.
        path: run directory.
        provenance: how the run came about.
    """

    splits: TokenSplits
    path: Path
    provenance: Provenance


def prepare(
    method: Method,
    evaluator: Evaluator,
    source: ModelSource,
    data: DataSource,
    job: Job,
    *,
    device: torch.device,
    machines: Machines,
    held: ExitStack,
) -> Prepared:
    """Lock the run directory, read the text and open the directory.

    Args:
        method: the parts of the method.
        evaluator: measures models.
        source: where the model comes from.
        data: where the text comes from.
        job: the run as it was asked for.
        device: of the first process.
        machines: the processes of the run.
        held: keeps the lock for as long as it is open.

    Raises:
        TyrError: the text is too small or changed, the precision changed with the device, or the
            directory holds another run or is at work.
    """
    config, path = job.config, job.path
    run_dir = RunDirectory(path)
    held.enter_context(run_dir.locked())
    splits = data.load(source.tokenizer())
    method.search.check_text(len(splits.search), splits.search.shape[1])
    sparsity = config["sparsity"]
    plan = plan_run(
        method, evaluator, source, data, sparsity=sparsity, device=device, machines=machines
    )
    stages = [stage.held for stage in plan.stages]
    check_memory(plan.weights, stages, source.memory, device, processes=machines.devices)
    resumed = run_dir.start(job.config_yaml, resume=config["resume"])
    remove_leftovers(path)
    run_dir.check_input("tokens", splits.fingerprint)
    _, compute = source.precisions(device)
    run_dir.check_input("compute_dtype", str(compute).removeprefix("torch."))
    run_dir.check_input("solve_dtype", str(solve_dtype(device)).removeprefix("torch."))
    environment = describe_environment(device, config["seed"], processes=machines.size)
    write_json(path / ENVIRONMENT_FILE, environment)
    if not (path / PLAN_FILE).exists():
        write_json(path / PLAN_FILE, as_content(plan, measure_ceilings(device, compute)))
    return Prepared(splits, path, Provenance(config, job.command, environment, resumed))


def load_model(
    source: ModelSource,
    prepared: Prepared,
    *,
    device: torch.device,
    attention_unit: AttentionUnit,
    processes: Processes,
) -> Decoder:
    """The dense model; a run that cannot begin for want of it leaves its directory free.

    Args:
        source: where it comes from.
        prepared: the run.
        device: of this process.
        attention_unit: what is removed of attention.
        processes: of the run.

    Raises:
        TyrError: it cannot be loaded, or has other weights than in the first process or when the
            run began.
    """
    run_dir = RunDirectory(prepared.path)
    try:
        decoder = source.load(device=device, attention_unit=attention_unit, scratch=prepared.path)
    except TyrError:
        if processes.first and not prepared.provenance.resumed:
            run_dir.abandon(also=(PLAN_FILE, ENVIRONMENT_FILE))
        raise
    check_same_model(decoder.fingerprint, processes)
    processes.alone(lambda: run_dir.check_input("weights", decoder.fingerprint))
    return decoder


def check_shares(sizes: SplitSizes, trainer: Trainer) -> None:
    """Raise ConfigError when a process would have no calibration sequence."""
    sequences = sizes.calibration_tokens // sizes.sequence_length
    processes = trainer.machines().size
    if sequences < processes:
        raise ConfigError(
            f"{processes} processes share {sequences} calibration sequences: lower trainer.devices "
            f"or raise data.calibration_tokens"
        )


def check_same_model(fingerprint: str, processes: Processes) -> None:
    """Raise ModelError when this process loaded other weights than the first one."""
    first = processes.gather(fingerprint)[0]
    if fingerprint != first:
        raise ModelError(
            "this process and the first one loaded different weights: give every machine the same "
            "checkpoint"
        )


def check_plan(method: Method, source: ModelSource, data: DataSource, *, sparsity: float) -> None:
    """Everything that the model's configuration alone can refuse, or must say before the run.

    Raises:
        TyrError: see the message.
    """
    config = source.configuration()
    units = unit_counts(config, method.supernet.attention_unit)
    uniform = uniform_allocation(sparsity, units, method.supernet.layout)
    if method.iterations > 0:
        method.supernet.grid(uniform, units, iteration=0)
    method.exporter.check(source, units, sparsity=sparsity, layout=method.supernet.layout)
    for note in budget_notes(sparsity, units, uniform):
        logger.warning(note)
    check_context(data.sizes.sequence_length, config.max_position_embeddings)


def plan_run(
    method: Method,
    evaluator: Evaluator,
    source: ModelSource,
    data: DataSource,
    *,
    sparsity: float,
    device: torch.device,
    machines: Machines,
) -> RunPlan:
    """What a run that passed `check_plan` will cost on a device.

    Raises:
        TyrError: what it asks for cannot be measured there.
    """
    evaluator.check(source, device)
    storage, compute = source.precisions(device)
    planner = Planner(
        method,
        source.configuration(),
        data.sizes,
        sparsity=sparsity,
        storage=storage,
        compute=compute,
        baseline=evaluator.uniform_baseline,
    )
    return planner.plan(source.memory, device, machines)


def describe_environment(device: torch.device, seed: int, *, processes: int = 1) -> dict[str, Any]:
    """Versions, commit, device and seed: what a result depends on beside its configuration."""
    packages: dict[str, str] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": device_name(device) or platform.processor(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": processes,
        "device": str(device),
        "seed": seed,
        "commit": source_commit(),
        "packages": packages,
    }


def source_commit() -> str:
    """Commit of the tyr checkout this code runs from, or `unknown`."""
    root = Path(__file__).resolve().parent.parent
    try:
        asked = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return asked.stdout.strip()


def plain_libraries() -> None:
    """Quiet the progress bars and advice of libraries; tyr's own display replaces them."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
