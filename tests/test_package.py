"""What a source distribution holds."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Added by the build itself, or of use in a checkout only.
NOT_NAMED = {".ci", ".gitignore", "pyproject.toml"}


def test_a_source_distribution_holds_all_that_its_makefile_and_tests_need() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: what is tracked is not known")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {line.split("/")[0] for line in listed.stdout.splitlines()}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = set(settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    assert named == tracked - NOT_NAMED
