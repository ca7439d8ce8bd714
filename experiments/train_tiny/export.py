"""Turn a training checkpoint into the model directory that tyr ships, and measure what was shipped.

Writes bf16 safetensors and the tokenizer, loads both back through the Auto classes, and measures
the reloaded model: loss by transformers itself, over non-overlapping windows of a held-out split.

    python experiments/train_tiny/export.py --tokens experiments/train_tiny/tokens \\
        --checkpoint experiments/train_tiny/run/checkpoint.pt --out tyr/assets/tiny
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from fast_llama import forward
from torch import Tensor
from train import model_config
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

PROMPTS = ("def ", "import ", "class Stack:\n    ")


def export(checkpoint: Path, tokenizer: Path, out: Path) -> None:
    """Write config.json, model.safetensors (bf16) and the tokenizer's files into `out`."""
    model = LlamaForCausalLM(model_config())
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["model"])
    model.to(torch.bfloat16).save_pretrained(out)
    shutil.copytree(tokenizer, out, dirs_exist_ok=True)


def windows_of(path: Path, length: int) -> Tensor:
    """(windows, length) of a token file, int64."""
    stream = np.fromfile(path, dtype="<u2").astype(np.int64)
    return torch.from_numpy(stream[: len(stream) // length * length]).view(-1, length)


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, windows: Tensor) -> float:
    """Nats per predicted token, by transformers' own loss."""
    total = 0.0
    for batch in windows.split(16):
        total += float(model(input_ids=batch, labels=batch).loss) * len(batch)
    return total / len(windows)


@torch.no_grad()
def forward_difference(model: LlamaForCausalLM, windows: Tensor) -> float:
    """Relative distance between the training forward's logits and transformers'."""
    stock = model(input_ids=windows).logits.float()
    return float((forward(model, windows).float() - stock).norm() / stock.norm())


def sample(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int = 80
) -> str:
    """Greedy continuation of `prompt`."""
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(ids[0], skip_special_tokens=True))


def measure(folder: Path, split: Path, length: int) -> dict[str, object]:
    """Load `folder` the way a user does and measure it on the tokens of `split`."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    windows = windows_of(split, length)
    num_bytes = len(tokenizer.decode(windows.flatten(), skip_special_tokens=True).encode())
    loss = mean_loss(model, windows)
    return {
        "split": split.stem,
        "windows": len(windows),
        "length": length,
        "dtype": str(model.dtype),
        "loss": round(loss, 4),
        "perplexity": round(math.exp(loss), 3),
        "bits_per_byte": round(loss * windows.numel() / num_bytes / math.log(2), 4),
        "training_forward_difference": round(forward_difference(model, windows[:4]), 4),
        "directory_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "samples": [sample(model, tokenizer, prompt) for prompt in PROMPTS],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=("search", "evaluation"), default="search")
    parser.add_argument("--length", type=int, default=256, help="tokens per window")
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.tokens / "tokenizer", arguments.out)
    split = arguments.tokens / f"{arguments.split}.bin"
    print(json.dumps(measure(arguments.out, split, arguments.length), indent=2))


if __name__ == "__main__":
    main()
