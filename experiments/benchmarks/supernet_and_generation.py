"""tyr against the algorithm as released: local pruning, building, a generation, disk, memory.

    python experiments/benchmarks/supernet_and_generation.py     (a quarter of an hour, two cores)

Both sides run in processes of their own (side.py), in turns, on the same random model, text, level
grid and draws; the search is compared on the same supernet, tyr's, which the released evaluator
reads as dense files, and tyr searches in float32 and in bfloat16. Half of the turns draw positions
anew for every stage, as the paper does; in the other half a stage's positions contain those of the
stage before (`samples=nested`), and tyr keeps what it knows of them (`archive=keep`), while the
released evaluator sees all of them again. Ratios are medians over turns.
Imports no torch itself: the peak memory of a child would start at the parent's. Writes
results/supernet_and_generation.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from report import Goal, describe_run, table, verdicts, write_results
from setting import Setting, add_options

HERE = Path(__file__).resolve().parent
NAME = "supernet_and_generation"
SIDES = ("released", "tyr")
SHORT = "short"  # tyr in bfloat16
PRECISION = {"tyr": "float32", SHORT: "bfloat16"}
ROLES = {"build": SIDES, "search": (*SIDES, SHORT)}
# Parts of building that choose and solve: what the paper calls local pruning.
LOCAL = ("levels", "inverse Hessian", "greedy steps", "exact solves")
LOSS_TOLERANCE = 1e-4  # relative

Answer = dict[str, Any]


class Process:
    """A running side.

    Args:
        role: what it does, see side.py.
        folder: where the setting lies and the supernets go.
        threads: for the libraries that read them from the environment.
    """

    def __init__(self, role: str, folder: Path, threads: int) -> None:
        count = str(threads)
        self._child = subprocess.Popen(
            [sys.executable, str(HERE / "side.py"), role, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count},
        )
        self._role = role
        self.ready = self._answer()

    def ask(self, command: str = "run") -> Answer:
        """Have the work done once."""
        assert self._child.stdin is not None
        self._child.stdin.write(command + "\n")
        self._child.stdin.flush()
        return self._answer()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _answer(self) -> Answer:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._role} ended with status {self._child.wait()}; see above")
        answer: Answer = json.loads(line)
        return answer


def in_turns(kind: str, folder: Path, setting: Setting, turns: int) -> dict[str, Any]:
    """Answers of all sides, run alternately, and a breakdown of one more run of each.

    Args:
        kind: `build` or `search`.
        folder: of the sides.
        setting: sizes.
        turns: timed runs of each side.
    """
    sides = ROLES[kind]
    rated = PRECISION if kind == "search" else {}  # whose operations are counted
    with ExitStack() as stack:
        processes = {
            side: stack.enter_context(Process(f"{kind}-{side}", folder, setting.threads))
            for side in sides
        }
        gemm = stack.enter_context(Process("gemm", folder, setting.threads))
        answers: dict[str, list[Answer]] = {side: [] for side in sides}
        nested: dict[str, list[Answer]] = {side: [] for side in sides}
        for turn in range(turns):
            for side in sides:
                process = processes[side]
                answer = with_rates(process, gemm) if side in rated else process.ask()
                answers[side].append(answer)
                say(f"{kind} {turn + 1}/{turns} {side}: {answer['seconds']:.2f} s")
        for turn in range(turns if kind == "search" else 0):
            for side in sides:
                nested[side].append(processes[side].ask("nested"))
                seconds = nested[side][-1]["seconds"]
                say(f"{kind}, nested {turn + 1}/{turns} {side}: {seconds:.2f} s")
        parts = {side: process.ask("profile")["parts"] for side, process in processes.items()}
        ready = {side: process.ready for side, process in processes.items()}
    return {"answers": answers, "nested": nested, "parts": parts, "ready": ready}


def with_rates(process: Process, gemm: Process) -> Answer:
    """One run of a side, with the rates of products just before and after it."""
    before, answer, after = gemm.ask(), process.ask(), gemm.ask()
    return {
        **answer,
        "gemm": {kind: (before[kind] + after[kind]) / 2 for kind in PRECISION.values()},
    }


def ratio(answers: dict[str, list[Answer]], key: str = "seconds", side: str = "tyr") -> float:
    """Median over the turns of released / tyr."""
    pairs = zip(answers["released"], answers[side], strict=True)
    return median(released[key] / tyr[key] for released, tyr in pairs)


def compare_losses(answers: dict[str, list[Answer]]) -> dict[str, Any]:
    """Whether both sides saw equal candidates, and by how much their losses differ, and where."""
    differences: list[tuple[float, dict[str, int]]] = []
    equal = True
    for turn, (released, tyr) in enumerate(zip(answers["released"], answers["tyr"], strict=True)):
        equal &= released["parent"] == tyr["parent"]
        for ours, theirs in zip(tyr["stages"], released["stages"], strict=True):
            equal &= ours["candidates"] == theirs["candidates"] and ours["rows"] == theirs["rows"]
            pairs = zip(ours["losses"], theirs["losses"], strict=True)
            differences += [
                (abs(a - b) / abs(b), {"turn": turn, "tokens": ours["tokens"], "candidate": index})
                for index, (a, b) in enumerate(pairs)
            ]
    worst, where = max(differences, key=lambda pair: pair[0])
    return {
        "same_survivors": equal,
        "largest_relative_difference": worst,
        "where": where,
        "median_relative_difference": median(difference for difference, _ in differences),
        "losses": len(differences),
    }


def compare_short(answers: dict[str, list[Answer]]) -> dict[str, Any]:
    """bfloat16 against float32: ranking of the first stage's candidates, and who wins.

    Later turns start from whatever parent the one before them chose, so only those are compared
    whose first stage saw the same candidates, and enough different ones to rank.
    """
    from tyr.search.surrogate import rank_correlation  # brings torch; all is measured by now

    correlations, winners = [], []
    for wide, short in zip(answers["tyr"], answers[SHORT], strict=True):
        first, other = wide["stages"][0], short["stages"][0]
        if first["candidates"] != other["candidates"]:
            continue
        distinct = sorted(set(zip(first["losses"], other["losses"], strict=True)))
        found = rank_correlation(*zip(*distinct, strict=True))
        if found is not None:
            correlations.append(found)
            winners.append(wide["parent"] == short["parent"])
    return {
        "compared": len(correlations),
        "rank_correlation": min(correlations),
        "same_winner": sum(winners) / len(winners),
    }


def compare_nested(answers: dict[str, list[Answer]]) -> dict[str, Any]:
    """Speed and losses of generations whose stages share positions.

    Each side makes other calls there, so losses are compared as each stage ranked them.
    """
    worst, equal = 0.0, True
    for released, tyr in zip(answers["released"], answers["tyr"], strict=True):
        equal &= released["parent"] == tyr["parent"]
        for ours, theirs in zip(tyr["ranked"], released["ranked"], strict=True):
            equal &= len(ours) == len(theirs)
            pairs = list(zip(ours, theirs, strict=False))
            worst = max([worst, *(abs(a - b) / abs(b) for a, b in pairs)])
    return {
        "seconds": {side: [a["seconds"] for a in done] for side, done in answers.items()},
        "ratio": ratio(answers),
        "cpu_ratio": ratio(answers, "cpu_seconds"),
        "short_ratio": ratio(answers, side=SHORT),
        "same_parent": equal,
        "largest_relative_difference": worst,
        "evaluated_tokens": {s: answers[s][0]["evaluated_tokens"] for s in SIDES},
    }


def summarise(build: dict[str, Any], search: dict[str, Any], dense_bytes: int) -> dict[str, Any]:
    """The figures of the report."""
    sides = ROLES["search"]
    memory = {side: search["answers"][side][-1]["peak_rss_bytes"] for side in sides}
    loaded = {side: search["ready"][side]["loaded"]["rss_bytes"] for side in sides}
    grown = {side: memory[side] - loaded[side] for side in sides}
    local = {side: sum(build["parts"][side].get(part, 0.0) for part in LOCAL) for side in SIDES}
    return {
        "build": {**figures(build), "local_ratio": local["released"] / local["tyr"]},
        "generation": {
            **figures(search),
            "short_ratio": ratio(search["answers"], side=SHORT),
            "operations_ratio": median(
                a["one_by_one_flops"] / a["flops"] for a in search["answers"]["tyr"]
            ),
            "nested": compare_nested(search["nested"]),
            "short": compare_short(search["answers"]),
            "gemm": {
                kind: [a["gemm"][kind] for a in search["answers"][side]]
                for side, kind in PRECISION.items()
            },
            "of_gemm": {
                side: median(
                    a["flops"] / a["seconds"] / a["gemm"][kind] for a in search["answers"][side]
                )
                for side, kind in PRECISION.items()
            },
        },
        "losses": compare_losses(search["answers"]),
        "disk": {
            "tyr_bytes": build["answers"]["tyr"][-1]["bytes"],
            "dense_bytes": dense_bytes,
            "ratio": build["answers"]["tyr"][-1]["bytes"] / dense_bytes,
        },
        "memory": {
            "peak_rss_bytes": memory,
            "loaded_rss_bytes": loaded,
            "ratio": memory["tyr"] / memory["released"],
            "ratio_without_loaded": grown["tyr"] / grown["released"],
        },
        "stages": stages(search["answers"]),
    }


def figures(runs: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every turn, the ratios, and where the time goes."""
    answers = runs["answers"]
    return {
        "seconds": {side: [a["seconds"] for a in done] for side, done in answers.items()},
        "cpu_seconds": {side: [a["cpu_seconds"] for a in done] for side, done in answers.items()},
        "ratio": ratio(answers),
        "cpu_ratio": ratio(answers, "cpu_seconds"),
        "parts": runs["parts"],
    }


