"""Ctrl-C, SIGTERM and a closed terminal as something to look at between two steps."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ECHO = 1.0
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """Gives a function that raises KeyboardInterrupt once this process was asked to stop.

    Within the block nothing else does: Python's own KeyboardInterrupt comes anywhere, also just after a thread has
    taken a lock that another one, for which a thread pool waits at its end, will then never get. Whoever cannot wait
    sends the signal again, which ends the process at once; within ECHO seconds it is still the first one, which a batch
    script, srun and a container may all pass on. A signal that was ignored remains ignored.
    """
    asked: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(time.monotonic())
        if asked[-1] - asked[0] > ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check  # signals are the main thread's
        return
    heard = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    check()
