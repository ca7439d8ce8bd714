"""Peak memory against depth, with the model in memory and on disk; and a run under a memory cap.

    python experiments/benchmarks/depth_memory.py     (a quarter of an hour, one core)

Every run is a process of its own: dense evaluation, calibration, supernet, one generation, export,
of a random model of 8, 32 or 128 blocks of the same width, on few tokens. The cap is RLIMIT_DATA,
set in the child before it imports anything. It is a fair one: it counts all private writable
memory, that is heap, anonymous pages and the file that safetensors maps at the moment, whether
touched or not; it leaves out program code and other files' pages, which the system may drop at any
time. The peak resident set, which counts those too, is compared with the cap as well. Imports no
torch itself: the peak memory of a child would start at the parent's. Writes
results/depth_memory.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import Goal, describe_run, table, verdicts, write_results

NAME = "depth_memory"
MODES = ("none", "disk")
OWN_OPTIONS = ("depths", "cap_bytes", "earlier", "output")  # of the parent, not of a run
INSIST = 1e15  # a memory budget that nothing exceeds: the run is tried, not refused

Answer = dict[str, Any]


def run_child(setting: dict[str, Any]) -> Answer:
    """One run, in this process; called in a child.

    Args:
        setting: sizes, `offload`, `cap_bytes`, `insist` and `folder`.
    """
    if setting["cap_bytes"]:
        resource.setrlimit(resource.RLIMIT_DATA, (setting["cap_bytes"], setting["cap_bytes"]))
    import torch

    from tyr.evaluate.perplexity import PerplexityEvaluator
    from tyr.events import Callback
    from tyr.launch import Job, launch, plain_libraries
    from tyr.memory import peak_rss_bytes
    from tyr.trainer import Trainer

    torch.set_num_threads(setting["threads"])
    plain_libraries()
    folder = Path(setting["folder"])
    started = time.perf_counter()
    launch(
        method(setting),
        PerplexityEvaluator(batch_tokens=setting["batch_tokens"], uniform_baseline=False),
        model(setting),
        data(setting),
        callbacks=Callback(),
        trainer=Trainer("cpu"),
        job=Job(
            folder,
            {"sparsity": 0.5, "resume": False, "seed": setting["seed"]},
            json.dumps(setting),
            "benchmark",
        ),
    )
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    return {
        "peak_rss_bytes": peak_rss_bytes(),
        "planned_bytes": plan["memory_bytes"],
        "weight_bytes": plan["model_bytes"],
        "seconds": time.perf_counter() - started,
        "result": digest(folder),
    }


def method(setting: dict[str, Any]) -> Any:
    """One iteration with one generation; structures come from the supernet."""
    from tyr.export.checkpoint import HuggingFaceExport
    from tyr.pipeline import Method
    from tyr.prune.criterion import Taylor
    from tyr.prune.local import LocalPruner
    from tyr.prune.target import SelfTarget
    from tyr.search.evolution import EvolutionarySearch
    from tyr.search.objective import KdLogits
    from tyr.supernet.accumulation import ExpectationAccumulation
    from tyr.supernet.finish import FromSupernet
    from tyr.supernet.settings import SupernetSettings

    batch = setting["batch_tokens"]
    return Method(
        iterations=1,
        seed=setting["seed"],
        pruner=LocalPruner(Taylor(), SelfTarget()),
        supernet=SupernetSettings(ExpectationAccumulation(), levels=3, batch_tokens=batch),
        search=EvolutionarySearch(
            KdLogits(),
            generations=1,
            offspring=4,
            stages=[[setting["sequence_length"], 2], [2 * setting["sequence_length"], 1]],
            batch_tokens=batch,
        ),
        finish=FromSupernet(compare=False),
        exporter=HuggingFaceExport(),
    )


def model(setting: dict[str, Any]) -> Any:
    """A random Llama."""
    from tyr.model.loading import RandomModel

    sizes = {
        "model_type": "llama",
        "vocab_size": 2048,
        "hidden_size": setting["hidden"],
        "intermediate_size": setting["ffn"],
        "num_hidden_layers": setting["blocks"],
        "num_attention_heads": setting["heads"],
        "num_key_value_heads": setting["heads"],
        "max_position_embeddings": setting["sequence_length"],
        "initializer_range": 0.02,
    }
    budget = INSIST if setting["insist"] else None
    offload = setting["offload"]
    return RandomModel(sizes, seed=setting["seed"], offload=offload, memory_budget=budget)


def data(setting: dict[str, Any]) -> Any:
    """A few windows of the standard library."""
    from tyr.data import StdlibData

    length = setting["sequence_length"]
    return StdlibData(
        sequence_length=length,
        calibration_tokens=setting["calibration_tokens"],
        search_tokens=4 * length,
        evaluation_tokens=4 * length,
    )


def digest(folder: Path) -> str:
    """Of the measured losses, the search, the allocation and every exported tensor."""
    files = [
        *(folder / name for name in ("evaluation.json", "finished.json")),
        folder / "iteration-0" / "search.json",
        *sorted((folder / "model").glob("*.safetensors")),
    ]
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def measure(setting: dict[str, Any], **changes: Any) -> Answer:
    """One run in a process of its own; its last words if it fails."""
    with tempfile.TemporaryDirectory(prefix="tyr-depth-") as name:
        chosen = {**setting, **changes, "folder": f"{name}/run"}
        count = str(setting["threads"])
        done = subprocess.run(
            [sys.executable, __file__, "--child", json.dumps(chosen)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count},
        )
    answer: Answer = {"status": done.returncode}
    if done.returncode == 0:
        answer |= json.loads(done.stdout.splitlines()[-1])
    else:
        answer["error"] = (done.stderr.strip().splitlines() or ["killed"])[-1]
    shown = {key: changes[key] for key in ("blocks", "offload")}
    say(f"{shown}: {answer.get('peak_rss_bytes', answer.get('error'))}")
    return answer


def summarise(runs: dict[str, dict[str, Answer]], capped: dict[str, Answer], cap: int) -> Answer:
    """The figures of the report."""
    peaks = {mode: [run["peak_rss_bytes"] for run in runs[mode].values()] for mode in MODES}
    equal = [runs["none"][d]["result"] == runs["disk"][d]["result"] for d in runs["none"]]
    planned = [run["planned_bytes"] / run["peak_rss_bytes"] for run in runs["disk"].values()]
    return {
        "disk_spread": max(peaks["disk"]) / min(peaks["disk"]),
        "none_growth": peaks["none"][-1] / peaks["none"][0],
        "equal_results": all(equal),
        "planned_of_measured": planned,
        "cap_bytes": cap,
        "weights_of_cap": capped["disk"].get("weight_bytes", 0) / cap,
        "capped_disk_finished": capped["disk"]["status"] == 0,
        "capped_peak_of_cap": capped["disk"].get("peak_rss_bytes", 0) / cap,
        "capped_none_failed": capped["none"]["status"] != 0,
        "capped_insisting_failed": capped["insisting"]["status"] != 0,
        "capped_result_is_that_without_cap": capped["disk"].get("result")
        == list(runs["none"].values())[-1]["result"],
    }


GOALS = (
    Goal("peak RSS with disk, deepest / least", ("disk_spread",), at_most=1.15),
    Goal("peak RSS with none, deepest / shallowest", ("none_growth",), at_least=2),
    Goal("same losses, allocation and exported bytes", ("equal_results",), at_least=1),
    Goal("weights / cap", ("weights_of_cap",), at_least=1),
    Goal("under the cap, disk finishes", ("capped_disk_finished",), at_least=1),
    Goal("its peak RSS / cap", ("capped_peak_of_cap",), at_most=1),
    Goal("with the same result", ("capped_result_is_that_without_cap",), at_least=1),
    Goal("under the cap, none fails", ("capped_none_failed",), at_least=1),
    Goal("and fails if it insists", ("capped_insisting_failed",), at_least=1),
)


def markdown(content: dict[str, Any]) -> list[str]:
    """The readable report's sections, after the verdicts."""
    runs, figures = content["runs"], content["figures"]
    rows = [
        [
            blocks,
            mib(runs["disk"][blocks]["weight_bytes"]),
            *(mib(runs[mode][blocks]["peak_rss_bytes"]) for mode in MODES),
            *(f"{runs[mode][blocks]['seconds']:.0f}" for mode in MODES),
        ]
        for blocks in runs["disk"]
    ]
    header = ["blocks", "weights, MiB", "none: peak RSS, MiB", "disk: peak RSS, MiB"]
    lines = ["## Depth", "", *table([*header, "none: s", "disk: s"], rows), ""]
    lines += [
        "The resident set includes the interpreter and its libraries. Other processes shared the "
        "machine, so the seconds are upper bounds. The runs of this table were made on commit: "
        f"{content['runs_commit']}.",
        "",
        f"## Cap: RLIMIT_DATA of {mib(figures['cap_bytes'])} MiB, deepest model",
        "",
    ]
    for name, answer in content["capped"].items():
        how = answer.get("error") or f"finished, peak RSS {mib(answer['peak_rss_bytes'])} MiB"
        lines += [f"- {name}: {how}"]
    return lines


