"""Clients of a real rendezvous server that send arbitrary messages."""

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
from support.rendezvous import SECRET, TIMEOUT, Server, rendezvous_server


@contextmanager
def checked_server(*options: str, secret: bytes = SECRET) -> Iterator[Server]:
    """Run a server for the block, and check that it ends normally, had no fault and did not log the secret."""
    with tempfile.TemporaryFile("w+") as errors:
        with rendezvous_server(*options, secret=secret, popen=partial(subprocess.Popen, stderr=errors)) as server:
            yield server
            server.end()
            assert server.process.returncode == 0
        errors.seek(0)
        assert errors.read() == ""
    assert "a fault of this server" not in [line["event"] for line in server.events]
    assert not secret or secret.decode() not in repr(server.events)


def run_fmi(*arguments: str, secret: bytes = SECRET) -> subprocess.CompletedProcess[str]:
    """Run `python -m fmi ...` to its end."""
    command, environment = [sys.executable, "-m", "fmi", *arguments], os.environ | {"FMI_SECRET": secret.decode()}
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)


def memory(server: Server, name: str = "VmRSS") -> int:
    """Return the bytes of a server's memory, by their name in Linux's /proc/PID/status."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def open_files(server: Server) -> int:
    """Return the number of files that a server has open."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


class RawClient:
    """A client that sends exactly what a test sends."""

    def __init__(self, server: Server, buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(TIMEOUT)
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.connect(("127.0.0.1", server.endpoint.port))
        hello = self.receive()
        assert isinstance(hello, messages.Hello), hello
        self.hello = hello

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    @property
    def private(self) -> messages.Address:
        """The client's own address."""
        host, port = self.socket.getsockname()
        return host, port

    def send(self, message: Message) -> None:
        """Send a message."""
        self.socket.sendall(encode(message))

    def receive_bytes(self, size: int) -> bytes:
        """Return the next bytes, fewer than `size` if the connection ends before."""
        data = bytearray()
        while len(data) < size:
            try:
                received = self.socket.recv(size - len(data))
            except ConnectionResetError:
                break
            if not received:
                break
            data += received
        return bytes(data)

    def receive(self) -> Message | None:
        """Return the next message; None if the server has closed the connection."""
        header = self.receive_bytes(HEADER.size)
        return decode(header, self.receive_bytes(body_size(header))) if header else None

    def request(self, message: Message) -> Message | None:
        """Send a message, and return the next one."""
        self.send(message)
        return self.receive()

    def receive_refusal(self) -> messages.Refused:
        """Return the REFUSED, which must be the last message."""
        refused = self.receive()
        assert isinstance(refused, messages.Refused), refused
        assert self.receive() is None
        return refused

    def join_message(self, job: str, rank: int, size: int, secret: bytes = SECRET) -> messages.Join:
        """Return a JOIN with the proof of this secret."""
        nonce = tokens.new_nonce()
        token = tokens.job_token(secret, job)
        proof = tokens.join_proof(token, self.hello.nonce, job, rank, size, self.private, nonce)
        return messages.Join(job, rank, size, self.private, nonce, proof)

    def join(self, job: str, rank: int, size: int) -> messages.Welcome:
        """Join a job, and check that the server knows the secret."""
        join = self.join_message(job, rank, size)
        welcome = self.request(join)
        assert isinstance(welcome, messages.Welcome), welcome
        token = tokens.job_token(SECRET, job)
        assert welcome.proof == tokens.welcome_proof(token, join.nonce, self.hello.nonce)
        return welcome

    def attach_message(self, job: str, rank: int, relay: messages.Relay, secret: bytes = SECRET) -> messages.Attach:
        """Return an ATTACH with the proof of this secret."""
        token = tokens.job_token(secret, job)
        proof = tokens.attach_proof(token, self.hello.nonce, job, rank, relay.pair, relay.ticket)
        return messages.Attach(job, rank, relay.pair, relay.ticket, proof)


@contextmanager
def joined_ranks(server: Server, job: str, size: int) -> Iterator[list[RawClient]]:
    """Join a job with all its ranks, in rank order, and yield them after they have received READY."""
    clients = [RawClient(server) for _ in range(size)]
    try:
        for rank, one in enumerate(clients):
            one.join(job, rank, size)
        for one in clients:
            assert one.receive() == messages.Ready()
        yield clients
    finally:
        for one in clients:
            one.socket.close()


def request_relay(low: RawClient, high: RawClient, peer: int) -> messages.Relay:
    """Request a relay between two ranks, of which the higher is `peer`; return the message with its ticket."""
    start = low.request(messages.Connect(peer))
    assert isinstance(start, messages.Start), start
    assert isinstance(high.receive(), messages.Start)
    relay = low.request(messages.Unreached(start.pair))
    assert isinstance(relay, messages.Relay), relay
    assert high.receive() == relay
    return relay


@contextmanager
def relayed_ends(
    server: Server, job: str, low: RawClient, high: RawClient, between: tuple[int, int] = (0, 1)
) -> Iterator[list[RawClient]]:
    """Yield the two connections of a relay between two ranks."""
    relay = request_relay(low, high, between[1])
    ends = [RawClient(server), RawClient(server)]
    try:
        for end, rank in zip(ends, between, strict=True):
            end.send(end.attach_message(job, rank, relay))
        for end in ends:
            assert end.receive() == messages.Attached()
        yield ends
    finally:
        for end in ends:
            end.socket.close()
