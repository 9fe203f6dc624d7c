"""Ctrl-C, SIGTERM and a closed terminal, raised only at chosen points of a program."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SAME_SIGNAL = 1.0  # seconds within which a repeated signal counts as the same one
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def defer_interrupts() -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if a signal to stop has arrived; nothing else in the block does.

    Python raises its own KeyboardInterrupt anywhere, also just after a thread has acquired a lock; a thread pool that
    waits at its end for another thread, which needs that lock, then waits forever. A second signal terminates the
    process at once, unless it comes within SAME_SIGNAL seconds: batch script, srun and container may each pass on the
    same one. Signals that were ignored remain ignored.
    """
    received: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(time.monotonic())
        if received[-1] - received[0] > SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def check() -> None:
        if received:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check  # only the main thread can handle signals
        return
    handled = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        yield check
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    check()
