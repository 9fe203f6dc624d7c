"""A rank's connection to the rendezvous server, up to the server's welcome; and how messages come and go on it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from . import SECRET, messages, tokens
from .errors import DeadlinePassed, FMIError, Refused, ServerLost
from .messages import HEADER, Address, Message, ProtocolError, body_size, decode, encode

PORT = 10000
WRONG_SECRET = f"give all ranks and the server the same one in {SECRET}"


@dataclass(frozen=True)
class Endpoint:
    """Where a rendezvous server listens."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Endpoint:
        """From HOST:PORT, HOST or [IPV6]:PORT. Raises ValueError if it is none."""
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/\s]+))(?::([0-9]{1,5}))?", text)
        if not found or not 0 < (port := int(found[3] or PORT)) < 2**16:
            raise ValueError(f"{text!r} is no address of a rendezvous server; expected HOST:PORT")
        return Endpoint(found[1] or found[2], port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Place:
    """Who wants to join: a rank of a job of so many, which knows the job's token."""

    job: str
    rank: int
    size: int
    token: bytes


class Reader:
    """Messages of a socket as their bytes come."""

    def __init__(self, own: socket.socket) -> None:
        self._socket, self._data = own, bytearray()

    def ready(self) -> Iterator[Message]:
        """What is whole by now. Raises ServerLost if nothing more can come, or no message."""
        try:
            more = self._socket.recv(2**16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise ServerLost(f"the connection to the rendezvous server broke ({error})") from None
        if not more:
            raise ServerLost("the rendezvous server has closed the connection")
        self._data += more
        try:
            while (message := self._taken()) is not None:
                yield message
        except ProtocolError as error:
            raise ServerLost(f"the rendezvous server talks nonsense: {error}") from None

    def _taken(self) -> Message | None:
        if len(self._data) < HEADER.size:
            return None
        header = bytes(self._data[: HEADER.size])
        end = HEADER.size + body_size(header)
        if len(self._data) < end:
            return None
        body = bytes(self._data[HEADER.size : end])
        del self._data[:end]
        return decode(header, body)


def reach(endpoint: Endpoint, deadline: float, local: Address | None = None) -> tuple[socket.socket, messages.Hello]:
    """A connection to the server, from a port that others of this process may share, and what the server says first.

    Raises ServerLost if there is no rendezvous server or it does not answer in time (of time.monotonic(); only the
    system's own limit holds for looking up its name).
    """
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ServerLost(f"{endpoint} cannot be found ({error.strerror}); check the rendezvous server's name") from None
    problem: Exception = TimeoutError("it does not answer")
    for number, (family, kind, _, _, where) in enumerate(found):
        own = shareable(family, kind)
        try:
            # Each of its addresses gets the same part of the time.
            until = time.monotonic() + left(deadline) / (len(found) - number)
            own.bind(local or ("", 0))  # a port that no other process has, as one that connect() chooses might be
            own.settimeout(left(until))
            own.connect(where)
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            hello = receive(own, until)
            if not isinstance(hello, messages.Hello):
                raise ServerLost(f"it begins with {type(hello).__name__}")
            return own, hello
        except (OSError, FMIError) as error:
            own.close()
            problem = error
    raise ServerLost(f"no rendezvous server answers at {endpoint} ({problem})") from None


def shareable(family: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket whose port others may have too, so that a NAT gives all of them the same place outside."""
    own = socket.socket(family, kind)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return own


def join(own: socket.socket, hello: messages.Hello, place: Place, deadline: float) -> messages.Welcome:
    """Joins a job. Raises Refused if the server does not want this rank or does not know the secret either.

    Raises ServerLost or DeadlinePassed if it does not answer.
    """
    nonce = tokens.nonce()
    private: Address = own.getsockname()[:2]
    proof = tokens.join_proof(place.token, hello.nonce, place.job, place.rank, place.size, private, nonce)
    welcome = ask(own, messages.Join(place.job, place.rank, place.size, private, nonce, proof), deadline)
    if not isinstance(welcome, messages.Welcome):
        raise ServerLost(f"the rendezvous server answers {type(welcome).__name__}; it is of another version")
    if not tokens.same(welcome.proof, tokens.welcome_proof(place.token, nonce, hello.nonce)):
        raise Refused("token", f"the rendezvous server does not know this job's secret; {WRONG_SECRET}")
    return welcome


def ask(own: socket.socket, message: Message, deadline: float) -> Message:
    """Sends a message and returns the answer. Raises Refused if it is that, DeadlinePassed or ServerLost."""
    try:
        own.settimeout(left(deadline))
        own.sendall(encode(message))
    except OSError:
        pass  # before it broke the connection the server may have said why
    return receive(own, deadline)


def receive(own: socket.socket, deadline: float) -> Message:
    """The next message. Raises Refused if it is that, DeadlinePassed or ServerLost."""
    try:
        header = exactly(own, HEADER.size, deadline)
        message = decode(header, exactly(own, body_size(header), deadline))
    except ProtocolError as error:
        raise ServerLost(f"the rendezvous server talks nonsense: {error}") from None
    if isinstance(message, messages.Refused):
        raise refusal(message)
    return message


def refusal(message: messages.Refused) -> Refused:
    """What the server refuses with, as an error that says what to do."""
    hint = f"; {WRONG_SECRET}" if message.code == "token" else ""
    return Refused(message.code, message.why + hint)


def exactly(own: socket.socket, size: int, deadline: float) -> bytes:
    """So many bytes. Raises DeadlinePassed if they do not come in time, ServerLost if they cannot come."""
    data = bytearray()
    while len(data) < size:
        try:
            own.settimeout(left(deadline))
            more = own.recv(size - len(data))
        except TimeoutError:
            raise DeadlinePassed("the rendezvous server does not answer") from None
        except OSError as error:
            raise ServerLost(f"the connection to the rendezvous server broke ({error})") from None
        if not more:
            raise ServerLost("the rendezvous server has closed the connection")
        data += more
    return bytes(data)


def left(deadline: float) -> float:
    """Seconds to a deadline. Raises DeadlinePassed if there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise DeadlinePassed("the time is over")
    return seconds
