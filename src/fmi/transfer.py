"""Sending one message and receiving another at the same time, so that ranks that exchange messages never deadlock."""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Sequence

from .channel import DATA, FRAME, Channel
from .errors import CollectiveMismatch, DeadlinePassed, PeerLost
from .values import Buffer


class OutgoingMessage:
    """A message being sent. Until it is sent, or `abandon` is called, nothing else is sent on its channel."""

    def __init__(self, channel: Channel, tag: int, buffers: Sequence[Buffer]) -> None:
        views = [view.cast("B") for buffer in buffers if (view := memoryview(buffer)).nbytes]
        header = FRAME.pack(DATA, tag, sum(map(len, views)))
        self.channel = channel
        channel.sending.acquire()
        self._views = deque([memoryview(channel.take_unsent() + header), *views])

    @property
    def is_sent(self) -> bool:
        """Whether the kernel has accepted all of it."""
        return not self._views

    def send_available(self) -> None:
        """Send as much as the kernel accepts. Raises PeerLost."""
        self.channel.send_available(self._views)
        if not self._views:  # allows heartbeats again, however long this rank waits for others
            self.channel.sending.release()

    def abandon(self) -> None:
        """Give up sending; if a part was sent, the channel cannot be used any more."""
        if self._views:
            self.channel.end()
            self._views.clear()
            self.channel.sending.release()


class IncomingMessage:
    """A message being received; `body` is allocated once its size is known."""

    def __init__(self, channel: Channel, tag: int, allocate: Callable[[int], memoryview]) -> None:
        self.channel, self._tag, self._allocate = channel, tag, allocate
        self.body: memoryview | None = None
        self._filled = 0
        self.is_received = False

    def receive_available(self) -> None:
        """Receive what is available. Raises PeerLost, or CollectiveMismatch if the message has another tag."""
        while self.body is None:
            if header := self.channel.next_header():
                tag, size = header
                if tag != self._tag:
                    raise CollectiveMismatch(
                        f"rank {self.channel.peer} is in another collective operation (its message is {tag:#x}, "
                        f"expected {self._tag:#x}); all ranks must call the same ones in the same order"
                    )
                self.body = self._allocate(size)
                self._filled = self.channel.copy_read_ahead(self.body)
            elif not self.channel.read_ahead():
                return
        while self._filled < len(self.body):
            size = self.channel.receive_into(self.body[self._filled :])
            if not size:
                return
            self._filled += size
        self.is_received = True


def transfer(
    outgoing: OutgoingMessage | None,
    incoming: IncomingMessage | None,
    alarm: int,
    deadline: float,
    silence_timeout: float,
) -> bool:
    """Send and receive until both messages are complete; return False if the file `alarm` becomes readable first.

    `deadline` is a time of time.monotonic(), `silence_timeout` the seconds after which a silent peer counts as lost.
    Raises PeerLost, CollectiveMismatch or DeadlinePassed.
    """
    began = time.monotonic()
    try:
        while True:
            if outgoing and not outgoing.is_sent:
                outgoing.send_available()
            if incoming and not incoming.is_received:
                incoming.receive_available()
            sending = outgoing.channel if outgoing and not outgoing.is_sent else None
            receiving = incoming.channel if incoming and not incoming.is_received else None
            if not sending and not receiving:
                return True
            if _wait(sending, receiving, alarm, deadline, silence_timeout, began):
                return False
    finally:
        if outgoing:
            outgoing.abandon()


def _wait(
    sending: Channel | None,
    receiving: Channel | None,
    alarm: int,
    deadline: float,
    silence_timeout: float,
    began: float,
) -> bool:
    """Wait until one of the channels can continue; return whether the alarm is set."""
    events: dict[int, int] = {alarm: select.POLLIN}
    monitored = [receiving] if receiving else []
    if sending:
        events[sending.fileno()] = select.POLLOUT
        # Heartbeats show that a peer that accepts no data is alive; a full read-ahead buffer shows it, too.
        if sending is not receiving and sending.has_room:
            events[sending.fileno()] |= select.POLLIN
            monitored.append(sending)
    if receiving:
        events[receiving.fileno()] = events.get(receiving.fileno(), 0) | select.POLLIN
    now, until = time.monotonic(), deadline
    for channel in monitored:
        silent_at = max(channel.last_received, began) + silence_timeout
        if now >= silent_at:
            raise PeerLost(channel.peer, f"rank {channel.peer} was silent for {silence_timeout:g} s ({channel.route})")
        until = min(until, silent_at)
    if now >= deadline:
        peers = sorted({channel.peer for channel in (sending, receiving) if channel})
        raise DeadlinePassed(f"the deadline passed before rank {' and '.join(map(str, peers))} completed its part")
    poll = select.poll()
    for file, mask in events.items():
        poll.register(file, mask)
    ready = dict(poll.poll((until - now) * 1000))
    if sending and sending is not receiving and ready.get(sending.fileno(), 0) & ~select.POLLOUT:
        sending.read_ahead()
    return alarm in ready
