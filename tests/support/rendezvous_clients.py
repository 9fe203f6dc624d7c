"""Clients of a real rendezvous server that say what a test wants them to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fmi import messages, tokens
from fmi.messages import HEADER, Message, body_size, decode, encode
from support.rendezvous import SECRET, SOON, Server, serving


@contextmanager
def served(*options: str, secret: bytes = SECRET) -> Iterator[Server]:
    """A server that must end in order with the block, have had no fault, and have shown the secret to nobody."""
    with tempfile.TemporaryFile("w+") as complaints:
        with serving(*options, secret=secret, popen=partial(subprocess.Popen, stderr=complaints)) as server:
            yield server
            server.end()
            assert server.process.returncode == 0
        complaints.seek(0)
        assert complaints.read() == ""
    assert "a fault of this server" not in [line["event"] for line in server.events]
    assert not secret or secret.decode() not in repr(server.events)


def run_fmi(*arguments: str, secret: bytes = SECRET) -> subprocess.CompletedProcess[str]:
    """`python -m fmi ...` to its end."""
    command, environment = [sys.executable, "-m", "fmi", *arguments], os.environ | {"FMI_SECRET": secret.decode()}
    return subprocess.run(command, capture_output=True, text=True, timeout=SOON, env=environment)


def memory(server: Server, name: str = "VmRSS") -> int:
    """Bytes of a server's memory, by their name in Linux's /proc/PID/status."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def open_files(server: Server) -> int:
    """How many a server has."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


class Raw:
    """A client that says exactly what it is told to."""

    def __init__(self, server: Server, buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(SOON)
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.connect(("127.0.0.1", server.endpoint.port))
        hello = self.receive()
        assert isinstance(hello, messages.Hello), hello
        self.hello = hello

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def private(self) -> messages.Address:
        """Its own address."""
        host, port = self.socket.getsockname()
        return host, port

    def say(self, message: Message) -> None:
        """Sends."""
        self.socket.sendall(encode(message))

    def exactly(self, size: int) -> bytes:
        """So many bytes, or all there are if the connection ends before."""
        data = bytearray()
        while len(data) < size:
            try:
                more = self.socket.recv(size - len(data))
            except ConnectionResetError:
                break
            if not more:
                break
            data += more
        return bytes(data)

    def receive(self) -> Message | None:
        """The next message; None if the server has closed the connection."""
        header = self.exactly(HEADER.size)
        return decode(header, self.exactly(body_size(header))) if header else None

    def ask(self, message: Message) -> Message | None:
        """Says something, and what comes next."""
        self.say(message)
        return self.receive()

    def refusal(self) -> messages.Refused:
        """What it is refused with, which must be the last word."""
        refused = self.receive()
        assert isinstance(refused, messages.Refused), refused
        assert self.receive() is None
        return refused

    def joining(self, job: str, rank: int, size: int, secret: bytes = SECRET) -> messages.Join:
        """A JOIN with the right proof, if this is the secret."""
        nonce = tokens.nonce()
        token = tokens.job_token(secret, job)
        proof = tokens.join_proof(token, self.hello.nonce, job, rank, size, self.private, nonce)
        return messages.Join(job, rank, size, self.private, nonce, proof)

    def join(self, job: str, rank: int, size: int) -> messages.Welcome:
        """Joins; the server must know the secret too."""
        join = self.joining(job, rank, size)
        welcome = self.ask(join)
        assert isinstance(welcome, messages.Welcome), welcome
        token = tokens.job_token(SECRET, job)
        assert welcome.proof == tokens.welcome_proof(token, join.nonce, self.hello.nonce)
        return welcome

    def attaching(self, job: str, rank: int, relay: messages.Relay, secret: bytes = SECRET) -> messages.Attach:
        """An ATTACH with the right proof, if this is the secret."""
        token = tokens.job_token(secret, job)
        proof = tokens.attach_proof(token, self.hello.nonce, job, rank, relay.pair, relay.ticket)
        return messages.Attach(job, rank, relay.pair, relay.ticket, proof)


@contextmanager
def ranks(server: Server, job: str, size: int) -> Iterator[list[Raw]]:
    """All ranks of a job, which have heard that they are complete. The last joins last."""
    together = [Raw(server) for _ in range(size)]
    try:
        for rank, one in enumerate(together):
            one.join(job, rank, size)
        for one in together:
            assert one.receive() == messages.Ready()
        yield together
    finally:
        for one in together:
            one.socket.close()


def relay_of(low: Raw, high: Raw, peer: int) -> messages.Relay:
    """The ticket for a relay of two ranks of which the second is `peer`."""
    start = low.ask(messages.Connect(peer))
    assert isinstance(start, messages.Start), start
    assert isinstance(high.receive(), messages.Start)
    relay = low.ask(messages.Unreached(start.pair))
    assert isinstance(relay, messages.Relay), relay
    assert high.receive() == relay
    return relay


@contextmanager
def relayed(server: Server, job: str, low: Raw, high: Raw, between: tuple[int, int] = (0, 1)) -> Iterator[list[Raw]]:
    """Two connections, of which each gets what the other sends."""
    relay = relay_of(low, high, between[1])
    ends = [Raw(server), Raw(server)]
    try:
        for end, rank in zip(ends, between, strict=True):
            end.say(end.attaching(job, rank, relay))
        for end in ends:
            assert end.receive() == messages.Attached()
        yield ends
    finally:
        for end in ends:
            end.socket.close()
