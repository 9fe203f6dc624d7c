"""NAT traversal: two ranks connect by trying each other's addresses at the same time, or through the server's relay.

Both connect from the port that they use for the server, so that their NATs, if they map one private port to one public
address, let the other's connection in (Ford, Srisuresh & Kegel 2005, "Peer-to-Peer Communication Across Network
Address Translators", section 4). If several connections succeed, the lower rank selects one.
"""

from __future__ import annotations

import errno
import math
import os
import random
import selectors
import socket
import time
from collections.abc import Iterable

from . import messages, tokens
from .channel import FRAME, SELECT, SELECTED
from .control import Endpoint, RankIdentity, connect_to_server, create_shared_port_socket, receive_exactly, request
from .errors import ServerLost
from .handshake import HANDSHAKE, Handshake
from .messages import Address
from .pending import PendingConnections

RETRY_INTERVAL = 0.05  # seconds, on average, before an address is tried again
ANSWER_TIMEOUT = 5.0  # seconds for the higher rank to answer SELECT


class _Attempt:
    """One connection that may become the pair's; `retry` is the address to try again if it fails."""

    def __init__(
        self, connection: socket.socket, route: str, handshake: Handshake, retry: Address | None, *, is_open: bool
    ) -> None:
        connection.setblocking(False)
        self.socket, self.route, self.retry, self._handshake = connection, route, retry, handshake
        self._is_open, self.is_authenticated = is_open, False
        self._data = b""
        if is_open:
            self._send_handshake()

    @property
    def events(self) -> int:
        """The selector events to wait for."""
        return selectors.EVENT_READ if self._is_open else selectors.EVENT_WRITE

    def _send_handshake(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.send(self._handshake.message())

    def advance(self) -> bool:
        """Do what is possible now; return True once this is the pair's connection. Raises OSError if it has failed."""
        if not self._is_open:
            if code := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code))
            self._is_open = True
            self._send_handshake()
            return False
        expected = FRAME.size if self.is_authenticated else HANDSHAKE.size
        received = self.socket.recv(expected - len(self._data))
        if not received:
            raise ConnectionResetError("the other end has closed the connection")
        self._data += received
        if len(self._data) < expected:
            return False
        data, self._data = self._data, b""
        if not self.is_authenticated:
            if not self._handshake.is_from_peer(data):
                raise ConnectionAbortedError("the other end is not the peer")
            self.is_authenticated = True
            return False
        kind, _, _ = FRAME.unpack(data)
        if kind != (SELECTED if self._handshake.is_leader else SELECT):
            raise ConnectionAbortedError("the peer sent an unexpected frame")
        if not self._handshake.is_leader:
            self.socket.send(FRAME.pack(SELECTED, 0, 0))
        return True

    def select(self) -> None:
        """Send SELECT, as the lower rank."""
        self.socket.send(FRAME.pack(SELECT, 0, 0))


