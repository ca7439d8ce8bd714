"""Which of llama.cpp's named text splittings a tokenizer uses.

The rules in tokenizer.json are compared literally: a regular expression that differs by a character
has no name here, and the model is refused rather than tokenised almost rightly. Two rules of
llama.cpp are less exact than their name: `tekken` tells upper from lower case in ASCII only, and a
SentencePiece-style text that begins with a space gets one more even where transformers adds none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tyr.errors import ModelError

Rule = tuple[str, ...]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_BYTES: Rule = ("bytes",)
_GPT2: Rule = ("bytes", "gpt2 words")
_DIGITS: Rule = ("digits",)


def _split(pattern: str) -> Rule:
    return ("split", pattern)


# Rules and whether whole words skip the merges, to llama.cpp's name.
_NAMES: Mapping[tuple[tuple[Rule, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGITS, _GPT2), False): "smollm",
    ((_split(rf"{_CONTRACTIONS}\p{{N}}{{1,3}}{_REST}"), _BYTES), True): "llama-bpe",
    ((_split(rf"{_CONTRACTIONS}\p{{N}}{{1,3}}{_REST}"), _BYTES), False): "smaug-bpe",
    ((_split(rf"{_CONTRACTIONS}\p{{N}}{_REST}"), _BYTES), False): "qwen2",
    ((_split(_TEKKEN), _BYTES), True): "tekken",
}


def pretokenizer_name(content: Mapping[str, Any]) -> str:
    """llama.cpp's name for the splitting of a byte-level BPE tokenizer.

    Args:
        content: of tokenizer.json.

    Raises:
        ModelError: it has none.
    """
    normalizer = content.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _no_mapping(f"its normalizer {normalizer['type']} is not applied by llama.cpp")
    rules = tuple(_rule(step) for step in _steps(content.get("pre_tokenizer"), "pretokenizers"))
    skips_merges = bool(content["model"].get("ignore_merges"))
    name = _NAMES.get((rules, skips_merges))
    if name is None:
        raise _no_mapping(
            f"llama.cpp has no pre-tokenizer with the rules {list(rules)} and "
            f"ignore_merges={skips_merges}; known: {', '.join(sorted(_NAMES.values()))}"
        )
    return name


def adds_space_prefix(content: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece-style tokenizer puts a space before a text.

    Raises:
        ModelError: it also does something that llama.cpp does not.
    """
    prefixed = False
    for step in _steps(content.get("normalizer"), "normalizers"):
        if step == {"type": "Prepend", "prepend": "▁"}:
            prefixed = True
        elif step != {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
            raise _no_mapping(f"its normalizer {step['type']} is not applied by llama.cpp")
    for step in _steps(content.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] != "Metaspace" or step["replacement"] != "▁" or step.get("split", True):
            raise _no_mapping(f"its pre-tokenizer {step['type']} splits text before merging")
        prefixed = prefixed or step.get("prepend_scheme", "always") != "never"
    return prefixed


def _steps(node: Mapping[str, Any] | None, inner: str) -> Sequence[Mapping[str, Any]]:
    if node is None:
        return []
    return list(node[inner]) if node["type"] == "Sequence" else [node]


def _rule(step: Mapping[str, Any]) -> Rule:
    """One pre-tokenizer in a form that compares; an unknown one gets its bare name."""
    kind = str(step["type"])
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return _GPT2 if step.get("use_regex", True) else _BYTES
    if kind == "Digits" and step["individual_digits"]:
        return _DIGITS
    plain = kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]
    if plain and "Regex" in step["pattern"]:
        return _split(step["pattern"]["Regex"])
    return (kind,)


def _no_mapping(reason: str) -> ModelError:
    return ModelError(f"the tokenizer has no GGUF mapping: {reason}")
