"""Meetings of two ranks on loopback: which connection becomes theirs, and who is sent away."""

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
from fmi.control import shareable
from fmi.handshake import GREETING, Meeting, pair_of
from fmi.messages import Address
from fmi.nat_traversal import Guests, meet

PAIR = 9
NONCE, TOKEN = bytes(range(16)), tokens.job_token(b"secret", "job")
SOON = 20.0  # seconds that nothing here takes
LATE = 2.0  # seconds in which this machine certainly has done what is waited for
REPEATS = 30

Found = tuple[socket.socket, str] | None


def meeting_of(own: int, *, token: bytes = TOKEN, nonce: bytes = NONCE, pair: int = PAIR) -> Meeting:
    """Of ranks 3, which leads, and 5."""
    return Meeting(pair, own, 8 - own, nonce, token)


class Rank:
    """A rank that listens as the attendant does, and meets the other in a thread."""

    def __init__(self, own: int) -> None:
        self.meeting, self.guests = meeting_of(own), Guests()
        self.listener = shareable(socket.AF_INET)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.local: Address = self.listener.getsockname()
        self._pool = ThreadPoolExecutor(2)
        self.found: Future[Found] | None = None
        self._is_closed = False

    def let_in(self) -> None:
        """Hands over all who connect, whoever they are."""

        def accept() -> None:
            with suppress(OSError):
                while True:
                    self.guests.add(self.listener.accept()[0])

        self._pool.submit(accept)

    def meet(self, *candidates: tuple[Address, str], seconds: float = SOON) -> Future[Found]:
        """Begins; the result is what `meet` returns."""
        until = time.monotonic() + seconds
        self.found = self._pool.submit(meet, self.meeting, candidates, self.local, self.guests, until)
        return self.found

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.guests.end()
        if self.found and (found := self.found.result(SOON)):
            found[0].close()
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self._pool.shutdown()
        self.listener.close()
        self.guests.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has opened."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make(stack: ExitStack) -> Callable[[int], Rank]:
    def made(own: int) -> Rank:
        rank = Rank(own)
        stack.callback(rank.close)
        return rank

    return made


def assert_connected(one: Found, other: Found) -> None:
    """They are the two ends of one connection, on which nothing is left to read."""
    assert one
    assert other
    assert one[0].getpeername() == other[0].getsockname()
    assert other[0].getpeername() == one[0].getsockname()
    for own, peer in ((one[0], other[0]), (other[0], one[0])):
        own.setblocking(True)
        own.sendall(b"first bytes")
        peer.settimeout(SOON)
        assert peer.recv(100) == b"first bytes"


def greeting_of(own: int) -> bytes:
    return meeting_of(own).greeting()


def connect(rank: Rank, stack: ExitStack) -> socket.socket:
    """A connection to a rank's listener."""
    own = stack.enter_context(socket.create_connection(rank.local))
    own.settimeout(SOON)
    return own


def test_one_connects_and_the_other_listens(make: Callable[[int], Rank]) -> None:
    for leads in (3, 5):
        active, passive = make(leads), make(8 - leads)
        passive.let_in()
        found = active.meet((passive.local, "private")), passive.meet()
        assert_connected(found[0].result(SOON), found[1].result(SOON))
        assert [one.result(SOON)[1] for one in found] == ["private", "punched"]  # type: ignore[index]


def test_both_connect_and_both_listen(make: Callable[[int], Rank]) -> None:
    """Up to two connections come about; both ends take the same one, every time."""
    for _ in range(REPEATS):
        ranks = make(3), make(5)
        for rank in ranks:
            rank.let_in()
        found = [rank.meet((other.local, "private")) for rank, other in (ranks, ranks[::-1])]
        assert_connected(found[0].result(SOON), found[1].result(SOON))
        assert [one.result(SOON)[1] for one in found] == ["private", "private"]  # type: ignore[index]
        for rank in ranks:
            rank.close()


