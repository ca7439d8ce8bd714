"""The comparison with the released algorithm, end to end at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.experiments.scripts import TOY_SETTING, run_script


@pytest.mark.slow
def test_both_sides_agree_on_losses_and_survivors(tmp_path: Path) -> None:
    turns = ("--build-turns", "1", "--search-turns", "2")
    # More text than the last stage takes, or its positions would come again in each generation.
    text = ("--search-tokens", "512")
    words = (*TOY_SETTING, *text, *turns, "--output", str(tmp_path))
    outcome = run_script("supernet_and_generation.py", *words)
    assert outcome.returncode == 0, outcome.stderr
    content = json.loads((tmp_path / "supernet_and_generation.json").read_text())
    losses = content["figures"]["losses"]
    assert losses["losses"] >= 2 * (6 + 4 + 2)  # two generations of three stages
    assert losses["same_survivors"] is True
    assert losses["largest_relative_difference"] < 1e-4
    generation = content["figures"]["generation"]
    assert generation["short"]["compared"] >= 1
    assert -1 <= generation["short"]["rank_correlation"] <= 1
    assert 0 < generation["of_gemm"]["tyr"] < 1
    assert generation["operations_ratio"] > 1
    nested = generation["nested"]
    assert nested["same_parent"] is True
    assert nested["largest_relative_difference"] < 1e-4
    assert nested["evaluated_tokens"]["tyr"] < nested["evaluated_tokens"]["released"]
    assert content["figures"]["build"]["local_ratio"] > 0
    assert content["figures"]["disk"]["tyr_bytes"] > 0
    report = (tmp_path / "supernet_and_generation.md").read_text()
    assert "peak memory of the search" in report
