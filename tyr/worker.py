"""`python -m tyr.worker`: one of several processes of a run; started by tyr, not by hand.

It reads its job from standard input and ends when that closes. An interrupt from the keyboard is
the first process's to handle.
"""

from __future__ import annotations

import signal

from tyr.run import join, main
from tyr.spawn import lifeline


def work() -> None:
    """Do this process's part."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    join(lifeline())


if __name__ == "__main__":
    main(work)
