"""NAT traversal of two ranks on loopback: which connection they select, and which ones they reject."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from fmi import tokens
from fmi.channel import FRAME, SELECT, SELECTED
from fmi.control import create_shared_port_socket
from fmi.handshake import HANDSHAKE, Handshake, pair_number
from fmi.messages import Address
from fmi.nat_traversal import connect_directly
from fmi.pending import PendingConnections

PAIR = 9
NONCE, TOKEN = bytes(range(16)), tokens.job_token(b"secret", "job")
TIMEOUT = 20.0  # seconds, more than anything here takes
MAX_DELAY = 2.0  # seconds within which everything that a test waits for happens
REPEATS = 30

Connection = tuple[socket.socket, str] | None


def handshake_of(rank: int, *, token: bytes = TOKEN, nonce: bytes = NONCE, pair: int = PAIR) -> Handshake:
    """Return the handshake of rank 3, the leader, or of rank 5."""
    return Handshake(pair, rank, 8 - rank, nonce, token)


class Rank:
    """A rank that listens as the control thread does, and connects to the other one in a thread."""

    def __init__(self, own: int) -> None:
        self.handshake, self.pending = handshake_of(own), PendingConnections()
        self.listener = create_shared_port_socket(socket.AF_INET)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.local: Address = self.listener.getsockname()
        self._pool = ThreadPoolExecutor(2)
        self.result: Future[Connection] | None = None
        self._is_closed = False

    def accept_all(self) -> None:
        """Accept all connections in a thread."""

        def accept() -> None:
            with suppress(OSError):
                while True:
                    self.pending.add(self.listener.accept()[0])

        self._pool.submit(accept)

    def connect(self, *candidates: tuple[Address, str], seconds: float = TIMEOUT) -> Future[Connection]:
        """Begin to connect; the result is that of `connect_directly`."""
        until = time.monotonic() + seconds
        self.result = self._pool.submit(connect_directly, self.handshake, candidates, self.local, self.pending, until)
        return self.result

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.pending.expire()
        if self.result and (connection := self.result.result(TIMEOUT)):
            connection[0].close()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self._pool.shutdown()
        self.listener.close()
        self.pending.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what a test has opened."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make(stack: ExitStack) -> Callable[[int], Rank]:
    def made(own: int) -> Rank:
        rank = Rank(own)
        stack.callback(rank.close)
        return rank

    return made


def assert_connected(one: Connection, other: Connection) -> None:
    """Check that these are the two ends of one connection, without unread data."""
    assert one
    assert other
    assert one[0].getpeername() == other[0].getsockname()
    assert other[0].getpeername() == one[0].getsockname()
    for own, peer in ((one[0], other[0]), (other[0], one[0])):
        own.setblocking(True)
        own.sendall(b"first bytes")
        peer.settimeout(TIMEOUT)
        assert peer.recv(100) == b"first bytes"


def message_of(rank: int) -> bytes:
    return handshake_of(rank).message()


def connect_to(rank: Rank, stack: ExitStack) -> socket.socket:
    """Return a connection to a rank's listener."""
    own = stack.enter_context(socket.create_connection(rank.local))
    own.settimeout(TIMEOUT)
    return own


def test_one_rank_connects_and_the_other_listens(make: Callable[[int], Rank]) -> None:
    for own in (3, 5):
        active, passive = make(own), make(8 - own)
        passive.accept_all()
        found = active.connect((passive.local, "private")), passive.connect()
        assert_connected(found[0].result(TIMEOUT), found[1].result(TIMEOUT))
        assert [one.result(TIMEOUT)[1] for one in found] == ["private", "punched"]  # type: ignore[index]


def test_both_ranks_connect_and_listen(make: Callable[[int], Rank]) -> None:
    """Up to two connections succeed; both ranks always select the same one."""
    for _ in range(REPEATS):
        ranks = make(3), make(5)
        for rank in ranks:
            rank.accept_all()
        found = [rank.connect((other.local, "private")) for rank, other in (ranks, ranks[::-1])]
        assert_connected(found[0].result(TIMEOUT), found[1].result(TIMEOUT))
        assert [one.result(TIMEOUT)[1] for one in found] == ["private", "private"]  # type: ignore[index]
        for rank in ranks:
            rank.close()


