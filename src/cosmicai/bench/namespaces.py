"""Network namespaces of Linux without names: file descriptors hold them, so that none outlives this process.

Only root can make them. A namespace belongs to a thread; sockets, threads and processes that it makes get the same.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import InputError

CLONE_NEWNET = 0x40000000  # <sched.h>
_libc = ctypes.CDLL(None, use_errno=True)


def new_namespace() -> int:
    """A namespace where there is loopback alone, as a file descriptor; it is there until that is closed.

    Raises OSError where the system does not let it.
    """
    with _returning():
        _call(_libc.unshare, CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """This thread is in a namespace meanwhile."""
    with _returning():
        _call(_libc.setns, namespace, CLONE_NEWNET)
        yield


def ip(namespace: int, *lines: str, pass_fds: Sequence[int] = ()) -> None:
    """Commands of ip(8) in a namespace, one a line. Raises InputError at the first that fails."""
    command(namespace, ["ip", "-batch", "-"], "\n".join(lines) + "\n", pass_fds)


def command(namespace: int, words: Sequence[str], text: str = "", pass_fds: Sequence[int] = ()) -> None:
    """Runs a command in a namespace, which reads a text. Raises InputError if it fails."""
    with inside(namespace):
        done = subprocess.run(words, input=text, capture_output=True, text=True, pass_fds=pass_fds)
    if done.returncode:
        raise InputError(f"{' '.join(words)} failed: {' '.join(done.stderr.split())}")


def kill_all(namespaces: Iterable[int]) -> None:
    """Kills all processes in these namespaces, and returns when there is none left.

    This process, which may have threads there, lives.
    """
    numbers = {os.fstat(namespace).st_ino for namespace in namespaces}
    while left := _processes(numbers):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _processes(numbers: set[int]) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):  # it has ended meanwhile
            if path.stat().st_ino in numbers:
                found.append(int(path.parts[2]))
    return [pid for pid in found if pid != os.getpid()]


@contextmanager
def _returning() -> Iterator[None]:
    """Afterwards this thread is in the namespace that it was in."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        _call(_libc.setns, home, CLONE_NEWNET)
        os.close(home)


def _call(function: Any, *arguments: int) -> None:
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
