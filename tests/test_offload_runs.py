"""A run whose blocks and hidden states live on disk ends with the bytes of one wholly in memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.data.text import numbered
from tests.test_pipeline import BLOCKS, HEADS, NEURONS, make_method
from tyr import events
from tyr.data import TextFileData
from tyr.evaluate.perplexity import PerplexityEvaluator
from tyr.launch import PLAN_FILE, Job, launch
from tyr.model.loading import BUILT_IN, PretrainedModel, RandomModel
from tyr.model.random_weights import PREFIX
from tyr.model.source import ModelSource
from tyr.pipeline import Method
from tyr.prune.criterion import SecondOrder
from tyr.prune.local import LocalPruner
from tyr.prune.target import CorrectedTarget
from tyr.search.evolution import EvolutionarySearch
from tyr.search.objective import KdHidden
from tyr.sparsity import Allocation
from tyr.trainer import Trainer

# Small enough that states live in all three places.
TIGHT = {"offload": "disk", "device_state_bytes": 5000, "host_state_bytes": 8000}
SIZES = {
    "vocab_size": 2048,
    "hidden_size": 24,
    "intermediate_size": NEURONS,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
}


def run(source: ModelSource, path: Path, method: Method) -> Allocation:
    """The whole pipeline on a few tokens, in several batches."""
    text = path.parent / "text.txt"
    text.write_text(numbered(0, 900))
    data = TextFileData(
        text, sequence_length=32, calibration_tokens=256, search_tokens=128, evaluation_tokens=96
    )
    return launch(
        method,
        PerplexityEvaluator(batch_tokens=32),
        source,
        data,
        callbacks=events.Callback(),
        trainer=Trainer("cpu"),
        job=Job(
            path,
            {"sparsity": 0.375, "resume": False, "seed": 0},
            "sparsity: 0.375\n",
            "python -m tyr.run",
        ),
    )


def digests(path: Path) -> dict[str, str]:
    """Every file of a run but for the plan, which holds measured rates."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != PLAN_FILE)
    names = {file.name for file in files}
    assert {"evaluation.json", "search.json", "finished.json", "model.safetensors"} <= names
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


@pytest.fixture(
    params=[
        ("tied", "60KB"),
        ("untied", "1GB"),
        pytest.param(("tied", "1GB"), marks=pytest.mark.slow),
        pytest.param(("untied", "60KB"), marks=pytest.mark.slow),
    ]
)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model of three blocks in one file or several, with tied embeddings or not."""
    tie, shard = request.param
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tie == "tied"))
    model.save_pretrained(tmp_path / "dense", max_shard_size=shard)
    AutoTokenizer.from_pretrained(BUILT_IN).save_pretrained(tmp_path / "dense")
    files = list((tmp_path / "dense").glob("*.safetensors"))
    assert (len(files) > 1) == (shard == "60KB")
    return tmp_path / "dense"


def paper() -> Method:
    """One iteration of the paper's method."""
    return make_method(iterations=1)


def other() -> Method:
    """What needs a dense stream and hidden states of the teacher."""
    search = EvolutionarySearch(KdHidden(), generations=2, offspring=4, stages=[[32, 2], [64, 1]])
    pruner = LocalPruner(SecondOrder(), CorrectedTarget(), ffn_group=4)
    return make_method(iterations=1, search=search, pruner=pruner)


def test_blocks_and_states_on_disk_change_no_byte_of_a_run(
    checkpoint: Path, tmp_path: Path
) -> None:
    whole = run(PretrainedModel(str(checkpoint)), tmp_path / "none", paper())
    streamed = run(PretrainedModel(str(checkpoint), **TIGHT), tmp_path / "disk", paper())
    assert streamed == whole
    assert digests(tmp_path / "disk") == digests(tmp_path / "none")
    rows = json.loads((tmp_path / "disk" / "evaluation.json").read_text())["rows"]
    assert set(rows) == {"dense", "tyr", "uniform", "tyr_supernet"}


def test_a_random_model_on_disk_is_pruned_like_one_in_memory(tmp_path: Path) -> None:
    config = {"model_type": "qwen3", "head_dim": 4, **SIZES}
    whole = run(RandomModel(config), tmp_path / "none", other())
    killed = tmp_path / "disk" / f"{PREFIX}killed"  # by a process that had no time to
    killed.mkdir(parents=True)
    (killed / "00000.safetensors").write_bytes(b"half")
    streamed = run(RandomModel(config, **TIGHT), tmp_path / "disk", other())
    assert streamed == whole
    assert not killed.exists()
    assert digests(tmp_path / "disk") == digests(tmp_path / "none")
