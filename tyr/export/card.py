"""The model card of an exported model: what was pruned, from what, with which command.

Plain Markdown with the front matter that model hubs read. It states what it is given and leaves out
what it is not; no number is computed here beyond the sizes of the export itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class CardFacts:
    """What the export itself knows.

    Args:
        base: path or hub name of the dense model, may be empty.
        licence: front-matter lines of the base model's licence, may be empty.
        dense_parameters: of the dense model.
        parameters: of the exported model.
        layers: one row per block: heads, KV heads, FFN neurons.
    """

    base: str
    licence: Sequence[str]
    dense_parameters: int
    parameters: int
    layers: Sequence[Mapping[str, object]]


def licence_lines(base: Path) -> list[str]:
    """The `license` lines in the front matter of a local model's README, if there is one."""
    try:
        text = (base / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    if not text.startswith("---"):
        return []
    front = text.split("---", 2)[1]
    return [line for line in front.splitlines() if line.startswith("license")]


def licence_files(base: Path) -> list[Path]:
    """Licence texts that lie beside a local model; most licences ask to pass them on."""
    return sorted(file for pattern in LICENCE_FILES for file in base.glob(pattern))


def model_card(facts: CardFacts, provenance: Mapping[str, object]) -> str:
    """The text of README.md.

    Args:
        facts: what the export knows.
        provenance: what the caller knows. `name` titles the card, `base` overrides the path of the
            dense model, `license` its licence, `command` is shown as code, `results` (rows as
            mappings) as a table; every other key is listed.
    """
    given = dict(provenance)
    base = str(given.pop("base", facts.base))
    name = str(given.pop("name", "Pruned model"))
    licence = [f"license: {given.pop('license')}"] if "license" in given else list(facts.licence)
    command, results = given.pop("command", None), given.pop("results", None)
    sections = [
        _front_matter(base, licence),
        f"# {name}",
        _summary(base, facts),
        "```python\n" + _USE + "\n```",
    ]
    if command is not None:
        sections += ["## Command", f"```\n{command}\n```"]
    if results:
        sections += ["## Results", _table(results)]
    sections += ["## Sizes", _table(facts.layers)]
    if given:
        listed = json.dumps(given, indent=2, default=str, ensure_ascii=False)
        sections += ["## Provenance", f"```json\n{listed}\n```"]
    return "\n\n".join(sections) + "\n"


_USE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(DIRECTORY, trust_remote_code=True)"""


def _front_matter(base: str, licence: Sequence[str]) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    lines += ["tags:", "- pruned", "- tyr", *licence]
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):  # a hub name, not a path
        lines.append(f"base_model: {base}")
    return "\n".join([*lines, "---"])


def _summary(base: str, facts: CardFacts) -> str:
    origin = f" of `{base}`" if base else ""
    share = 1 - facts.parameters / facts.dense_parameters
    return (
        f"A structurally pruned copy{origin}: {facts.parameters:,} parameters instead of "
        f"{facts.dense_parameters:,} ({share:.1%} removed). Attention heads and FFN neurons are "
        f"gone, not masked; blocks differ in size. The code in `modeling_tyr.py` needs only torch "
        f"and transformers 5."
    )


def _table(rows: Any) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
