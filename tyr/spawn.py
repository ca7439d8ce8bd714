"""The other processes of a run on this machine: started, watched, and never left behind.

Each gets the composed configuration itself over its standard input, not the command line, so that
`${now:...}`, a multirun's overrides or a job launcher's working directory cannot give it another
one. The same pipe is its lifeline: when it closes, the first process is gone and the other goes
too. A process that dies stops the run; its own traceback is on the shared standard error.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType

from tyr.errors import ProcessError

COMMAND = (sys.executable, "-m", "tyr.worker")

POLL_SECONDS = 0.2
# The loss of a process usually reaches the main thread by itself, as a closed connection. If it
# does not, because no process is needed at the moment, it is interrupted, and then ended.
NOTICE_SECONDS = 10.0
UNWIND_SECONDS = 20.0


class Children:
    """Processes that this one started.

    Args:
        job: one line, sent to each.
        environments: rank to the variables that tell the process which it is.
    """

    def __init__(self, job: str, environments: Mapping[int, Mapping[str, str]]) -> None:
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._over = threading.Event()
        self._noticed = threading.Event()  # a death, and the main thread is being told
        path = os.pathsep.join(folder or os.curdir for folder in sys.path)
        for rank, variables in environments.items():
            process = subprocess.Popen(
                COMMAND,
                env={**os.environ, "PYTHONPATH": path, **variables},
                stdin=subprocess.PIPE,
                text=True,
            )
            self._processes[rank] = process
            assert process.stdin is not None, "asked for above"
            with suppress(BrokenPipeError):  # it died at once: the watch will say so
                process.stdin.write(f"{job}\n")
                process.stdin.flush()
        threading.Thread(target=self._watch, name="tyr-watch", daemon=True).start()

    def failure(self, wait: float = 0.0) -> ProcessError | None:
        """What is known of a process that died or failed, looked for `wait` seconds."""
        deadline = time.monotonic() + wait
        while True:
            for rank, process in self._processes.items():
                if status := process.poll():
                    return _failed(rank, status)
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_SECONDS)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the watch interrupt the body where SIGINT is ignored.

        It is in whatever a script starts with `&` or nohup, so that Ctrl-C in the terminal passes
        it by; from the terminal's it stays so.
        """
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            yield
            return

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            if self._noticed.is_set():
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def finish(self) -> None:
        """Wait for all to end after a run that went well.

        Raises:
            ProcessError: one of them failed after all.
        """
        self._over.set()
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):  # its work is done; `stop` ends it
                process.wait(timeout=UNWIND_SECONDS)
        if (failure := self.failure()) is not None:
            raise failure

    def stop(self) -> None:
        """End all, with a moment to end by themselves."""
        self._over.set()
        for process in self._processes.values():
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()
        for process in self._processes.values():
            try:
                process.wait(timeout=NOTICE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _watch(self) -> None:
        """On another thread: see to it that the main one learns of a death."""
        while not self._over.wait(POLL_SECONDS):
            failure = self.failure()
            if failure is None:
                continue
            if not self._over.wait(NOTICE_SECONDS):
                self._noticed.set()
                # A real signal, which also ends a system call that the main thread waits in.
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if not self._over.wait(UNWIND_SECONDS):
                sys.stderr.write(f"tyr: {failure}\n")
                sys.stderr.flush()
                for process in self._processes.values():
                    process.kill()
                os._exit(failure.status)
            return


@contextmanager
def children(job: str, environments: Mapping[int, Mapping[str, str]]) -> Iterator[None]:
    """Processes beside the body, which is stopped when one of them dies.

    Args:
        job: see `Children`.
        environments: see `Children`; without any, there is nothing to watch.

    Raises:
        ProcessError: a process died or failed; says which and how.
    """
    if not environments:
        yield
        return
    started = Children(job, environments)
    try:
        with started.interruptible():
            yield
        started.finish()
    except (ProcessError, KeyboardInterrupt) as error:
        # A lost connection says less than the exit status of the process behind it, and an
        # interruption may be the watch's.
        lost = isinstance(error, ProcessError)
        failure = started.failure(wait=NOTICE_SECONDS if lost else 0.0)
        if failure is None or failure is error:
            raise
        raise failure from error
    finally:
        started.stop()


def announced_rank() -> int:
    """This process's rank as its environment has it, before any connection."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def lifeline() -> str:
    """The job of this process, one line; when the pipe it came by closes, the process ends."""
    job = sys.stdin.readline()

    def hold() -> None:
        os.read(0, 1)  # returns only when the first process is gone
        os._exit(1)

    threading.Thread(target=hold, name="tyr-lifeline", daemon=True).start()
    return job


def _failed(rank: int, status: int) -> ProcessError:
    if status < 0:
        return ProcessError(
            f"process {rank} was killed by {signal.Signals(-status).name}; continue with the same "
            f"command and resume=true"
        )
    return ProcessError(
        f"process {rank} failed with status {status}, for the reason it gave above", status=status
    )
