"""Converts a model directory to a GGUF file, and exports a run as both.

The Hugging Face directory remains the canonical artefact: it is written first and kept even when
llama.cpp cannot take the model. Quantising below Q8_0 is left to llama.cpp's own tool, which reads
the file written here.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from tyr.errors import ConfigError, StoreError, TyrError
from tyr.export.checkpoint import SHARD_BYTES, ExportedModel, HuggingFaceExport, check_target
from tyr.export.gguf.encoding import check_dtype, report_widths
from tyr.export.gguf.layout import ARCHS, ModelLayout, model_layout
from tyr.export.gguf.library import gguf_library
from tyr.export.gguf.source import open_directory
from tyr.export.gguf.tensors import gguf_tensors
from tyr.export.gguf.vocabulary import read_vocabulary
from tyr.export.gguf.writer import GgufFile, write_gguf
from tyr.export.tensors import ReadStructure
from tyr.layout import Layout
from tyr.model.architecture import architecture_of
from tyr.model.decoder import Decoder
from tyr.model.source import ModelSource
from tyr.sparsity import UnitCounts

logger = logging.getLogger(__name__)


def convert(
    directory: Path, out: Path, *, dtype: str = "f16", arch: str = "auto", replace: bool = False
) -> GgufFile:
    """Write a GGUF file of a model directory.

    Args:
        directory: exported by tyr, or a stock Llama, Mistral, Qwen2 or Qwen3.
        out: the file to write.
        dtype: `f32`, `f16`, `bf16` or `q8_0`.
        arch: `auto`, `deci` or `openelm`.
        replace: overwrite `out`.

    Raises:
        ConfigError: a setting is unknown, or the gguf library is not installed.
        ModelError: no complete model directory, or nothing llama.cpp would load rightly.
        NumericsError: a weight does not fit the number type.
        StoreError: `out` exists or cannot be written.
    """
    check_dtype(dtype, key="dtype")
    gguf_library()
    out = Path(out)
    if out.is_dir() or (out.exists() and not replace):
        what = "is a directory" if out.is_dir() else "already exists"
        raise StoreError(f"{out} {what}: expected the name of a new file, e.g. model.gguf")
    source = open_directory(Path(directory))
    layout = model_layout(source.config, family=source.family, arch=arch)
    vocabulary = read_vocabulary(
        source.tokenizer, vocab_size=source.config.vocab_size, eos_ids=source.eos_ids
    )
    tensors = gguf_tensors(source, layout)
    report_widths(tensors, dtype)
    _report_rewritten(layout)
    written = write_gguf(
        source.config, layout, tensors=tensors, vocabulary=vocabulary, path=out, dtype=dtype
    )
    logger.info("wrote %s: %s, %d bytes", out, written.arch, written.bytes)
    return written


class GgufExport:
    """Exports a Hugging Face directory and, beside it, DIRECTORY.gguf; `export=gguf`.

    Args:
        dtype: `f32`, `f16`, `bf16` or `q8_0`.
        arch: `auto`, `deci` or `openelm`.
        max_shard_bytes: largest safetensors file of the directory.
    """

    def __init__(
        self, dtype: str = "f16", *, arch: str = "auto", max_shard_bytes: int = SHARD_BYTES
    ) -> None:
        check_dtype(dtype, key="export.dtype")
        if arch not in ARCHS:
            raise ConfigError(f"export.arch must be one of {', '.join(ARCHS)}, got {arch!r}")
        gguf_library()  # a run of hours must not end with a missing library
        self._dtype = dtype
        self._arch = arch
        self._directory_export = HuggingFaceExport(max_shard_bytes)

    def check(
        self, source: ModelSource, units: UnitCounts, *, sparsity: float, layout: Layout
    ) -> None:
        """Refuse a model that llama.cpp would compute or tokenise differently even when dense.

        Raises:
            TyrError: the reason, and what to do.
        """
        config, tokenizer = source.configuration(), source.tokenizer()
        family = architecture_of(config, source=source.name).model_type
        try:
            model_layout(config, family=family, arch=self._arch)
            # What ends a text may be said in a file that comes with the weights: any token will do.
            read_vocabulary(tokenizer, vocab_size=config.vocab_size, eos_ids=(0,))
        except TyrError as error:
            raise type(error)(f"export=gguf: {error}; use export=hf") from error

    def export(
        self,
        decoder: Decoder,
        read: ReadStructure,
        directory: Path,
        provenance: Mapping[str, object],
    ) -> ExportedModel:
        """Write the directory, then the file.

        The directory gets its final name last, so that an interrupted export is done again whole.
        If llama.cpp cannot take the model, the directory is kept and the reason raised.

        Raises:
            TyrError: see `export_checkpoint` and `convert`.
        """
        staging = directory.with_name(f".{directory.name}.staging")
        shutil.rmtree(staging, ignore_errors=True)  # left by a killed export
        check_target(directory)
        try:
            exported = self._directory_export.export(decoder, read, staging, provenance)
            self._convert(staging, directory)
            _rename(staging, directory)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return dataclasses.replace(exported, directory=directory)

    def finished(self, directory: Path) -> bool:
        """Whether both are there; the file is made of the directory if only it is missing.

        Raises:
            TyrError: see `convert`.
        """
        if directory.exists() and not _file_of(directory).is_file():
            self._write_file(directory, of=directory)
        return directory.exists()

    def _convert(self, staging: Path, directory: Path) -> None:
        try:
            self._write_file(staging, of=directory)
        except TyrError:
            _rename(staging, directory)
            raise

    def _write_file(self, source: Path, *, of: Path) -> None:
        """Convert what is in `source` to the file beside `of`, the directory's final name."""
        out = _file_of(of)
        try:
            convert(source, out, dtype=self._dtype, arch=self._arch, replace=True)
        except TyrError as error:
            raise type(error)(
                f"{error}. The Hugging Face export {of} is complete; only {out.name} is missing "
                f"(python -m tyr.export_gguf {of} {out})"
            ) from error


def _file_of(directory: Path) -> Path:
    """The GGUF file beside an exported directory."""
    return directory.with_name(f"{directory.name}.gguf")


def _rename(staging: Path, directory: Path) -> None:
    if directory.exists():
        directory.rmdir()
    staging.rename(directory)


def _report_rewritten(layout: ModelLayout) -> None:
    """Say where the file holds more than the model."""
    blocks = list(enumerate(layout.blocks))
    for what, found in (
        ("an attention of one zero head", [i for i, b in blocks if b.zero_attention]),
        ("an FFN of 32 zero neurons", [i for i, b in blocks if b.zero_ffn]),
        (
            "KV heads written more than once",
            [i for i, b in blocks if max(b.kv_copies, default=1) > 1],
        ),
    ):
        if found:
            logger.warning(
                "blocks %s get %s, which llama.cpp needs to compute the same; the HF directory "
                "does without",
                *(", ".join(map(str, found)), what),
            )
