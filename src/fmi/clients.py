"""The rendezvous server's connections to its clients, and the socket at which it listens."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
import sys
from ipaddress import ip_address

from . import tokens
from .messages import HEADER, Address, Message, body_size, decode, encode

BACKLOG = 1024
ROUND_TRIP = struct.Struct("68xI")  # tcpi_rtt in Linux's struct tcp_info, in microseconds
FILES_PER_CONNECTION = 3  # of a relayed end: its socket, and its part of two pipes


class Client:
    """A connected client; `task` is the task that serves it."""

    def __init__(self, connection: socket.socket, address: Address) -> None:
        self.socket, self.address = connection, address
        self.nonce = tokens.new_nonce()
        self.task: asyncio.Task[None] | None = None
        self._loop, self._is_stuck = asyncio.get_running_loop(), False

    def send(self, message: Message) -> None:
        """Send a message, or close the connection of a client that has left so much unread that it does not fit."""
        frame = encode(message)
        try:
            if self.socket.send(frame) == len(frame):
                return
        except OSError:
            pass
        self._is_stuck = True
        self.close()

    def close(self) -> None:
        """Cancel the task that serves this client, unless it is the caller."""
        if self.task and self.task is not asyncio.current_task():
            self.task.cancel()

    async def receive(self, start_timeout: float, completion_timeout: float) -> Message:
        """Return the next message.

        It must begin within `start_timeout` seconds, and be complete `completion_timeout` seconds later.
        Raises ProtocolError, TimeoutError or OSError.
        """
        await asyncio.sleep(0)  # lets other clients run: data that is available is received without waiting
        if self._is_stuck:
            raise ConnectionResetError("the client does not read")
        async with asyncio.timeout(start_timeout):
            header = await self._receive_some(HEADER.size)
        async with asyncio.timeout(completion_timeout):
            header += await self._receive_exactly(HEADER.size - len(header))
            return decode(header, await self._receive_exactly(body_size(header)))

    async def _receive_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await self._receive_some(size - len(data))
        return data

    async def _receive_some(self, max_size: int) -> bytes:
        data = await self._loop.sock_recv(self.socket, max_size)
        if not data:
            raise ConnectionResetError("the client has closed the connection")
        return data

    def round_trip(self) -> float:
        """Return the round-trip time of the connection in seconds, as measured by the kernel; 0 if it is unknown."""
        try:
            info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ROUND_TRIP.size)
            return float(ROUND_TRIP.unpack(info)[0]) / 1e6
        except (OSError, struct.error):
            return 0.0


def create_listener(host: str, port: int, *, has_secret: bool) -> socket.socket:
    """Return a socket that listens at an address. Raises OSError if that is not possible.

    Raises ValueError if there is no secret and the address is not a loopback address: any process that can connect
    could join any job.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if not has_secret and not ip_address(address[0]).is_loopback:
        raise ValueError(f"without a secret a server listens on loopback only, not on {host}")
    listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def open_file_limit() -> int:
    """Return how many files this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def raise_open_file_limit(connections: int, others: int) -> None:
    """Allow this process as many open files as the connections and others need, or as many as the hard limit allows."""
    needed = connections * FILES_PER_CONNECTION + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