def stages(answers: dict[str, list[Answer]]) -> list[dict[str, Any]]:
    """Per stage of the first turn: candidates, tokens, seconds and the share of shared work."""
    rows = []
    for theirs, ours in zip(
        answers["released"][0]["stages"], answers["tyr"][0]["stages"], strict=True
    ):
        distinct = {tuple(levels) for levels in ours["candidates"]}
        nodes = sum(len(levels) for levels in distinct)
        rows.append(
            {
                "candidates": len(ours["candidates"]),
                "distinct": len(distinct),
                "tokens": ours["tokens"],
                "released_seconds": theirs["seconds"],
                "tyr_seconds": ours["seconds"],
                "sublayers_evaluated": ours["sublayer_evaluations"] / nodes,
            }
        )
    return rows


GOALS = (
    Goal("local pruning, released / tyr", ("build", "local_ratio"), at_least=6.0),
    Goal("supernet building, released / tyr", ("build", "ratio"), at_least=4.0),
    Goal("one generation in float32, released / tyr", ("generation", "ratio"), at_least=2.5),
    Goal(
        "the same with positions shared between stages",
        ("generation", "nested", "ratio"),
        at_least=2.5,
    ),
    Goal("one generation in bfloat16", ("generation", "short_ratio"), at_least=5.0),
    Goal(
        "bfloat16 with positions shared between stages",
        ("generation", "nested", "short_ratio"),
        at_least=5.0,
    ),
    Goal(
        "rank correlation of bfloat16 losses, worst turn",
        ("generation", "short", "rank_correlation"),
        at_least=0.99,
    ),
    Goal("same winner in bfloat16", ("generation", "short", "same_winner"), at_least=1),
    Goal(
        "a float32 generation's share of the GEMM rate",
        ("generation", "of_gemm", "tyr"),
        at_least=0.6,
    ),
    Goal(
        "largest relative loss difference",
        ("losses", "largest_relative_difference"),
        at_most=LOSS_TOLERANCE,
    ),
    Goal(
        "the same with positions shared between stages",
        ("generation", "nested", "largest_relative_difference"),
        at_most=LOSS_TOLERANCE,
    ),
    Goal("same survivors in every stage", ("losses", "same_survivors"), at_least=1),
    Goal("same parent with positions shared", ("generation", "nested", "same_parent"), at_least=1),
    Goal("supernet bytes, tyr / dense", ("disk", "ratio"), at_most=0.6),
    Goal("peak memory of the search, tyr / released", ("memory", "ratio"), at_most=0.3),
    Goal("the same without imports and model", ("memory", "ratio_without_loaded"), at_most=0.3),
)


