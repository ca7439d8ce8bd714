"""Local pruning's hot paths beside their slow twins: predicted gain, measured gain, share of GEMM.

Hessian in strips, delayed downdates of H⁻¹, one factorisation for all levels, one greedy pass for
all levels; and, at the FFN width of Llama-3.1-8B (14,336), the whole pass as a fraction of this
machine's rate of products in solving precision. Predictions count operations (tyr/cost.py), or
bytes where memory bounds, over ceilings measured in the same run (tyr/ceilings.py).

    python experiments/benchmarks/hot_paths.py             # some ten minutes, alone, 10 GB
    python experiments/benchmarks/hot_paths.py --toy       # seconds
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from report import Goal, describe_run, table, verdicts, write_results
from torch import Tensor

from tyr.calibrate.statistics import STRIP, gram
from tyr.ceilings import Ceilings, measure_ceilings
from tyr.cost import greedy_flops, hessian_flops
from tyr.launch import plain_libraries
from tyr.linalg import cholesky, solve_nested
from tyr.prune import progressive
from tyr.prune.criterion import Taylor
from tyr.prune.progressive import LocalProblem, prune_progressively
from tyr.randomness import derive_generator

RESULTS = Path(__file__).parent / "results"
GROUP = 16  # neurons per step (A.3)
LEVELS = 9


@dataclass(frozen=True)
class Case:
    """Sizes of one sublayer.

    Args:
        width: d_in.
        outputs: C.
        tokens: rows of X.
    """

    width: int
    outputs: int
    tokens: int

    def problem(self) -> LocalProblem:
        """A well-conditioned least squares of this size."""
        rng = torch.Generator().manual_seed(0)
        features = torch.randn(self.tokens, self.width, generator=rng)
        hessian = gram(features).double()
        hessian.diagonal().add_(0.01 * float(hessian.diagonal().mean()))
        weight = torch.randn(self.width, self.outputs, generator=rng, dtype=torch.float64)
        return LocalProblem("benchmark", hessian, hessian @ weight, unit_size=1, weight=weight)

    def counts(self) -> list[int]:
        """Neurons removed at nine levels from dense to empty."""
        step = self.width // (LEVELS - 1)
        return [min(self.width, index * step) for index in range(LEVELS)]

    def kept(self) -> list[float]:
        """The same as fractions that stay."""
        return [1 - count / self.width for count in self.counts()]


@dataclass(frozen=True)
class Gain:
    """A fast routine beside its slow twin.

    Args:
        name: what it is.
        slow: seconds of the twin.
        fast: seconds.
        predicted: gain by operations or bytes.
        difference: largest relative difference of the results.
    """

    name: str
    slow: float
    fast: float
    predicted: float
    difference: float

    def row(self) -> list[str]:
        """Table row."""
        gain = f"{self.slow / self.fast:.2f}x"
        seconds = [f"{self.slow:.3f}", f"{self.fast:.3f}"]
        return [self.name, *seconds, f"{self.predicted:.2f}x", gain, f"{self.difference:.1e}"]


def timed(work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Shortest of several runs, and the last result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - started)
    return best, result


def difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value."""
    return float((actual - expected).abs().max() / expected.abs().max())


def hessian_gain(case: Case) -> Gain:
    """Strips of the upper triangle against the whole product."""
    features = torch.randn(case.tokens, case.width)
    slow, whole = timed(lambda: features.mT @ features)
    fast, strips = timed(lambda: gram(features))
    predicted = 2.0 * case.tokens * case.width**2 / hessian_flops(case.width, case.tokens, STRIP)
    return Gain("Hessian in strips", slow, fast, predicted, difference(strips, whole))


def prune(problem: LocalProblem, counts: Sequence[int]) -> dict[int, Any]:
    """The pass under test."""
    rng = derive_generator(0)
    return prune_progressively(problem, counts, criterion=Taylor(), group_size=GROUP, rng=rng)


def downdate_gain(case: Case, ceilings: Ceilings) -> Gain:
    """H⁻¹ updated every 128 removed rows against at once, the greedy steps alone."""

    def walk(panel: int) -> Tensor:
        progressive.PANEL = panel
        rng = derive_generator(0)
        state = progressive.GreedyPass(problem, criterion=Taylor(), rng=rng)
        started = time.perf_counter()
        while len(state.kept) > GROUP:
            state.remove(GROUP)
        seconds.append(time.perf_counter() - started)
        return state.kept

    problem, panel, seconds = case.problem(), progressive.PANEL, list[float]()
    same = torch.equal(walk(GROUP), walk(panel))
    slow, fast = seconds
    # One update reads and writes what is alive of H⁻¹ and W: a third and a half over a pass.
    alive = case.width**2 / 3 + case.width * case.outputs / 2
    traffic = 2 * 8 * alive * (case.width / GROUP) / ceilings.bandwidth
    products = (2 / 3 * case.width**3 + case.width**2 * case.outputs) / ceilings.solve
    others = fast - max(products, traffic * GROUP / panel)
    predicted = (others + max(products, traffic)) / fast
    return Gain("greedy steps, delayed downdates", slow, fast, predicted, 0.0 if same else 1.0)


