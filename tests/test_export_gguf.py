"""The command `python -m tyr.export_gguf`: exit status and messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tyr.export_gguf import main
from tyr.model.loading import BUILT_IN

pytest.importorskip("gguf", reason="gguf is not installed (pip install -e '.[gguf]')")


def test_a_model_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny.gguf"
    assert main([str(BUILT_IN), str(out), "--dtype", "q8_0"]) == 0
    assert out.read_bytes()[:4] == b"GGUF"
    said = capsys.readouterr().out
    assert "arch=deci" in said
    assert "85 Q8_0" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "q4_k_m"], "dtype must be one of f32, f16, bf16, q8_0, got 'q4_k_m'"),
        (["--arch", "llama"], "arch must be one of auto, deci, openelm, got 'llama'"),
        (["--arch", "openelm"], "always applies q/k norms"),
    ],
)
def test_bad_input_exits_with_2_and_one_paragraph(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(BUILT_IN), str(tmp_path / "x.gguf"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("tyr: ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_words_exit_with_2() -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2


def test_a_fault_of_tyr_is_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("tyr.export.gguf.exporter.convert", fault)
    with pytest.raises(ZeroDivisionError):
        main([str(BUILT_IN), str(tmp_path / "x.gguf")])
