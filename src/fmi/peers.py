"""A rank's connections to its peers, each made in a thread of its own when the server announces the peer."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from . import messages
from .channel import Channel
from .control import Endpoint, RankIdentity
from .errors import FMIError, PeerLost, ServerLost
from .handshake import Handshake
from .messages import Address, Message
from .nat_traversal import connect_by_relay, connect_directly
from .pending import PendingConnections
from .shutdown import close_gracefully


@dataclass(frozen=True)
class LocalRank:
    """The rank of this process: its identity, its own address, and whether the server sees a different one."""

    endpoint: Endpoint
    identity: RankIdentity
    address: Address
    is_translated: bool


class Peers:
    """The peers to which a rank is connected or is being connected.

    `changed` is held for every change, and notified. `send_to_server` sends a message. `punching_timeout` is the time
    in seconds for direct connections, if `routes` contains their routes, `relay_timeout` that for a relay afterwards.
    """

    def __init__(
        self,
        local_rank: LocalRank,
        changed: threading.Condition,
        send_to_server: Callable[[Message], None],
        punching_timeout: float,
        relay_timeout: float,
        routes: Sequence[str],
    ) -> None:
        self._local_rank, self._changed, self._send_to_server = local_rank, changed, send_to_server
        self._punching_timeout, self._relay_timeout, self._routes = punching_timeout, relay_timeout, routes
        self.channels: dict[int, Channel] = {}
        self.lost: dict[int, PeerLost] = {}  # why there is no connection, unless one is being made
        self._known: set[int] = set()  # requested by this rank or announced by the server
        self._handshakes: dict[int, Handshake] = {}  # by pair
        self._pending: dict[int, PendingConnections] = {}  # by pair, while it is being connected directly
        self._threads: Counter[int] = Counter()  # by peer
        self._is_closed = False

    def register_unknown_peers(self, peers: Iterable[int]) -> list[int]:
        """Return those of these peers that are unknown so far, and register them as known."""
        if not (unknown := set(peers) - self._known):  # the usual case, without the lock
            return []
        with self._changed:
            unknown -= self._known
            self._known |= unknown
        return sorted(unknown)

    def is_connecting(self, peer: int) -> bool:
        """Return whether a connection to the peer is being made."""
        return self._threads[peer] > 0

    def send_heartbeats(self) -> None:
        """Send a heartbeat to all peers."""
        for channel in list(self.channels.values()):
            channel.send_heartbeat()

    def accept(self, pair: int, connection: socket.socket) -> None:
        """Take over a connection whose handshake message names this pair."""
        with self._changed:
            if pending := self._pending.get(pair):
                pending.add(connection)
            else:
                connection.close()

    def start_pair(self, start: messages.Start) -> None:
        """Begin to connect directly to a peer that the server has announced."""
        identity = self._local_rank.identity
        handshake = Handshake(start.pair, identity.rank, start.peer, start.nonce, identity.token)
        with self._changed:
            self._known.add(start.peer)
            self._handshakes[start.pair] = handshake
            self._pending[start.pair] = pending = PendingConnections()
            self._run_in_thread(handshake, partial(self._connect_directly, handshake, start, pending))

    def start_relay(self, pair: int, ticket: bytes) -> None:
        """Begin to connect by a relay, as the lower rank of a pair has found no direct connection."""
        with self._changed:
            if not (handshake := self._handshakes.get(pair)):
                return
            if pending := self._pending.get(pair):
                pending.expire()
            if channel := self.channels.get(handshake.peer):
                channel.abort()  # the peer has given this connection up, and what was sent on it is lost
            else:
                self._run_in_thread(handshake, partial(self._connect_by_relay, handshake, ticket))

    def set_failed(self, pair: int, reason: str) -> None:
        """Record that a pair cannot be connected."""
        with self._changed:
            if handshake := self._handshakes.get(pair):
                self._set_lost(handshake.peer, f"cannot be reached: {reason}")

    def set_left(self, peer: int) -> None:
        """Record that a peer has left. What it has sent before can still be received."""
        with self._changed:
            self._set_lost(peer, "has left")
            self._expire_soon(pair for pair in self._pending if self._handshakes[pair].peer == peer)

    def set_server_lost(self) -> None:
        """Record that the server is lost, so that no relays will follow."""
        with self._changed:
            self._expire_soon(self._pending)

    def _expire_soon(self, pairs: Iterable[int]) -> None:
        """Allow the direct connections of these pairs only the usual time from now on."""
        for pair in pairs:
            self._pending[pair].expire(self._punching_timeout)

    def _set_lost(self, peer: int, reason: str) -> None:
        self.lost.setdefault(peer, PeerLost(peer, f"rank {peer} {reason}"))

    def _run_in_thread(self, handshake: Handshake, function: Callable[[], None]) -> None:
        def run() -> None:
            try:
                function()
            except (FMIError, OSError) as error:
                with self._changed:
                    self._set_lost(handshake.peer, f"cannot be reached: {error}")
            finally:
                with self._changed:
                    self._threads[handshake.peer] -= 1
                    self._changed.notify_all()

        self._threads[handshake.peer] += 1
        threading.Thread(target=run, name=f"connect to rank {handshake.peer}", daemon=True).start()

    def _connect_directly(self, handshake: Handshake, start: messages.Start, pending: PendingConnections) -> None:
        time.sleep(min(start.after, self._punching_timeout))
        # The higher rank also waits for the decision of the lower one.
        seconds = self._punching_timeout if handshake.is_leader else self._punching_timeout + self._relay_timeout
        candidates = [candidate for candidate in self._candidates(start) if candidate[1] in self._routes]
        found = None
        try:
            if candidates:
                deadline = time.monotonic() + seconds
                found = connect_directly(handshake, candidates, self._local_rank.address, pending, deadline)
        finally:
            with self._changed:
                del self._pending[start.pair]
            pending.close()
        if found:
            self._add(handshake, *found)
        elif handshake.is_leader and not self._is_closed:
            self._send_to_server(messages.Unreached(handshake.pair))

    def _candidates(self, start: messages.Start) -> list[tuple[Address, str]]:
        """Return a peer's addresses and their routes; a connection through a NAT counts as punched."""
        if start.private == start.public:
            return [(start.public, "punched" if self._local_rank.is_translated else "private")]
        if start.private == self._local_rank.address:  # the peer is in another network with the same addresses
            return [(start.public, "punched")]
        return [(start.private, "private"), (start.public, "punched")]

    def _connect_by_relay(self, handshake: Handshake, ticket: bytes) -> None:
        endpoint, identity = self._local_rank.endpoint, self._local_rank.identity
        deadline = time.monotonic() + self._relay_timeout
        self._add(handshake, connect_by_relay(endpoint, identity, handshake, ticket, deadline), "relay")

    def _add(self, handshake: Handshake, connection: socket.socket, route: str) -> None:
        with self._changed:
            if self._is_closed:
                connection.close()
                return
            self.channels[handshake.peer] = Channel(connection, handshake.peer, route)
            self._changed.notify_all()
        if handshake.is_leader:
            with suppress(ServerLost):  # the connection does not depend on the server
                self._send_to_server(messages.Connected(handshake.pair, route))

    def close(self, silence_timeout: float, deadline: float, *, graceful: bool) -> None:
        """Close all connections; if `graceful`, after the peers' kernels have received everything.

        A peer that is silent for `silence_timeout` seconds is not waited for, nor is any after `deadline` (of
        time.monotonic()).
        """
        with self._changed:
            self._is_closed = True
            for pending in self._pending.values():
                pending.expire()
        if graceful:
            shutdowns = [channel.begin_close() for channel in self.channels.values()]
            close_gracefully(shutdowns, silence_timeout, deadline)
        else:
            for channel in self.channels.values():
                channel.close()
