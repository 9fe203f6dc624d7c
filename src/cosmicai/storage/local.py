"""Open local files: regular ones only, and again where NFS answers that its handle is stale.

That is so if another machine has just replaced the file: opened again, it is the new one.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from ..errors import StorageError, describe_os_errors

ATTEMPTS = 5
PAUSE = 0.2  # seconds, in which the client learns of the new file

P = ParamSpec("P")
T = TypeVar("T")


def retry_stale(call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Return the result of a call, which is repeated a few times if it ends with ESTALE, and with no other error."""
    for _ in range(ATTEMPTS - 1):
        try:
            return call(*arguments, **options)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            time.sleep(PAUSE)
    return call(*arguments, **options)


def open_regular(path: str | Path) -> int:
    """Return the descriptor of a regular file that is open for reading.

    Raises StorageError if it is anything else: a pipe would be waited for until somebody writes to it, and a device
    may have no end. Raises OSError as `os.open`.
    """
    file = retry_stale(os.open, path, os.O_RDONLY | os.O_NONBLOCK)  # which has no effect on regular files
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        return file
    os.close(file)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "", str(path))
    kind = "pipe" if stat.S_ISFIFO(mode) else "device"
    raise StorageError(f"cannot read {path}: it is a {kind} where a file was expected; copy its content to a file")


def open_with_state(path: str) -> tuple[int, os.stat_result]:
    """Return the descriptor of a regular file that is open for reading, and its state; raises as `open_regular`."""
    file = open_regular(path)
    try:
        return file, os.fstat(file)
    except OSError:
        os.close(file)
        raise


def read_file(path: str) -> bytes:
    """Return the content of a small local file. Raises StorageError if it cannot be read."""
    with describe_os_errors(path, "read"):
        return retry_stale(_read_file, path)  # from the beginning, since it may have been replaced


def _read_file(path: str) -> bytes:
    with open(open_regular(path), "rb") as file:
        return file.read()
