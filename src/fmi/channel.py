"""A connection between two ranks: frames, signs of life, and sending and receiving at once without a deadlock."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice

from .errors import DeadlinePassed, Disagreement, PeerLost
from .shutdown import Farewell
from .values import Buffer

FRAME = struct.Struct(">B3xIQ")  # kind, tag, bytes that follow
DATA, BEAT, BYE, SELECT, SELECTED = range(1, 6)  # kinds
AHEAD = 2**16  # bytes read ahead
PIECES = 512  # buffers given to the kernel at once, which takes 1024


class Channel:
    """Between this rank and `peer`; `how` they were connected is "private", "punched" or "relay".

    One thread sends and receives. Another may call `beat` meanwhile.
    """

    def __init__(self, own: socket.socket, peer: int, how: str) -> None:
        own.setblocking(False)
        with suppress(OSError):  # which a test's pair of sockets does not have
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.peer, self.how = own, peer, how
        self.heard = time.monotonic()  # when anything came
        self.sending = threading.Lock()  # held while there is part of a message to send
        self._is_ended = False
        self._unsent = b""  # of a sign of life
        self._ahead = memoryview(bytearray(AHEAD))
        self._start = self._end = 0

    def fileno(self) -> int:
        """The socket's."""
        return self.socket.fileno()

    @property
    def has_room(self) -> bool:
        """Whether more can be read ahead."""
        return self._end - self._start < AHEAD

    def beat(self) -> None:
        """Sends a sign of life, unless the channel is busy or full, which is one."""
        if not self.sending.acquire(blocking=False):
            return
        try:
            if not self._is_ended:
                data = self._unsent or FRAME.pack(BEAT, 0, 0)
                self._unsent = data[self.socket.send(data) :]
        except OSError:
            pass  # whoever uses the channel will see why
        finally:
            self.sending.release()

    def end(self) -> None:
        """No signs of life any more; `sending` must be held."""
        self._is_ended = True

    def unsent(self) -> bytes:
        """What must go before the next frame; `sending` must be held."""
        rest, self._unsent = self._unsent, b""
        return rest

    def push(self, views: deque[memoryview]) -> None:
        """Sends as much as the kernel takes, and removes it from `views`. Raises PeerLost."""
        try:
            while views:
                sent = self.socket.sendmsg(list(islice(views, PIECES)))
                while views and sent >= len(views[0]):
                    sent -= len(views.popleft())
                if sent:
                    views[0] = views[0][sent:]
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._gone(str(error)) from None

    def fill(self) -> bool:
        """Reads ahead; False if nothing was there. Raises PeerLost."""
        if self._end == AHEAD:
            size = self._end - self._start
            self._ahead[:size] = bytes(self._ahead[self._start : self._end])
            self._start, self._end = 0, size
        size = self.receive_into(self._ahead[self._end :])
        self._end += size
        return size > 0

    def receive_into(self, view: memoryview) -> int:
        """Reads what is there, but not what was read ahead; 0 if that is nothing. Raises PeerLost."""
        try:
            size = self.socket.recv_into(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._gone(str(error)) from None
        if not size:
            raise self._gone("it has closed the connection")
        self.heard = time.monotonic()
        return size

    def next_frame(self) -> tuple[int, int] | None:
        """Tag and size of the next message, if its header was read ahead. Raises PeerLost if the peer has left."""
        while self._end - self._start >= FRAME.size:
            kind, tag, size = FRAME.unpack_from(self._ahead, self._start)
            self._start += FRAME.size
            if kind == DATA:
                return tag, size
            if kind != BEAT:
                raise PeerLost(self.peer, f"rank {self.peer} has left" if kind == BYE else self._nonsense(kind))
        if self._start == self._end:
            self._start = self._end = 0
        return None

    def take_ahead(self, view: memoryview) -> int:
        """Moves what was read ahead of a message into its place; returns how much."""
        size = min(len(view), self._end - self._start)
        view[:size] = self._ahead[self._start : self._start + size]
        self._start += size
        return size

    def _gone(self, why: str) -> PeerLost:
        return PeerLost(self.peer, f"rank {self.peer} is gone ({why}; {self.how})")

    def _nonsense(self, kind: int) -> str:
        return f"rank {self.peer} sends a frame of kind {kind}, which there is not; all must have the same version"

    def cut(self) -> None:
        """Lets both ends see that it is of no use; another thread may be using it."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def farewell(self) -> Farewell:
        """Begins to end the connection in order."""
        with self.sending:
            self.end()
            return Farewell(self.socket, self._unsent + FRAME.pack(BYE, 0, 0))

    def close(self) -> None:
        """Ends the connection at once. What is still on its way may be lost."""
        with self.sending:
            self.end()
            self.socket.close()


class Outgoing:
    """A message on its way. Until it has gone, or `end`, nothing else is sent on its channel."""

    def __init__(self, channel: Channel, tag: int, buffers: Sequence[Buffer]) -> None:
        views = [view.cast("B") for one in buffers if (view := memoryview(one)).nbytes]
        header = FRAME.pack(DATA, tag, sum(map(len, views)))
        self.channel = channel
        channel.sending.acquire()
        self._views = deque([memoryview(channel.unsent() + header), *views])

    @property
    def has_gone(self) -> bool:
        """Whether the kernel has all of it."""
        return not self._views

    def push(self) -> None:
        """Sends as much as the kernel takes. Raises PeerLost."""
        self.channel.push(self._views)
        if not self._views:  # from here on signs of life are wanted, however long this rank waits for others
            self.channel.sending.release()

    def end(self) -> None:
        """Nothing may follow the part of it that has gone."""
        if self._views:
            self.channel.end()
            self._views.clear()
            self.channel.sending.release()


class Incoming:
    """A message that is to come; `body` is there once its size is known."""

    def __init__(self, channel: Channel, tag: int, room: Callable[[int], memoryview]) -> None:
        self.channel, self._tag, self._room = channel, tag, room
        self.body: memoryview | None = None
        self._filled = 0
        self.is_whole = False

    def pull(self) -> None:
        """Takes what is there. Raises PeerLost, or Disagreement if another message comes."""
        while self.body is None:
            if frame := self.channel.next_frame():
                tag, size = frame
                if tag != self._tag:
                    raise Disagreement(
                        f"rank {self.channel.peer} is in another collective operation (its message is {tag:#x}, "
                        f"expected {self._tag:#x}); all ranks must call the same ones in the same order"
                    )
                self.body = self._room(size)
                self._filled = self.channel.take_ahead(self.body)
            elif not self.channel.fill():
                return
        while self._filled < len(self.body):
            size = self.channel.receive_into(self.body[self._filled :])
            if not size:
                return
            self._filled += size
        self.is_whole = True


def transfer(
    outgoing: Outgoing | None, incoming: Incoming | None, alarm: int, deadline: float, patience: float
) -> bool:
    """Sends and receives until both are done; False if the file `alarm` has become readable before.

    `deadline` is of time.monotonic(), `patience` the seconds that a peer may be silent. Raises PeerLost, Disagreement
    or DeadlinePassed.
    """
    began = time.monotonic()
    try:
        while True:
            if outgoing and not outgoing.has_gone:
                outgoing.push()
            if incoming and not incoming.is_whole:
                incoming.pull()
            sending = outgoing.channel if outgoing and not outgoing.has_gone else None
            receiving = incoming.channel if incoming and not incoming.is_whole else None
            if not sending and not receiving:
                return True
            if _await(sending, receiving, alarm, deadline, patience, began):
                return False
    finally:
        if outgoing:
            outgoing.end()


def _await(
    sending: Channel | None, receiving: Channel | None, alarm: int, deadline: float, patience: float, began: float
) -> bool:
    """Waits until something can go on; says whether there is an alarm."""
    events: dict[int, int] = {alarm: select.POLLIN}
    watched = [receiving] if receiving else []
    if sending:
        events[sending.fileno()] = select.POLLOUT
        # To see whether it lives, while it takes nothing; not if it sends more than fits, which is sign enough.
        if sending is not receiving and sending.has_room:
            events[sending.fileno()] |= select.POLLIN
            watched.append(sending)
    if receiving:
        events[receiving.fileno()] = events.get(receiving.fileno(), 0) | select.POLLIN
    now, until = time.monotonic(), deadline
    for channel in watched:
        silent_at = max(channel.heard, began) + patience
        if now >= silent_at:
            raise PeerLost(channel.peer, f"rank {channel.peer} was silent for {patience:g} s ({channel.how})")
        until = min(until, silent_at)
    if now >= deadline:
        peers = sorted({channel.peer for channel in (sending, receiving) if channel})
        raise DeadlinePassed(f"the time was over before rank {' and '.join(map(str, peers))} had done its part")
    poll = select.poll()
    for file, what in events.items():
        poll.register(file, what)
    ready = dict(poll.poll((until - now) * 1000))
    if sending and sending is not receiving and ready.get(sending.fileno(), 0) & ~select.POLLOUT:
        sending.fill()
    return alarm in ready
