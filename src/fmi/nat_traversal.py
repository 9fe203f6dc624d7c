"""How two ranks come to a connection: by trying each other's addresses at once, or through the server.

Both connect from the port from which they talk to the server, so that their NATs, if they keep one place outside for
one port inside, let the other's connection in (Ford, Srisuresh & Kegel 2005, "Peer-to-Peer Communication Across
Network Address Translators", section 4). Of several connections the lower rank selects one.
"""

from __future__ import annotations

import errno
import math
import os
import random
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from . import messages, tokens
from .channel import FRAME, SELECT, SELECTED
from .control import Endpoint, Place, ask, exactly, reach, shareable
from .errors import ServerLost
from .handshake import GREETING, Meeting
from .messages import Address

RETRY = 0.05  # seconds, about, before an address that refused is tried again
ANSWER_TIME = 5.0  # seconds for the higher rank to say that it has heard which connection it is


class Guests:
    """Connections that others have made to this rank for one meeting, handed over by another thread."""

    def __init__(self) -> None:
        self._sockets: deque[socket.socket] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.until = math.inf  # of time.monotonic(); then the meeting is over

    def fileno(self) -> int:
        """A file that is readable when there is something to take or the end has changed."""
        return self._wake

    def add(self, guest: socket.socket) -> None:
        """Hands one over."""
        self._sockets.append(guest)
        os.eventfd_write(self._wake, 1)

    def end(self, seconds: float = 0.0) -> None:
        """The meeting is over so many seconds from now, or before."""
        self.until = min(self.until, time.monotonic() + seconds)
        os.eventfd_write(self._wake, 1)

    def take(self) -> list[socket.socket]:
        """All that have come."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        return [self._sockets.popleft() for _ in range(len(self._sockets))]

    def close(self) -> None:
        """Closes what nobody took."""
        for guest in self.take():
            guest.close()
        os.close(self._wake)


class _Attempt:
    """One connection that may become the pair's; `retry` is the address to try again if it fails."""

    def __init__(self, own: socket.socket, how: str, meeting: Meeting, retry: Address | None, *, is_open: bool) -> None:
        own.setblocking(False)
        self.socket, self.how, self.retry, self._meeting = own, how, retry, meeting
        self._is_open, self.is_greeted = is_open, False
        self._data = b""
        if is_open:
            self._greet()

    @property
    def events(self) -> int:
        """What to wait for."""
        return selectors.EVENT_READ if self._is_open else selectors.EVENT_WRITE

    def _greet(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.send(self._meeting.greeting())

    def go_on(self) -> bool:
        """Does what can be done now; True once this is the pair's connection. Raises OSError if it never will be."""
        if not self._is_open:
            if code := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code))
            self._is_open = True
            self._greet()
            return False
        wanted = FRAME.size if self.is_greeted else GREETING.size
        more = self.socket.recv(wanted - len(self._data))
        if not more:
            raise ConnectionResetError("the other end is gone")
        self._data += more
        if len(self._data) < wanted:
            return False
        data, self._data = self._data, b""
        if not self.is_greeted:
            if not self._meeting.is_from_peer(data):
                raise ConnectionAbortedError("this is somebody else")
            self.is_greeted = True
            return False
        kind, _, _ = FRAME.unpack(data)
        if kind != (SELECTED if self._meeting.leads else SELECT):
            raise ConnectionAbortedError("this is no answer")
        if not self._meeting.leads:
            self.socket.send(FRAME.pack(SELECTED, 0, 0))
        return True

    def select(self) -> None:
        """The lower rank wants this one."""
        self.socket.send(FRAME.pack(SELECT, 0, 0))


