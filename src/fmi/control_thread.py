"""The background thread of a rank: it receives the server's messages, accepts connections and sends heartbeats."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from . import messages
from .control import MessageReader, create_shared_port_socket
from .errors import FMIError, ServerLost
from .handshake import HANDSHAKE, pair_number
from .messages import Address, Message, encode
from .shutdown import GracefulClose, close_gracefully

BACKLOG, MAX_PENDING = 64, 64
HANDSHAKE_TIMEOUT = 5.0  # seconds, at least, for the handshake message of an accepted connection


class ControlThread:
    """The owner of a rank's connection to the server and of the listener at the same port.

    `on_message` is called with each message of the server and, at the end, with the reason why there will be no more;
    `on_heartbeat` every `heartbeat_interval` seconds; `on_connection` with the pair number that an accepted connection
    names, and the connection.
    """

    def __init__(
        self,
        control: socket.socket,
        local: Address,
        heartbeat_interval: float,
        silence_timeout: float,
        on_message: Callable[[Message | FMIError], None],
        on_heartbeat: Callable[[], None],
        on_connection: Callable[[int, socket.socket], None],
    ) -> None:
        self._control, self._reader = control, MessageReader(control)
        self._heartbeat_interval, self._silence_timeout = heartbeat_interval, silence_timeout
        self._on_message, self._on_heartbeat, self._on_connection = on_message, on_heartbeat, on_connection
        self._sending = threading.Lock()
        self._echoes = count()
        self._is_server_alive = True
        self._pending: dict[int, tuple[socket.socket, float]] = {}  # by file: a connection and its handshake deadline
        self._listener = create_shared_port_socket(control.family)
        self._listener.bind(local)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        self._stop_sender, self._stop_receiver = socket.socketpair()
        control.settimeout(silence_timeout)
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def send(self, message: Message) -> None:
        """Send a message to the server; may be called from any thread. Raises ServerLost if that is not possible."""
        try:
            with self._sending:
                self._control.sendall(encode(message))
        except OSError as error:
            raise ServerLost(f"the rendezvous server is lost ({error})") from None

    def close(self, *, graceful: bool) -> None:
        """Stop the thread and close its connections; if `graceful`, the server receives LEAVE before."""
        self._stop_sender.close()
        self._thread.join()
        if graceful and self._is_server_alive:
            # Wait for the server to close: it may still be sending, and would count this rank as lost if that failed.
            shutdown = GracefulClose(self._control, encode(messages.Leave()), wait_for_peer=True)
            close_gracefully([shutdown], self._silence_timeout, time.monotonic() + self._silence_timeout)
        with self._sending:
            self._close_sockets()

    def _close_sockets(self) -> None:
        pending = [connection for connection, _ in self._pending.values()]
        for one in (self._listener, self._control, self._stop_sender, self._stop_receiver, *pending):
            one.close()

    def _run(self) -> None:
        next_heartbeat, last_received = time.monotonic() + self._heartbeat_interval, time.monotonic()
        while True:
            ready = self._wait(next_heartbeat)
            if self._stop_receiver.fileno() in ready:
                return
            now = time.monotonic()
            if self._is_server_alive and self._control.fileno() in ready:
                last_received = now
                self._receive_messages()
            if self._listener.fileno() in ready:
                self._accept(now)
            for file in self._pending.keys() & ready:
                self._read_handshake(file)
            if now >= next_heartbeat:
                next_heartbeat = now + self._heartbeat_interval
                self._on_heartbeat()
                self._close_expired(now)
                if self._is_server_alive and now - last_received > self._silence_timeout:
                    self._lose_server(ServerLost(f"the rendezvous server was silent for {self._silence_timeout:g} s"))
                elif self._is_server_alive:
                    with suppress(ServerLost):  # detected when the connection is read next
                        self.send(messages.Ping(next(self._echoes)))

    def _wait(self, until: float) -> set[int]:
        """Return the files that are readable, as soon as there are any or `until` is reached."""
        poll = select.poll()
        for one in [self._listener, self._stop_receiver, *([self._control] if self._is_server_alive else [])]:
            poll.register(one, select.POLLIN)
        for file in self._pending:
            poll.register(file, select.POLLIN)
        return {file for file, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000)}

    def _receive_messages(self) -> None:
        try:
            for message in self._reader.receive_available():
                self._on_message(message)
        except ServerLost as error:
            self._lose_server(error)

    def _lose_server(self, error: ServerLost) -> None:
        self._is_server_alive = False
        self._on_message(error)

    def _accept(self, now: float) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            if len(self._pending) >= MAX_PENDING:
                connection.close()
                return
            connection.setblocking(False)
            # It becomes readable only when the whole handshake message has arrived, or the end of the stream.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, HANDSHAKE.size)
            self._pending[connection.fileno()] = connection, now + HANDSHAKE_TIMEOUT

    def _read_handshake(self, file: int) -> None:
        """Pass on a connection whose handshake message has arrived, which remains to be received."""
        connection, _ = self._pending.pop(file)
        try:
            message = connection.recv(HANDSHAKE.size, socket.MSG_PEEK)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        except OSError:
            message = b""
        pair = pair_number(message) if len(message) == HANDSHAKE.size else None
        if pair is None:
            connection.close()
        else:
            self._on_connection(pair, connection)

    def _close_expired(self, now: float) -> None:
        """Close the connections on which no handshake message arrived in time."""
        for file, (connection, until) in list(self._pending.items()):
            if now > until:
                del self._pending[file]
                connection.close()
