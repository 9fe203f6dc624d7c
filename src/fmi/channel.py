"""A connection between two ranks: frames, heartbeats, and non-blocking sending and receiving."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import islice

from .errors import PeerLost
from .shutdown import GracefulClose

FRAME = struct.Struct(">B3xIQ")  # kind, tag, size of the body in bytes
DATA, BEAT, BYE, SELECT, SELECTED = range(1, 6)  # kinds
READ_AHEAD = 2**16  # bytes received before it is known where they belong
MAX_BUFFERS = 512  # passed to the kernel at once, which accepts 1024


class Channel:
    """A connection to the rank `peer`; `route` is "private", "punched" or "relay".

    One thread sends and receives messages. Another one may call `send_heartbeat` at the same time.
    """

    def __init__(self, connection: socket.socket, peer: int, route: str) -> None:
        connection.setblocking(False)
        with suppress(OSError):  # a Unix socket, as in tests, does not have this option
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.peer, self.route = connection, peer, route
        self.last_received = time.monotonic()
        self.sending = threading.Lock()  # held while a message is partly sent
        self._is_ended = False
        self._unsent_heartbeat = b""
        self._read_ahead = memoryview(bytearray(READ_AHEAD))
        self._start = self._end = 0

    def fileno(self) -> int:
        """Return the file descriptor of the socket."""
        return self.socket.fileno()

    @property
    def has_room(self) -> bool:
        """Whether more can be read ahead."""
        return self._end - self._start < READ_AHEAD

    def send_heartbeat(self) -> None:
        """Send a heartbeat, unless a message is being sent or the socket's buffer is full."""
        if not self.sending.acquire(blocking=False):
            return
        try:
            if not self._is_ended:
                data = self._unsent_heartbeat or FRAME.pack(BEAT, 0, 0)
                self._unsent_heartbeat = data[self.socket.send(data) :]
        except OSError:
            pass  # reported to the thread that uses the channel
        finally:
            self.sending.release()

    def end(self) -> None:
        """Stop heartbeats; the caller holds `sending`."""
        self._is_ended = True

    def take_unsent(self) -> bytes:
        """Return the rest of a heartbeat, which must precede the next frame; the caller holds `sending`."""
        rest, self._unsent_heartbeat = self._unsent_heartbeat, b""
        return rest

    def send_available(self, views: deque[memoryview]) -> None:
        """Send as much as the kernel accepts, and remove it from `views`. Raises PeerLost."""
        try:
            while views:
                sent = self.socket.sendmsg(list(islice(views, MAX_BUFFERS)))
                while views and sent >= len(views[0]):
                    sent -= len(views.popleft())
                if sent:
                    views[0] = views[0][sent:]
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._peer_lost(str(error)) from None

    def read_ahead(self) -> bool:
        """Receive into the read-ahead buffer, and return whether any data arrived. Raises PeerLost."""
        if self._end == READ_AHEAD:
            size = self._end - self._start
            self._read_ahead[:size] = bytes(self._read_ahead[self._start : self._end])
            self._start, self._end = 0, size
        size = self.receive_into(self._read_ahead[self._end :])
        self._end += size
        return size > 0

    def receive_into(self, view: memoryview) -> int:
        """Receive available data past the read-ahead buffer; return its size in bytes, 0 if none. Raises PeerLost."""
        try:
            size = self.socket.recv_into(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._peer_lost(str(error)) from None
        if not size:
            raise self._peer_lost("it has closed the connection")
        self.last_received = time.monotonic()
        return size

    def next_header(self) -> tuple[int, int] | None:
        """Return tag and size of the next message, or None if its header was not read ahead yet.

        Raises PeerLost if the peer has left or sends an unknown kind of frame.
        """
        while self._end - self._start >= FRAME.size:
            kind, tag, size = FRAME.unpack_from(self._read_ahead, self._start)
            self._start += FRAME.size
            if kind == DATA:
                return tag, size
            if kind == BYE:
                raise PeerLost(self.peer, f"rank {self.peer} has left")
            if kind != BEAT:
                raise PeerLost(
                    self.peer,
                    f"rank {self.peer} sent a frame of the unknown kind {kind}; all ranks must run the same version",
                )
        if self._start == self._end:
            self._start = self._end = 0
        return None

    def copy_read_ahead(self, view: memoryview) -> int:
        """Move the part of a message that was read ahead to its destination; return its size in bytes."""
        size = min(len(view), self._end - self._start)
        view[:size] = self._read_ahead[self._start : self._start + size]
        self._start += size
        return size

    def _peer_lost(self, reason: str) -> PeerLost:
        return PeerLost(self.peer, f"rank {self.peer} is lost ({reason}; {self.route})")

    def abort(self) -> None:
        """Break the connection for both ends; another thread may be using it."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def begin_close(self) -> GracefulClose:
        """Begin the graceful shutdown of the connection."""
        with self.sending:
            self.end()
            return GracefulClose(self.socket, self._unsent_heartbeat + FRAME.pack(BYE, 0, 0))

    def close(self) -> None:
        """Close the connection at once. Data that is still on its way may be lost."""
        with self.sending:
            self.end()
            self.socket.close()