def test_who_comes_late_is_tried_again(make: Callable[[int], Rank]) -> None:
    """Its port refuses until then."""
    early, late = make(3), make(5)
    late.listener.close()
    found = early.meet((late.local, "private"))
    time.sleep(0.1)
    late.listener = shareable(socket.AF_INET)
    late.listener.bind(late.local)
    late.listener.listen()
    late.let_in()
    other = late.meet()
    assert_connected(found.result(SOON), other.result(SOON))


def test_of_several_connections_both_take_the_same(make: Callable[[int], Rank], stack: ExitStack) -> None:
    """The higher rank has greeted on ten of them; it takes the one that the lower has selected, and closes the rest."""
    for _ in range(REPEATS):
        low, high = make(3), make(5)
        with socket.create_server(("127.0.0.1", 0)) as between:
            for _ in range(10):
                low.guests.add(socket.create_connection(between.getsockname()))
                high.guests.add(between.accept()[0])
        found = low.meet(), high.meet()
        assert_connected(found[0].result(SOON), found[1].result(SOON))


def test_only_one_is_selected(make: Callable[[int], Rank], stack: ExitStack) -> None:
    low = make(3)
    low.let_in()
    found = low.meet()
    connections = [connect(low, stack) for _ in range(3)]
    for connection in connections:
        assert connection.recv(GREETING.size) == greeting_of(3)
    for connection in connections:
        connection.sendall(greeting_of(5))
    connections[0].settimeout(0.3)
    said = []
    for connection in connections:
        connection.settimeout(0.3)
        try:
            said.append(connection.recv(100))
        except TimeoutError:
            said.append(b"")
    assert sorted(said) == [b"", b"", FRAME.pack(SELECT, 0, 0)]
    chosen = connections[said.index(FRAME.pack(SELECT, 0, 0))]
    # Without an answer it is not the pair's; once it breaks another is selected.
    assert not found.done()
    chosen.close()
    rest = [one for one in connections if one is not chosen]
    said = []
    for connection in rest:
        try:
            said.append(connection.recv(100))
        except TimeoutError:
            said.append(b"")
    assert sorted(said) == [b"", FRAME.pack(SELECT, 0, 0)]
    chosen = rest[said.index(FRAME.pack(SELECT, 0, 0))]
    chosen.sendall(FRAME.pack(SELECTED, 0, 0) + b"and data")
    result = found.result(SOON)
    assert result
    assert result[0].recv(100) == b"and data"
    last = next(one for one in rest if one is not chosen)
    last.settimeout(SOON)
    assert last.recv(100) == b""


def wrong_greetings() -> dict[str, bytes]:
    """What a rank 5 might say to rank 3 that is not the pair's."""
    good = greeting_of(5)
    return {
        "wrong secret": meeting_of(5, token=tokens.job_token(b"another", "job")).greeting(),
        "another job": meeting_of(5, token=tokens.job_token(b"secret", "another")).greeting(),
        "replayed": meeting_of(5, nonce=bytes(16)).greeting(),
        "another pair": meeting_of(5, pair=10).greeting(),
        "thrown back": greeting_of(3),
        "another rank": GREETING.pack(b"FMIP", 1, PAIR, 4, tokens.peer_proof(TOKEN, NONCE, PAIR, 4)),
        "another version": good[:4] + b"\2" + good[5:],
        "another protocol": b"GET / HTTP/1.1\r\n".ljust(GREETING.size),
        "a changed bit": good[:-1] + bytes([good[-1] ^ 1]),
    }


@pytest.mark.parametrize("wrong", wrong_greetings())
@pytest.mark.parametrize("own", [3, 5])
def test_a_wrong_greeting_is_sent_away(make: Callable[[int], Rank], stack: ExitStack, own: int, wrong: str) -> None:
    rank, peer = make(own), make(8 - own)
    rank.let_in()
    found = rank.meet()
    stranger = connect(rank, stack)
    if wrong == "thrown back":
        stranger.sendall(greeting_of(own))
    else:
        stranger.sendall(wrong_greetings()[wrong] if own == 3 else wrong_greetings()[wrong][::-1])
    assert stranger.recv(GREETING.size) == greeting_of(own)
    with suppress(ConnectionResetError):
        assert stranger.recv(100) == b""
    # The peer comes all the same.
    other = peer.meet((rank.local, "private"))
    assert_connected(found.result(SOON), other.result(SOON))


