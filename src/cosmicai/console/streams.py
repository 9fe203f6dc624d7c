"""Standard streams whose reader may be gone: what is printed is then lost, and nothing else.

A program may be started with a closed descriptor (`>&-`), and a reader such as `head` or a terminal may end before it.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

_NAMES = ("stdin", "stdout", "stderr")
_READER_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET)


def secure_standard_streams() -> None:
    """Let nothing that is printed fail for want of a reader, nor reach a file that got the number of a closed stream.

    Closed descriptors 0 to 2 are opened on /dev/null, also for processes that this one starts. Writing to standard
    output and error then raises no error if the reader is gone, and on standard error no error at all. Streams that
    were replaced, as in tests, stay.
    """
    for descriptor, name in enumerate(_NAMES):
        is_open = True
        try:
            os.fstat(descriptor)
        except OSError:
            is_open = False
            _open_null(descriptor)
        if getattr(sys, name) is None:  # as Python does for a descriptor that was closed when it started
            # If it is open now, something else has it, which must not be written to.
            null = os.open(os.devnull, os.O_RDWR) if is_open else descriptor
            setattr(sys, name, os.fdopen(null, "r" if descriptor == 0 else "w", encoding="utf-8", closefd=False))
    for name in _NAMES[1:]:
        if getattr(sys, name) is getattr(sys, f"__{name}__"):
            setattr(sys, name, _tolerant(getattr(sys, name)))


def _open_null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which may be this one
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    os.set_inheritable(descriptor, True)


class _TolerantFile(io.FileIO):
    """A standard stream that takes what cannot be written for written; another error is raised once."""

    _has_raised = False

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() != 2 and error.errno not in _READER_GONE and not self._has_raised:
                self._has_raised = True  # what could not be written is tried again when the program ends
                raise
            return len(memoryview(data).cast("B"))


def _tolerant(stream: TextIO) -> TextIO:
    """Return a text stream with the descriptor and the properties of this one, whose errors it does not have."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # it has no file, as in a notebook
        return stream
    with suppress(OSError):
        stream.flush()
    raw = io.BufferedWriter(_TolerantFile(descriptor, "w", closefd=False))
    buffering = descriptor == 2 or raw.isatty()
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=buffering)