def mib(count: float) -> str:
    """Bytes as MiB."""
    return f"{count / 2**20:.0f}"


def say(text: str) -> None:
    """Progress for whoever waits."""
    print(text, flush=True)


def options() -> argparse.ArgumentParser:
    """Sizes of model and text."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 32, 128])
    for name, default in (
        *(("hidden", 640), ("ffn", 640), ("heads", 10), ("sequence-length", 64)),
        *(("calibration-tokens", 512), ("batch-tokens", 512), ("threads", 1), ("seed", 0)),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--cap-bytes", type=int, help="default: 0.6 of the deepest weights")
    parser.add_argument("--earlier", type=Path, help="results to take the runs without cap from")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    return parser


def depth_runs(
    setting: dict[str, Any], depths: list[int], earlier: Path | None
) -> tuple[dict[str, dict[str, Answer]], str]:
    """Every depth in both modes, or those of an earlier result; and the commit they ran on."""
    if earlier is not None:
        content = json.loads(earlier.read_text(encoding="utf-8"))
        return content["runs"], content["environment"]["commit"]
    runs = {
        mode: {str(d): measure(setting, blocks=d, offload=mode) for d in depths} for mode in MODES
    }
    return runs, "this one"


def main() -> None:
    """Measure, compare, write."""
    given = options().parse_args()
    setting = {k: v for k, v in vars(given).items() if k not in OWN_OPTIONS}
    setting |= {"cap_bytes": 0, "insist": False}
    started = time.perf_counter()
    runs, commit = depth_runs(setting, given.depths, given.earlier)
    failed = [run["error"] for mode in MODES for run in runs[mode].values() if run["status"]]
    if failed:
        raise SystemExit(failed[0])
    deepest = {**setting, "blocks": given.depths[-1]}
    weights = runs["disk"][str(given.depths[-1])]["weight_bytes"]
    cap = given.cap_bytes or int(0.6 * weights)
    deepest["cap_bytes"] = cap
    capped = {
        "disk": measure(deepest, blocks=given.depths[-1], offload="disk"),
        "none": measure(deepest, blocks=given.depths[-1], offload="none"),
        "insisting": measure(deepest, blocks=given.depths[-1], offload="none", insist=True),
    }
    content = {
        **describe_run(given.threads, given.seed),
        "setting": {"depths": given.depths, **setting, "cap_bytes": cap},
        "runs": runs,
        "runs_commit": commit,
        "capped": capped,
        "figures": summarise(runs, capped, cap),
        "seconds": time.perf_counter() - started,
    }
    rows = verdicts(content["figures"], GOALS)
    sections = [*rows, "", *markdown(content)]
    title = "Peak memory against depth, and under a cap"
    write_results(given.output / NAME, content, title=title, sections=sections)
    print("\n".join(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run_child(json.loads(sys.argv[2]))))
    else:
        main()