class _Attempts:
    """All attempts to connect one pair."""

    def __init__(
        self,
        handshake: Handshake,
        candidates: Iterable[tuple[Address, str]],
        local: Address,
        selector: selectors.BaseSelector,
    ) -> None:
        self._handshake, self._local, self._selector = handshake, local, selector
        self._active: list[_Attempt] = []
        self._planned = [(0.0, address, route) for address, route in candidates]  # with the time to start them
        self._routes = {address[0]: route for _, address, route in self._planned}  # by host
        self.selected: _Attempt | None = None

    def start_due(self, now: float) -> None:
        """Start the planned attempts that are due."""
        due = [planned for planned in self._planned if planned[0] <= now]
        self._planned = [planned for planned in self._planned if planned[0] > now]
        for _, address, route in due:
            if connection := _start_connecting(self._local, address):
                self._add(connection, route, address, is_open=False)
            else:
                self._plan_retry(address, route)

    def next_start(self) -> float:
        """Return the time of the next planned attempt, infinity if there is none."""
        return min((at for at, _, _ in self._planned), default=math.inf)

    def add_accepted(self, connection: socket.socket) -> None:
        """Add a connection that was accepted, from the peer or from an unknown process."""
        try:
            self._add(connection, self._routes.get(connection.getpeername()[0], "punched"), None, is_open=True)
        except OSError:
            connection.close()

    def advance(self, attempt: _Attempt) -> bool:
        """Do what is possible now for one attempt; return True if it is the pair's connection."""
        try:
            if attempt.advance():
                return True
            self._selector.modify(attempt.socket, attempt.events, attempt)
        except BlockingIOError:
            pass
        except OSError:
            self._remove(attempt)
        return False

    def select(self) -> None:
        """Select an authenticated connection if none is selected; the peer accepts the first that is selected."""
        while not self.selected and (candidates := [one for one in self._active if one.is_authenticated]):
            try:
                candidates[0].select()
                self.selected = candidates[0]
            except OSError:
                self._remove(candidates[0])

    def close(self, kept: _Attempt | None) -> None:
        """Close all attempts but one."""
        for attempt in self._active:
            if attempt is not kept:
                attempt.socket.close()

    def _add(self, connection: socket.socket, route: str, retry: Address | None, *, is_open: bool) -> None:
        attempt = _Attempt(connection, route, self._handshake, retry, is_open=is_open)
        self._selector.register(connection, attempt.events, attempt)
        self._active.append(attempt)

    def _remove(self, attempt: _Attempt) -> None:
        self._selector.unregister(attempt.socket)
        attempt.socket.close()
        self._active.remove(attempt)
        if attempt.retry:
            self._plan_retry(attempt.retry, attempt.route)
        if attempt is self.selected:
            self.selected = None

    def _plan_retry(self, address: Address, route: str) -> None:
        # At random times: two NATs that reject connections which arrive too early would do so at every common interval.
        self._planned.append((time.monotonic() + RETRY_INTERVAL * random.uniform(0.5, 1.5), address, route))


def connect_directly(
    handshake: Handshake,
    candidates: Iterable[tuple[Address, str]],
    local: Address,
    pending: PendingConnections,
    deadline: float,
) -> tuple[socket.socket, str] | None:
    """Return the pair's connection and its route, or None if there is none by `deadline` (of time.monotonic()).

    `candidates` are addresses of the peer, each with the name of its route. If a connection is selected by the
    deadline, the peer has another ANSWER_TIMEOUT seconds to agree.
    """
    established: _Attempt | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(pending, selectors.EVENT_READ)
        attempts = _Attempts(handshake, candidates, local, selector)
        try:
            while not established:
                now, until = time.monotonic(), min(pending.until, deadline + ANSWER_TIMEOUT * bool(attempts.selected))
                if now >= until:
                    break
                attempts.start_due(now)
                for key, _ in selector.select(max(0.0, min(until, attempts.next_start()) - now)):
                    if key.fileobj is pending:
                        for connection in pending.take_all():
                            attempts.add_accepted(connection)
                    elif attempts.advance(key.data):
                        established = key.data
                        break
                if handshake.is_leader:
                    attempts.select()
        finally:
            attempts.close(established)
    return (established.socket, established.route) if established else None


def _start_connecting(local: Address, remote: Address) -> socket.socket | None:
    """Return a connection that is being made, or None if that is not possible now."""
    connection = create_shared_port_socket(socket.AF_INET6 if ":" in remote[0] else socket.AF_INET)
    try:
        connection.setblocking(False)
        connection.bind(local)
        if connection.connect_ex(remote) in (0, errno.EINPROGRESS):
            return connection
    except OSError:
        pass
    connection.close()
    return None


def connect_by_relay(
    endpoint: Endpoint, identity: RankIdentity, handshake: Handshake, ticket: bytes, deadline: float
) -> socket.socket:
    """Return the pair's connection through the server. Raises FMIError if the peer does not connect to the relay."""
    connection, hello = connect_to_server(endpoint, deadline)
    try:
        job, rank, token = identity.job, identity.rank, identity.token
        proof = tokens.attach_proof(token, hello.nonce, job, rank, handshake.pair, ticket)
        answer = request(connection, messages.Attach(job, rank, handshake.pair, ticket, proof), deadline)
        if not isinstance(answer, messages.Attached):
            raise ServerLost(f"the rendezvous server answers {type(answer).__name__}; it runs another version")
        connection.sendall(handshake.message())
        if not handshake.is_from_peer(receive_exactly(connection, HANDSHAKE.size, deadline)):
            raise ServerLost("the other end of the relay is not the peer")
    except BaseException:
        connection.close()
        raise
    return connection
