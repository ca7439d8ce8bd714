"""How the rows of known multiple-choice tasks look, how lm-eval asks them, and whether a file fits.

The prompts are those of lm-eval's tasks of the same name, with one exception: BLiMP's sentences are
scored as they stand, where lm-eval puts a space before them, which a SentencePiece tokenizer adds a
second time. Every row of a file is checked, because lm-eval would fail in the middle of a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyr.data.rows import json_rows
from tyr.errors import DataError

GROUP = "blimp"
FEWEST_EXAMPLES = 2  # a standard error needs two

TEXT, TEXTS, INDEX = "a text", "a list of two or more texts", "the index of the right choice"
NOT_EMPTY = "a text that is not empty"


@dataclass(frozen=True)
class Layout:
    """How the rows of a task look, and how lm-eval is to ask them.

    Args:
        fields: name of each field to what it must hold.
        choices: the field that an index points into.
        prompt: keys of the task's YAML file, in lm-eval's template language.
        normalised: whether accuracy by log-probability per character is counted too.
    """

    fields: Mapping[str, str]
    choices: str
    prompt: Mapping[str, object]
    normalised: bool = True


def _question(prompt: str, *, normalised: bool = True) -> Layout:
    """Rows of query, choices and gold."""
    keys = {"doc_to_text": prompt, "doc_to_choice": "choices", "doc_to_target": "gold"}
    fields = {"query": NOT_EMPTY, "choices": TEXTS, "gold": INDEX}
    return Layout(fields, "choices", keys, normalised)


_ANSWER = "{{query | trim}}\nAnswer:"
# Files of BoolQ name the passage, lm-eval does not.
_BOOLQ = "{{query | trim | regex_replace('^Passage: ', '')}}\nAnswer:"
# What lm-eval does to HellaSwag's texts, whose brackets are left over from WikiHow.
_CLEAN = r"trim | replace(' [title]', '. ') | regex_replace('\\[.*?\\]', '') | replace('  ', ' ')"
_CLEAN_EACH = (
    r"map('trim') | map('replace', ' [title]', '. ') | map('regex_replace', '\\[.*?\\]', '') "
    r"| map('replace', '  ', ' ') | list"
)

LAYOUTS: Mapping[str, Layout] = {
    "arc_easy": _question(_ANSWER),
    "arc_challenge": _question(_ANSWER),
    "boolq": _question(_BOOLQ, normalised=False),
    "openbookqa": _question("{{query}}"),
    "piqa": _question(_ANSWER),
    "winogrande": Layout(
        # The contexts differ and the continuation is shared: lm-eval wants the index as the text.
        {"context_options": TEXTS, "continuation": NOT_EMPTY, "gold": INDEX},
        "context_options",
        {
            "doc_to_text": "gold",
            "doc_to_choice": "context_options",
            "doc_to_target": "continuation",
        },
        normalised=False,
    ),
    "hellaswag": Layout(
        {
            "activity_label": TEXT,
            "ctx_a": TEXT,
            "ctx_b": TEXT,
            "endings": TEXTS,
            "label": INDEX,
        },
        "endings",
        {
            "doc_to_text": "{{(activity_label ~ ': ' ~ ctx_a ~ ' ' ~ ctx_b | capitalize) | "
            + _CLEAN
            + "}}",
            "doc_to_choice": "{{endings | " + _CLEAN_EACH + "}}",
            "doc_to_target": "{{label}}",
        },
    ),
    GROUP: Layout(
        {"sentence_good": NOT_EMPTY, "sentence_bad": NOT_EMPTY},
        "",
        {
            "doc_to_text": "",
            "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
            "doc_to_target": 0,
            "target_delimiter": "",
        },
        normalised=False,
    ),
}


def layout_of(task: str) -> Layout:
    """The layout of a task or of a paradigm of BLiMP."""
    return LAYOUTS[GROUP if task.startswith(f"{GROUP}_") else task]


def check_file(path: Path, layout: Layout) -> None:
    """Read a whole file and check every row.

    Raises:
        DataError: a line is not JSON, or a field is missing or wrong (file, line and field are
            named), or there are too few rows.
    """
    count = 0
    for where, row in json_rows(path):
        _check_row(row, layout, where)
        count += 1
    if count < FEWEST_EXAMPLES:
        raise DataError(f"{path} has {count} rows; expected at least {FEWEST_EXAMPLES}")


def _check_row(row: Mapping[str, Any], layout: Layout, where: str) -> None:
    if missing := [field for field in layout.fields if field not in row]:
        raise DataError(
            f"{where} has no field {missing[0]!r}; it has: {', '.join(row) or 'none'}; "
            f"expected: {', '.join(layout.fields)}"
        )
    choices = row.get(layout.choices)
    num_choices = len(choices) if isinstance(choices, list) else 0
    for field, expected in layout.fields.items():
        if not _holds(row[field], expected, num_choices):
            raise DataError(f"{where}: {field!r} is {_shown(row[field])}; expected {expected}")


def _holds(value: object, expected: str, num_choices: int) -> bool:
    if expected == INDEX:  # the original HellaSwag writes "3"
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        whole = isinstance(number, int) and not isinstance(number, bool)
        return whole and number in range(num_choices)
    if expected == TEXTS:
        return (
            isinstance(value, list)
            and len(value) > 1
            and all(isinstance(text, str) and text.strip() for text in value)
        )
    return isinstance(value, str) and (expected == TEXT or bool(value.strip()))


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
