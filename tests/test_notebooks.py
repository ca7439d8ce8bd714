"""Notebooks are committed without outputs and run from top to bottom on a real run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import run_cli

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
assert NOTEBOOKS, "notebooks/ is empty"


def code_cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    for cell in code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_fresh_run(
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir = tmp_path / "outputs" / "example"
    words = ("debug=fast", "logger=csv", "callbacks=quiet", f"run_dir={run_dir}")
    assert run_cli(capsys, *words).status == 0
    folder = tmp_path / "notebooks"  # where Jupyter starts it
    folder.mkdir()
    for place, named in ((folder, None), (tmp_path, None), (tmp_path / "outputs", str(run_dir))):
        monkeypatch.chdir(place)
        monkeypatch.delenv("TYR_RUN", raising=False)
        if named is not None:
            monkeypatch.setenv("TYR_RUN", named)
        names: dict[str, Any] = {}
        for cell in code_cells(path):
            exec(compile("".join(cell["source"]), path.name, "exec"), names)
        assert names["history"].generations
