"""Text files on this machine as calibration, search and evaluation text: `data=text`.

No counterpart in the paper, which reads FineWeb-Edu (section 4.1) and WikiText-2 from the hub; this
serves any text offline. `.txt` is one document, `.jsonl` and `.parquet` hold one per row. The
splits are consecutive regions of the file: evaluation first, then search, then calibration, so the
evaluation text is the same whatever the other two ask for, and no more of a large file is read
than is needed. It deliberately neither shuffles, cleans nor samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tyr.data.rows import decoded, json_rows, missing_field, text_of
from tyr.data.tokens import SplitSizes, TokenSplits
from tyr.errors import DataError, first_line

_HEAD_BYTES = 1 << 16
_PIECE_BYTES = 1 << 22  # about a million tokens: what is tokenised at once of a .txt of any size


class TextFileData:
    """One local file of text.

    Args:
        path: a `.txt` (UTF-8, one document; one beyond 4 MiB is several, cut at line ends),
            `.jsonl` (one object per line) or `.parquet` file.
        field: key or column that holds the text; `.txt` has none.
        sequence_length: tokens per window.
        calibration_tokens: tokens to calibrate on; whole windows are taken.
        search_tokens: tokens of the largest search stage.
        evaluation_tokens: tokens that perplexity is measured on.

    Raises:
        DataError: the file is missing, empty or of an unknown kind, its head is not text, or its
            first row lacks `field`.
    """

    def __init__(
        self,
        path: str | Path,
        field: str = "text",
        *,
        sequence_length: int,
        calibration_tokens: int,
        search_tokens: int,
        evaluation_tokens: int,
    ) -> None:
        self.sizes = SplitSizes(
            sequence_length, calibration_tokens, search_tokens, evaluation_tokens
        )
        self.path = Path(path).expanduser()
        self.field = field
        self.name = self.path.stem
        _check_file(self.path, field)

    def load(self, tokenizer: PreTrainedTokenizerBase) -> TokenSplits:
        """Tokenise the head of the file, as far as the splits reach.

        Raises:
            DataError: too little text, or a malformed row on the way.
        """
        documents = _READERS[self.path.suffix.lower()](self.path, self.field)
        return TokenSplits.from_documents(documents, tokenizer, self.sizes)


def read_txt(path: Path, field: str) -> Iterator[str]:
    """The text as it stands, line endings included; `field` is not used.

    Raises:
        DataError: a NUL byte, or bytes that are not UTF-8.
    """
    with path.open("rb") as file:
        offset = 0
        while raw := file.read(_PIECE_BYTES) + file.readline():
            text = decoded(raw, path, offset)
            yield text if offset else text.removeprefix("\ufeff")
            offset += len(raw)


def read_jsonl(path: Path, field: str) -> Iterator[str]:
    """The field of every line; blank lines are skipped.

    Raises:
        DataError: a line is not a JSON object with text under `field`; names the line.
    """
    for where, row in json_rows(path):
        yield text_of(row, field, where=where)


def read_parquet(path: Path, field: str) -> Iterator[str]:
    """The column, a batch of rows at a time.

    Raises:
        DataError: not a parquet file, no such column, or a row without text; names the row.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise missing_field(field, names, where=str(path))
            batches = file.iter_batches(batch_size=256, columns=[field])
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            for index, row in enumerate(rows):
                yield text_of(row, field, where=f"{path}, row {index}")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        reason = first_line(error)
        raise DataError(f"{path} cannot be read as parquet ({reason}); write it again") from error


Reader = Callable[[Path, str], Iterator[str]]
_READERS: dict[str, Reader] = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}


def _check_file(path: Path, field: str) -> None:
    """What can be refused without reading it all: the kind, the head, the first row."""
    if not path.exists():
        raise DataError(f"data.path={path} does not exist (looked from {Path.cwd()})")
    if not path.is_file():
        raise DataError(f"data.path={path} is not a file; name one file of text in it")
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(
            f"data.path={path} ends in {suffix or 'nothing'}; known: {', '.join(_READERS)}"
        )
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise DataError(f"data.path={path} cannot be read: {error.strerror}") from error
    if not head.strip():
        raise DataError(f"data.path={path} is empty (its first {len(head)} bytes); give text")
    if suffix == ".txt":
        # A character that the end of the head cuts in two is no error.
        decoded(head, path, 0, final=len(head) < _HEAD_BYTES)
    elif next(_READERS[suffix](path, field), None) is None:
        raise DataError(f"data.path={path} has no rows; give text")
