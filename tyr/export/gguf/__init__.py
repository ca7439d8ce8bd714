"""GGUF files of exported models, for llama.cpp. Importing this package does no work.

`exporter.py` is the entry. The `gguf` library is an extra and is imported where it is needed.
"""

from __future__ import annotations
