"""Other processes that search with this one."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

PARENT = "L2O_SEARCH_PARENT"
"""Environment variable of helpers: the process that has started them."""


@contextlib.contextmanager
def helpers(line: Sequence[str], count: int) -> Iterator[list[subprocess.Popen]]:
    """Start processes, which are stopped when the context is left.

    SIGTERM leaves it as Ctrl-C does. Helpers have sessions of their own: a terminal would send
    Ctrl-C to them, too, and the second signal that a helper gets ends it without a checkpoint.

    Args:
        line: Command line of each; its output is left out, its errors are shown.
        count: Number of processes.
    """
    started: list[subprocess.Popen] = []
    before = signal.getsignal(signal.SIGTERM)
    # Helpers have none of their own, and end without a word. The main thread alone gets signals.
    is_handled = count > 0 and threading.current_thread() is threading.main_thread()
    try:
        if is_handled:
            signal.signal(signal.SIGTERM, interrupt)
        for _ in range(count):
            process = subprocess.Popen(
                line,
                stdout=subprocess.DEVNULL,
                env=os.environ | {PARENT: str(os.getpid())},
                start_new_session=True,
            )
            started.append(process)
        yield started
    finally:
        for process in started:
            process.terminate()  # which saves a checkpoint
        if is_handled:
            signal.signal(signal.SIGTERM, before)
        for process in started:
            process.wait()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does, also where a shell has it ignored, as in the background of a script."""
    del number, frame
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def is_helper() -> bool:
    """Whether another process has started this one to help."""
    return PARENT in os.environ


def is_orphan() -> bool:
    """Whether this is a helper, and the process that has started it has ended."""
    return is_helper() and os.environ[PARENT] != str(os.getppid())


def failures(started: Sequence[subprocess.Popen]) -> list[tuple[int, str]]:
    """Helpers that have ended with a status other than 0: the worker's number, and a line on it."""
    return [
        (worker, f"worker {worker} ended with status {process.returncode}; others go on without it")
        for worker, process in enumerate(started, start=2)
        if process.poll()
    ]
