"""One connection of the rendezvous server, and how it is listened for."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
from ipaddress import ip_address

from . import tokens
from .messages import HEADER, Address, Message, body_size, decode, encode

BACKLOG = 1024
ROUND_TRIP = struct.Struct("68xI")  # tcpi_rtt in Linux's struct tcp_info, in microseconds
FILES_EACH = 3  # of a relayed end: its connection and its share of two pipes


class Client:
    """Whoever has connected. `task` is what the server does for it."""

    def __init__(self, own: socket.socket, address: Address) -> None:
        self.socket, self.address = own, address
        self.nonce = tokens.nonce()
        self.task: asyncio.Task[None] | None = None
        self._loop, self._is_stuck = asyncio.get_running_loop(), False

    def send(self, message: Message) -> None:
        """Sends, or gives the client up: one that has left so much unread that this does not fit is stuck."""
        frame = encode(message)
        try:
            if self.socket.send(frame) == len(frame):
                return
        except OSError:
            pass
        self._is_stuck = True
        self.close()

    def close(self) -> None:
        """Ends the connection and what is done for it, unless it ends itself just now."""
        if self.task and self.task is not asyncio.current_task():
            self.task.cancel()

    async def receive(self, patience: float, rest: float) -> Message:
        """The next message, which begins within `patience` seconds and is whole `rest` seconds later.

        Raises ProtocolError, TimeoutError or OSError.
        """
        await asyncio.sleep(0)  # the others' turn, since what is there already is received without one
        if self._is_stuck:
            raise ConnectionResetError("the client does not read")
        async with asyncio.timeout(patience):
            header = await self._some(HEADER.size)
        async with asyncio.timeout(rest):
            header += await self._exactly(HEADER.size - len(header))
            return decode(header, await self._exactly(body_size(header)))

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += await self._some(size - len(data))
        return data

    async def _some(self, most: int) -> bytes:
        data = await self._loop.sock_recv(self.socket, most)
        if not data:
            raise ConnectionResetError("the client is gone")
        return data

    def round_trip(self) -> float:
        """That of the connection in seconds, as the kernel has measured it."""
        try:
            info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ROUND_TRIP.size)
            return float(ROUND_TRIP.unpack(info)[0]) / 1e6
        except (OSError, struct.error):
            return 0.0


def listener(host: str, port: int, *, is_open: bool) -> socket.socket:
    """Listens at an address. Raises OSError if that is not possible.

    Raises ValueError if anybody may join and the address is not one of loopback: whoever can connect could join.
    """
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if is_open and not ip_address(where[0]).is_loopback:
        raise ValueError(f"without a secret a server listens on loopback only, not on {host}")
    own = socket.create_server(where[:2], family=family, backlog=BACKLOG)
    own.setblocking(False)
    return own


def allow_files(connections: int) -> None:
    """Lets this process have the open files that so many connections want, or as many as it may."""
    wanted = connections * FILES_EACH
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
