"""The verdict is honest, and numbers read well."""

from dataclasses import replace

import pytest

from tyr.callbacks.results import (
    format_count,
    format_megabytes,
    format_perplexity,
    format_seconds,
    result_lines,
    verdict,
)
from tyr.events import EvaluationRow


def test_the_verdict_says_when_tyr_wins(rows: dict[str, EvaluationRow]) -> None:
    text = verdict(rows)
    assert text.startswith("tyr beats uniform pruning: its perplexity is 20 % lower")
    assert "also lower" in text


def test_the_verdict_says_when_tyr_loses(rows: dict[str, EvaluationRow]) -> None:
    rows["tyr"] = replace(rows["tyr"], perplexity=21.0, kl=0.95)
    assert "does not beat uniform pruning: its perplexity is 5 % higher" in verdict(rows)
    assert "also higher" in verdict(rows)


def test_the_verdict_says_when_perplexity_and_kl_disagree(rows: dict[str, EvaluationRow]) -> None:
    rows["tyr"] = replace(rows["tyr"], kl=1.2)
    assert "however higher" in verdict(rows)


def test_the_verdict_calls_a_tie_a_tie(rows: dict[str, EvaluationRow]) -> None:
    rows["tyr"] = replace(rows["uniform"])
    assert "the same perplexity" in verdict(rows)


def test_the_verdict_compares_only_finite_numbers(rows: dict[str, EvaluationRow]) -> None:
    rows["uniform"] = replace(rows["uniform"], perplexity=float("inf"))
    assert verdict(rows).startswith("No comparison is possible")


def test_the_verdict_without_a_uniform_model_claims_nothing(rows: dict[str, EvaluationRow]) -> None:
    same = verdict(rows, searched=False)
    assert same.startswith("The allocation is the uniform one, and the perplexity")
    assert "beat" not in same
    assert verdict({"tyr": rows["tyr"]}) == "The pruned model has perplexity 16.00."
    assert verdict({"dense": rows["dense"]}) == "The pruned model was not evaluated."


def test_lines_come_in_reading_order_with_ratios_to_dense(rows: dict[str, EvaluationRow]) -> None:
    lines = result_lines(dict(reversed(rows.items())))
    assert [line.name for line in lines] == ["dense", "uniform", "tyr", "tyr_supernet"]
    assert lines[2].perplexity_ratio == 16.0 / 8.5
    assert lines[2].bytes_ratio == 164 / 262
    assert result_lines({"tyr": rows["tyr"]})[0].bytes_ratio is None


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_count(512), "512"),
        (format_count(131_072), "131 k"),
        (format_count(8_030_000_000), "8.03 B"),
        (format_megabytes(520_000), "0.520"),
        (format_megabytes(16_060_000_000), "16,060"),
        (format_megabytes(0), "0"),
        (format_seconds(0.04), "0.0 s"),
        (format_seconds(59.7), "1:00"),
        (format_seconds(42), "42 s"),
        (format_seconds(7384), "2:03:04"),
        (format_perplexity(8.5), "8.500"),
        (format_perplexity(12345.6), "12,346"),
        (format_perplexity(float("inf")), "inf"),
    ],
)
def test_numbers_are_short_and_plain(shown: str, expected: str) -> None:
    assert shown == expected
