"""How fast models prefill and decode, measured side by side (Table 3 and Figure 5 of the paper).

Models take turns within every repeat and swap places between repeats, so a machine that gets slower
or faster does so for all of them. Reported are medians and quartiles over the repeats; a mean would
follow the one repeat in which something else ran. Which model is pruned, and how, is not known.
"""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from tyr.errors import ConfigError
from tyr.evaluate.engines import Engine, Run, Workload


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Quartiles lie within the values; of one value all three are that value."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Latency:
    """How fast one model was on one workload; a row of latency.csv.

    Args:
        model: its name.
        engine: what ran it.
        input_tokens: prompt length.
        output_tokens: generated tokens.
        batch: sequences at once.
        parameters: all of them, tied ones once; None if the engine does not tell.
        ttft_seconds: prompt to first token, median; `_low` and `_high` are the quartiles.
        decode_tokens_per_second: after the first token, all sequences together, median.
        peak_bytes: weights plus the most of other tensors at once; see `peak.py`.
        kv_bytes_per_token: what one token of one sequence takes in the KV cache.
        prefill_flops: counted, see `work.py`; None if unknown.
        decode_bytes: that the middle decoding step reads; None if unknown.
        repeats: that the figures summarise.
    """

    model: str
    engine: str
    input_tokens: int
    output_tokens: int
    batch: int
    parameters: int | None
    ttft_seconds: float
    ttft_seconds_low: float
    ttft_seconds_high: float
    decode_tokens_per_second: float
    decode_tokens_per_second_low: float
    decode_tokens_per_second_high: float
    peak_bytes: int | None
    kv_bytes_per_token: float | None
    prefill_flops: int | None
    decode_bytes: float | None
    repeats: int


COLUMNS = tuple(field.name for field in fields(Latency))


@dataclass(frozen=True)
class Protocol:
    """How often to measure.

    Args:
        repeats: timed generations per model and workload.
        warmup: untimed ones before them.
    """

    repeats: int = 5
    warmup: int = 1

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 0:
            raise ConfigError(
                f"repeats must be at least 1 and warmup at least 0, got {self.repeats} and "
                f"{self.warmup}"
            )


def workloads(
    inputs: Sequence[int], outputs: Sequence[int], batches: Sequence[int]
) -> list[Workload]:
    """Every combination.

    Raises:
        ConfigError: none is given, or one is out of range.
    """
    if not (inputs and outputs and batches):
        raise ConfigError("input, output and batch each need at least one number")
    return [Workload(*sizes) for sizes in itertools.product(inputs, outputs, batches)]


def check_lengths(context: int, wanted: Sequence[Workload], *, name: str) -> None:
    """Refuse what a model has no positions for.

    Args:
        context: positions of the model.
        wanted: what is to be measured.
        name: of the model.

    Raises:
        ConfigError: a workload is longer.
    """
    longest = max(wanted, key=lambda workload: workload.length)
    if longest.length > context:
        raise ConfigError(
            f"{longest.input_tokens} input and {longest.output_tokens} output tokens exceed the "
            f"context of {name}, {context}: ask for {context} tokens in all or fewer"
        )


def measure(
    engines: Mapping[str, Engine],
    wanted: Sequence[Workload],
    protocol: Protocol,
) -> list[Latency]:
    """Time models on workloads, taking turns.

    Args:
        engines: model name to what runs it.
        wanted: what to generate.
        protocol: how often.

    Raises:
        ConfigError: a workload exceeds the context of a model.
    """
    for name, engine in engines.items():
        check_lengths(engine.context, wanted, name=name)
    return [row for workload in wanted for row in _measure_one(engines, workload, protocol)]


def _measure_one(
    engines: Mapping[str, Engine], workload: Workload, protocol: Protocol
) -> Iterator[Latency]:
    for engine in engines.values():
        engine.prepare(workload)
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    for repeat in range(protocol.warmup + protocol.repeats):
        order = list(engines) if repeat % 2 == 0 else list(engines)[::-1]
        for name in order:
            run = engines[name].run()
            if repeat >= protocol.warmup:
                runs[name].append(run)
    for name, engine in engines.items():
        yield _row(name, engine, workload, runs[name])


def _row(name: str, engine: Engine, workload: Workload, runs: Sequence[Run]) -> Latency:
    ttft = Spread.of([run.ttft_seconds for run in runs])
    tokens = workload.batch * (workload.output_tokens - 1)
    speed = Spread.of([tokens / run.decode_seconds for run in runs])
    memory, work = engine.footprint(), engine.work
    middle = workload.input_tokens + workload.output_tokens / 2
    return Latency(
        model=name,
        engine=engine.name,
        **asdict(workload),
        parameters=engine.parameters,
        ttft_seconds=ttft.median,
        ttft_seconds_low=ttft.low,
        ttft_seconds_high=ttft.high,
        decode_tokens_per_second=speed.median,
        decode_tokens_per_second_low=speed.low,
        decode_tokens_per_second_high=speed.high,
        **asdict(memory),
        prefill_flops=None
        if work is None
        else work.prefill_flops(workload.batch, workload.input_tokens),
        decode_bytes=None if work is None else work.decode_bytes(workload.batch, middle),
        repeats=len(runs),
    )


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the columns of `Latency`, as CSV; what is unknown stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@dataclass(frozen=True)
class Comparison:
    """Two models on one workload. Every ratio is how many times better the second one is."""

    dense: Latency
    pruned: Latency

    @property
    def ttft_ratio(self) -> float:
        """Of the times to the first token."""
        return self.dense.ttft_seconds / self.pruned.ttft_seconds

    @property
    def decode_ratio(self) -> float:
        """Of the decode throughputs."""
        return self.pruned.decode_tokens_per_second / self.dense.decode_tokens_per_second

    @property
    def flop_ratio(self) -> float | None:
        """Of the prefill's arithmetic: what `ttft_ratio` could be at most."""
        return _over(self.dense.prefill_flops, self.pruned.prefill_flops)

    @property
    def byte_ratio(self) -> float | None:
        """Of the bytes that a decoding step reads: what `decode_ratio` could be at most."""
        return _over(self.dense.decode_bytes, self.pruned.decode_bytes)


def compare(rows: Sequence[Latency], dense: str, pruned: str) -> list[Comparison]:
    """Pair the rows of two models by engine and workload, in the order of the first."""
    keyed = {(row.model, _workload(row)): row for row in rows}
    return [
        Comparison(row, keyed[pruned, key]) for (model, key), row in keyed.items() if model == dense
    ]


def _workload(row: Latency) -> tuple[str, int, int, int]:
    return row.engine, row.input_tokens, row.output_tokens, row.batch


def _over(dense: float | None, pruned: float | None) -> float | None:
    return dense / pruned if dense and pruned else None
