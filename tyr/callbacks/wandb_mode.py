"""Whether W&B tracking goes online: decided before wandb is imported, and without any network.

WANDB_MODE decides when it is set; then the configured mode; `auto` means online exactly when a
login is at hand (WANDB_API_KEY, or an entry for the W&B host in netrc), so a run without an account
never stops at a login prompt.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from urllib.parse import urlparse

from tyr.errors import ConfigError

MODES = ("auto", "online", "offline", "disabled")
_ALIASES = {"run": "online", "dryrun": "offline"}  # wandb's older names
_DEFAULT_HOST = "https://api.wandb.ai"


def check_mode(mode: str, name: str) -> None:
    """Raise ConfigError unless the mode is known."""
    if mode not in MODES:
        raise ConfigError(f"{name} must be one of {', '.join(MODES)}, got {mode!r}")


def resolve_mode(mode: str, environ: Mapping[str, str] | None = None) -> str:
    """The mode wandb is started with: `online`, `offline` or `disabled`.

    Raises:
        ConfigError: WANDB_MODE is set to something unknown.
    """
    environ = os.environ if environ is None else environ
    wanted = environ.get("WANDB_MODE") or mode
    wanted = _ALIASES.get(wanted, wanted)
    check_mode(wanted, "WANDB_MODE" if environ.get("WANDB_MODE") else "logger.wandb.mode")
    if wanted != "auto":
        return wanted
    return "online" if environ.get("WANDB_API_KEY") or _has_login(environ) else "offline"


def _has_login(environ: Mapping[str, str]) -> bool:
    """Whether netrc names the W&B host; the password itself is not looked at."""
    host = urlparse(environ.get("WANDB_BASE_URL", _DEFAULT_HOST)).hostname
    home = environ.get("HOME") or environ.get("USERPROFILE") or ""
    places = [environ["NETRC"]] if environ.get("NETRC") else [f"{home}/.netrc", f"{home}/_netrc"]
    for place in places:
        try:
            if host in netrc.netrc(place).hosts:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
