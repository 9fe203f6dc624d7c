"""A relay: bytes from one socket to another and back, through kernel pipes without a copy in this process."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import closing, suppress

FINISHED, DISCONNECTED, LIMIT_REACHED = "", "one end has disconnected", "the job has reached this server's relay limit"
PIPE_SIZE = 2**18  # bytes; the kernel may grant less, and more is not faster


async def relay(one: socket.socket, other: socket.socket, count: Callable[[int], bool], silence_timeout: float) -> str:
    """Relay until nothing can follow, and return the reason; it is empty if an end has closed its sending side.

    What an end has sent before it closed its sending side arrives, even if it has disconnected since. `count` is called
    with the size of the data in bytes, and returns whether more is allowed. The relay also ends if both ends are silent
    for `silence_timeout` seconds.
    """
    moved, moved_before = 0, -1

    def count_moved(size: int) -> bool:
        nonlocal moved
        moved += size
        return count(size)

    changed = asyncio.Event()
    with (
        closing(_Direction(one, other, count_moved, changed)) as forward,
        closing(_Direction(other, one, count_moved, changed)) as backward,
    ):
        while forward.end_reason is None or backward.end_reason is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(silence_timeout):
                    await changed.wait()
            reasons = {forward.end_reason, backward.end_reason}
            if LIMIT_REACHED in reasons:
                return LIMIT_REACHED
            if DISCONNECTED in reasons and FINISHED not in reasons:
                return DISCONNECTED
            if not changed.is_set() and moved_before == moved:
                return FINISHED if FINISHED in reasons else f"both ends were silent for {silence_timeout:g} s"
            changed.clear()
            moved_before = moved
        return FINISHED


class _Direction:
    """The data from `source` to `target`, which waits in a pipe until the target accepts it.

    Nothing more is read while data is waiting. Once the target has disconnected, data is read and discarded: the kernel
    would not deliver what the other direction still sends to the source if it closed that socket with unread data.
    `end_reason` is why nothing more follows, None while it may.
    """

    def __init__(
        self, source: socket.socket, target: socket.socket, count: Callable[[int], bool], changed: asyncio.Event
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._source, self._target, self._count, self._changed = source, target, count, changed
        self.end_reason: str | None = None
        self._waiting, self._is_discarding = 0, False
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(PermissionError):  # the user's pipes have reached the limit of their memory
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self._loop.add_reader(source, self._read)

    def _read(self) -> None:
        try:
            size = self._receive()
        except BlockingIOError:
            return
        except OSError:
            self._finish(DISCONNECTED)
            return
        if not size:
            self._finish(FINISHED)
        elif not self._count(size):
            self._end(LIMIT_REACHED)
        elif not self._is_discarding:
            self._waiting = size
            if not self._write():
                self._loop.remove_reader(self._source)
                self._loop.add_writer(self._target, self._continue_writing)

    def _receive(self) -> int:
        if self._is_discarding:
            return len(self._source.recv(PIPE_SIZE))
        return os.splice(self._source.fileno(), self._in, PIPE_SIZE)

    def _write(self) -> bool:
        """Write the waiting data; return False if the target does not accept all of it now."""
        try:
            while self._waiting:
                self._waiting -= os.splice(self._out, self._target.fileno(), self._waiting)
        except BlockingIOError:
            return False
        except OSError:
            self._is_discarding = True
        return True

    def _continue_writing(self) -> None:
        if self._write():
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._read)

    def _finish(self, reason: str) -> None:
        """End this direction after the target was sent everything."""
        with suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        self._end(reason)

    def _end(self, reason: str) -> None:
        self._loop.remove_reader(self._source)
        self.end_reason = reason
        self._changed.set()

    def close(self) -> None:
        """Close the pipe, and stop watching the sockets, which stay open."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)
        os.close(self._out)
        os.close(self._in)
