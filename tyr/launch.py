"""From built objects to a running pipeline: every check that needs no weights, then the work.

The order is the point: whatever can be refused is refused before weights are read, and nothing is
written before it is certain that the run can start. Devices come from Lightning Fabric.
"""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tyr.ceilings import Ceilings, measure_ceilings
from tyr.data import SplitSizes, TokenSplits, check_context
from tyr.errors import ConfigError
from tyr.evaluate.perplexity import Evaluator
from tyr.events import Callback
from tyr.export.stock import StockExport, check_stock
from tyr.files import write_json
from tyr.footprint import check_memory
from tyr.model.architecture import unit_counts
from tyr.model.source import ModelSource
from tyr.pipeline import Method, Pipeline
from tyr.planner import Planner, RunPlan, as_content
from tyr.rundir import RunDirectory
from tyr.session import Provenance, Session
from tyr.sparsity import Allocation, budget_notes, uniform_allocation

logger = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
PACKAGES = ("torch", "transformers", "datasets", "lightning", "hydra-core", "safetensors", "numpy")


class DataSource(Protocol):
    """Text that can be cut into splits."""

    sizes: SplitSizes

    def load(self, tokenizer: PreTrainedTokenizerBase) -> TokenSplits:
        """Calibration, search and evaluation tokens."""


def launch(
    method: Method,
    evaluator: Evaluator,
    source: ModelSource,
    data: DataSource,
    *,
    callbacks: Callback,
    path: Path,
    config: Mapping[str, Any],
    config_yaml: str,
    command: str,
) -> Allocation:
    """Check everything, open the run directory, run.

    Args:
        method: the parts of the method.
        evaluator: measures models.
        source: where the model comes from.
        data: where the text comes from.
        callbacks: told of every step.
        path: run directory.
        config: resolved configuration.
        config_yaml: the same as text.
        command: command line that repeats the run.

    Raises:
        TyrError: something outside tyr is wrong; no work was done.
    """
    device = choose_device(config["accelerator"])
    check_plan(method, source, data, sparsity=config["sparsity"])
    splits = data.load(source.tokenizer())
    method.search.check_text(len(splits.search), splits.search.shape[1])
    plan = plan_run(method, source, data, sparsity=config["sparsity"], device=device)
    check_memory(plan.weights, [stage.held for stage in plan.stages], source.memory, device)
    run_dir = RunDirectory(path)
    resumed = run_dir.start(config_yaml, resume=config["resume"])
    run_dir.check_inputs(splits.fingerprint)
    environment = describe_environment(device, config["seed"])
    write_json(path / "environment.json", environment)
    if not resumed:
        ceilings = measure_ceilings(device, source.precisions(device)[1])
        write_json(path / PLAN_FILE, as_content(plan, ceilings))
    decoder = source.load(
        device=device, attention_unit=method.supernet.attention_unit, scratch=path
    )
    session = Session(
        decoder,
        splits,
        run_dir=run_dir,
        callbacks=callbacks,
        evaluator=evaluator,
        sparsity=config["sparsity"],
        layout=method.supernet.layout,
    )
    try:
        return Pipeline(method, session).run(Provenance(config, command, environment, resumed))
    except BaseException as error:
        callbacks.on_run_error(error)
        raise


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
    if isinstance(method.exporter, StockExport):
        check_stock(config, units, sparsity=sparsity, layout=method.supernet.layout)
    for note in budget_notes(sparsity, units, uniform):
        logger.warning(note)
    check_context(data.sizes.sequence_length, config.max_position_embeddings)


def make_plan(
    method: Method,
    source: ModelSource,
    data: DataSource,
    *,
    sparsity: float,
    device: torch.device,
) -> tuple[RunPlan, Ceilings]:
    """What a run that passed `check_plan` will cost, and what the device can do."""
    plan = plan_run(method, source, data, sparsity=sparsity, device=device)
    return plan, measure_ceilings(device, source.precisions(device)[1])


def plan_run(
    method: Method,
    source: ModelSource,
    data: DataSource,
    *,
    sparsity: float,
    device: torch.device,
) -> RunPlan:
    """What a run that passed `check_plan` will cost."""
    storage, compute = source.precisions(device)
    planner = Planner(
        method,
        source.configuration(),
        data.sizes,
        sparsity=sparsity,
        storage=storage,
        compute=compute,
    )
    return planner.plan(source.memory, device)


def choose_device(accelerator: str) -> torch.device:
    """The device Lightning Fabric picks for an accelerator name.

    Raises:
        ConfigError: unknown, or not on this machine.
    """
    try:
        return torch.device(Fabric(accelerator=accelerator, devices=1).device)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"accelerator={accelerator} cannot be used here: {str(error).splitlines()[0]}"
        ) from error


def describe_environment(device: torch.device, seed: int) -> dict[str, Any]:
    """Versions, commit, device and seed: what a result depends on beside its configuration."""
    packages: dict[str, str] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.cuda.get_device_name(device) if on_gpu else platform.processor(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
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
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
