"""Datasets of the hub, or folders that look like one, streamed: FineWeb-Edu, WikiText-2, C4.

The paper calibrates on FineWeb-Edu and measures perplexity on the WikiText-2 test split (section
4.1); table 4 swaps the calibration text. Rows are read in the dataset's order and only as many as
the splits need. It deliberately neither shuffles nor downloads whole datasets. `datasets` is
imported when rows are read, because that takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from tyr.data.rows import text_of
from tyr.data.tokens import SplitSizes, TokenSplits
from tyr.errors import DataError, first_line

_JOINED_CHARACTERS = 1 << 22  # what is tokenised at once when rows are joined


@dataclass(frozen=True)
class HubText:
    """Texts of one split of a dataset.

    Args:
        dataset: hub name, or a local folder of `.jsonl`, `.parquet` or `.txt` files.
        subset: configuration of the dataset, if it has several.
        split: split, as `datasets` spells it for streaming (no slices).
        field: column that holds the text.
        joined_by: rows are lines of one text and are joined by this, empty rows too; a document
            then ends every 4 MiB. None: every row is a document.

    Raises:
        DataError: a name is empty.
    """

    dataset: str
    subset: str | None = None
    split: str = "train"
    field: str = "text"
    joined_by: str | None = None

    def __post_init__(self) -> None:
        for name in ("dataset", "split", "field"):
            if not getattr(self, name):
                raise DataError(f"data.{name} is empty; name one")

    def __str__(self) -> str:
        return f"{self.dataset} ({', '.join(filter(None, (self.subset, self.split)))})"

    def shares_rows_with(self, other: HubText) -> bool:
        """Whether a row of this may be a row of `other`."""
        mine, theirs = set(self.split.split("+")), set(other.split.split("+"))
        subsets = {self.subset, other.subset}
        same_place = self._place == other._place and (len(subsets) == 1 or None in subsets)
        return same_place and bool(mine & theirs or "all" in mine | theirs)

    @property
    def _place(self) -> str:
        """The dataset, however the path to a local one is spelt."""
        path = Path(self.dataset)
        return str(path.resolve()) if path.exists() else self.dataset

    def documents(self) -> Iterator[str]:
        """Every document, streamed.

        Raises:
            DataError: the dataset cannot be reached or read, or a row has no text.
        """
        texts = (
            text_of(row, self.field, where=f"{self}, row {index}")
            for index, row in enumerate(self._rows())
        )
        return texts if self.joined_by is None else _joined(texts, self.joined_by)

    def _rows(self) -> Iterator[Mapping[str, object]]:
        """Rows as `datasets` gives them, its errors turned into ours."""
        import datasets
        from httpx import HTTPError

        try:
            yield from datasets.load_dataset(
                self.dataset, self.subset, split=self.split, streaming=True
            )
        except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
            raise DataError(
                f"the dataset {self} cannot be read: {first_line(error)}. Check its name and the "
                "connection, or use text on this machine: data=text data.path=FILE"
            ) from error


class HubData:
    """Calibration, search and evaluation text from the hub.

    Without `evaluation` and `evaluation_split` all three are consecutive regions of one split, the
    evaluation text first.

    Args:
        dataset: see `HubText`, as the next three and `joined_by`.
        subset: configuration of the dataset.
        split: split to calibrate and search on.
        field: column that holds the text.
        evaluation_split: another split of the same dataset to evaluate on.
        joined_by: joins rows that are lines of one text.
        evaluation: text to evaluate on from another dataset, instead of `evaluation_split`.
        sequence_length: tokens per window (table 1: 4,096).
        calibration_tokens: tokens to calibrate on (section 4.1: about 4M).
        search_tokens: tokens that the search draws its stages from.
        evaluation_tokens: tokens that perplexity is measured on.

    Raises:
        DataError: sizes out of range, or the evaluation text is also calibrated on.
    """

    def __init__(
        self,
        dataset: str,
        subset: str | None = None,
        split: str = "train",
        field: str = "text",
        evaluation_split: str | None = None,
        *,
        joined_by: str | None = None,
        evaluation: HubText | None = None,
        sequence_length: int,
        calibration_tokens: int,
        search_tokens: int,
        evaluation_tokens: int,
    ) -> None:
        self.sizes = SplitSizes(
            sequence_length, calibration_tokens, search_tokens, evaluation_tokens
        )
        self.text = HubText(dataset, subset, split, field, joined_by)
        self.name = dataset.rstrip("/").rsplit("/", 1)[-1]
        if evaluation_split is not None:
            if evaluation is not None:
                raise DataError("give data.evaluation_split or data.evaluation, not both")
            evaluation = HubText(dataset, subset, evaluation_split, field, joined_by)
        self._check_evaluation(evaluation)
        self.evaluation = evaluation

    def _check_evaluation(self, evaluation: HubText | None) -> None:
        """Refuse a name in place of a text, and text that is calibrated on."""
        if evaluation is None:
            return
        if not isinstance(evaluation, HubText):
            raise DataError(
                f"data.evaluation must be a HubText, got {evaluation!r}; set "
                "data.evaluation.dataset=NAME, or data.evaluation_split=SPLIT"
            )
        if evaluation.shares_rows_with(self.text):
            raise DataError(
                f"the evaluation text {evaluation} is part of the calibration text {self.text}; "
                "name another split, or none to keep the first rows for evaluation"
            )

    def load(self, tokenizer: PreTrainedTokenizerBase) -> TokenSplits:
        """Stream and tokenise as many rows as the splits need.

        Raises:
            DataError: the dataset cannot be reached or read, or holds too little text.
        """
        elsewhere = None if self.evaluation is None else self.evaluation.documents()
        return TokenSplits.from_documents(
            self.text.documents(), tokenizer, self.sizes, evaluation=elsewhere
        )


def _joined(texts: Iterator[str], separator: str) -> Iterator[str]:
    """Rows joined into documents of about `_JOINED_CHARACTERS`."""
    rows: list[str] = []
    characters = 0
    for text in texts:
        rows.append(text)
        characters += len(text) + len(separator)
        if characters >= _JOINED_CHARACTERS:
            yield separator.join(rows)
            rows, characters = [""], 0  # the next begins with the separator that is still due
    yield separator.join(rows)
