"""Channels and transfers: both ends of real sockets, each used by a thread of its own."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress

import numpy as np
import pytest

from fmi.channel import BEAT, BYE, DATA, FRAME, READ_AHEAD, Channel
from fmi.errors import CollectiveMismatch, DeadlinePassed, PeerLost
from fmi.shutdown import close_gracefully
from fmi.transfer import IncomingMessage, OutgoingMessage, transfer
from fmi.values import Buffer

TAG = 0x01000007
TIMEOUT = 20.0  # seconds, more than anything here takes
SILENCE_TIMEOUT = 0.4  # seconds, in tests of silent peers
MAX_DELAY = 2.0  # seconds within which any machine detects that
LARGE = 40 * 2**20  # bytes, more than the kernel buffers for a connection


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


@pytest.fixture(params=[tcp_pair, socket.socketpair], ids=["tcp", "unix"])
def make_pair(request: pytest.FixtureRequest) -> Callable[[], tuple[socket.socket, socket.socket]]:
    made: Callable[[], tuple[socket.socket, socket.socket]] = request.param
    return made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close what a test has opened."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def two_pairs(
    make_pair: Callable[[], tuple[socket.socket, socket.socket]], stack: ExitStack
) -> list[tuple[socket.socket, socket.socket]]:
    """Return connections of rank 0 to ranks 1 and 2, each with the other end."""
    pairs = [make_pair(), make_pair()]
    for own in (end for pair in pairs for end in pair):
        stack.enter_context(own)
    return pairs


@pytest.fixture
def ends(make_pair: Callable[[], tuple[socket.socket, socket.socket]], stack: ExitStack) -> tuple[Channel, Channel]:
    """Return the channel of rank 0 to rank 1, and that of rank 1 to rank 0."""
    one, other = map(stack.enter_context, make_pair())
    return Channel(one, 1, "private"), Channel(other, 0, "private")


@pytest.fixture
def alarm() -> Iterator[int]:
    file = os.eventfd(0, os.EFD_NONBLOCK)
    yield file
    os.close(file)


class Rank:
    """A rank, in a thread of its own."""

    def __init__(self, alarm: int, silence_timeout: float = TIMEOUT) -> None:
        self._alarm, self._silence_timeout = alarm, silence_timeout
        self._pool = ThreadPoolExecutor(1)

    def exchange(
        self,
        tag: int = TAG,
        *,
        dest: Channel | None = None,
        data: list[Buffer] | None = None,
        source: Channel | None = None,
        allocate: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size)),
        seconds: float = TIMEOUT,
    ) -> Future[memoryview | None]:
        """Send and receive at the same time; the result is the received message."""

        def run() -> memoryview | None:
            outgoing = OutgoingMessage(dest, tag, data or []) if dest else None
            incoming = IncomingMessage(source, tag, allocate) if source else None
            assert transfer(outgoing, incoming, self._alarm, time.monotonic() + seconds, self._silence_timeout)
            return incoming.body if incoming else None

        return self._pool.submit(run)


def random_bytes(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def received(result: Future[memoryview | None]) -> bytes:
    body = result.result(TIMEOUT)
    assert body is not None
    return bytes(body)


@pytest.mark.parametrize("size", [0, 1, READ_AHEAD - FRAME.size, READ_AHEAD, READ_AHEAD + 1, LARGE])
def test_both_ranks_send_at_the_same_time(ends: tuple[Channel, Channel], alarm: int, size: int) -> None:
    data = [random_bytes(size, seed) for seed in range(2)]
    results = [
        Rank(alarm).exchange(dest=end, data=[own], source=end) for end, own in zip(ends, data, strict=True)
    ]  # fmt: skip
    assert [received(result) for result in results] == data[::-1]


@pytest.mark.parametrize("ranks", [3, 5])
def test_a_ring_of_large_messages(
    make_pair: Callable[[], tuple[socket.socket, socket.socket]], stack: ExitStack, alarm: int, ranks: int
) -> None:
    pairs = [tuple(map(stack.enter_context, make_pair())) for _ in range(ranks)]  # between each rank and the next
    data = [random_bytes(LARGE // 4, rank) for rank in range(ranks)]
    results = [
        Rank(alarm).exchange(
            dest=Channel(pairs[rank][0], (rank + 1) % ranks, "private"),
            data=[data[rank]],
            source=Channel(pairs[rank - 1][1], (rank - 1) % ranks, "private"),
        )
        for rank in range(ranks)
    ]
    assert [received(result) for result in results] == [data[rank - 1] for rank in range(ranks)]


def test_messages_arrive_in_order_and_complete(ends: tuple[Channel, Channel], alarm: int) -> None:
    """Many small messages, which are read ahead, some large ones and empty ones."""
    sizes = [0, 1, 0, 3, 70_000, 0, 16, *range(200), READ_AHEAD, 0, 2 * READ_AHEAD + 5, 9]
    sender, receiver = Rank(alarm), Rank(alarm)
    there = [sender.exchange(tag, dest=ends[0], data=[random_bytes(size, size)]) for tag, size in enumerate(sizes)]
    back = [receiver.exchange(tag, source=ends[1]) for tag in range(len(sizes))]
    assert [received(result) for result in back] == [random_bytes(size, size) for size in sizes]
    assert [result.result(TIMEOUT) for result in there] == [None] * len(sizes)


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_many_buffers_are_one_message(ends: tuple[Channel, Channel], alarm: int, count: int) -> None:
    buffers: list[Buffer] = [random_bytes(number % 7, number) for number in range(count)]
    sent = Rank(alarm).exchange(dest=ends[0], data=buffers)
    assert received(Rank(alarm).exchange(source=ends[1])) == b"".join(buffers)
    assert sent.result(TIMEOUT) is None


def test_any_contiguous_memory_is_sent_without_a_copy(ends: tuple[Channel, Channel], alarm: int) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    buffers: list[Buffer] = [matrix.data, np.empty((0, 3)).data, bytearray(b"xyz"), memoryview(b"abcdef")[2:4]]
    place = bytearray(1000)

    def allocate(size: int) -> memoryview:
        return memoryview(place)[:size]

    sent = Rank(alarm).exchange(dest=ends[0], data=buffers)
    body = Rank(alarm).exchange(source=ends[1], allocate=allocate).result(TIMEOUT)
    assert body is not None
    assert body.obj is place
    assert bytes(body) == matrix.tobytes() + b"xyzcd"
    sent.result(TIMEOUT)


def test_sending_to_one_rank_and_receiving_from_another(
    two_pairs: list[tuple[socket.socket, socket.socket]], alarm: int
) -> None:
    """A rank receives from one peer while it sends to another one, which does not read yet."""
    (to_1, of_1), (to_2, of_2) = two_pairs
    large = random_bytes(LARGE, 1)
    sizes = []

    def allocate(size: int) -> memoryview:
        sizes.append(size)
        return memoryview(bytearray(size))

    middle = Rank(alarm).exchange(
        dest=Channel(to_1, 1, "private"), data=[large], source=Channel(to_2, 2, "private"), allocate=allocate
    )
    Rank(alarm).exchange(dest=Channel(of_2, 0, "private"), data=[b"first"]).result(TIMEOUT)
    deadline = time.monotonic() + TIMEOUT
    while not sizes:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not middle.done()
    assert received(Rank(alarm).exchange(source=Channel(of_1, 0, "private"))) == large
    assert received(middle) == b"first"


def test_heartbeats_between_frames(ends: tuple[Channel, Channel], alarm: int) -> None:
    """Another thread sends heartbeats all the time, also during messages that do not fit into the kernel's buffer."""
    done = threading.Event()

    def send_heartbeats() -> None:
        while not done.is_set():
            for end in ends:
                end.send_heartbeat()

    thread = threading.Thread(target=send_heartbeats)
    thread.start()
    try:
        ranks = [Rank(alarm), Rank(alarm)]
        for size in [0, 5, LARGE // 8, 1, LARGE // 8, 0] * 3:
            results = [rank.exchange(dest=end, data=[random_bytes(size, 1)], source=end) for rank, end in zip(ranks, ends, strict=True)]  # fmt: skip  # noqa: E501
            assert [received(result) for result in results] == [random_bytes(size, 1)] * 2
    finally:
        done.set()
        thread.join()


def test_heartbeats_fill_a_channel_that_is_not_read(ends: tuple[Channel, Channel], alarm: int) -> None:
    """The kernel accepts a part of the last heartbeat; the rest is sent before the next message."""
    ends[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ends[1].socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(500_000):
        ends[0].send_heartbeat()
    sent = Rank(alarm).exchange(dest=ends[0], data=[b"after all"])
    assert received(Rank(alarm).exchange(source=ends[1])) == b"after all"
    sent.result(TIMEOUT)


def test_a_rank_that_waits_for_another_still_sends_heartbeats(
    two_pairs: list[tuple[socket.socket, socket.socket]], alarm: int
) -> None:
    """It has sent its message to rank 1 and waits for rank 2; rank 1 must not count it as lost."""
    (to_1, of_1), (to_2, of_2) = two_pairs
    channel_to_1 = Channel(to_1, 1, "private")
    waiting = Rank(alarm).exchange(dest=channel_to_1, data=[b"x"], source=Channel(to_2, 2, "private"))
    of_1.settimeout(TIMEOUT)
    assert of_1.recv(100) == FRAME.pack(DATA, TAG, 1) + b"x"
    of_1.setblocking(False)
    deadline, received_data = time.monotonic() + TIMEOUT, b""
    while not received_data and time.monotonic() < deadline:
        channel_to_1.send_heartbeat()
        with suppress(BlockingIOError):
            received_data = of_1.recv(FRAME.size)
    assert received_data == FRAME.pack(BEAT, 0, 0)
    assert not waiting.done()
    Rank(alarm).exchange(dest=Channel(of_2, 0, "private"), data=[b"y"]).result(TIMEOUT)
    assert received(waiting) == b"y"


def test_a_peer_that_sends_heartbeats_may_be_slow(ends: tuple[Channel, Channel], alarm: int) -> None:
    """It does not count as lost, neither while receiving from it nor while sending to it."""
    data = random_bytes(LARGE, 1)
    waiting = Rank(alarm, SILENCE_TIMEOUT).exchange(dest=ends[0], data=[data], source=ends[0])
    until = time.monotonic() + 3 * SILENCE_TIMEOUT
    while time.monotonic() < until:
        ends[1].send_heartbeat()
        time.sleep(SILENCE_TIMEOUT / 10)
    result = Rank(alarm).exchange(dest=ends[1], data=[b"here"], source=ends[1])
    assert received(waiting) == b"here"
    assert received(result) == data


@pytest.mark.parametrize("sends", [False, True])
def test_a_silent_peer_is_lost_after_the_silence_timeout(
    ends: tuple[Channel, Channel], alarm: int, sends: bool
) -> None:
    began = time.monotonic()
    ends[1].send_heartbeat()
    rank = Rank(alarm, SILENCE_TIMEOUT)
    result = rank.exchange(dest=ends[0], data=[bytes(LARGE)]) if sends else rank.exchange(source=ends[0])
    with pytest.raises(PeerLost, match=r"rank 1 was silent for 0\.4 s \(private\)") as caught:
        result.result(TIMEOUT)
    assert caught.value.rank == 1
    assert SILENCE_TIMEOUT <= time.monotonic() - began < MAX_DELAY


def test_a_silent_source_is_lost_during_a_large_outgoing_message(
    two_pairs: list[tuple[socket.socket, socket.socket]], alarm: int
) -> None:
    """Progress with one peer does not hide that the other one is silent."""
    (to_1, of_1), (to_2, _) = two_pairs
    done = threading.Event()

    def drain() -> None:
        with suppress(OSError):  # at the end, since not everything is read and the socket is closed
            while not done.is_set() and of_1.recv(2**12):
                Channel(of_1, 0, "private").send_heartbeat()
                of_1.setblocking(True)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    result = Rank(alarm, SILENCE_TIMEOUT).exchange(
        dest=Channel(to_1, 1, "private"), data=[bytes(2**30)], source=Channel(to_2, 2, "private")
    )
    with pytest.raises(PeerLost, match="rank 2 was silent"):
        result.result(MAX_DELAY + SILENCE_TIMEOUT)
    done.set()


@pytest.mark.parametrize("sends", [False, True])
def test_a_closed_peer_is_lost_at_once(ends: tuple[Channel, Channel], alarm: int, sends: bool) -> None:
    began = time.monotonic()
    rank = Rank(alarm)
    result = rank.exchange(dest=ends[0], data=[bytes(LARGE)]) if sends else rank.exchange(source=ends[0])
    ends[1].close()
    with pytest.raises(PeerLost, match=r"rank 1 is lost \(.*; private\)"):
        result.result(TIMEOUT)
    assert time.monotonic() - began < MAX_DELAY


def test_messages_sent_before_the_end_are_received(ends: tuple[Channel, Channel], alarm: int) -> None:
    sender = Rank(alarm)
    sender.exchange(1, dest=ends[0], data=[b"one"]).result(TIMEOUT)
    sender.exchange(2, dest=ends[0], data=[b"two"]).result(TIMEOUT)
    ends[0].close()
    receiver = Rank(alarm)
    assert received(receiver.exchange(1, source=ends[1])) == b"one"
    assert received(receiver.exchange(2, source=ends[1])) == b"two"
    with pytest.raises(PeerLost, match="it has closed the connection"):
        receiver.exchange(3, source=ends[1]).result(TIMEOUT)


def test_leaving_is_announced(ends: tuple[Channel, Channel], alarm: int) -> None:
    Rank(alarm).exchange(dest=ends[0], data=[b"the last"]).result(TIMEOUT)
    ends[1].send_heartbeat()  # not read before rank 0 leaves
    leaving = threading.Thread(
        target=close_gracefully, args=([ends[0].begin_close()], TIMEOUT, time.monotonic() + TIMEOUT)
    )
    leaving.start()
    receiver = Rank(alarm)
    assert received(receiver.exchange(source=ends[1])) == b"the last"
    with pytest.raises(PeerLost, match="rank 0 has left"):
        receiver.exchange(source=ends[1]).result(TIMEOUT)
    leaving.join(TIMEOUT)
    ends[0].send_heartbeat()  # has no effect
    assert ends[0].fileno() == -1


@pytest.mark.parametrize("size", [5, 4 * 2**20])
def test_the_last_message_is_not_lost(stack: ExitStack, alarm: int, size: int) -> None:
    """It arrives although the peer's heartbeats are not read and the peer is slow."""
    for _ in range(20):
        pair = tcp_pair()
        one, other = Channel(stack.enter_context(pair[0]), 1, "private"), Channel(stack.enter_context(pair[1]), 0, "private")  # fmt: skip  # noqa: E501
        other.send_heartbeat()
        data = random_bytes(size, size)
        sent = Rank(alarm).exchange(dest=one, data=[data])

        def leave(sent: Future[memoryview | None] = sent, one: Channel = one) -> None:
            sent.result(TIMEOUT)
            close_gracefully([one.begin_close()], TIMEOUT, time.monotonic() + TIMEOUT)

        leaving = threading.Thread(target=leave)
        leaving.start()
        other.send_heartbeat()
        assert received(Rank(alarm).exchange(source=other)) == data
        leaving.join(TIMEOUT)


def test_leaving_is_limited_in_time(alarm: int, stack: ExitStack) -> None:
    """A peer that does not read is waited for until the silence timeout, or until the deadline."""
    one, other = tcp_pair()
    stack.enter_context(other)
    channel = Channel(one, 1, "private")
    with pytest.raises(DeadlinePassed):
        Rank(alarm).exchange(dest=channel, data=[bytes(LARGE)], seconds=0.1).result(TIMEOUT)
    began = time.monotonic()
    close_gracefully([channel.begin_close()], SILENCE_TIMEOUT, began + TIMEOUT)
    assert SILENCE_TIMEOUT <= time.monotonic() - began < MAX_DELAY
    assert one.fileno() == -1

    one, other = tcp_pair()
    stack.enter_context(other)
    channel = Channel(one, 1, "private")
    with pytest.raises(DeadlinePassed):
        Rank(alarm).exchange(dest=channel, data=[bytes(LARGE)], seconds=0.1).result(TIMEOUT)
    began = time.monotonic()
    close_gracefully([channel.begin_close()], TIMEOUT, began + 0.2)
    assert 0.2 <= time.monotonic() - began < MAX_DELAY


def test_another_tag_is_a_mismatch(ends: tuple[Channel, Channel], alarm: int) -> None:
    Rank(alarm).exchange(0x02000001, dest=ends[0], data=[b"x"]).result(TIMEOUT)
    expected = r"rank 0 is in another collective operation \(its message is 0x2000001, expected 0x3000001\)"
    with pytest.raises(CollectiveMismatch, match=expected):
        Rank(alarm).exchange(0x03000001, source=ends[1]).result(TIMEOUT)


@pytest.mark.parametrize("sends", [False, True])
def test_the_deadline(ends: tuple[Channel, Channel], alarm: int, sends: bool) -> None:
    began = time.monotonic()
    rank = Rank(alarm)
    large = [bytes(LARGE)]
    result = (
        rank.exchange(dest=ends[0], data=[*large], seconds=0.2) if sends else rank.exchange(source=ends[0], seconds=0.2)
    )
    with pytest.raises(DeadlinePassed, match="before rank 1 completed its part"):
        result.result(TIMEOUT)
    assert 0.2 <= time.monotonic() - began < MAX_DELAY


def test_the_deadline_applies_while_bytes_trickle_in(ends: tuple[Channel, Channel], alarm: int) -> None:
    done = threading.Event()
    ends[0].socket.setblocking(True)
    ends[0].socket.send(FRAME.pack(DATA, TAG, 10**6))

    def trickle() -> None:
        while not done.wait(0.005):
            ends[0].socket.send(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    began = time.monotonic()
    with pytest.raises(DeadlinePassed):
        Rank(alarm).exchange(source=ends[1], seconds=0.3).result(TIMEOUT)
    assert 0.3 <= time.monotonic() - began < MAX_DELAY
    done.set()
    thread.join()


def test_available_data_is_received_after_the_deadline(ends: tuple[Channel, Channel], alarm: int) -> None:
    Rank(alarm).exchange(dest=ends[0], data=[b"in time"]).result(TIMEOUT)
    assert received(Rank(alarm).exchange(source=ends[1], seconds=-1)) == b"in time"


def test_nothing_is_sent_after_a_part_of_a_message(ends: tuple[Channel, Channel], alarm: int) -> None:
    """A heartbeat would be read as a part of the message."""
    with pytest.raises(DeadlinePassed):
        Rank(alarm).exchange(dest=ends[0], data=[bytes(LARGE)], seconds=0.2).result(TIMEOUT)
    ends[1].socket.settimeout(0.2)
    size = 0
    with pytest.raises(TimeoutError):
        while True:
            ends[0].send_heartbeat()
            data = ends[1].socket.recv(2**20)
            assert not data[FRAME.size * (size == 0) :].strip(b"\0")
            size += len(data)
    assert FRAME.size < size < LARGE


@pytest.mark.parametrize("cut", [1, FRAME.size - 1, FRAME.size, FRAME.size + 5, READ_AHEAD + FRAME.size + 3])
def test_an_incomplete_frame(ends: tuple[Channel, Channel], alarm: int, cut: int) -> None:
    """The rest arrives later, or the peer is lost."""
    data = random_bytes(2 * READ_AHEAD, 3)
    frame = FRAME.pack(DATA, TAG, len(data)) + data
    ends[0].socket.setblocking(True)
    for first in (True, False):
        result = Rank(alarm).exchange(source=ends[1])
        ends[0].socket.sendall(frame[:cut])
        assert not result.done()
        if first:
            ends[0].socket.sendall(frame[cut:])
            assert received(result) == data
        else:
            ends[0].socket.close()
            with pytest.raises(PeerLost, match="it has closed the connection"):
                result.result(TIMEOUT)


def test_frames_in_pieces_of_one_byte(ends: tuple[Channel, Channel], alarm: int) -> None:
    stream = b"".join(
        [FRAME.pack(BEAT, 0, 0), FRAME.pack(DATA, TAG, 3), b"abc", FRAME.pack(BEAT, 0, 0), FRAME.pack(DATA, TAG, 0)]
    )
    receiver = Rank(alarm)
    results = [receiver.exchange(source=ends[1]) for _ in range(2)]
    ends[0].socket.setblocking(True)
    for byte in stream:
        ends[0].socket.sendall(bytes([byte]))
        time.sleep(0.0005)
    assert [received(result) for result in results] == [b"abc", b""]


@pytest.mark.parametrize("kind", [0, 4, 9, 255])
def test_an_unknown_kind_of_frame(ends: tuple[Channel, Channel], alarm: int, kind: int) -> None:
    ends[0].socket.send(struct.pack(">B3xIQ", kind, 0, 0))
    with pytest.raises(PeerLost, match=f"rank 0 sent a frame of the unknown kind {kind}"):
        Rank(alarm).exchange(source=ends[1]).result(TIMEOUT)


def test_an_error_of_the_allocation_is_raised(ends: tuple[Channel, Channel], alarm: int) -> None:
    def allocate(size: int) -> memoryview:
        raise MemoryError(f"{size} bytes")

    Rank(alarm).exchange(dest=ends[0], data=[bytes(1000)]).result(TIMEOUT)
    with pytest.raises(MemoryError, match="1000 bytes"):
        Rank(alarm).exchange(source=ends[1], allocate=allocate).result(TIMEOUT)


def test_an_alarm_ends_a_transfer(ends: tuple[Channel, Channel], alarm: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        incoming = IncomingMessage(ends[0], TAG, lambda size: memoryview(bytearray(size)))
        waiting = pool.submit(transfer, None, incoming, alarm, time.monotonic() + TIMEOUT, TIMEOUT)
        os.eventfd_write(alarm, 1)
        assert waiting.result(TIMEOUT) is False


def test_an_aborted_channel_is_lost_at_both_ends(ends: tuple[Channel, Channel], alarm: int) -> None:
    results = [Rank(alarm).exchange(source=end) for end in ends]
    ends[0].abort()
    for result in results:
        with pytest.raises(PeerLost, match="it has closed the connection"):
            result.result(TIMEOUT)


def test_the_bytes_of_frames() -> None:
    assert [FRAME.pack(kind, 0, 0).hex() for kind in (BEAT, BYE)] == ["02" + "00" * 15, "03" + "00" * 15]
    assert FRAME.pack(DATA, TAG, 3).hex() == "01000000010000070000000000000003"
