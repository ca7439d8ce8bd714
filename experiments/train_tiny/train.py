"""Train the built-in tiny model on the token files that `prepare.py` wrote.

A plain loop: Muon for the blocks' matrices and AdamW for the rest; warm-up, constant rate, linear
decay to zero; bf16 activations, float32 weights. Every batch is a function of (seed, step), so a
run that was killed continues from its last checkpoint as if nothing had happened when the same
command is repeated. The held-out loss that guides choices is the `search` split's; `export.py`
measures the evaluation split. Needs torch, transformers and numpy only.

    python experiments/train_tiny/train.py --tokens experiments/train_tiny/tokens \\
        --out experiments/train_tiny/run
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fast_llama import forward
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

COLUMNS = (
    *("step", "tokens", "train_loss", "held_out_loss", "bits_per_byte"),
    *("learning_rate", "seconds"),
)


def model_config() -> LlamaConfig:
    """4.82 M parameters: small enough to ship, deep enough to be worth allocating sparsity in."""
    return LlamaConfig(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=24,
        max_position_embeddings=512,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


@dataclass(frozen=True)
class Batches:
    """Windows of a token stream; which ones depends on the seed and the step alone.

    Every pass cuts the stream at a new random offset and visits the windows in a new order.
    """

    stream: np.ndarray  # (tokens,), uint16
    batch_size: int
    length: int
    seed: int

    @property
    def steps_per_pass(self) -> int:
        return (len(self.stream) - 2 * self.length) // self.length // self.batch_size

    def at(self, step: int) -> Tensor:
        """(batch_size, length + 1) tokens: inputs and, one to the right, targets."""
        number, index = divmod(step, self.steps_per_pass)
        rng = np.random.default_rng((self.seed, number))
        offset = int(rng.integers(self.length))
        order = rng.permutation(self.steps_per_pass * self.batch_size)
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        windows = [self.stream[offset + r * self.length :][: self.length + 1] for r in rows]
        return torch.from_numpy(np.stack(windows).astype(np.int64))


def learning_rate(step: int, arguments: argparse.Namespace) -> float:
    """Warm up, hold, decay linearly to zero over the last `decay_steps` (0: never decay)."""
    warm = min(1.0, (step + 1) / arguments.warmup)
    left = arguments.steps - step
    cool = left / arguments.decay_steps if left < arguments.decay_steps else 1.0
    return float(arguments.lr * min(warm, cool))


def make_optimizers(
    model: LlamaForCausalLM, arguments: argparse.Namespace
) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the embedding and the norm gains.

    Muon's update is scaled to AdamW's usual size, so one learning rate fits both.
    """
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    gains = [p for p in model.parameters() if p.dim() < 2]
    embedding = model.model.embed_tokens.weight
    lr, decay = arguments.lr, arguments.weight_decay
    groups = [
        {"params": [embedding], "weight_decay": decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True),
    ]


def token_loss(model: LlamaForCausalLM, batch: Tensor) -> Tensor:
    """Mean cross-entropy in nats; the logits' softmax is taken in float32."""
    logits = forward(model, batch[:, :-1])
    return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(
    model: LlamaForCausalLM, stream: np.ndarray, arguments: argparse.Namespace
) -> float:
    """Mean loss over `held_out_windows` windows spread evenly over a held-out stream."""
    length, size = arguments.length, arguments.batch_size
    starts = np.linspace(0, len(stream) - length - 1, arguments.held_out_windows).astype(int)
    rows = np.stack([stream[start : start + length + 1] for start in starts]).astype(np.int64)
    device = next(model.parameters()).device
    losses = [
        float(token_loss(model, torch.from_numpy(rows[i : i + size]).to(device)))
        for i in range(0, len(rows) - len(rows) % size, size)
    ]
    return float(np.mean(losses))


def save(path: Path, payload: dict[str, object]) -> None:
    """Write to a temporary name and rename: a kill leaves the previous checkpoint whole."""
    temporary = path.with_suffix(".partial")
    torch.save(payload, temporary)
    temporary.replace(path)


def restore(
    path: Path, model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[int, int]:
    """Load the checkpoint if there is one; returns the next step and the tokens seen."""
    if not path.exists():
        return 0, 0
    device = next(model.parameters()).device
    payload = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(payload["model"])
    for optimizer, state in zip(optimizers, payload["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return int(payload["step"]), int(payload["tokens"])


class Log:
    """One CSV line per interval; lines after the checkpoint that a run resumes from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = []
        if path.exists():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)

    def write(self, *values: float | int) -> None:
        row = [format(v, ".6g") if isinstance(v, float) else str(v) for v in values]
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(row)
        pairs = zip(COLUMNS, row, strict=True)
        print("  ".join(f"{name} {value}" for name, value in pairs), flush=True)


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments.out.mkdir(parents=True, exist_ok=True)
    stream = np.fromfile(arguments.tokens / "train.bin", dtype="<u2")
    held_out = np.fromfile(arguments.tokens / "search.bin", dtype="<u2")
    facts = json.loads((arguments.tokens / "facts.json").read_text())["search"]
    bits = facts["tokens"] / facts["bytes"] / math.log(2)

    model = LlamaForCausalLM(model_config()).to(device)
    optimizers = make_optimizers(model, arguments)
    first, tokens = restore(arguments.out / "checkpoint.pt", model, optimizers)
    log = Log(arguments.out / "log.csv", first)
    loss_of = torch.compile(token_loss, dynamic=False) if arguments.compile else token_loss
    batches = Batches(stream, arguments.batch_size, arguments.length, arguments.seed)
    print(f"step {first}/{arguments.steps}, {batches.steps_per_pass} steps a pass, {device}")

    started, recent = time.monotonic(), []
    for step in range(first, arguments.steps):
        rate = learning_rate(step, arguments)
        loss = loss_of(model, batches.at(step).to(device))
        loss.backward()
        update(model, optimizers, rate)
        recent.append(float(loss.detach()))
        tokens += arguments.batch_size * arguments.length
        done = step + 1
        seconds = time.monotonic() - started
        last = done == arguments.steps or seconds > 60 * arguments.minutes
        if done % arguments.log_every == 0 or last:
            outside = held_out_loss(model, held_out, arguments)
            log.write(done, tokens, float(np.mean(recent)), outside, outside * bits, rate, seconds)
            recent = []
        if done % arguments.save_every == 0 or last:
            states = [optimizer.state_dict() for optimizer in optimizers]
            payload = {"model": model.state_dict(), "optimizers": states}
            save(arguments.out / "checkpoint.pt", {**payload, "step": done, "tokens": tokens})
        if last:
            return


def update(
    model: LlamaForCausalLM, optimizers: Sequence[torch.optim.Optimizer], rate: float
) -> None:
    """Clip the gradient to norm 1 and take one step of every optimizer."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--tokens", type=Path, required=True, help="folder that prepare.py wrote")
    add("--out", type=Path, required=True, help="folder for checkpoint.pt and log.csv")
    add("--steps", type=int, default=10_000)
    add("--batch-size", type=int, default=16, help="windows per step")
    add("--length", type=int, default=256, help="tokens per window")
    add("--lr", type=float, default=3e-3)
    add("--warmup", type=int, default=100, help="steps")
    add("--decay-steps", type=int, default=0, help="last steps, that cool down to zero")
    add("--weight-decay", type=float, default=0.1)
    add("--held-out-windows", type=int, default=128)
    add("--log-every", type=int, default=100)
    add("--save-every", type=int, default=250)
    add("--minutes", type=float, default=math.inf, help="save and stop after this long")
    add("--seed", type=int, default=0)
    add("--compile", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    train(parse())
