"""The command `python -m tyr.export_gguf MODEL_DIR OUT.gguf [--dtype TYPE] [--arch ARCH]`.

Converts an exported directory, or a stock Llama, Mistral, Qwen2 or Qwen3, for llama.cpp. The work
is done in `tyr.export.gguf`; heavy libraries are imported only once the words are understood.

Exit status: 0 on success, 2 with one paragraph on bad input, 1 with a traceback on a fault of tyr.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tyr.errors import TyrError


def main(words: Sequence[str] | None = None) -> int:
    """Convert as the words say (default: the command line); returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tyr.export_gguf", description="Write a model directory as a GGUF file."
    )
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="exported directory")
    parser.add_argument("out", type=Path, metavar="OUT.gguf", help="file to write; must not exist")
    parser.add_argument("--dtype", default="f16", help="f32, f16 (default), bf16 or q8_0")
    parser.add_argument("--arch", default="auto", help="auto (default), deci or openelm")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")

    from tyr.export.gguf.exporter import convert

    try:
        written = convert(given.model_dir, given.out, dtype=given.dtype, arch=given.arch)
    except TyrError as error:
        sys.stderr.write(f"tyr: {' '.join(str(error).split())}\n")
        return 2
    types = ", ".join(f"{count} {name}" for name, count in sorted(written.tensors.items()))
    sys.stdout.write(
        f"{written.path}: arch={written.arch}, {written.parameters:,} values, "
        f"{written.bytes:,} bytes; tensors: {types}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
