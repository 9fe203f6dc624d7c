"""Connections that one thread accepts and another one uses to reach a peer."""

from __future__ import annotations

import math
import os
import socket
import time
from collections import deque
from contextlib import suppress


class PendingConnections:
    """The accepted connections for one pair of ranks, and the time until which the pair is being connected."""

    def __init__(self) -> None:
        self._connections: deque[socket.socket] = deque()
        self._changed = os.eventfd(0, os.EFD_NONBLOCK)
        self.until = math.inf  # of time.monotonic()

    def fileno(self) -> int:
        """Return a file that is readable when there are connections to take, or when `until` has changed."""
        return self._changed

    def add(self, connection: socket.socket) -> None:
        """Add an accepted connection."""
        self._connections.append(connection)
        os.eventfd_write(self._changed, 1)

    def expire(self, seconds: float = 0.0) -> None:
        """Set `until` to `seconds` from now, unless it is earlier."""
        self.until = min(self.until, time.monotonic() + seconds)
        os.eventfd_write(self._changed, 1)

    def take_all(self) -> list[socket.socket]:
        """Remove and return all connections."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._changed)
        return [self._connections.popleft() for _ in range(len(self._connections))]

    def close(self) -> None:
        """Close the connections that were not taken."""
        for connection in self.take_all():
            connection.close()
        os.close(self._changed)