def markdown(content: dict[str, Any]) -> list[str]:
    """The readable report's sections, after the verdicts."""
    result, lines = content["figures"], []
    for key, title in (("build", "Supernet building"), ("generation", "One generation")):
        part = result[key]
        lines += [f"## {title}", "", f"processor-time ratio {part['cpu_ratio']:.2f}", ""]
        rows = [[s, *(f"{x:.2f}" for x in times)] for s, times in part["seconds"].items()]
        lines += [
            *table(["side", *(f"turn {i + 1}, s" for i in range(len(rows[0]) - 1))], rows),
            "",
        ]
        for side, parts in part["parts"].items():
            spent = ", ".join(f"{k} {v:.2f} s" for k, v in parts.items())
            lines += [f"{side} spends: {spent}", ""]
    losses = result["losses"]
    lines += [
        f"Relative differences of {losses['losses']:,} losses: median "
        f"{losses['median_relative_difference']:.1e}, largest "
        f"{losses['largest_relative_difference']:.1e} (turn {losses['where']['turn'] + 1}, "
        f"{losses['where']['tokens']:,} tokens).",
        "",
    ]
    lines += nested_turns(result["generation"])
    header = list(result["stages"][0])
    rows = [[f"{row[k]:.3g}" for k in header] for row in result["stages"]]
    lines += [
        "## Stages of the first turn",
        "",
        *table([h.replace("_", " ") for h in header], rows),
    ]
    memory = result["memory"]
    lines += ["", "## Memory of the search process", ""]
    rows = [
        [side, mib(memory["loaded_rss_bytes"][side]), mib(memory["peak_rss_bytes"][side])]
        for side in ROLES["search"]
    ]
    lines += table(["side", "imports and model, MiB", "peak, MiB"], rows)
    lines += ["", f"ratio of what comes on top: {memory['ratio_without_loaded']:.2f}"]
    return [*lines, "", *rates(result["generation"])]