def test_an_address_that_refuses_is_tried_again(make: Callable[[int], Rank]) -> None:
    """The peer begins to listen later."""
    early, late = make(3), make(5)
    late.listener.close()
    found = early.connect((late.local, "private"))
    time.sleep(0.1)
    late.listener = create_shared_port_socket(socket.AF_INET)
    late.listener.bind(late.local)
    late.listener.listen()
    late.accept_all()
    other = late.connect()
    assert_connected(found.result(TIMEOUT), other.result(TIMEOUT))


def test_both_ranks_select_the_same_of_several_connections(make: Callable[[int], Rank], stack: ExitStack) -> None:
    """The lower rank selects one of ten authenticated connections; the higher one closes all others."""
    for _ in range(REPEATS):
        low, high = make(3), make(5)
        with socket.create_server(("127.0.0.1", 0)) as between:
            for _ in range(10):
                low.pending.add(socket.create_connection(between.getsockname()))
                high.pending.add(between.accept()[0])
        found = low.connect(), high.connect()
        assert_connected(found[0].result(TIMEOUT), found[1].result(TIMEOUT))


def test_only_one_connection_is_selected(make: Callable[[int], Rank], stack: ExitStack) -> None:
    low = make(3)
    low.accept_all()
    found = low.connect()
    connections = [connect_to(low, stack) for _ in range(3)]
    for connection in connections:
        assert connection.recv(HANDSHAKE.size) == message_of(3)
    for connection in connections:
        connection.sendall(message_of(5))
    connections[0].settimeout(0.3)
    received = []
    for connection in connections:
        connection.settimeout(0.3)
        try:
            received.append(connection.recv(100))
        except TimeoutError:
            received.append(b"")
    assert sorted(received) == [b"", b"", FRAME.pack(SELECT, 0, 0)]
    chosen = connections[received.index(FRAME.pack(SELECT, 0, 0))]
    # Without an answer it is not the pair's connection; when it breaks another one is selected.
    assert not found.done()
    chosen.close()
    rest = [one for one in connections if one is not chosen]
    received = []
    for connection in rest:
        try:
            received.append(connection.recv(100))
        except TimeoutError:
            received.append(b"")
    assert sorted(received) == [b"", FRAME.pack(SELECT, 0, 0)]
    chosen = rest[received.index(FRAME.pack(SELECT, 0, 0))]
    chosen.sendall(FRAME.pack(SELECTED, 0, 0) + b"and data")
    result = found.result(TIMEOUT)
    assert result
    assert result[0].recv(100) == b"and data"
    last = next(one for one in rest if one is not chosen)
    last.settimeout(TIMEOUT)
    assert last.recv(100) == b""


def wrong_messages() -> dict[str, bytes]:
    """Return handshake messages that rank 3 must not accept from rank 5."""
    good = message_of(5)
    return {
        "wrong secret": handshake_of(5, token=tokens.job_token(b"another", "job")).message(),
        "another job": handshake_of(5, token=tokens.job_token(b"secret", "another")).message(),
        "replayed": handshake_of(5, nonce=bytes(16)).message(),
        "another pair": handshake_of(5, pair=10).message(),
        "sent back": message_of(3),
        "another rank": HANDSHAKE.pack(b"FMIP", 1, PAIR, 4, tokens.peer_proof(TOKEN, NONCE, PAIR, 4)),
        "another version": good[:4] + b"\2" + good[5:],
        "another protocol": b"GET / HTTP/1.1\r\n".ljust(HANDSHAKE.size),
        "a changed bit": good[:-1] + bytes([good[-1] ^ 1]),
    }


@pytest.mark.parametrize("wrong", wrong_messages())
@pytest.mark.parametrize("own", [3, 5])
def test_a_wrong_message_is_rejected(make: Callable[[int], Rank], stack: ExitStack, own: int, wrong: str) -> None:
    rank, peer = make(own), make(8 - own)
    rank.accept_all()
    found = rank.connect()
    unknown = connect_to(rank, stack)
    if wrong == "sent back":
        unknown.sendall(message_of(own))
    else:
        unknown.sendall(wrong_messages()[wrong] if own == 3 else wrong_messages()[wrong][::-1])
    assert unknown.recv(HANDSHAKE.size) == message_of(own)
    with suppress(ConnectionResetError):
        assert unknown.recv(100) == b""
    # The peer can still connect.
    other = peer.connect((rank.local, "private"))
    assert_connected(found.result(TIMEOUT), other.result(TIMEOUT))


