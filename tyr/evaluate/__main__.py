"""`python -m tyr.evaluate MODEL_DIR ...`: the tasks of lm-eval on an exported model.

Works on any causal LM that transformers can load, beside its dense model when that is named. The
code in MODEL_DIR is executed, as for every exported model. Exit status: 0 on success, 2 with one
paragraph on bad input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tyr.devices import free_bytes
from tyr.errors import ConfigError, ModelError, TyrError, first_line
from tyr.evaluate.harness import Harness, Questions
from tyr.evaluate.questions import FileTasks, HubTasks
from tyr.evaluate.scores import CAPTION, average, retained, score_table
from tyr.events import TaskScore
from tyr.files import write_json
from tyr.memory import check_fits
from tyr.model.directory import check_model_directory

# What transformers raises on files it cannot use.
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    words = argparse.ArgumentParser("python -m tyr.evaluate", description=__doc__.splitlines()[0])
    words.add_argument("model", metavar="MODEL_DIR", help="exported model, or any causal LM")
    words.add_argument("--dense", metavar="BASE_DIR", help="the dense model, to compare with")
    words.add_argument(
        "--tasks", help="comma-separated; default: all in DATA_DIR, or the paper's from the hub"
    )
    words.add_argument(
        "--data-dir", type=Path, help="task files (.jsonl) on this machine instead of the hub"
    )
    words.add_argument("--limit", type=int, help="first examples of each task; default: all")
    words.add_argument("--metric", default="acc", help="acc (default) or acc_norm")
    words.add_argument(
        "--batch-tokens", type=int, default=8192, help="positions per forward batch (8192)"
    )
    words.add_argument("--device", help="default: the accelerator, or cpu")
    words.add_argument("--output", type=Path, metavar="FILE", help="also write the scores as JSON")
    return words


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate and show a table."""
    words = parser()
    given = words.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        evaluate(given)
    except TyrError as error:
        words.exit(2, f"tyr: {' '.join(str(error).split())}\n")


def evaluate(given: argparse.Namespace) -> None:
    """From parsed arguments to the table.

    Raises:
        TyrError: a setting, a file or a model is not what it must be.
    """
    from rich.console import Console

    harness = Harness(_questions(given), given.metric, given.limit, given.batch_tokens)
    paths = {"dense": given.dense} if given.dense else {}
    paths["model"] = given.model
    device = _device(given.device)
    for path in paths.values():
        check_model(path, device)
    errors = Console(stderr=True)
    scores = {}
    for name, path in paths.items():
        errors.print(f"{name}: {path}", markup=False, highlight=False, soft_wrap=True)
        model, tokenizer = load(path, device)
        scores[name] = harness.scores(model, tokenizer, progress=errors.is_terminal)
        del model  # the next one needs its memory
    console = Console(highlight=False)
    console.print(score_table(scores))
    console.print(CAPTION, style="dim")
    if given.output:
        write_json(given.output, _record(given, scores))


def check_model(path: str, device: torch.device) -> None:
    """Refuse what is not a model, or too large, before any weights are read.

    Raises:
        ModelError: a local path without a model, or more weights than free memory.
    """
    if _is_local(path):
        check_model_directory(Path(path).expanduser())
    try:
        config = AutoConfig.from_pretrained(_expanded(path), trust_remote_code=True)
        with torch.device("meta"):  # shapes without memory
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    stored = getattr(config, "dtype", None) or torch.float32
    size = torch.float32.itemsize if device.type == "cpu" else stored.itemsize
    check_fits(
        size * sum(parameter.numel() for parameter in model.parameters()),
        free_bytes(device),
        what=f"for the weights of {path}; choose another --device or a larger machine",
    )


def load(path: str, device: torch.device) -> tuple[Any, Any]:
    """Model and tokenizer; float32 on a CPU, as in a run, else the stored precision.

    Raises:
        ModelError: one of them cannot be read.
    """
    path = _expanded(path)
    dtype = torch.float32 if device.type == "cpu" else "auto"
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
        model, loading = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, trust_remote_code=True, output_loading_info=True
        )
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if loading["missing_keys"]:  # transformers would fill them with random numbers
        raise ModelError(f"{path} lacks weights, e.g. {min(loading['missing_keys'])}")
    return model.to(device), tokenizer


def _is_local(path: str) -> bool:
    """Whether this is a path rather than a name on the hub, `owner/model`."""
    looks = path.startswith((".", "/", "~")) or path.count("/") > 1
    return looks or Path(path).exists() or ("/" in path and Path(path).parent.is_dir())


def _expanded(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _unreadable(path: str, error: BaseException) -> ModelError:
    return ModelError(f"cannot load {path}: {first_line(error)}")


def _questions(given: argparse.Namespace) -> Questions:
    tasks = None if given.tasks is None else [name for name in given.tasks.split(",") if name]
    return HubTasks(tasks) if given.data_dir is None else FileTasks(given.data_dir, tasks)


def _device(name: str | None) -> torch.device:
    if name is not None:
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # unknown; or torch has no such backend
            raise ConfigError(
                f"--device {name} cannot be used here: {first_line(error)}"
            ) from error
    found = torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def _record(
    given: argparse.Namespace, scores: dict[str, dict[str, TaskScore]]
) -> dict[str, object]:
    return {
        "model": given.model,
        "dense": given.dense,
        "limit": given.limit,
        "tasks": {
            name: {task: asdict(score) for task, score in found.items()}
            for name, found in scores.items()
        },
        "average": {name: asdict(average(found)) for name, found in scores.items()},
        "retained": retained(scores["model"], scores["dense"]) if "dense" in scores else None,
    }


if __name__ == "__main__":
    main()
