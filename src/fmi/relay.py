"""Bytes from one socket to another and back, through the kernel's pipes without a copy in this process."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import closing, suppress

DONE, GONE, ENOUGH = "", "one end is gone", "the job has used up what this server relays for one job"
PIPE = 2**18  # bytes, of which the kernel may grant less; more is not faster


async def relay(one: socket.socket, other: socket.socket, count: Callable[[int], bool], silence: float) -> str:
    """Relays until nothing can come any more; returns why, unless an end has said all that it had to say.

    What an end has sent before its last word arrives, even if it is gone by then. `count` is told of bytes and says
    whether more are allowed; both ends may not be silent for `silence` seconds.
    """
    moved, seen = 0, -1

    def counted(size: int) -> bool:
        nonlocal moved
        moved += size
        return count(size)

    changed = asyncio.Event()
    with (
        closing(_Direction(one, other, counted, changed)) as there,
        closing(_Direction(other, one, counted, changed)) as back,
    ):
        while there.ended is None or back.ended is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(silence):
                    await changed.wait()
            ends = {there.ended, back.ended}
            if ENOUGH in ends:
                return ENOUGH
            if GONE in ends and DONE not in ends:
                return GONE
            if not changed.is_set() and seen == moved:
                return DONE if DONE in ends else f"nobody said anything for {silence:g} s"
            changed.clear()
            seen = moved
        return DONE


class _Direction:
    """What comes from `source` waits in a pipe until `target` takes it; nothing more is read meanwhile.

    If the target takes nothing any more, what comes is thrown away: would it be left unread, the kernel would not
    deliver what the other direction still has for the source. `ended` is why nothing more comes, None while it may.
    """

    def __init__(
        self, source: socket.socket, target: socket.socket, count: Callable[[int], bool], changed: asyncio.Event
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._source, self._target, self._count, self._changed = source, target, count, changed
        self.ended: str | None = None
        self._waiting, self._is_in_vain = 0, False
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(PermissionError):  # where the user's pipes have all the memory that they may have
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE)
        self._loop.add_reader(source, self._read)

    def _read(self) -> None:
        try:
            size = self._receive()
        except BlockingIOError:
            return
        except OSError:
            self._finish(GONE)
            return
        if not size:
            self._finish(DONE)
        elif not self._count(size):
            self._end(ENOUGH)
        elif not self._is_in_vain:
            self._waiting = size
            if not self._write():
                self._loop.remove_reader(self._source)
                self._loop.add_writer(self._target, self._go_on)

    def _receive(self) -> int:
        if self._is_in_vain:
            return len(self._source.recv(PIPE))
        return os.splice(self._source.fileno(), self._in, PIPE)

    def _write(self) -> bool:
        """Whether nothing waits any more, be it that the target has taken all or that it takes nothing any more."""
        try:
            while self._waiting:
                self._waiting -= os.splice(self._out, self._target.fileno(), self._waiting)
        except BlockingIOError:
            return False
        except OSError:
            self._is_in_vain = True
        return True

    def _go_on(self) -> None:
        if self._write():
            self._loop.remove_writer(self._target)
            self._loop.add_reader(self._source, self._read)

    def _finish(self, why: str) -> None:
        """Nothing more comes, and the target was given all."""
        with suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        self._end(why)

    def _end(self, why: str) -> None:
        self._loop.remove_reader(self._source)
        self.ended = why
        self._changed.set()

    def close(self) -> None:
        """Gives everything back but the sockets."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)
        os.close(self._out)
        os.close(self._in)
