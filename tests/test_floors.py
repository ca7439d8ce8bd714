"""Who may import whom (design, section 5): downward, or within a package, and never in a circle.

Imports are read from the syntax tree, so those under TYPE_CHECKING and inside functions count too.
Each rule is also shown to fail on a small package that breaks it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tyr"

# Everything has a place here, so a new module or package must be given one. Modules of a floor may
# import each other; packages of a floor may not.
MODULES = {
    "tyr": 0,  # the package itself, which imports nothing
    "tyr.errors": 0,
    "tyr.sparsity": 0,
    "tyr.budget": 0,
    "tyr.layout": 0,
    "tyr.linalg": 0,
    "tyr.randomness": 0,
    "tyr.files": 0,
    "tyr.losses": 0,
    "tyr.memory": 0,
    "tyr.precision": 0,
    "tyr.devices": 0,
    "tyr.page_locked": 0,
    "tyr.events": 0,
    "tyr.config": 0,
    "tyr.cost": 0,
    "tyr.ceilings": 0,
    "tyr.footprint": 7,
    "tyr.planner": 7,
    "tyr.plan_table": 7,
    "tyr.run_plan": 7,
    "tyr.search_plan": 7,
    "tyr.holding": 7,
    "tyr.disk_use": 7,
    "tyr.plan": 8,
    "tyr.hints": 0,
    "tyr.processes": 0,
    "tyr.spawn": 7,
    "tyr.trainer": 7,
    "tyr.worker": 8,
    "tyr.rundir": 7,
    "tyr.session": 7,
    "tyr.pipeline": 7,
    "tyr.launch": 7,
    "tyr.run": 8,
    "tyr.export_gguf": 8,
    "tyr.latency": 8,
}
PACKAGES = {
    "tyr.model": 1,
    "tyr.data": 1,
    "tyr.calibrate": 2,
    "tyr.prune": 3,
    "tyr.supernet": 4,
    "tyr.search": 5,
    "tyr.export": 6,
    "tyr.evaluate": 6,
    "tyr.heal": 6,
    "tyr.callbacks": 7,
}
FLOORS = {**MODULES, **PACKAGES}

# Packages that may not import others although those lie below: what they must not know.
BLIND = {
    "tyr.evaluate": ("tyr.prune", "tyr.supernet", "tyr.search"),
    "tyr.export": ("tyr.prune", "tyr.search"),
    "tyr.pipeline": ("tyr.callbacks",),
}

# Of these packages, only the listed modules may be imported.
OPENINGS = {("tyr.search", "tyr.supernet"): ("tyr.supernet.store",)}

# Libraries that only the listed modules (or packages) may import.
LIBRARIES = {
    "hydra": ("tyr.run",),
    "omegaconf": ("tyr.run", "tyr.config"),
    "wandb": ("tyr.callbacks",),
    "lm_eval": ("tyr.evaluate.harness",),
}

# Copied into exported models, which must load without tyr.
STANDALONE = {"tyr.export.modeling_tyr": ("torch", "transformers")}

Sources = Mapping[str, str]


@dataclass(frozen=True)
class Import:
    """`source` imports `target`; both are modules, `target` perhaps of another library."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source} imports {self.target}"


def read_sources(package: Path) -> dict[str, str]:
    """Module name to source text."""
    sources = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


def imports_of(sources: Sources) -> list[Import]:
    """Every import statement of every module, wherever it stands."""
    found = []
    for source, text in sources.items():
        for node in import_statements(text):
            found += [Import(source, target) for target in targets(node, source, sources)]
    return found


@cache
def import_statements(text: str) -> list[ast.Import | ast.ImportFrom]:
    """Cached, because every rule asks for them again."""
    tree = ast.walk(ast.parse(text))
    return [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]


