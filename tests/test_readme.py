"""The README is true: commands compose or run, targets and links exist, its Python works."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.cli import run_cli
from tests.test_config import composed

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[3:]
    for line in re.findall(r"^(python -m tyr\.run.*)$", README, flags=re.MULTILINE)
]
HUB = ("llama31_8b",)


def test_the_readme_is_short_and_has_commands() -> None:
    assert len(README.splitlines()) <= 150
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_the_readme_composes(words: list[str]) -> None:
    single = [word.split(",")[0] for word in words if not word.startswith("-")]
    assert composed(*single).sparsity > 0


RUNNABLE = [words for words in COMMANDS if "model=" not in " ".join(words)]


@pytest.mark.slow
@pytest.mark.parametrize("words", RUNNABLE, ids=" ".join)
def test_every_offline_command_of_the_readme_runs(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = ["debug=fast", "logger=csv", f"run_dir={tmp_path / 'run'}"]
    outcome = run_cli(capsys, *words, *fast)
    assert outcome.status == 0, outcome.err


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"make ([a-z-]+)", README))
    assert targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    blocks = [block for block in blocks if "outputs/..." not in block]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
