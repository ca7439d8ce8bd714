"""A live region at the bottom of the terminal that logging cannot tear apart.

rich redirects `sys.stdout` and `sys.stderr` while a region is live, but log handlers made before
hold the real streams; they are moved onto the redirected ones and put back afterwards. What is
shown is asked for from rich's refresh thread.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live

REFRESHES_PER_SECOND = 4


class LiveRegion:
    """Shows what `render` returns until stopped; the last picture stays on the screen."""

    def __init__(self, console: Console, render: Callable[[], RenderableType]) -> None:
        self._live = Live(
            console=console, get_renderable=render, refresh_per_second=REFRESHES_PER_SECOND
        )
        self._moved: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def start(self) -> None:
        """Take over the bottom of the terminal."""
        real = {id(sys.stdout): "stdout", id(sys.stderr): "stderr"}
        self._live.start(refresh=True)
        for handler in logging.getLogger().handlers:
            name = real.get(id(getattr(handler, "stream", None)))
            if isinstance(handler, logging.StreamHandler) and name is not None:
                self._moved.append((handler, handler.stream))
                handler.setStream(getattr(sys, name))

    def stop(self) -> None:
        """Draw once more and give the terminal back."""
        self._live.stop()
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._moved.clear()