class _Attempts:
    """All that go on in one meeting."""

    def __init__(
        self,
        meeting: Meeting,
        candidates: Iterable[tuple[Address, str]],
        local: Address,
        selector: selectors.BaseSelector,
    ) -> None:
        self._meeting, self._local, self._selector = meeting, local, selector
        self._begun: list[_Attempt] = []
        self._due = [(0.0, address, how) for address, how in candidates]  # those to begin, and when
        self._names = {address[0]: how for _, address, how in self._due}
        self.selected: _Attempt | None = None

    def begin(self, now: float) -> None:
        """Begins those that are due."""
        due = [one for one in self._due if one[0] <= now]
        self._due = [one for one in self._due if one[0] > now]
        for _, address, how in due:
            if own := _begun(self._local, address):
                self._add(own, how, address, is_open=False)
            else:
                self._again(address, how)

    def next_due(self) -> float:
        """When the next are due."""
        return min((at for at, _, _ in self._due), default=math.inf)

    def welcome(self, guest: socket.socket) -> None:
        """One that the peer, or somebody else, has begun."""
        try:
            self._add(guest, self._names.get(guest.getpeername()[0], "punched"), None, is_open=True)
        except OSError:
            guest.close()

    def go_on(self, attempt: _Attempt) -> bool:
        """Does what can be done now for one of them; True if it is the pair's."""
        try:
            if attempt.go_on():
                return True
            self._selector.modify(attempt.socket, attempt.events, attempt)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(attempt)
        return False

    def select(self) -> None:
        """Selects one of those where the peer has greeted, if none is; the peer takes the first that it is told."""
        while not self.selected and (greeted := [one for one in self._begun if one.is_greeted]):
            try:
                greeted[0].select()
                self.selected = greeted[0]
            except OSError:
                self._drop(greeted[0])

    def close(self, won: _Attempt | None) -> None:
        """Closes all but one."""
        for attempt in self._begun:
            if attempt is not won:
                attempt.socket.close()

    def _add(self, own: socket.socket, how: str, retry: Address | None, *, is_open: bool) -> None:
        attempt = _Attempt(own, how, self._meeting, retry, is_open=is_open)
        self._selector.register(own, attempt.events, attempt)
        self._begun.append(attempt)

    def _drop(self, attempt: _Attempt) -> None:
        self._selector.unregister(attempt.socket)
        attempt.socket.close()
        self._begun.remove(attempt)
        if attempt.retry:
            self._again(attempt.retry, attempt.how)
        if attempt is self.selected:
            self.selected = None

    def _again(self, address: Address, how: str) -> None:
        # Not in step: two NATs that refuse what comes too early would do so each time.
        self._due.append((time.monotonic() + RETRY * random.uniform(0.5, 1.5), address, how))


def meet(
    meeting: Meeting, candidates: Iterable[tuple[Address, str]], local: Address, guests: Guests, deadline: float
) -> tuple[socket.socket, str] | None:
    """The pair's connection and how it came; None if there is none by the deadline (of time.monotonic()).

    `candidates` are addresses of the peer, and how a connection to each is called. If a connection is selected
    already by the deadline, the peer has another ANSWER_TIME seconds to agree.
    """
    won: _Attempt | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(guests, selectors.EVENT_READ)
        attempts = _Attempts(meeting, candidates, local, selector)
        try:
            while not won:
                now, until = time.monotonic(), min(guests.until, deadline + ANSWER_TIME * bool(attempts.selected))
                if now >= until:
                    break
                attempts.begin(now)
                for key, _ in selector.select(max(0.0, min(until, attempts.next_due()) - now)):
                    if key.fileobj is guests:
                        for guest in guests.take():
                            attempts.welcome(guest)
                    elif attempts.go_on(key.data):
                        won = key.data
                        break
                if meeting.leads:
                    attempts.select()
        finally:
            attempts.close(won)
    return (won.socket, won.how) if won else None


def _begun(local: Address, remote: Address) -> socket.socket | None:
    """A connection that was begun; None if that is not possible now."""
    own = shareable(socket.AF_INET6 if ":" in remote[0] else socket.AF_INET)
    try:
        own.setblocking(False)
        own.bind(local)
        if own.connect_ex(remote) in (0, errno.EINPROGRESS):
            return own
    except OSError:
        pass
    own.close()
    return None


def relayed(endpoint: Endpoint, place: Place, meeting: Meeting, ticket: bytes, deadline: float) -> socket.socket:
    """The pair's connection through the server. Raises FMIError if the other end does not come, or is somebody else."""
    own, hello = reach(endpoint, deadline)
    try:
        proof = tokens.attach_proof(place.token, hello.nonce, place.job, place.rank, meeting.pair, ticket)
        attach = messages.Attach(place.job, place.rank, meeting.pair, ticket, proof)
        if not isinstance(ask(own, attach, deadline), messages.Attached):
            raise ServerLost("the rendezvous server does not relay; it is of another version")
        own.sendall(meeting.greeting())
        if not meeting.is_from_peer(exactly(own, GREETING.size, deadline)):
            raise ServerLost("the relay leads to somebody else")
    except BaseException:
        own.close()
        raise
    return own
