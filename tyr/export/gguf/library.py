"""The optional `gguf` library, which knows the file format and its number types.

It is loaded by name, so that tyr works, and type-checks, where it is not installed.
"""

from __future__ import annotations

import importlib
from typing import Any

from tyr.errors import ConfigError

INSTALL = "pip install -e '.[gguf]'"


def gguf_library() -> Any:
    """The `gguf` module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise ConfigError(
            f"writing GGUF needs the gguf library, which is not installed ({error}): {INSTALL}"
        ) from error
