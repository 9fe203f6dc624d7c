"""A rank among the others of its job: it finds them through the server, and then sends to them directly.

with joined(Endpoint.parse("host:10000"), "my-job", rank, size, secret) as group:
    total = collectives.allreduce(group, array)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from . import messages, tokens
from .channel import Channel, Incoming, Outgoing, transfer
from .control import Endpoint, Place, join, left, reach, refusal
from .control_thread import Attendant
from .errors import DeadlinePassed, FMIError, PeerLost
from .messages import ROUTES, Message
from .peers import Me, Peers
from .values import Buffer, new_memory


@dataclass(frozen=True)
class Timing:
    """Seconds: between two signs of life, of silence after which a peer or the server is lost, for punching, and for
    a relay after that."""

    beat: float = 5.0
    patience: float = 20.0
    punching: float = 2.0
    relaying: float = 15.0


class Group:
    """The ranks of a job, all of which have come. One thread talks to them; any may call `next_item`.

    Each rank that talks to another has one connection with it, made when it is first wanted. After an error the group
    is of no use any more. `timeout`, in seconds, is that of every operation that is not given another.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        place: Place,
        deadline: float,
        timeout: float,
        timing: Timing,
        routes: Sequence[str],
    ) -> None:
        self.rank, self.size, self.timeout = place.rank, place.size, timeout
        self._job, self._patience = place.job, timing.patience
        self._changed = threading.Condition()
        self._numbers: dict[int, int] = {}  # by request
        self._requests, self._tags = count(), count()
        self._broken: FMIError | None = None
        self._server_lost: FMIError | None = None
        self._is_ready = self._is_closed = False
        own, hello = reach(endpoint, deadline)
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK)
        try:
            join(own, hello, place, deadline)
            local = own.getsockname()[:2]
            me = Me(endpoint, place, local, is_translated=hello.public != local)
            self._peers = Peers(me, self._changed, self._tell, timing.punching, timing.relaying, routes)
            beat, guest = self._peers.beat, self._peers.guest
            self._attendant = Attendant(own, local, timing.beat, timing.patience, self._heard, beat, guest)
            self._attendant.start()
        except BaseException:
            own.close()
            os.close(self._alarm)
            raise

    def await_all(self, deadline: float) -> None:
        """Waits for all ranks to come. Raises DeadlinePassed, Refused or ServerLost if they do not."""
        what = f"not all {self.size} ranks of job {self._job} came in time"
        self._wait(lambda: self._is_ready, deadline, what, lambda: self._server_lost)

    def _tell(self, message: Message) -> None:
        self._attendant.send(message)

    def _heard(self, message: Message | FMIError) -> None:
        """What the attendant tells, in its thread."""
        with self._changed:
            match message:
                case messages.Ready():
                    self._is_ready = True
                case messages.Start():
                    self._peers.begin(message)
                case messages.Relay(pair, ticket):
                    self._peers.relay(pair, ticket)
                case messages.Failed(pair, why):
                    self._peers.fail(pair, why)
                case messages.Number(request, number):
                    self._numbers[request] = number
                case messages.Left(rank, "left"):
                    self._peers.leave(rank)
                case messages.Left(rank, why):
                    said = "has come anew, so that this group has ended" if why == "replaced" else "is lost"
                    self._break(PeerLost(rank, f"rank {rank} {said}"))
                case messages.Refused():
                    self._server_lost = refusal(message)
                    self._break(self._server_lost)
                case FMIError():
                    self._server_lost = self._server_lost or message
                    self._peers.be_alone()
            self._changed.notify_all()

    def _break(self, error: FMIError) -> None:
        """Ends all that the rank waits for."""
        if not self._broken and not self._is_closed:
            self._broken = error
            os.eventfd_write(self._alarm, 1)

    @property
    def routes(self) -> dict[int, str]:
        """How the peers are connected to which this rank has talked so far."""
        return {peer: channel.how for peer, channel in sorted(self._peers.channels.copy().items())}

    def next_tag(self, kind: int) -> int:
        """A tag for the messages of the next operation, which is the same on all ranks that call the same ones."""
        return kind << 24 | next(self._tags) % 2**24

    def next_item(self) -> int:
        """The next number of the job's counter: 0, 1, 2, ... each given once. Raises ServerLost or PeerLost."""
        request = next(self._requests)
        with self._changed:
            if error := self._broken or self._server_lost:
                raise error
        self._tell(messages.Next(request))
        what, deadline = "the rendezvous server does not answer", time.monotonic() + self.timeout
        self._wait(lambda: request in self._numbers, deadline, what, lambda: self._server_lost)
        return self._numbers.pop(request)

    def wish(self, peers: Iterable[int]) -> None:
        """Begins to connect to these ranks, and returns at once; asking twice does nothing. Raises ServerLost."""
        for peer in self._peers.strangers(peers):
            if peer == self.rank or not 0 <= peer < self.size:
                raise ValueError(f"rank {self.rank} of {self.size} cannot talk to rank {peer}")
            self._tell(messages.Connect(peer))

    def exchange(
        self,
        tag: int,
        deadline: float,
        *,
        to: int | None = None,
        buffers: Sequence[Buffer] = (),
        source: int | None = None,
        room: Callable[[int], memoryview] = new_memory,
    ) -> memoryview | None:
        """Sends one message to `to`, and at the same time receives one from `source`; either may be None.

        The buffers go one after the other, without being copied. `room` gives the memory, of the size that it is told,
        that the received message is put into, and which is returned. `deadline` is of time.monotonic().
        Raises PeerLost, DeadlinePassed, ServerLost if a peer cannot be found without the server, and Disagreement if
        the message that comes has another tag.
        """
        known = self._peers.channels
        if not ((to is None or to in known) and (source is None or source in known)):
            self.wish(peer for peer in (to, source) if peer is not None)
        sender = None if to is None else self._channel(to, deadline)
        receiver = None if source is None else self._channel(source, deadline)
        try:
            incoming = Incoming(receiver, tag, room) if receiver else None
            outgoing = Outgoing(sender, tag, buffers) if sender else None
            if not transfer(outgoing, incoming, self._alarm, deadline, self._patience):
                self._check()
        except BaseException as error:
            # Half a message may have gone or come.
            self._broken = self._broken or (error if isinstance(error, FMIError) else FMIError("it was interrupted"))
            raise
        return incoming.body if incoming else None

    def _channel(self, peer: int, deadline: float) -> Channel:
        self._check()
        if peer not in self._peers.channels:
            what = f"rank {peer} was not connected in time"

            def why_not() -> FMIError | None:
                return None if self._peers.is_meeting(peer) else self._server_lost or self._peers.lost.get(peer)

            self._wait(lambda: peer in self._peers.channels, deadline, what, why_not)
        return self._peers.channels[peer]

    def _wait(
        self, is_done: Callable[[], bool], deadline: float, what: str, why_not: Callable[[], FMIError | None]
    ) -> None:
        """Waits for what the attendant tells. `why_not` says whether, and why, it can no longer come."""
        with self._changed:
            while not is_done():
                self._check()
                if error := why_not():
                    raise error
                try:
                    self._changed.wait(left(deadline))
                except DeadlinePassed:
                    raise DeadlinePassed(what) from None
            self._check()

    def _check(self) -> None:
        if self._broken:
            raise self._broken

    def close(self, *, orderly: bool) -> None:
        """Leaves the job; if not `orderly`, or after an error, the other ranks learn that this one is lost."""
        with self._changed:
            self._is_closed = True
        orderly = orderly and not self._broken
        try:
            self._peers.close(self._patience, time.monotonic() + self.timeout, orderly=orderly)
        except BaseException:
            orderly = False
            raise
        finally:
            self._attendant.close(orderly=orderly)
            os.close(self._alarm)


@contextmanager
def joined(
    endpoint: Endpoint,
    job: str,
    rank: int,
    size: int,
    secret: bytes = b"",
    *,
    join_timeout: float = 60.0,
    timeout: float = 600.0,
    timing: Timing = Timing(),
    routes: Sequence[str] = ROUTES,
) -> Iterator[Group]:
    """A rank's place in a job, once all `size` ranks have come; it leaves with the block.

    Leaving through an exception tells the others that this rank is lost. Raises ServerLost, Refused or DeadlinePassed
    if the job does not come together within `join_timeout` seconds.
    """
    deadline = time.monotonic() + join_timeout
    place = Place(job, rank, size, tokens.job_token(secret, job))
    group = Group(endpoint, place, deadline, timeout, timing, routes)
    orderly = False
    try:
        group.await_all(deadline)
        yield group
        orderly = True
    finally:
        group.close(orderly=orderly)
