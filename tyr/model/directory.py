"""Whether a path is the directory of a model, and if not, what it is instead.

Commands that take an exported model are often given the run directory around it, or a run that has
not finished. Only names of files are looked at; configuration and weights are read elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from tyr.errors import ModelError


def check_model_directory(path: Path) -> None:
    """Refuse what is not a complete model directory.

    Raises:
        ModelError: what was found instead, and what to give.
    """
    run = path.parent if path.name == "model" and not path.exists() else path
    if (run / "config.yaml").is_file() and not (run / "model" / "config.json").is_file():
        raise ModelError(
            f"{run} is a run that has not finished, or one with export=none: it holds no model/; "
            f"continue it with the same command and resume=true"
        )
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ModelError(f"{path} {what}: expected the directory of an exported model")
    if path.name.startswith(".") and path.name.endswith(".partial"):
        raise ModelError(f"{path} is an export that was interrupted: finish its run first")
    if (path / "config.json").is_file():
        return
    if (path / "model" / "config.json").is_file():
        raise ModelError(f"{path} is a run directory: its exported model is {path / 'model'}")
    raise ModelError(f"{path} holds no config.json: expected the directory of an exported model")
