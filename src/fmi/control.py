"""A rank's connection to the rendezvous server: how it is made, joins a job, and carries messages."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from . import SECRET_VARIABLE, messages, tokens
from .errors import DeadlinePassed, FMIError, RequestRefused, ServerLost
from .messages import HEADER, Address, Message, ProtocolError, body_size, decode, encode

PORT = 10000
SECRET_HINT = f"give all ranks and the server the same one in {SECRET_VARIABLE}"


@dataclass(frozen=True)
class Endpoint:
    """The address at which a rendezvous server listens."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Endpoint:
        """Return the endpoint for HOST:PORT, HOST or [IPV6]:PORT. Raises ValueError for any other text."""
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/\s]+))(?::([0-9]{1,5}))?", text)
        if not found or not 0 < (port := int(found[3] or PORT)) < 2**16:
            raise ValueError(f"{text!r} is not the address of a rendezvous server; expected HOST:PORT")
        return Endpoint(found[1] or found[2], port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class RankIdentity:
    """A rank of a job of `size` ranks, with the job's token."""

    job: str
    rank: int
    size: int
    token: bytes


class MessageReader:
    """The messages that arrive on the connection to the server."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._data = connection, bytearray()

    def receive_available(self) -> Iterator[Message]:
        """Yield the messages that are complete. Raises ServerLost if the connection is broken or its data invalid."""
        try:
            received = self._connection.recv(2**16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise ServerLost(f"the connection to the rendezvous server broke ({error})") from None
        if not received:
            raise ServerLost("the rendezvous server has closed the connection")
        self._data += received
        try:
            while (message := self._next_message()) is not None:
                yield message
        except ProtocolError as error:
            raise ServerLost(f"the rendezvous server sent an invalid message: {error}") from None

    def _next_message(self) -> Message | None:
        if len(self._data) < HEADER.size:
            return None
        header = bytes(self._data[: HEADER.size])
        end = HEADER.size + body_size(header)
        if len(self._data) < end:
            return None
        body = bytes(self._data[HEADER.size : end])
        del self._data[:end]
        return decode(header, body)


def connect_to_server(endpoint: Endpoint, deadline: float) -> tuple[socket.socket, messages.Hello]:
    """Return a connection to the server, from a port that this process may share, and the server's HELLO.

    `deadline` is a time of time.monotonic(); it does not apply to the lookup of the server's name, which has the
    system's own limit. Raises ServerLost if no rendezvous server answers in time.
    """
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ServerLost(f"{endpoint} cannot be found ({error.strerror}); check the rendezvous server's name") from None
    problem: Exception = TimeoutError("it does not answer")
    for number, (family, kind, _, _, address) in enumerate(found):
        connection = create_shared_port_socket(family, kind)
        try:
            # The remaining time is divided equally between the remaining addresses.
            until = time.monotonic() + seconds_left(deadline) / (len(found) - number)
            connection.bind(("", 0))  # a port of this process alone, which connect() would not guarantee
            connection.settimeout(seconds_left(until))
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            hello = receive_message(connection, until)
            if not isinstance(hello, messages.Hello):
                raise ServerLost(f"its first message is {type(hello).__name__}")
            return connection, hello
        except (OSError, FMIError) as error:
            connection.close()
            problem = error
    raise ServerLost(f"no rendezvous server answers at {endpoint} ({problem})") from None


def create_shared_port_socket(family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Return a socket whose port other sockets may use too, so that a NAT maps all of them to one public address."""
    shared = socket.socket(family, kind)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return shared


def join_job(
    connection: socket.socket, hello: messages.Hello, identity: RankIdentity, deadline: float
) -> messages.Welcome:
    """Join a job and return the server's WELCOME.

    Raises RequestRefused if the server refuses this rank or does not know the job's secret, and ServerLost or
    DeadlinePassed if it does not answer.
    """
    nonce = tokens.new_nonce()
    job, rank, size, token = identity.job, identity.rank, identity.size, identity.token
    private: Address = connection.getsockname()[:2]
    proof = tokens.join_proof(token, hello.nonce, job, rank, size, private, nonce)
    welcome = request(connection, messages.Join(job, rank, size, private, nonce, proof), deadline)
    if not isinstance(welcome, messages.Welcome):
        raise ServerLost(f"the rendezvous server answers {type(welcome).__name__}; it runs another version")
    if not tokens.is_equal(welcome.proof, tokens.welcome_proof(token, nonce, hello.nonce)):
        raise RequestRefused("token", f"the rendezvous server does not know this job's secret; {SECRET_HINT}")
    return welcome


def request(connection: socket.socket, message: Message, deadline: float) -> Message:
    """Send a message and return the answer. Raises RequestRefused, DeadlinePassed or ServerLost."""
    try:
        connection.settimeout(seconds_left(deadline))
        connection.sendall(encode(message))
    except OSError:
        pass  # the server may have sent the reason before it closed the connection
    return receive_message(connection, deadline)


def receive_message(connection: socket.socket, deadline: float) -> Message:
    """Return the next message. Raises RequestRefused if it is REFUSED, DeadlinePassed or ServerLost."""
    try:
        header = receive_exactly(connection, HEADER.size, deadline)
        message = decode(header, receive_exactly(connection, body_size(header), deadline))
    except ProtocolError as error:
        raise ServerLost(f"the rendezvous server sent an invalid message: {error}") from None
    if isinstance(message, messages.Refused):
        raise refusal_error(message)
    return message


def refusal_error(message: messages.Refused) -> RequestRefused:
    """Return the error for a REFUSED, with a hint at what to do."""
    hint = f"; {SECRET_HINT}" if message.code == "token" else ""
    return RequestRefused(message.code, message.why + hint)


def receive_exactly(connection: socket.socket, size: int, deadline: float) -> bytes:
    """Return the next `size` bytes. Raises DeadlinePassed or, if the connection breaks, ServerLost."""
    data = bytearray()
    while len(data) < size:
        try:
            connection.settimeout(seconds_left(deadline))
            received = connection.recv(size - len(data))
        except TimeoutError:
            raise DeadlinePassed("the rendezvous server does not answer") from None
        except OSError as error:
            raise ServerLost(f"the connection to the rendezvous server broke ({error})") from None
        if not received:
            raise ServerLost("the rendezvous server has closed the connection")
        data += received
    return bytes(data)


def seconds_left(deadline: float) -> float:
    """Return the seconds until `deadline` (of time.monotonic()). Raises DeadlinePassed if it has passed."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise DeadlinePassed("the deadline has passed")
    return seconds
