"""Anonymous network namespaces of Linux, kept by file descriptors, so that none outlives this process.

Only root can create them. A thread is in one namespace, and so are the sockets, threads and processes that it creates.
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

from ...errors import InputError

CLONE_NEWNET = 0x40000000  # <sched.h>
_libc = ctypes.CDLL(None, use_errno=True)


def create_namespace() -> int:
    """Create a namespace with nothing but loopback and return its file descriptor, which keeps it until it is closed.

    Raises OSError if the system does not permit it.
    """
    with _restore_namespace():
        _call(_libc.unshare, CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


@contextmanager
def enter_namespace(namespace: int) -> Iterator[None]:
    """Move this thread to a namespace during the context."""
    with _restore_namespace():
        _call(_libc.setns, namespace, CLONE_NEWNET)
        yield


def run_ip(namespace: int, *lines: str, pass_fds: Sequence[int] = ()) -> None:
    """Run commands of ip(8) in a namespace, one per line. Raises InputError if one fails."""
    run_in_namespace(namespace, ["ip", "-batch", "-"], "\n".join(lines) + "\n", pass_fds)


def run_in_namespace(namespace: int, words: Sequence[str], text: str = "", pass_fds: Sequence[int] = ()) -> None:
    """Run a command in a namespace with `text` as its input. Raises InputError if it fails."""
    with enter_namespace(namespace):
        done = subprocess.run(words, input=text, capture_output=True, text=True, pass_fds=pass_fds)
    if done.returncode:
        raise InputError(f"{' '.join(words)} failed: {' '.join(done.stderr.split())}")


def kill_processes(namespaces: Iterable[int]) -> None:
    """Kill all processes in these namespaces, and return when none is left.

    This process is spared, though its threads may be in them.
    """
    inodes = {os.fstat(namespace).st_ino for namespace in namespaces}
    while remaining := _list_processes(inodes):
        for pid in remaining:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _list_processes(inodes: set[int]) -> list[int]:
    pids = []
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):  # the process has ended
            if path.stat().st_ino in inodes:
                pids.append(int(path.parts[2]))
    return [pid for pid in pids if pid != os.getpid()]


@contextmanager
def _restore_namespace() -> Iterator[None]:
    """Move this thread back to its namespace at the end of the context."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        _call(_libc.setns, home, CLONE_NEWNET)
        os.close(home)


def _call(function: Any, *arguments: int) -> None:
    if function(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