def test_a_connection_to_itself_is_not_the_peers(make: Callable[[int], Rank]) -> None:
    """A socket bound to the address that it connects to opens to itself, and hears its own greeting."""
    rank = make(3)
    began = time.monotonic()
    rank.listener.close()
    assert rank.meet((rank.local, "private"), seconds=0.5).result(SOON) is None
    assert 0.5 <= time.monotonic() - began < LATE


@pytest.mark.parametrize("own", [3, 5])
def test_strangers_do_not_keep_the_peer_out(make: Callable[[int], Rank], stack: ExitStack, own: int) -> None:
    """Those who say nothing, half a greeting, or close at once."""
    rank, peer = make(own), make(8 - own)
    rank.let_in()
    found = rank.meet((peer.local, "private"))
    silent, half = connect(rank, stack), connect(rank, stack)
    half.sendall(greeting_of(8 - own)[:20])
    connect(rank, stack).close()
    for stranger in (silent, half):
        assert stranger.recv(GREETING.size) == greeting_of(own)
    peer.let_in()
    other = peer.meet((rank.local, "private"))
    assert_connected(found.result(SOON), other.result(SOON))
    for stranger in (silent, half):
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""


@pytest.mark.parametrize("answer", [SELECT, 1, 0])
def test_a_peer_that_answers_something_else_is_not_taken(
    make: Callable[[int], Rank], stack: ExitStack, answer: int
) -> None:
    low = make(3)
    low.let_in()
    found = low.meet(seconds=0.5)
    peer = connect(low, stack)
    peer.sendall(greeting_of(5) + FRAME.pack(answer, 0, 0))
    assert found.result(SOON) is None


@pytest.mark.parametrize("own", [3, 5])
def test_nothing_by_the_deadline(make: Callable[[int], Rank], stack: ExitStack, own: int) -> None:
    """One address refuses and one does not answer."""
    rank = make(own)
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    began = time.monotonic()
    found = rank.meet((silent.getsockname(), "private"), (("127.0.0.1", 1), "punched"), seconds=0.5)
    assert found.result(SOON) is None
    assert 0.5 <= time.monotonic() - began < LATE


def test_the_answer_may_come_after_the_deadline(make: Callable[[int], Rank], stack: ExitStack) -> None:
    """The peer that says SELECTED has the connection already: to give it up just then would lose what it sends."""
    low = make(3)
    low.let_in()
    until = time.monotonic() + 0.3
    found = low.meet(seconds=0.3)
    peer = connect(low, stack)
    peer.sendall(greeting_of(5))
    said = b""
    while len(said) < GREETING.size + FRAME.size:
        said += peer.recv(100)
    assert said == greeting_of(3) + FRAME.pack(SELECT, 0, 0)
    while time.monotonic() < until + 0.2:
        time.sleep(0.01)
    peer.sendall(FRAME.pack(SELECTED, 0, 0))
    assert found.result(SOON)


@pytest.mark.parametrize("own", [3, 5])
def test_a_meeting_that_is_over_ends_at_once(make: Callable[[int], Rank], stack: ExitStack, own: int) -> None:
    rank = make(own)
    silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    began = time.monotonic()
    found = rank.meet((silent.getsockname(), "private"))
    threading.Timer(0.1, rank.guests.end).start()
    assert found.result(SOON) is None
    assert time.monotonic() - began < LATE


def test_a_meeting_leaves_no_file_open(make: Callable[[int], Rank]) -> None:
    """Many connections come about, and none is to the peer."""
    ranks = make(3), make(5)
    ranks[0].meeting = meeting_of(3, token=bytes(32))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for rank, other in (ranks, ranks[::-1]):
        rank.meet((other.local, "private"), (("127.0.0.1", 1), "punched"), seconds=0.3)
    for rank in ranks:
        assert rank.found
        assert rank.found.result(SOON) is None
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_which_pair_a_greeting_is_for() -> None:
    assert pair_of(greeting_of(3)) == PAIR
    assert pair_of(b"GET / HTTP/1.1\r\n".ljust(GREETING.size)) is None
