"""A rank's connections to the others, each of which a thread makes when the server says so."""

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
from .control import Endpoint, Place
from .errors import FMIError, PeerLost, ServerLost
from .handshake import Meeting
from .messages import Address, Message
from .nat_traversal import Guests, meet, relayed
from .shutdown import part


@dataclass(frozen=True)
class Me:
    """Who this rank is, and where: its own address, and whether the server sees it by another."""

    endpoint: Endpoint
    place: Place
    local: Address
    is_translated: bool


class Peers:
    """The others that a rank has met or is meeting.

    `changed` is held where anything changes, and notified. `tell` sends a message to the server. `punching` is how
    many seconds are for direct connections, if `routes` has them, and `relaying` for a relay after that.
    """

    def __init__(
        self,
        me: Me,
        changed: threading.Condition,
        tell: Callable[[Message], None],
        punching: float,
        relaying: float,
        routes: Sequence[str],
    ) -> None:
        self._me, self._changed, self._tell = me, changed, tell
        self._punching, self._relaying, self._routes = punching, relaying, routes
        self.channels: dict[int, Channel] = {}
        self.lost: dict[int, PeerLost] = {}  # why there is no connection, unless one is just being made
        self._known: set[int] = set()  # asked for, or that have asked for this rank
        self._meetings: dict[int, Meeting] = {}  # by pair
        self._guests: dict[int, Guests] = {}  # by pair, while it is being met
        self._threads: Counter[int] = Counter()  # by peer
        self._is_closed = False

    def strangers(self, peers: Iterable[int]) -> list[int]:
        """Those of some ranks that nobody has asked the server for yet; from now on they are none."""
        if not (new := set(peers) - self._known):  # as most of the time
            return []
        with self._changed:
            new -= self._known
            self._known |= new
        return sorted(new)

    def is_meeting(self, peer: int) -> bool:
        """Whether a connection is just being made."""
        return self._threads[peer] > 0

    def beat(self) -> None:
        """Gives all a sign of life."""
        for channel in list(self.channels.values()):
            channel.beat()

    def guest(self, pair: int, guest: socket.socket) -> None:
        """Somebody who says to belong to a pair has connected."""
        with self._changed:
            if guests := self._guests.get(pair):
                guests.add(guest)
            else:
                guest.close()

    def begin(self, start: messages.Start) -> None:
        """The server tells of a peer."""
        meeting = Meeting(start.pair, self._me.place.rank, start.peer, start.nonce, self._me.place.token)
        with self._changed:
            self._known.add(start.peer)
            self._meetings[start.pair] = meeting
            self._guests[start.pair] = guests = Guests()
            self._in_thread(meeting, partial(self._meet, meeting, start, guests))

    def relay(self, pair: int, ticket: bytes) -> None:
        """The server tells that the lower rank of a pair has found no way."""
        with self._changed:
            if not (meeting := self._meetings.get(pair)):
                return
            if guests := self._guests.get(pair):
                guests.end()
            if channel := self.channels.get(meeting.peer):
                channel.cut()  # the other end has given it up, and what was sent on it is lost
            else:
                self._in_thread(meeting, partial(self._by_relay, meeting, ticket))

    def fail(self, pair: int, why: str) -> None:
        """The server tells that there will be no connection."""
        with self._changed:
            if meeting := self._meetings.get(pair):
                self._lose(meeting.peer, f"cannot be reached: {why}")

    def leave(self, peer: int) -> None:
        """The server tells that a peer has left. What it has sent before is still to be received."""
        with self._changed:
            self._lose(peer, "has left")
            self._hurry(pair for pair in self._guests if self._meetings[pair].peer == peer)

    def be_alone(self) -> None:
        """The server is lost, so that there will be no relays."""
        with self._changed:
            self._hurry(self._guests)

    def _hurry(self, pairs: Iterable[int]) -> None:
        """Connections that come about must do so now."""
        for pair in pairs:
            self._guests[pair].end(self._punching)

    def _lose(self, peer: int, what: str) -> None:
        self.lost.setdefault(peer, PeerLost(peer, f"rank {peer} {what}"))

    def _in_thread(self, meeting: Meeting, what: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                what()
            except (FMIError, OSError) as error:
                with self._changed:
                    self._lose(meeting.peer, f"cannot be reached: {error}")
            finally:
                with self._changed:
                    self._threads[meeting.peer] -= 1
                    self._changed.notify_all()

        self._threads[meeting.peer] += 1
        threading.Thread(target=guarded, name=f"meets rank {meeting.peer}", daemon=True).start()

    def _meet(self, meeting: Meeting, start: messages.Start, guests: Guests) -> None:
        time.sleep(min(start.after, self._punching))
        # The higher rank waits for what the lower one decides.
        seconds = self._punching if meeting.leads else self._punching + self._relaying
        wanted = [one for one in self._candidates(start) if one[1] in self._routes]
        try:
            found = meet(meeting, wanted, self._me.local, guests, time.monotonic() + seconds) if wanted else None
        finally:
            with self._changed:
                del self._guests[start.pair]
            guests.close()
        if found:
            self._add(meeting, *found)
        elif meeting.leads and not self._is_closed:
            self._tell(messages.Unreached(meeting.pair))

    def _candidates(self, start: messages.Start) -> list[tuple[Address, str]]:
        """A peer's addresses, and how each would be reached; a connection that a NAT changes counts as punched."""
        if start.private == start.public:
            return [(start.public, "punched" if self._me.is_translated else "private")]
        found = [(start.private, "private"), (start.public, "punched")]
        return found[1:] if start.private == self._me.local else found  # somebody else's network is like this one

    def _by_relay(self, meeting: Meeting, ticket: bytes) -> None:
        deadline = time.monotonic() + self._relaying
        self._add(meeting, relayed(self._me.endpoint, self._me.place, meeting, ticket, deadline), "relay")

    def _add(self, meeting: Meeting, own: socket.socket, how: str) -> None:
        with self._changed:
            if self._is_closed:
                own.close()
                return
            self.channels[meeting.peer] = Channel(own, meeting.peer, how)
            self._changed.notify_all()
        if meeting.leads:
            with suppress(ServerLost):  # which it need not know
                self._tell(messages.Connected(meeting.pair, how))

    def close(self, patience: float, deadline: float, *, orderly: bool) -> None:
        """Ends all connections; if `orderly`, once the others' kernels have all that was sent.

        A peer is not waited for that is silent for `patience` seconds, and none after `deadline` (of time.monotonic()).
        """
        with self._changed:
            self._is_closed = True
            for guests in self._guests.values():
                guests.end()
        if orderly:
            part([channel.farewell() for channel in self.channels.values()], patience, deadline)
        else:
            for channel in self.channels.values():
                channel.close()