def targets(node: ast.Import | ast.ImportFrom, source: str, sources: Sources) -> Iterator[str]:
    """Modules that a statement imports; `from package import module` means the module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    origin = node.module or ""
    if node.level:
        is_package = any(name.startswith(f"{source}.") for name in sources)
        parts = source.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        origin = ".".join([*parts, *([node.module] if node.module else [])])
    for alias in node.names:
        inner = f"{origin}.{alias.name}"
        yield inner if inner in sources else origin


def belongs(module: str, package: str) -> bool:
    """Whether a module is the package or lies in it."""
    return module == package or module.startswith(f"{package}.")


def place(module: str) -> str | None:
    """The entry of `FLOORS` that a module has or lies in; `tyr` holds nothing but itself."""
    if module in MODULES:
        return module
    return next((package for package in PACKAGES if belongs(module, package)), None)


def homeless(sources: Sources) -> list[str]:
    return [f"{module} has no floor" for module in sources if place(module) is None]


def upward(sources: Sources) -> list[str]:
    """Imports from a higher floor, or from another package of the same floor."""
    wrong = []
    for found in imports_of(sources):
        here, there = place(found.source), place(found.target)
        if here is None or there is None or here == there:
            continue
        beside = FLOORS[there] == FLOORS[here] and {here, there} <= set(MODULES)
        if not (FLOORS[there] < FLOORS[here] or beside):
            wrong.append(str(found))
    return wrong


def seen_by_the_blind(sources: Sources) -> list[str]:
    return [
        str(found)
        for found in imports_of(sources)
        for package, hidden in BLIND.items()
        if belongs(found.source, package) and any(belongs(found.target, name) for name in hidden)
    ]


def around_the_opening(sources: Sources) -> list[str]:
    return [
        str(found)
        for found in imports_of(sources)
        for (package, below), allowed in OPENINGS.items()
        if belongs(found.source, package)
        and belongs(found.target, below)
        and found.target not in allowed
    ]


def libraries_out_of_place(sources: Sources) -> list[str]:
    return [
        str(found)
        for found in imports_of(sources)
        for library, allowed in LIBRARIES.items()
        if belongs(found.target, library)
        and not any(belongs(found.source, name) for name in allowed)
    ]


def leaning(sources: Sources) -> list[str]:
    """Imports of a stand-alone module beyond its libraries and the standard one."""
    return [
        str(found)
        for found in imports_of(sources)
        if found.source in STANDALONE
        and (top := found.target.split(".")[0]) not in sys.stdlib_module_names
        and top not in STANDALONE[found.source]
    ]


def circles(sources: Sources) -> list[str]:
    """One circle of imports for every module that is reached from itself."""
    edges: dict[str, set[str]] = {name: set() for name in sources}
    for found in imports_of(sources):
        if found.target in sources and found.target != found.source:
            edges[found.source].add(found.target)
    return [" -> ".join(circle) for name in sorted(sources) if (circle := _way(name, name, edges))]


def _way(start: str, goal: str, edges: Mapping[str, set[str]]) -> list[str]:
    """A shortest way from start back to goal, or nothing."""
    ways = {target: [start, target] for target in sorted(edges[start])}
    queue = list(ways)
    while queue:
        module = queue.pop(0)
        if module == goal:
            return ways[module]
        for target in sorted(edges[module]):
            if target not in ways:
                ways[target] = [*ways[module], target]
                queue.append(target)
    return []


Rule = Callable[[Sources], list[str]]
RULES: list[Rule] = [
    homeless,
    upward,
    seen_by_the_blind,
    around_the_opening,
    libraries_out_of_place,
    leaning,
    circles,
]
SOURCES = read_sources(PACKAGE)


def test_the_package_is_found() -> None:
    assert {"tyr", "tyr.run", "tyr.pipeline", "tyr.search.evolution"} <= set(SOURCES)
    assert Import("tyr.pipeline", "tyr.search.evolution") in imports_of(SOURCES)


def test_every_floor_is_of_a_package_that_may_exist() -> None:
    known = {name for name in FLOORS if name in SOURCES}
    assert set(FLOORS) - known <= {"tyr.heal"}, "a floor of something that is gone"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    assert rule(SOURCES) == []


BREACHES: list[tuple[Rule, dict[str, str]]] = [
    (homeless, {"tyr.utils": ""}),
    (homeless, {"tyr.supernets.store": ""}),
    # upward
    (upward, {"tyr.sparsity": "from tyr.model.sublayer import Sublayer"}),
    (upward, {"tyr.errors": "import tyr.pipeline"}),
    (upward, {"tyr.prune.local": "from tyr.supernet import store", "tyr.supernet.store": ""}),
    (upward, {"tyr.calibrate.stream": "from ..prune.local import LocalPruner", "tyr.prune": ""}),
    (upward, {"tyr.search.population": "def f():\n    from tyr.export.checkpoint import x"}),
    (
        upward,
        {
            "tyr.model.decoder": "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from tyr.supernet.store import SupernetStore"
        },
    ),
    (upward, {"tyr.pipeline": "from tyr.run import main"}),
    # beside: another package of the same floor
    (upward, {"tyr.model.decoder": "from tyr.data import TokenSplits"}),
    (upward, {"tyr.evaluate.perplexity": "import tyr.export.checkpoint"}),
    (upward, {"tyr.callbacks.report": "from tyr.rundir import RunDirectory"}),
    (upward, {"tyr.launch": "from tyr.callbacks import CsvMetrics"}),
    # what must not be known
    (seen_by_the_blind, {"tyr.evaluate.harness": "from tyr.prune.local import LocalPruner"}),
    (seen_by_the_blind, {"tyr.evaluate.harness": "import tyr.supernet.store"}),
    (seen_by_the_blind, {"tyr.evaluate.harness": "from tyr import search", "tyr.search": ""}),
    (seen_by_the_blind, {"tyr.export.gguf": "from tyr.search.evolution import SearchState"}),
    (seen_by_the_blind, {"tyr.export.gguf": "from tyr.prune import criterion"}),
    (seen_by_the_blind, {"tyr.pipeline": "from tyr.callbacks.progress import Progress"}),
    (around_the_opening, {"tyr.search.population": "from tyr.supernet.builder import x"}),
    (around_the_opening, {"tyr.search.population": "import tyr.supernet.finish"}),
    (
        around_the_opening,
        {"tyr.search.population": "from tyr.supernet import builder", "tyr.supernet.builder": ""},
    ),
    # libraries
    (libraries_out_of_place, {"tyr.launch": "import hydra"}),
    (libraries_out_of_place, {"tyr.config": "from hydra.utils import instantiate"}),
    (libraries_out_of_place, {"tyr.pipeline": "from omegaconf import DictConfig"}),
    (libraries_out_of_place, {"tyr.session": "def f():\n    import wandb"}),
    (libraries_out_of_place, {"tyr.evaluate.perplexity": "import lm_eval.models"}),
    # stand-alone
    (leaning, {"tyr.export.modeling_tyr": "from tyr.errors import ModelError"}),
    (leaning, {"tyr.export.modeling_tyr": "import safetensors"}),
    (leaning, {"tyr.export.modeling_tyr": "from . import tensors", "tyr.export.tensors": ""}),
    # circles
    (circles, {"tyr.a": "import tyr.b", "tyr.b": "import tyr.a"}),
    (
        circles,
        {
            "tyr.a": "from tyr import b",
            "tyr.b": "def f():\n    from tyr.c import x",
            "tyr.c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tyr.a import y",
        },
    ),
    (circles, {"tyr.p": "from tyr.p.m import x", "tyr.p.m": "from tyr.p import y"}),
]


@pytest.mark.parametrize(
    ("rule", "sources"),
    BREACHES,
    ids=[f"{rule.__name__}-{n}" for n, (rule, _) in enumerate(BREACHES)],
)
def test_a_breach_of_the_rule_is_found(rule: Rule, sources: dict[str, str]) -> None:
    assert rule(sources)


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule for rule, _ in BREACHES} == set(RULES)


ALLOWED = {
    "tyr": "",
    "tyr.errors": "import json",
    "tyr.sparsity": "from tyr.errors import ConfigError",
    "tyr.config": "from omegaconf import OmegaConf",
    "tyr.supernet.store": "from tyr.files import write_json",
    "tyr.supernet.builder": "from .store import SupernetStore",
    "tyr.search.population": "from tyr.supernet.store import SupernetStore\nimport torch",
    "tyr.export.modeling_tyr": "import torch.nn\nfrom transformers import LlamaConfig\nimport math",
    "tyr.callbacks": "from tyr.callbacks.tracking import Tracking",
    "tyr.callbacks.tracking": "import wandb\nfrom tyr.events import Callback",
    "tyr.session": "from tyr import rundir",
    "tyr.rundir": "from tyr.search.evolution import SearchState",
    "tyr.run": "import hydra\nfrom omegaconf import DictConfig\nfrom tyr.callbacks import Tracking",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_what_is_allowed_is_not_a_breach(rule: Rule) -> None:
    assert rule(ALLOWED) == []
