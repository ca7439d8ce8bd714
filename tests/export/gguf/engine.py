"""llama.cpp as tests use it: logits, greedy tokens and tokenisation of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

REASON = "llama-cpp-python is not installed (pip install -e '.[gguf-test]')"


def require_engine() -> Any:
    """The llama_cpp module, or a skipped test."""
    return pytest.importorskip("llama_cpp", reason=REASON)


class Engine:
    """A GGUF file loaded in llama.cpp, one thread, keys and values cached in float32.

    Args:
        path: the file.
        context: positions of the KV cache.
    """

    def __init__(self, path: Path, *, context: int = 64) -> None:
        self._library = require_engine()
        self.llama = self._library.Llama(
            model_path=str(path),
            n_ctx=context,
            n_threads=1,
            n_threads_batch=1,
            n_gpu_layers=0,
            logits_all=True,
            type_k=self._library.GGML_TYPE_F32,
            type_v=self._library.GGML_TYPE_F32,
            verbose=False,
        )

    def logits(self, tokens: list[int]) -> Tensor:
        """(T, V): after every token of a text, in one batch."""
        self.llama.reset()
        self.llama.eval(tokens)
        return torch.from_numpy(self.llama.scores[: len(tokens)].copy())

    def greedy(self, tokens: list[int], new: int) -> list[int]:
        """The most likely continuation, one token at a time through the KV cache."""
        self.llama.reset()
        self.llama.eval(tokens)
        told: list[int] = []
        for _ in range(new):
            row = self.llama.scores[self.llama.n_tokens - 1]
            told.append(int(row.argmax()))
            self.llama.eval(told[-1:])
        return told

    def tokenize(self, text: str) -> list[int]:
        """Ids with the special tokens that the file asks for."""
        return list(self.llama.tokenize(text.encode(), add_bos=True, special=True))

    def metadata(self) -> dict[str, str]:
        """Scalar metadata as text."""
        return dict(self.llama.metadata)

    def close(self) -> None:
        """Give the memory back."""
        self.llama.close()
