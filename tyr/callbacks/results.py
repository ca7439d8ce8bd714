"""The final table as words and numbers, for every place that shows it.

Ratios are to the dense model. The verdict says in one sentence whether the searched allocation beat
the uniform one; it is computed from the rows and says so when it did not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tyr.events import EvaluationRow

MAIN_ROWS = ("dense", "uniform", "tyr")


@dataclass(frozen=True)
class ResultLine:
    """One line of the table; a ratio is None where there is no dense model to compare with."""

    name: str
    row: EvaluationRow
    perplexity_ratio: float | None
    parameters_ratio: float | None
    bytes_ratio: float | None


def result_lines(rows: Mapping[str, EvaluationRow]) -> list[ResultLine]:
    """Dense, uniform and tyr first, diagnostic variants after them."""
    names = [name for name in MAIN_ROWS if name in rows]
    names += [name for name in rows if name not in MAIN_ROWS]
    dense = rows.get("dense")
    return [_line(name, rows[name], dense) for name in names]


def _line(name: str, row: EvaluationRow, dense: EvaluationRow | None) -> ResultLine:
    if dense is None:
        return ResultLine(name, row, None, None, None)
    return ResultLine(
        name,
        row,
        perplexity_ratio=_ratio(row.perplexity, dense.perplexity),
        parameters_ratio=_ratio(row.parameters, dense.parameters),
        bytes_ratio=_ratio(row.bytes, dense.bytes),
    )


def verdict(rows: Mapping[str, EvaluationRow], *, searched: bool = True) -> str:
    """One plain sentence: did tyr beat uniform at the same sparsity, and by how much.

    Args:
        rows: of the final table.
        searched: whether the allocations of the two differ. If not, all that their rows may differ
            in is the chance of a criterion that draws.
    """
    if "tyr" not in rows:
        return "The pruned model was not evaluated."
    tyr, uniform, dense = rows["tyr"], rows.get("uniform"), rows.get("dense")
    reached = format_perplexity(tyr.perplexity)
    against = f" (dense: {format_perplexity(dense.perplexity)})" if dense else ""
    if uniform is None:
        return f"The pruned model has perplexity {reached}{against}."
    if not searched:
        return f"The allocation is the uniform one, and the perplexity {reached}{against}."
    numbers = f"{reached} against {format_perplexity(uniform.perplexity)}{against}"
    kl = f"{tyr.kl:.4f} against {uniform.kl:.4f} nats per token"
    if not math.isfinite(tyr.perplexity) or not math.isfinite(uniform.perplexity):
        return f"No comparison is possible, a perplexity is not finite: {numbers}."
    change = tyr.perplexity / uniform.perplexity - 1
    if tyr.perplexity == uniform.perplexity:
        return f"tyr and uniform pruning reach the same perplexity, {numbers}; KL {kl}."
    outcome = f"{_percent(change)} {'lower' if change < 0 else 'higher'}"
    word = "beats" if change < 0 else "does not beat"
    return (
        f"tyr {word} uniform pruning: its perplexity is {outcome}, {numbers}; "
        f"its KL to the dense model is {_kl_direction(tyr, uniform)}, {kl}."
    )


def _kl_direction(tyr: EvaluationRow, uniform: EvaluationRow) -> str:
    """Says `however` when KL and perplexity disagree about who is better."""
    if tyr.kl == uniform.kl:
        return "equal"
    direction = "lower" if tyr.kl < uniform.kl else "higher"
    agree = (tyr.kl < uniform.kl) == (tyr.perplexity < uniform.perplexity)
    return f"also {direction}" if agree else f"however {direction}"


def format_perplexity(perplexity: float) -> str:
    """`8.500`, `16.00`, `12,345`: four significant digits at least."""
    return f"{perplexity:,.0f}" if perplexity >= 1000 else f"{perplexity:#.4g}"


def format_ratio(ratio: float | None) -> str:
    """`0.53x`, or a dash."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def format_count(count: int) -> str:
    """`8.03 B`, `131 k`, `512`: three significant digits."""
    for size, suffix in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{_three_digits(count / size)}{suffix}"
    return str(count)


def format_megabytes(num_bytes: int) -> str:
    """Size in MB (10^6 bytes), three significant digits at least."""
    megabytes = num_bytes / 1e6
    return f"{megabytes:,.0f}" if megabytes >= 1000 else _three_digits(megabytes)


def format_seconds(seconds: float) -> str:
    """`4.2 s`, `1:05`, `2:03:04`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"


def _three_digits(value: float) -> str:
    decimals = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{min(max(decimals, 0), 4)}f}"


def _percent(change: float) -> str:
    return f"{100 * abs(change):.2g} %" if abs(change) < 0.1 else f"{100 * abs(change):.0f} %"


def _ratio(value: float, base: float) -> float | None:
    return value / base if base else None
