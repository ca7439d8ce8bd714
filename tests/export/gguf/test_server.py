"""An exported file behind llama-cpp-python's OpenAI-compatible server, asked over HTTP."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import tyr.export
from tests.export.gguf.engine import require_engine
from tests.export.gguf.test_trained import lightly_pruned
from tyr.export.gguf.exporter import convert
from tyr.model.loading import BUILT_IN

require_engine()
pytest.importorskip(
    "fastapi", reason="the server extra is not installed (pip install -e '.[gguf-test]')"
)
pytestmark = pytest.mark.slow

PROMPT = '    def read(self, size):\n        """Read'
START_SECONDS = 120


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tyr.export.register()
    return lightly_pruned(BUILT_IN, tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def address(directory: Path) -> Iterator[str]:
    """A running server on a free port of this machine."""
    path = convert(directory, directory.parent / "model.gguf", dtype="f32").path
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--model", str(path), "--host", "127.0.0.1", "--port", str(port), "--n_ctx", "256"]
    words += ["--n_threads", "1", "--type_k", "0", "--type_v", "0"]  # keys and values in float32
    log = directory.parent / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "llama_cpp.server", *words], stdout=stream, stderr=stream
        )
    try:
        base = f"http://127.0.0.1:{port}/v1"
        wait_for(f"{base}/models", server, log)
        yield base
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
        else:
            return
    raise AssertionError(f"the server did not start:\n{log.read_text()[-2000:]}")


def ask(address: str, **fields: Any) -> Any:
    request = urllib.request.Request(
        address, json.dumps(fields).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_completion_over_http_is_the_greedy_text_of_transformers(
    directory: Path, address: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
    told = model.generate(**prompt, max_new_tokens=32, do_sample=False)[0]
    wanted = tokenizer.decode(told[prompt["input_ids"].shape[1] :])
    answer = ask(
        f"{address}/completions", prompt=PROMPT, max_tokens=32, temperature=0, repeat_penalty=1.0
    )
    assert answer["choices"][0]["text"] == wanted
    assert answer["usage"]["prompt_tokens"] == prompt["input_ids"].shape[1]
    assert len(set(wanted)) > 3  # a text, not one character repeated
