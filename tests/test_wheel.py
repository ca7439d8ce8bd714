"""What a user installs: the wheel carries configuration, built-in model and report template."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout, without network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_carries_everything_a_run_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    yamls = [path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")]
    assert len(yamls) > 30
    assert {f"tyr/{path}" for path in yamls} <= names
    assert "tyr/assets/tiny/model.safetensors" in names
    assert "tyr/assets/tiny/tokenizer.json" in names
    assert any(name.endswith("report.html.template") for name in names)


@pytest.mark.slow
def test_the_console_script_of_an_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own that borrows this one's dependencies but not its checkout."""
    venv.create(tmp_path / "env", with_pip=False)
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    zipfile.ZipFile(wheel).extractall(site)
    borrowed = next(path for path in sys.path if path.endswith("site-packages"))
    script = (
        "import sys\n"
        f"sys.path.append({borrowed!r})\n"
        "import tyr.run\n"
        f"assert tyr.run.__file__.startswith({str(site)!r}), tyr.run.__file__\n"
        "tyr.run.main()\n"
    )
    python = tmp_path / "env" / "bin" / "python"
    words = ["debug=fast", "logger=csv", f"run_dir={tmp_path / 'run'}"]
    subprocess.run([python, "-c", script, *words], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
