"""Tracking goes online only with a login at hand, and WANDB_MODE has the last word."""

from pathlib import Path

import pytest

from tyr.callbacks.wandb_mode import resolve_mode
from tyr.errors import ConfigError


@pytest.mark.parametrize(
    ("mode", "environ", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "x"}, "online"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline"),
        ("offline", {"WANDB_API_KEY": "x"}, "offline"),
        ("online", {}, "online"),
        ("disabled", {"WANDB_MODE": "online"}, "online"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_MODE": ""}, "offline"),
    ],
)
def test_the_environment_wins_over_the_configuration(
    tmp_path: Path, mode: str, environ: dict[str, str], expected: str
) -> None:
    assert resolve_mode(mode, {"HOME": str(tmp_path), **environ}) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("machine api.wandb.ai login user password x\n", "online"),
        ("machine example.org login user password x\n", "offline"),
        ("machine\n", "offline"),
    ],
)
def test_a_login_in_netrc_counts_for_the_wandb_host_only(
    tmp_path: Path, content: str, expected: str
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text(content)
    netrc.chmod(0o600)
    assert resolve_mode("auto", {"HOME": str(tmp_path)}) == expected
    assert resolve_mode("auto", {"HOME": "/nowhere", "NETRC": str(netrc)}) == expected


def test_an_unknown_wandb_mode_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="WANDB_MODE must be one of"):
        resolve_mode("auto", {"WANDB_MODE": "maybe"})
