"""Size and perplexity of dense and pruned models in llama.cpp, at f16, Q8_0 and Q4_K_M.

Both models are converted to f16 by tyr and quantised by llama.cpp's own quantiser. Perplexity is
measured in llama.cpp on windows of the standard library's evaluation split (or of a text file); the
torch column, on the same tokens, shows what the f16 file itself costs. On small models most rows
are no multiple of 256, so Q4_K_M falls back to larger types: the table lists which. The commands
that made the pruned models are taken from the summary.json beside them.

    python experiments/benchmarks/gguf_quantised.py --pruned head=RUN/model portable=RUN2/model
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tyr.export
from tyr.data import StdlibData
from tyr.export.gguf.exporter import convert
from tyr.launch import plain_libraries
from tyr.model.loading import BUILT_IN

RESULTS = Path(__file__).parent / "results"
WINDOW = 256
FALLBACKS = """Q8_0 and Q5_0 cut the rows of a matrix into blocks of 32 values, Q4_K into blocks of
256. A matrix whose rows are no multiple of 32 stays F16 whatever is asked for; one that has blocks
of 32 but not of 256 becomes Q5_0 or Q8_0 where Q4_K_M asks for Q4_K. Rows of `attn_output` are as
long as heads x head size, rows of `ffn_down` as the FFN is wide. Where query heads share KV heads
unevenly, llama.cpp needs some KV heads twice, and the file holds them twice; the directory does
not."""


def windows_of(directory: Path, text: Path | None, tokens: int) -> torch.Tensor:
    """(N, WINDOW) int64."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    if text is None:
        data = StdlibData(
            sequence_length=WINDOW,
            calibration_tokens=WINDOW,
            search_tokens=WINDOW,
            evaluation_tokens=tokens,
        )
        return data.load(tokenizer).evaluation
    ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    count = min(tokens, len(ids)) // WINDOW
    return torch.tensor(ids[: count * WINDOW]).view(count, WINDOW)


def perplexity(losses: list[float]) -> float:
    """From the mean loss of every window, all of one length."""
    return math.exp(sum(losses) / len(losses))


def torch_perplexity(directory: Path, windows: torch.Tensor) -> float:
    """Of the directory, in float32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        return perplexity([model(w[None], labels=w[None]).loss.item() for w in windows])


def engine_perplexity(path: Path, windows: torch.Tensor) -> float:
    """Of the file, in llama.cpp."""
    engine = llama_cpp.Llama(
        str(path), n_ctx=WINDOW, n_threads=1, n_gpu_layers=0, logits_all=True, verbose=False
    )
    losses = []
    for window in windows:
        engine.reset()
        engine.eval(window.tolist())
        logits = torch.from_numpy(np.array(engine.scores[: WINDOW - 1], dtype=np.float32))
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    engine.close()
    return perplexity(losses)


def quantise(source: Path, out: Path, kind: int) -> None:
    """llama.cpp's quantiser."""
    parameters: Any = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = kind, 1
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), parameters)
    if status:
        raise RuntimeError(f"llama.cpp could not quantise {source}: status {status}")


def types_of(path: Path) -> str:
    """Number of matrices of each type."""
    tensors = gguf.GGUFReader(path).tensors
    found = Counter(t.tensor_type.name for t in tensors if len(t.shape) > 1 and t.shape[1] > 1)
    return ", ".join(f"{count} {name}" for name, count in found.most_common())


def rows_of(name: str, directory: Path, windows: torch.Tensor, folder: Path) -> list[str]:
    """Table rows of one model."""
    files = {"f16": convert(directory, folder / f"{name}-f16.gguf").path}
    for label, kind in (
        ("Q8_0", llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0),
        ("Q4_K_M", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M),
    ):
        files[label] = folder / f"{name}-{label}.gguf"
        quantise(files["f16"], files[label], kind)
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    rows = [f"| {name} | torch float32 | {size:,} | {torch_perplexity(directory, windows):.3f} | |"]
    for label, file in files.items():
        found = engine_perplexity(file, windows)
        rows.append(
            f"| {name} | {label} | {file.stat().st_size:,} | {found:.3f} | {types_of(file)} |"
        )
        print(rows[-1], flush=True)
    return rows


def command_of(directory: Path) -> str:
    """What made an exported model, as its run recorded it."""
    summary = directory.parent / "summary.json"
    if not summary.is_file():
        return "not recorded"
    return f"`{json.loads(summary.read_text(encoding='utf-8'))['command']}`"


def named(word: str) -> tuple[str, Path]:
    """NAME=DIR in its parts."""
    name, _, directory = word.partition("=")
    return name, Path(directory)


def main() -> None:
    """Measure and write results/gguf_quantised.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dense", default="built-in", help="directory, or built-in")
    parser.add_argument(
        "--pruned", required=True, nargs="+", metavar="NAME=DIR", help="exported directories"
    )
    parser.add_argument("--text", type=Path, help="default: the standard library's evaluation text")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    plain_libraries()
    tyr.export.register()
    dense = BUILT_IN if given.dense == "built-in" else Path(given.dense)
    windows = windows_of(dense, given.text, given.tokens)
    pruned = dict(named(word) for word in given.pruned)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for name, directory in {"dense": dense, **pruned}.items()
            for row in rows_of(name, directory, windows, Path(folder))
        ]
    content = "\n".join(
        [
            "# Dense and pruned in llama.cpp, quantised",
            "",
            f"Built by `experiments/benchmarks/gguf_quantised.py`: {windows.numel():,} tokens in "
            f"windows of {WINDOW}; llama-cpp-python {llama_cpp.__version__}; llama.cpp's own "
            "quantiser from our f16 file; bytes are of the weight files.",
            "",
            "| model | type | bytes | perplexity | matrices |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *(f"- `{name}`: {command_of(directory)}" for name, directory in pruned.items()),
            "",
            FALLBACKS,
        ]
    )
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "gguf_quantised.md").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