def test_a_connection_to_itself_is_not_accepted(make: Callable[[int], Rank]) -> None:
    """A socket that connects to the address it is bound to connects to itself, and receives its own message."""
    rank = make(3)
    began = time.monotonic()
    rank.listener.close()
    assert rank.connect((rank.local, "private"), seconds=0.5).result(TIMEOUT) is None
    assert 0.5 <= time.monotonic() - began < MAX_DELAY


@pytest.mark.parametrize("own", [3, 5])
def test_unknown_processes_do_not_block_the_peer(make: Callable[[int], Rank], stack: ExitStack, own: int) -> None:
    """They send nothing or a part of a message, or close at once."""
    rank, peer = make(own), make(8 - own)
    rank.accept_all()
    found = rank.connect((peer.local, "private"))
    silent, half = connect_to(rank, stack), connect_to(rank, stack)
    half.sendall(message_of(8 - own)[:20])
    connect_to(rank, stack).close()
    for unknown in (silent, half):
        assert unknown.recv(HANDSHAKE.size) == message_of(own)
    peer.accept_all()
    other = peer.connect((rank.local, "private"))
    assert_connected(found.result(TIMEOUT), other.result(TIMEOUT))
    for unknown in (silent, half):
        with suppress(ConnectionResetError):
            assert unknown.recv(1) == b""


@pytest.mark.parametrize("answer", [SELECT, 1, 0])
def test_a_peer_with_a_wrong_answer_is_rejected(make: Callable[[int], Rank], stack: ExitStack, answer: int) -> None:
    low = make(3)
    low.accept_all()
    found = low.connect(seconds=0.5)
    peer = connect_to(low, stack)
    peer.sendall(message_of(5) + FRAME.pack(answer, 0, 0))
    assert found.result(TIMEOUT) is None


@pytest.mark.parametrize("own", [3, 5])
def test_no_connection_by_the_deadline(make: Callable[[int], Rank], stack: ExitStack, own: int) -> None:
    """One address refuses connections, and one does not answer."""
    rank = make(own)
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    began = time.monotonic()
    found = rank.connect((silent.getsockname(), "private"), (("127.0.0.1", 1), "punched"), seconds=0.5)
    assert found.result(TIMEOUT) is None
    assert 0.5 <= time.monotonic() - began < MAX_DELAY


def test_the_answer_may_arrive_after_the_deadline(make: Callable[[int], Rank], stack: ExitStack) -> None:
    """A peer that has sent SELECTED uses the connection already: giving it up would lose what the peer sends."""
    low = make(3)
    low.accept_all()
    until = time.monotonic() + 0.3
    found = low.connect(seconds=0.3)
    peer = connect_to(low, stack)
    peer.sendall(message_of(5))
    received = b""
    while len(received) < HANDSHAKE.size + FRAME.size:
        received += peer.recv(100)
    assert received == message_of(3) + FRAME.pack(SELECT, 0, 0)
    while time.monotonic() < until + 0.2:
        time.sleep(0.01)
    peer.sendall(FRAME.pack(SELECTED, 0, 0))
    assert found.result(TIMEOUT)


@pytest.mark.parametrize("own", [3, 5])
def test_an_expired_attempt_ends_at_once(make: Callable[[int], Rank], stack: ExitStack, own: int) -> None:
    rank = make(own)
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    began = time.monotonic()
    found = rank.connect((silent.getsockname(), "private"))
    threading.Timer(0.1, rank.pending.expire).start()
    assert found.result(TIMEOUT) is None
    assert time.monotonic() - began < MAX_DELAY


def test_no_file_is_left_open(make: Callable[[int], Rank]) -> None:
    """Many connections succeed, none of them to the peer."""
    ranks = make(3), make(5)
    ranks[0].handshake = handshake_of(3, token=bytes(32))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for rank, other in (ranks, ranks[::-1]):
        rank.connect((other.local, "private"), (("127.0.0.1", 1), "punched"), seconds=0.3)
    for rank in ranks:
        assert rank.result
        assert rank.result.result(TIMEOUT) is None
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_the_pair_of_a_handshake_message() -> None:
    assert pair_number(message_of(3)) == PAIR
    assert pair_number(b"GET / HTTP/1.1\r\n".ljust(HANDSHAKE.size)) is None
