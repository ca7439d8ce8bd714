"""Small task files in the words of the zoo's tokenizer (`w20`, `w21`, ...), one of every layout."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.model_zoo import VOCABULARY

Rows = Sequence[Mapping[str, Any]]


def words(rng: random.Random, count: int) -> str:
    """A text of so many tokens."""
    # Not w10 to w19, in which the tokenizer finds its special token w1.
    return " ".join(f"w{rng.randrange(20, VOCABULARY)}" for _ in range(count))


def question(rng: random.Random) -> dict[str, Any]:
    """A row of query, choices and gold; the choices differ in length."""
    choices = [words(rng, rng.randint(1, 4)) for _ in range(4)]
    return {"query": words(rng, 5), "choices": choices, "gold": rng.randrange(4)}


def winogrande(rng: random.Random) -> dict[str, Any]:
    """Two contexts and one continuation."""
    options = [words(rng, 4), words(rng, 4)]
    return {"context_options": options, "continuation": words(rng, 3), "gold": rng.randrange(2)}


def hellaswag(rng: random.Random) -> dict[str, Any]:
    """The original schema, with the brackets that are cleaned away."""
    return {
        "activity_label": words(rng, 1),
        "ctx_a": f"[header] {words(rng, 2)} [title] {words(rng, 2)}",
        "ctx_b": words(rng, 2),
        "endings": [f"{words(rng, 2)}  [substeps] {words(rng, 1)}" for _ in range(4)],
        "label": rng.randrange(4),
    }


def pair(rng: random.Random) -> dict[str, Any]:
    """Two sentences of BLiMP."""
    return {"sentence_good": words(rng, 6), "sentence_bad": words(rng, 6)}


MAKERS = {
    "arc_easy": question,
    "openbookqa": question,
    "winogrande": winogrande,
    "hellaswag-12": hellaswag,
    "blimp/agreement": pair,
    "blimp/islands": pair,
}


def write_rows(path: Path, rows: Rows) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def write_task_files(folder: Path, *, rows: int = 12) -> Path:
    """A directory of task files."""
    for name, make in MAKERS.items():
        rng = random.Random(name)
        write_rows(folder / f"{name}.jsonl", [make(rng) for _ in range(rows)])
    return folder
