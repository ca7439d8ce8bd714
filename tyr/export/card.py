"""The model card of an exported model: what was pruned, from what, with which command.

Plain Markdown with the front matter that model hubs read. It states what it is given and leaves out
what it is not; no number is computed here beyond the sizes of the export itself. Upload the
directory as it is (`hf upload NAME DIRECTORY`) to publish this card: `push_to_hub` of a loaded
model keeps a card that the repository has, and else writes a bare one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tyr.export.base import BaseModel, is_hub_name


@dataclass(frozen=True)
class CardFacts:
    """What the export itself knows.

    Args:
        base: the dense model and its licence.
        dense_parameters: of the dense model.
        parameters: of the exported model.
        layers: one row per block: heads, KV heads, FFN neurons.
        code: whether the model needs the `modeling_tyr.py` beside it.
    """

    base: BaseModel
    dense_parameters: int
    parameters: int
    layers: Sequence[Mapping[str, object]]
    code: bool = True


def model_card(facts: CardFacts, provenance: Mapping[str, object]) -> str:
    """The text of README.md.

    Args:
        facts: what the export knows.
        provenance: what the caller knows. `name` titles the card, `base` overrides the path of the
            dense model, `license` its licence, `command` is shown as code, `results` (rows as
            mappings) as a table; every other key is listed.
    """
    given = dict(provenance)
    base = str(given.pop("base", facts.base.name))
    name = str(given.pop("name", "Pruned model"))
    licence = {"license": given.pop("license")} if "license" in given else facts.base.licence
    command, results = given.pop("command", None), given.pop("results", None)
    sections = [
        _front_matter(base, licence),
        f"# {name}",
        _summary(base, facts),
        _licence(base, licence),
        "```python\n" + (_USE if facts.code else _USE.replace(_TRUST, "")) + "\n```",
    ]
    if command is not None:
        sections += ["## Command", f"```\n{command}\n```"]
    if results:
        sections += ["## Results", _table(results)]
    sections += ["## Sizes", _table(facts.layers)]
    if given:
        listed = json.dumps(given, indent=2, default=str, ensure_ascii=False)
        sections += ["## Provenance", f"```json\n{listed}\n```"]
    return "\n\n".join(section for section in sections if section) + "\n"


_TRUST = ", trust_remote_code=True"
_USE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(DIRECTORY, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(DIRECTORY, trust_remote_code=True)"""


def _front_matter(base: str, licence: Mapping[str, object]) -> str:
    """The YAML that hubs read."""
    entries: dict[str, object] = {
        **licence,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pruned", "tyr"],
    }
    if is_hub_name(base):
        entries["base_model"] = base
    return "---\n" + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True) + "---"


def _licence(base: str, licence: Mapping[str, object]) -> str:
    if not licence and not base:
        return ""
    if not licence:
        return (
            "The licence of the base model applies to this one too. It was not found beside the "
            "base: state it here before you publish the model."
        )
    name = licence.get("license_name") or licence.get("license")
    of = f", that of `{base}`" if base else ""
    return f"Licence: {name}{of}."


def _summary(base: str, facts: CardFacts) -> str:
    origin = f" of `{base}`" if base else ""
    share = 1 - facts.parameters / facts.dense_parameters
    form = (
        "blocks differ in size. The code in `modeling_tyr.py` needs only torch and transformers 5."
        if facts.code
        else "all blocks have the same size, so it is an ordinary checkpoint without code."
    )
    return (
        f"A structurally pruned copy{origin}: {facts.parameters:,} parameters instead of "
        f"{facts.dense_parameters:,} ({share:.1%} removed). Attention heads and FFN neurons are "
        f"gone, not masked; {form}"
    )


def _table(rows: Any) -> str:
    rows = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _flat(row: Mapping[str, object]) -> dict[str, object]:
    """A row of plain values: one level of mappings becomes columns, what is deeper is left out."""
    flat: dict[str, object] = {}
    for key, value in row.items():
        inner = value if isinstance(value, Mapping) else None
        cells = {key: value} if inner is None else {f"{key} {k}": v for k, v in inner.items()}
        flat.update({k: v for k, v in cells.items() if isinstance(v, str | int | float)})
    return flat


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
