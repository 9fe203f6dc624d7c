"""Graceful shutdown of connections: everything that was sent arrives before the socket is closed."""

from __future__ import annotations

import fcntl
import socket
import termios
import time
from collections.abc import Sequence
from contextlib import suppress

POLL_INTERVAL = 0.002  # seconds between two checks of what the peer's kernel has acknowledged
DISCARD_SIZE = 2**16  # bytes read and discarded at once


class GracefulClose:
    """The graceful shutdown of one connection: it sends a final message and then closes the sending side.

    With `wait_for_peer` the shutdown also waits until the peer has closed its own sending side. Incoming bytes are
    discarded: the kernel would drop data that is still to be sent if the socket were closed with unread data.
    """

    def __init__(self, connection: socket.socket, final_message: bytes, *, wait_for_peer: bool = False) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._unsent = final_message
        self._is_sent = False
        self._is_waiting_for_peer = wait_for_peer
        self._last_received = time.monotonic()
        self._unacknowledged = bytearray(4)

    def advance(self, silence_timeout: float) -> bool:
        """Send and receive what is possible now, and return whether the shutdown is complete.

        It is complete when the peer's kernel has acknowledged everything, when the connection is broken, or when the
        peer has been silent for `silence_timeout` seconds.
        """
        try:
            with suppress(BlockingIOError):
                while self.socket.recv(DISCARD_SIZE):
                    self._last_received = time.monotonic()
                self._is_waiting_for_peer = False
            with suppress(BlockingIOError):
                self._send_final_message()
            # Fails once the peer has reset the connection, which its earlier end of stream would hide.
            self.socket.getpeername()
            fcntl.ioctl(self.socket, termios.TIOCOUTQ, self._unacknowledged)
        except OSError:
            return True
        is_delivered = self._is_sent and not self._is_waiting_for_peer and not any(self._unacknowledged)
        return is_delivered or time.monotonic() - self._last_received > silence_timeout

    def _send_final_message(self) -> None:
        while self._unsent:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        if not self._is_sent:
            self.socket.shutdown(socket.SHUT_WR)
            self._is_sent = True


def close_gracefully(shutdowns: Sequence[GracefulClose], silence_timeout: float, deadline: float) -> None:
    """Wait until all shutdowns are complete, or until `deadline` (of time.monotonic()), and close the sockets."""
    try:
        pending = [one for one in shutdowns if not one.advance(silence_timeout)]
        while pending and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)
            pending = [one for one in pending if not one.advance(silence_timeout)]
    finally:
        for one in shutdowns:
            one.socket.close()
