"""What `supernet_and_generation.py` measures: sizes of model, text and search. Imports no torch.

The defaults are close to Llama-3.1-8B divided by five (width 768, FFN 2688, four query heads per KV
head, and a vocabulary that takes 7 % of the multiplications as there), with a quarter of its
blocks, and the paper's schedule of 128, 16 and 4 candidates on fewer tokens.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setting:
    """Sizes of one comparison; every field is a command-line option of the same name.

    Args:
        survivors: candidates that leave each stage.
        stage_tokens: tokens of each stage.
        calibration_batch: positions in one forward call of the building, the same on both sides.
        batch_tokens: the same of the search.
        threads: of torch, the same on both sides.
    """

    blocks: int = 8
    hidden: int = 768
    ffn: int = 2688
    heads: int = 12
    kv_heads: int = 3
    vocabulary: int = 6144
    sparsity: float = 0.5
    sequence_length: int = 256
    calibration_tokens: int = 8192
    search_tokens: int = 65536
    offspring: int = 128
    stage_tokens: tuple[int, ...] = (256, 1024, 4096)
    survivors: tuple[int, ...] = (16, 4, 1)
    calibration_batch: int = 8192
    batch_tokens: int = 1024
    threads: int = os.cpu_count() or 1
    seed: int = 0

    @property
    def stages(self) -> list[tuple[int, int]]:
        """Pairs of tokens and survivors."""
        return list(zip(self.stage_tokens, self.survivors, strict=True))

    def model_config(self) -> dict[str, Any]:
        """Fields of the transformers configuration."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.sequence_length,
            # Larger than the usual 0.02: pruning must show in the losses of random weights.
            "initializer_range": 0.05,
            "tie_word_embeddings": True,
        }

    def write(self, path: Path) -> None:
        """Hand the setting to the sides."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Setting:
        """Inverse of `write`."""
        return cls.from_mapping(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> Setting:
        """A setting from plain values; lists become tuples."""
        known = {field.name for field in fields(cls)}
        chosen = {key: value for key, value in values.items() if key in known}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()})


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option per field of `Setting`."""
    for field in fields(Setting):
        default: Any = field.default
        many = isinstance(default, tuple)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=int if many else type(default),
            nargs="+" if many else None,
            default=list(default) if many else default,
        )
