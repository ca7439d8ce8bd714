"""Where the time of a benchmark goes: a clock around named functions, switched on for one run.

The parts of a side do not call each other, so their seconds add up; what is left is `other`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import released

from tyr.calibrate import statistics, stream
from tyr.model.sublayer import Sublayer
from tyr.prune import progressive
from tyr.search.objective import KdLogits
from tyr.supernet.accumulation import ExpectationAccumulation
from tyr.supernet.store import SupernetStore

# (label, owner, attribute); a label may gather several functions.
Part = tuple[str, Any, str]

BUILD_PARTS: dict[str, tuple[Part, ...]] = {
    "tyr": (
        ("forward", Sublayer, "features"),
        ("forward", Sublayer, "project"),
        ("finite checks", stream, "check_finite"),
        ("Hessian", statistics, "add_gram"),
        ("inverse Hessian", progressive, "inverse"),
        ("greedy steps", progressive.GreedyPass, "remove"),
        ("exact solves", progressive, "solve_snapshots"),
        ("mixing", ExpectationAccumulation, "mix"),
        ("files", SupernetStore, "write"),
        ("files", SupernetStore, "read"),
    ),
    "released": (
        ("levels", released, "prune_level"),
        ("Hessian", released, "gram"),
        ("files", released, "write_level"),
    ),
}
SEARCH_PARTS: dict[str, tuple[Part, ...]] = {
    "tyr": (
        ("forward", Sublayer, "branch"),
        ("slicing", Sublayer, "slice"),
        ("files", SupernetStore, "read"),
        ("KL", KdLogits, "final_losses"),
    ),
    "released": (
        ("forward and logits", released.ReleasedEvaluator, "_logits"),
        ("KL", released, "divergence"),
        ("files", released.ReleasedEvaluator, "_load"),
    ),
}


class Stopwatch:
    """Seconds per part while the `with` block runs.

    Args:
        parts: what to time.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._originals: list[tuple[Any, str, Any]] = []
        self.seconds: dict[str, float] = {label: 0.0 for label, _, _ in parts}

    def __enter__(self) -> Stopwatch:
        for label, owner, attribute in self._parts:
            original = getattr(owner, attribute)
            self._originals.append((owner, attribute, original))
            setattr(owner, attribute, self._timed(label, original))
        return self

    def __exit__(self, *error: object) -> None:
        for owner, attribute, original in self._originals:
            setattr(owner, attribute, original)

    def breakdown(self, total: float) -> dict[str, float]:
        """Seconds per part and of the rest."""
        return {**self.seconds, "other": total - sum(self.seconds.values())}

    def _timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[label] += time.perf_counter() - started

        return timed
