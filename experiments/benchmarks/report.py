"""How benchmark results are written down: what ran where, the goals, JSON and Markdown.

Imports torch only inside `describe_run`, which is called after everything was measured.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A figure and the bound it should keep.

    Args:
        text: what it is.
        path: keys that lead to it.
        at_least: lower bound.
        at_most: upper bound.
    """

    text: str
    path: tuple[str, ...]
    at_least: float | None = None
    at_most: float | None = None

    def value(self, figures: dict[str, Any]) -> float:
        """The figure."""
        found: Any = figures
        for key in self.path:
            found = found[key]
        return float(found)

    def met(self, figures: dict[str, Any]) -> bool:
        """Whether it keeps its bound."""
        value = self.value(figures)
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)

    @property
    def bound(self) -> str:
        """The bound as text."""
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


def verdicts(figures: dict[str, Any], goals: Sequence[Goal]) -> list[str]:
    """A Markdown table: figure, goal, met or not."""
    rows = [
        [goal.text, f"{goal.value(figures):.3g}", goal.bound, "yes" if goal.met(figures) else "NO"]
        for goal in goals
    ]
    return table(["figure", "measured", "goal", "met"], rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def describe_run(threads: int, seed: int, *, device: str = "cpu") -> dict[str, Any]:
    """Command, machine, versions and commit."""
    import torch

    from tyr.launch import describe_environment

    torch.set_num_threads(threads)
    environment = describe_environment(torch.device(device), seed)
    command = ["python", *(_shown(word) for word in sys.argv)]
    return {
        "command": shlex.join(command),
        "environment": environment
        if device != "cpu"
        else {**environment, "processor": _processor()},
    }


def write_results(
    path: Path, content: dict[str, Any], *, title: str, sections: Sequence[str]
) -> None:
    """Write `path`.json and `path`.md.

    Args:
        path: without a suffix; its folder is created.
        content: everything measured, with `command` and `environment`.
        title: first line of the Markdown.
        sections: its lines after the description of the run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    environment = content["environment"]
    packages = ", ".join(
        f"{name} {environment['packages'][name]}" for name in ("torch", "transformers")
    )
    about = [
        f"# {title}",
        "",
        f"Written by `{content['command']}` in {content['seconds']:.0f} s.",
        "",
        f"- machine: {environment['processor']}, {environment['cpu_count']} cores, "
        f"{environment['torch_threads']} torch threads",
        f"- versions: Python {environment['python']}, {packages}; commit {environment['commit']}",
    ]
    if "setting" in content:
        about += [f"- setting: {', '.join(f'{k} {v}' for k, v in content['setting'].items())}"]
    path.with_suffix(".md").write_text("\n".join([*about, "", *sections, ""]), encoding="utf-8")


def _processor() -> str:
    """Name of the processor; `platform` does not know it on Linux."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _shown(word: str) -> str:
    """A word of the command line without the folders of this machine."""
    path = Path(word)
    if not path.is_absolute():
        return word
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name