def solve_gain(case: Case) -> Gain:
    """One factorisation for nested levels against one each."""
    problem = case.problem()
    rows = torch.randperm(case.width, generator=torch.Generator().manual_seed(1))
    sizes = [case.width - count for count in case.counts()[1:-1]]

    def each() -> list[Tensor]:
        weights = []
        for size in sizes:
            kept = rows[:size]
            factor = cholesky(problem.hessian[kept][:, kept], name="benchmark")
            weights.append(torch.cholesky_solve(problem.gradient[kept], factor))
        return weights

    def nested() -> list[Tensor]:
        solved = solve_nested(problem.hessian, problem.gradient, rows, sizes, name="benchmark")
        return [weight for weight, _ in solved]

    slow, expected = timed(each)
    fast, actual = timed(nested)
    most, outputs = max(sizes), case.outputs
    apart = sum(size**3 / 3 + 2 * size**2 * outputs for size in sizes)
    shared = most**3 / 3 + most**2 * outputs + sum(size**2 * outputs for size in sizes)
    worst = max(difference(a, b) for a, b in zip(actual, expected, strict=True))
    return Gain("one factorisation for all levels", slow, fast, apart / shared, worst)


def pass_gain(case: Case) -> Gain:
    """One greedy pass for nine levels against a pass for each."""
    problem, counts = case.problem(), case.counts()
    slow, apart = timed(lambda: {c: prune(problem, [c])[c] for c in counts[1:]}, repeats=1)
    fast, together = timed(lambda: prune(problem, counts), repeats=2)
    kept = case.kept()
    alone = sum(greedy_flops(case.width, case.outputs, [share], carries=True) for share in kept[1:])
    predicted = alone / greedy_flops(case.width, case.outputs, kept, carries=True)
    worst = max(difference(together[c].weight, apart[c].weight) for c in counts[1:-1])
    return Gain("one greedy pass for all levels", slow, fast, predicted, worst)


def rate_of_pass(case: Case, ceilings: Ceilings) -> dict[str, float]:
    """Seconds of a whole pass, and its counted operations over the machine's rate."""
    problem = case.problem()
    seconds, _ = timed(lambda: prune(problem, case.counts()), repeats=1)
    flops = greedy_flops(case.width, case.outputs, case.kept(), carries=True)
    share = flops / seconds / ceilings.solve
    return {"width": case.width, "seconds": seconds, "flops": flops, "share": share}


GOALS = (Goal("largest relative difference from a slow twin", ("difference",), at_most=1e-5),)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write results/hot_paths.{json,md}."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--toy", action="store_true", help="small sizes: seconds")
    given = options.parse_args(words)
    plain_libraries()
    torch.set_num_threads(given.threads)
    started = time.perf_counter()
    case = Case(256, 64, 512) if given.toy else Case(2688, 768, 8192)
    large = Case(512, 128, 512) if given.toy else Case(14336, 4096, 16384)
    ceilings = measure_ceilings(torch.device("cpu"), torch.float32)
    gains = [hessian_gain(case), downdate_gain(case, ceilings), solve_gain(case), pass_gain(case)]
    rate = rate_of_pass(large, ceilings)
    figures = {"difference": max(gain.difference for gain in gains), "large": rate}
    content = {
        **describe_run(given.threads, seed=0),
        "seconds": time.perf_counter() - started,
        "setting": vars(case),
        "gains": [vars(gain) for gain in gains],
        "figures": figures,
        "ceilings": vars(ceilings),
    }
    header = ["routine", "slow twin (s)", "fast (s)", "predicted", "measured", "difference"]
    sections = [
        *table(header, [gain.row() for gain in gains]),
        "",
        *verdicts(figures, GOALS),
        "",
        f"At d_in = {large.width:,} and {large.outputs:,} outputs a pass with nine levels takes "
        f"{rate['seconds']:.0f} s for {rate['flops'] / 1e12:.2f} TFLOP in float64: "
        f"{rate['share']:.0%} of the {ceilings.solve / 1e9:.0f} GFLOP/s of a square product.",
    ]
    write_results(
        given.results / "hot_paths", content, title="Hot paths of local pruning", sections=sections
    )
    print("\n".join(sections))


if __name__ == "__main__":
    main()
