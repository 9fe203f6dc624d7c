"""How connections end so that all that was sent arrives."""

from __future__ import annotations

import fcntl
import socket
import termios
import time
from collections.abc import Sequence
from contextlib import suppress

LOOK_EVERY = 0.002  # seconds between two looks at what is still on its way
DISCARDED = 2**16  # bytes at once


class Farewell:
    """The last words on a connection, of which the end follows; with `to_the_end`, of the other's side too.

    If anything came and was not read, the kernel would throw away what it has still to send when the socket is closed.
    """

    def __init__(self, own: socket.socket, words: bytes, *, to_the_end: bool = False) -> None:
        own.setblocking(False)
        self.socket, self._words, self._is_said, self._is_waiting = own, words, False, to_the_end
        self._heard = time.monotonic()
        self._queued = bytearray(4)

    def is_over(self, patience: float) -> bool:
        """Whether the other's kernel has everything, or nobody has been there for `patience` seconds to have it."""
        try:
            with suppress(BlockingIOError):
                while self.socket.recv(DISCARDED):
                    self._heard = time.monotonic()
                self._is_waiting = False
            with suppress(BlockingIOError):
                self._say()
            self.socket.getpeername()  # fails once the other has broken it: the end that it said before hides that
            fcntl.ioctl(self.socket, termios.TIOCOUTQ, self._queued)
        except OSError:
            return True
        has_all = self._is_said and not self._is_waiting and not any(self._queued)
        return has_all or time.monotonic() - self._heard > patience

    def _say(self) -> None:
        while self._words:
            self._words = self._words[self.socket.send(self._words) :]
        if not self._is_said:
            self.socket.shutdown(socket.SHUT_WR)
            self._is_said = True


def part(farewells: Sequence[Farewell], patience: float, deadline: float) -> None:
    """Waits until all are over, or until the deadline (of time.monotonic()), and closes them."""
    try:
        rest = [one for one in farewells if not one.is_over(patience)]
        while rest and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
            rest = [one for one in rest if not one.is_over(patience)]
    finally:
        for one in farewells:
            one.socket.close()