def nested_turns(result: dict[str, Any]) -> list[str]:
    """The turns whose stages share positions, and what operations alone allow in the others."""
    nested = result["nested"]
    rows = [[s, *(f"{x:.2f}" for x in times)] for s, times in nested["seconds"].items()]
    tokens = nested["evaluated_tokens"]
    return [
        f"By counted operations alone, one-by-one dense evaluation over distinct nodes of sliced "
        f"sublayers, these turns allow {result['operations_ratio']:.2f}.",
        "",
        "## One generation, positions shared between stages",
        "",
        f"Candidates times tokens of the first turn: {tokens['released']:,} by the released "
        f"evaluator, {tokens['tyr']:,} by tyr; processor-time ratio {nested['cpu_ratio']:.2f}.",
        "",
        *table(["side", *(f"turn {i + 1}, s" for i in range(len(rows[0]) - 1))], rows),
        "",
    ]


def rates(result: dict[str, Any]) -> list[str]:
    """What the column `short` is, and how near the machine's products either is."""
    short, shares = result["short"], result["of_gemm"]
    around = {
        kind: ", ".join(f"{rate / 1e9:.0f}" for rate in found)
        for kind, found in result["gemm"].items()
    }
    return [
        "## Precision and rates",
        "",
        f"`short` is tyr with `search.compute_dtype=bfloat16`; {short['compared']} turns saw the "
        f"candidates that float32 saw. Square products of 2,048, a second of them before and after "
        f"each turn, ran at {around['float32']} GFLOP/s in float32 around tyr's turns and at "
        f"{around['bfloat16']} in bfloat16 around those of `short`; a generation, counted in the "
        f"operations of distinct trie nodes, reaches {shares['tyr']:.0%} and {shares[SHORT]:.0%} "
        f"of that (medians).",
    ]


def mib(count: int) -> str:
    """Bytes as MiB."""
    return f"{count / 2**20:.0f}"


def say(text: str) -> None:
    """Progress for whoever waits."""
    print(text, flush=True)


def main() -> None:
    """Measure, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--build-turns", type=int, default=1)
    parser.add_argument("--search-turns", type=int, default=4)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    setting = Setting.from_mapping(vars(arguments))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tyr-benchmark-") as name:
        folder = Path(name)
        setting.write(folder / "setting.json")
        build = in_turns("build", folder, setting, arguments.build_turns)
        with Process("densify", folder, setting.threads) as process:
            dense_bytes = process.ask()["bytes"]
        search = in_turns("search", folder, setting, arguments.search_turns)
    content = {
        **describe_run(setting.threads, setting.seed),
        "setting": json.loads(json.dumps(vars(setting))),
        "figures": summarise(build, search, dense_bytes),
        "seconds": time.perf_counter() - started,
    }
    rows = verdicts(content["figures"], GOALS)
    write_results(
        arguments.output / NAME,
        content,
        title="tyr and the released algorithm",
        sections=[*rows, "", *markdown(content)],
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
