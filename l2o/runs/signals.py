"""Signals that stop a run when what it is doing is done."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_on_signals(
    on_signal: Callable[[], None] = lambda: None,
) -> Iterator[Callable[[], bool]]:
    """Make a `should_stop` that turns True at SIGINT or SIGTERM.

    A second signal does what it does by default: Ctrl-C raises `KeyboardInterrupt`. Outside the
    main thread, which alone gets signals, it stays False.

    Args:
        on_signal: Function called at the first signal, at any point of the program.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    is_stopped = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopped
        del number, frame
        is_stopped = True
        restore()
        on_signal()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield lambda: is_stopped
    finally:
        restore()
