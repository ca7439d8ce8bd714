"""The errors tyr raises when its input, its files or its numbers are not what they must be.

Every one derives from `TyrError` and from the builtin it is kin to, so callers may catch either. A
message says what was expected, what came, and what to do next. Faults of tyr itself are not
wrapped: they surface as ordinary exceptions with a traceback.
"""

from __future__ import annotations


class TyrError(Exception):
    """Something outside tyr's code is wrong; the message says what to do about it."""


class ConfigError(TyrError, ValueError):
    """A setting is out of range, unknown, or contradicts another."""


class ModelError(TyrError, ValueError):
    """A model directory or architecture cannot be pruned."""


class DataError(TyrError, ValueError):
    """A text source is missing, malformed or too small."""


class NumericsError(TyrError, ArithmeticError):
    """A factorisation failed or an activation is not finite."""


class StoreError(TyrError, OSError):
    """A supernet or run file is missing, damaged, or does not fit on the disk."""


class ResumeError(TyrError, RuntimeError):
    """A run directory cannot be continued by this configuration."""


class ProcessError(TyrError, RuntimeError):
    """Another process of this run died or failed.

    Args:
        message: what is known of it.
        told: whether it said so itself, and so reports the cause.
        status: exit status that this run should end with.
    """

    def __init__(self, message: str, *, told: bool = False, status: int = 1) -> None:
        super().__init__(message)
        self.told = told
        self.status = status


def first_line(error: BaseException) -> str:
    """What a library says is wrong, without the lines below; its name if it says nothing."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
