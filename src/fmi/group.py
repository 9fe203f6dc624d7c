"""A rank's view of the group of all ranks of its job: it finds its peers through the server and then sends directly.

with connect(Endpoint.parse("host:10000"), "my-job", rank, size, secret) as group:
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
from .channel import Channel
from .control import Endpoint, RankIdentity, connect_to_server, join_job, refusal_error, seconds_left
from .control_thread import ControlThread
from .errors import DeadlinePassed, FMIError, PeerLost
from .messages import ROUTES, Message
from .peers import LocalRank, Peers
from .transfer import IncomingMessage, OutgoingMessage, transfer
from .values import Buffer, allocate_buffer


@dataclass(frozen=True)
class Timing:
    """Seconds between heartbeats, of silence after which a peer or the server counts as lost, for direct connections
    ("punching"), and for a relay after that."""

    heartbeat_interval: float = 5.0
    silence_timeout: float = 20.0
    punching_timeout: float = 2.0
    relay_timeout: float = 15.0


class Group:
    """The ranks of a job. One thread exchanges messages with them; any thread may call `next_item`.

    Each pair of ranks has one connection, made when it is first requested. The group cannot be used after an error.
    `timeout`, in seconds, applies to every operation that is not given another one.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        identity: RankIdentity,
        deadline: float,
        timeout: float,
        timing: Timing,
        routes: Sequence[str],
    ) -> None:
        self.rank, self.size, self.timeout = identity.rank, identity.size, timeout
        self._job, self._silence_timeout = identity.job, timing.silence_timeout
        self._changed = threading.Condition()
        self._numbers: dict[int, int] = {}  # received numbers of the counter, by request
        self._requests, self._tags = count(), count()
        self._error: FMIError | None = None
        self._server_error: FMIError | None = None
        self._is_complete = self._is_closed = False
        control, hello = connect_to_server(endpoint, deadline)
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK)
        try:
            join_job(control, hello, identity, deadline)
            address = control.getsockname()[:2]
            local_rank = LocalRank(endpoint, identity, address, is_translated=hello.public != address)
            self._peers = Peers(
                local_rank, self._changed, self._send_to_server, timing.punching_timeout, timing.relay_timeout, routes
            )
            self._control_thread = ControlThread(
                control,
                address,
                timing.heartbeat_interval,
                timing.silence_timeout,
                on_message=self._handle_message,
                on_heartbeat=self._peers.send_heartbeats,
                on_connection=self._peers.accept,
            )
            self._control_thread.start()
        except BaseException:
            control.close()
            os.close(self._alarm)
            raise

    def wait_until_complete(self, deadline: float) -> None:
        """Wait until all ranks have joined. Raises DeadlinePassed, RequestRefused or ServerLost if they do not."""
        problem = f"not all {self.size} ranks of job {self._job} joined in time"
        self._wait(lambda: self._is_complete, deadline, problem, lambda: self._server_error)

    def _send_to_server(self, message: Message) -> None:
        self._control_thread.send(message)

    def _handle_message(self, message: Message | FMIError) -> None:
        """Handle a message of the server, or its loss; called in the control thread."""
        with self._changed:
            match message:
                case messages.Ready():
                    self._is_complete = True
                case messages.Start():
                    self._peers.start_pair(message)
                case messages.Relay(pair, ticket):
                    self._peers.start_relay(pair, ticket)
                case messages.Failed(pair, reason):
                    self._peers.set_failed(pair, reason)
                case messages.Number(request, number):
                    self._numbers[request] = number
                case messages.Left(rank, "left"):
                    self._peers.set_left(rank)
                case messages.Left(rank, reason):
                    event = "has joined again, which ends this group" if reason == "replaced" else "is lost"
                    self._fail(PeerLost(rank, f"rank {rank} {event}"))
                case messages.Refused():
                    self._server_error = refusal_error(message)
                    self._fail(self._server_error)
                case FMIError():
                    self._server_error = self._server_error or message
                    self._peers.set_server_lost()
            self._changed.notify_all()

    def _fail(self, error: FMIError) -> None:
        """End all operations with this error, unless there was one before."""
        if not self._error and not self._is_closed:
            self._error = error
            os.eventfd_write(self._alarm, 1)

    @property
    def routes(self) -> dict[int, str]:
        """The route to each peer to which this rank is connected."""
        return {peer: channel.route for peer, channel in sorted(self._peers.channels.copy().items())}

    def next_tag(self, kind: int) -> int:
        """Return a tag for the messages of the next operation, the same on all ranks that call the same operations."""
        return kind << 24 | next(self._tags) % 2**24

    def next_item(self) -> int:
        """Return the next number of the job's counter: 0, 1, 2, ..., each returned once.

        Raises ServerLost, PeerLost or DeadlinePassed.
        """
        request = next(self._requests)
        with self._changed:
            if error := self._error or self._server_error:
                raise error
        self._send_to_server(messages.Next(request))
        problem, deadline = "the rendezvous server does not answer", time.monotonic() + self.timeout
        self._wait(lambda: request in self._numbers, deadline, problem, lambda: self._server_error)
        return self._numbers.pop(request)

    def request_connections(self, peers: Iterable[int]) -> None:
        """Request connections to these ranks without waiting for them; repeated requests have no effect.

        Raises ValueError if a rank is not a possible peer, and ServerLost if the server is lost.
        """
        for peer in self._peers.register_unknown_peers(peers):
            if peer == self.rank or not 0 <= peer < self.size:
                raise ValueError(f"rank {self.rank} of {self.size} cannot connect to rank {peer}")
            self._send_to_server(messages.Connect(peer))

    def exchange(
        self,
        tag: int,
        deadline: float,
        *,
        dest: int | None = None,
        buffers: Sequence[Buffer] = (),
        source: int | None = None,
        allocate: Callable[[int], memoryview] = allocate_buffer,
    ) -> memoryview | None:
        """Send one message to `dest` and receive one from `source` at the same time; either rank may be None.

        The buffers are sent one after the other, without being copied. `allocate` returns memory of a given size in
        bytes for the received message, which is returned. `deadline` is a time of time.monotonic().
        Raises PeerLost, DeadlinePassed, ServerLost if a peer cannot be reached without the server, and
        CollectiveMismatch if the received message has another tag.
        """
        connected = self._peers.channels
        if not ((dest is None or dest in connected) and (source is None or source in connected)):
            self.request_connections(peer for peer in (dest, source) if peer is not None)
        sender = None if dest is None else self._channel(dest, deadline)
        receiver = None if source is None else self._channel(source, deadline)
        try:
            incoming = IncomingMessage(receiver, tag, allocate) if receiver else None
            outgoing = OutgoingMessage(sender, tag, buffers) if sender else None
            if not transfer(outgoing, incoming, self._alarm, deadline, self._silence_timeout):
                self._check()
        except BaseException as error:
            # A message may be partly sent or received.
            interruption = FMIError("an exchange of messages was interrupted")
            self._error = self._error or (error if isinstance(error, FMIError) else interruption)
            raise
        return incoming.body if incoming else None

    def _channel(self, peer: int, deadline: float) -> Channel:
        """Return the connection to a peer, once it is made."""
        self._check()
        if peer not in self._peers.channels:
            problem = f"rank {peer} was not connected in time"

            def failure() -> FMIError | None:
                return None if self._peers.is_connecting(peer) else self._server_error or self._peers.lost.get(peer)

            self._wait(lambda: peer in self._peers.channels, deadline, problem, failure)
        return self._peers.channels[peer]

    def _wait(
        self,
        is_done: Callable[[], bool],
        deadline: float,
        problem: str,
        failure: Callable[[], FMIError | None],
    ) -> None:
        """Wait for a change by another thread. `failure` returns why it cannot come any more, None while it can.

        Raises that error, the group's error, or DeadlinePassed with `problem`.
        """
        with self._changed:
            while not is_done():
                self._check()
                if error := failure():
                    raise error
                try:
                    self._changed.wait(seconds_left(deadline))
                except DeadlinePassed:
                    raise DeadlinePassed(problem) from None
            self._check()

    def _check(self) -> None:
        if self._error:
            raise self._error

    def close(self, *, graceful: bool) -> None:
        """Leave the job; if not `graceful`, or after an error, the other ranks are notified that this one is lost."""
        with self._changed:
            self._is_closed = True
        graceful = graceful and not self._error
        try:
            self._peers.close(self._silence_timeout, time.monotonic() + self.timeout, graceful=graceful)
        except BaseException:
            graceful = False
            raise
        finally:
            self._control_thread.close(graceful=graceful)
            os.close(self._alarm)


@contextmanager
def connect(
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
    """Join a job as one of `size` ranks, and yield its group once all ranks have joined; leave at the end of the block.

    If the block ends by an exception the other ranks are notified that this one is lost. Raises ServerLost,
    RequestRefused or DeadlinePassed if not all ranks join within `join_timeout` seconds.
    """
    deadline = time.monotonic() + join_timeout
    identity = RankIdentity(job, rank, size, tokens.job_token(secret, job))
    group = Group(endpoint, identity, deadline, timeout, timing, routes)
    graceful = False
    try:
        group.wait_until_complete(deadline)
        yield group
        graceful = True
    finally:
        group.close(graceful=graceful)
