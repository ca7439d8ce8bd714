"""What the command line imports before the configuration is known to be valid.

Not a timed test: seconds differ between machines, the modules that cost them do not.
"""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "transformers", "lightning", "datasets", "numpy", "matplotlib", "wandb", "pandas")

# One interpreter for all questions: what the first leaves unimported, the second may still import.
ASK = f"""
import contextlib, io, json, sys
from hydra.core.global_hydra import GlobalHydra
from tyr.run import main
answers = []
for words in json.loads(sys.argv[1]):
    GlobalHydra.instance().clear()
    sys.argv = ["tyr", *words]
    said, status = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
    answers.append([status, said.getvalue(), [m for m in {HEAVY!r} if m in sys.modules]])
print(json.dumps(answers))
"""

QUESTIONS = {
    "--help": (0, "Powered by Hydra"),
    "--cfg job": (0, "sparsity: 0.5"),
    "search.generatons=3": (2, "did you mean search.generations?"),
    "accumulation=unifrom": (2, "did you mean uniform?"),
}


def test_nothing_heavy_is_imported_before_the_configuration_is_valid() -> None:
    words = json.dumps([question.split() for question in QUESTIONS])
    asked = subprocess.run(
        [sys.executable, "-c", ASK, words], capture_output=True, text=True, check=True
    )
    answers = json.loads(asked.stdout)
    assert len(answers) == len(QUESTIONS)
    for question, (status, said, imported) in zip(QUESTIONS, answers, strict=True):
        expected, words_said = QUESTIONS[question]
        assert status == expected, f"{question}: {said}"
        assert words_said in said, question
        assert imported == [], question
