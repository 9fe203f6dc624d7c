"""The thread of a rank that hears what the server says, lets others in, and gives signs of life."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from . import messages
from .control import Reader, shareable
from .errors import FMIError, ServerLost
from .handshake import GREETING, pair_of
from .messages import Address, Message, encode
from .shutdown import Farewell, part

BACKLOG, MOST_GUESTS = 64, 64
GREETING_TIME = 5.0  # seconds, at least, for a guest to say whose it is


class Attendant:
    """Owns a rank's connection to the server, and listens at the same port.

    `heard` is called with each message and, at the end, with why there will be no more; `beat` every so many seconds;
    `guest` with the pair that somebody who has connected names, and the connection.
    """

    def __init__(
        self,
        control: socket.socket,
        local: Address,
        beat_every: float,
        patience: float,
        heard: Callable[[Message | FMIError], None],
        beat: Callable[[], None],
        guest: Callable[[int, socket.socket], None],
    ) -> None:
        self._control, self._reader = control, Reader(control)
        self._beat_every, self._patience = beat_every, patience
        self._heard, self._beat, self._guest = heard, beat, guest
        self._sending = threading.Lock()
        self._echoes = count()
        self._is_server_there = True
        self._guests: dict[int, tuple[socket.socket, float]] = {}  # by file, with the time until which it may greet
        self._listener = shareable(control.family)
        self._listener.bind(local)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self._wake, self._woken = socket.socketpair()
        control.settimeout(patience)
        self._thread = threading.Thread(target=self._run, name="attendant", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def send(self, message: Message) -> None:
        """Sends to the server, from any thread. Raises ServerLost if that is not possible."""
        try:
            with self._sending:
                self._control.sendall(encode(message))
        except OSError as error:
            raise ServerLost(f"the rendezvous server is gone ({error})") from None

    def close(self, *, orderly: bool) -> None:
        """Ends the thread and all that it owns; the server learns if that is `orderly`."""
        self._wake.close()
        self._thread.join()
        if orderly and self._is_server_there:
            # Until it has read that: it may still be telling this rank something, and take it for lost if it cannot.
            last_words = Farewell(self._control, encode(messages.Leave()), to_the_end=True)
            part([last_words], self._patience, time.monotonic() + self._patience)
        with self._sending:
            self._close_all()

    def _close_all(self) -> None:
        for own in (self._listener, self._control, self._wake, self._woken, *(one for one, _ in self._guests.values())):
            own.close()

    def _run(self) -> None:
        next_beat, last_word = time.monotonic() + self._beat_every, time.monotonic()
        while True:
            ready = self._await(next_beat)
            if self._woken.fileno() in ready:
                return
            now = time.monotonic()
            if self._is_server_there and self._control.fileno() in ready:
                last_word = now
                self._hear()
            if self._listener.fileno() in ready:
                self._let_in(now)
            for number in self._guests.keys() & ready:
                self._look_at(number)
            if now >= next_beat:
                next_beat = now + self._beat_every
                self._beat()
                self._send_away(now)
                if self._is_server_there and now - last_word > self._patience:
                    self._lose(ServerLost(f"the rendezvous server was silent for {self._patience:g} s"))
                elif self._is_server_there:
                    with suppress(ServerLost):  # the next look at the connection tells
                        self.send(messages.Ping(next(self._echoes)))

    def _await(self, until: float) -> set[int]:
        """The files at which something has happened by then."""
        poll = select.poll()
        for own in [self._listener, self._woken, *([self._control] if self._is_server_there else [])]:
            poll.register(own, select.POLLIN)
        for file in self._guests:
            poll.register(file, select.POLLIN)
        return {file for file, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000)}

    def _hear(self) -> None:
        try:
            for message in self._reader.ready():
                self._heard(message)
        except ServerLost as error:
            self._lose(error)

    def _lose(self, error: ServerLost) -> None:
        self._is_server_there = False
        self._heard(error)

    def _let_in(self, now: float) -> None:
        with suppress(OSError):
            guest, _ = self._listener.accept()
            if len(self._guests) >= MOST_GUESTS:
                guest.close()
                return
            guest.setblocking(False)
            # It is not ready before the whole greeting is there, or its end.
            guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, GREETING.size)
            self._guests[guest.fileno()] = guest, now + GREETING_TIME

    def _look_at(self, number: int) -> None:
        """Hands a guest over who has greeted, without taking the greeting."""
        guest, _ = self._guests.pop(number)
        try:
            greeting = guest.recv(GREETING.size, socket.MSG_PEEK)
            guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        except OSError:
            greeting = b""
        pair = pair_of(greeting) if len(greeting) == GREETING.size else None
        if pair is None:
            guest.close()
        else:
            self._guest(pair, guest)

    def _send_away(self, now: float) -> None:
        """Those who do not greet."""
        for number, (guest, until) in list(self._guests.items()):
            if now > until:
                del self._guests[number]
                guest.close()
