from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_nothing_of_an_accelerators_path_mixes_devices() -> None:
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot pretend to have an accelerator")
    outcome = subprocess.run(
        [sys.executable, "-m", "tests.mixed_devices"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
