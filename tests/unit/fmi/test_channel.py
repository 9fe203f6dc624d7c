"""Channels: two ends of real sockets, each used by a thread of its own."""

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

from fmi.channel import AHEAD, BEAT, BYE, DATA, FRAME, Channel, Incoming, Outgoing, transfer
from fmi.errors import DeadlinePassed, Disagreement, PeerLost
from fmi.shutdown import part
from fmi.values import Buffer

TAG = 0x01000007
SOON = 20.0  # seconds that nothing here takes
PATIENCE = 0.4  # seconds, where a peer is to be found silent
LATE = 2.0  # seconds in which this machine certainly finds that out
LARGE = 40 * 2**20  # bytes, more than the kernel keeps of a connection


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
    """Closes what a test has opened."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def two_pairs(
    make_pair: Callable[[], tuple[socket.socket, socket.socket]], stack: ExitStack
) -> list[tuple[socket.socket, socket.socket]]:
    """Connections of rank 0 to ranks 1 and 2, each with the other end."""
    pairs = [make_pair(), make_pair()]
    for own in (end for pair in pairs for end in pair):
        stack.enter_context(own)
    return pairs


@pytest.fixture
def ends(make_pair: Callable[[], tuple[socket.socket, socket.socket]], stack: ExitStack) -> tuple[Channel, Channel]:
    """The channel of rank 0 to rank 1, and that of rank 1 to rank 0."""
    one, other = map(stack.enter_context, make_pair())
    return Channel(one, 1, "private"), Channel(other, 0, "private")


@pytest.fixture
def alarm() -> Iterator[int]:
    file = os.eventfd(0, os.EFD_NONBLOCK)
    yield file
    os.close(file)


class Rank:
    """What a rank does, in a thread of its own."""

    def __init__(self, alarm: int, patience: float = SOON) -> None:
        self._alarm, self._patience = alarm, patience
        self._pool = ThreadPoolExecutor(1)

    def exchange(
        self,
        tag: int = TAG,
        *,
        to: Channel | None = None,
        sent: list[Buffer] | None = None,
        source: Channel | None = None,
        room: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size)),
        seconds: float = SOON,
    ) -> Future[memoryview | None]:
        """Sends and receives at once; the result is what was received."""

        def run() -> memoryview | None:
            outgoing = Outgoing(to, tag, sent or []) if to else None
            incoming = Incoming(source, tag, room) if source else None
            assert transfer(outgoing, incoming, self._alarm, time.monotonic() + seconds, self._patience)
            return incoming.body if incoming else None

        return self._pool.submit(run)


def noise(size: int, seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def received(result: Future[memoryview | None]) -> bytes:
    body = result.result(SOON)
    assert body is not None
    return bytes(body)


@pytest.mark.parametrize("size", [0, 1, AHEAD - FRAME.size, AHEAD, AHEAD + 1, LARGE])
def test_both_send_at_once(ends: tuple[Channel, Channel], alarm: int, size: int) -> None:
    data = [noise(size, seed) for seed in range(2)]
    results = [
        Rank(alarm).exchange(to=end, sent=[own], source=end) for end, own in zip(ends, data, strict=True)
    ]  # fmt: skip
    assert [received(result) for result in results] == data[::-1]


@pytest.mark.parametrize("ranks", [3, 5])
def test_a_ring_of_large_messages(
    make_pair: Callable[[], tuple[socket.socket, socket.socket]], stack: ExitStack, alarm: int, ranks: int
) -> None:
    pairs = [tuple(map(stack.enter_context, make_pair())) for _ in range(ranks)]  # of each rank and the next
    data = [noise(LARGE // 4, rank) for rank in range(ranks)]
    results = [
        Rank(alarm).exchange(
            to=Channel(pairs[rank][0], (rank + 1) % ranks, "private"),
            sent=[data[rank]],
            source=Channel(pairs[rank - 1][1], (rank - 1) % ranks, "private"),
        )
        for rank in range(ranks)
    ]
    assert [received(result) for result in results] == [data[rank - 1] for rank in range(ranks)]


def test_messages_arrive_in_order_and_whole(ends: tuple[Channel, Channel], alarm: int) -> None:
    """Many small and some large ones, of which many are read ahead, and empty ones."""
    sizes = [0, 1, 0, 3, 70_000, 0, 16, *range(200), AHEAD, 0, 2 * AHEAD + 5, 9]
    sender, receiver = Rank(alarm), Rank(alarm)
    there = [sender.exchange(tag, to=ends[0], sent=[noise(size, size)]) for tag, size in enumerate(sizes)]
    back = [receiver.exchange(tag, source=ends[1]) for tag in range(len(sizes))]
    assert [received(result) for result in back] == [noise(size, size) for size in sizes]
    assert [result.result(SOON) for result in there] == [None] * len(sizes)


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 5000])
def test_many_buffers_are_one_message(ends: tuple[Channel, Channel], alarm: int, count: int) -> None:
    buffers: list[Buffer] = [noise(number % 7, number) for number in range(count)]
    sent = Rank(alarm).exchange(to=ends[0], sent=buffers)
    assert received(Rank(alarm).exchange(source=ends[1])) == b"".join(buffers)
    assert sent.result(SOON) is None


def test_any_contiguous_memory_is_sent_and_none_is_copied(ends: tuple[Channel, Channel], alarm: int) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    buffers: list[Buffer] = [matrix.data, np.empty((0, 3)).data, bytearray(b"xyz"), memoryview(b"abcdef")[2:4]]
    place = bytearray(1000)

    def room(size: int) -> memoryview:
        return memoryview(place)[:size]

    sent = Rank(alarm).exchange(to=ends[0], sent=buffers)
    body = Rank(alarm).exchange(source=ends[1], room=room).result(SOON)
    assert body is not None
    assert body.obj is place
    assert bytes(body) == matrix.tobytes() + b"xyzcd"
    sent.result(SOON)


def test_to_one_and_from_another(two_pairs: list[tuple[socket.socket, socket.socket]], alarm: int) -> None:
    """While it sends to a rank that does not take it, a rank receives from another."""
    (to_1, of_1), (to_2, of_2) = two_pairs
    large = noise(LARGE, 1)
    got = []

    def room(size: int) -> memoryview:
        got.append(size)
        return memoryview(bytearray(size))

    middle = Rank(alarm).exchange(
        to=Channel(to_1, 1, "private"), sent=[large], source=Channel(to_2, 2, "private"), room=room
    )
    Rank(alarm).exchange(to=Channel(of_2, 0, "private"), sent=[b"first"]).result(SOON)
    deadline = time.monotonic() + SOON
    while not got:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not middle.done()
    assert received(Rank(alarm).exchange(source=Channel(of_1, 0, "private"))) == large
    assert received(middle) == b"first"


def test_signs_of_life_between_frames(ends: tuple[Channel, Channel], alarm: int) -> None:
    """From another thread, as often as it can, in the midst of messages that do not fit into the kernel."""
    done = threading.Event()

    def beat() -> None:
        while not done.is_set():
            for end in ends:
                end.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        ranks = [Rank(alarm), Rank(alarm)]
        for size in [0, 5, LARGE // 8, 1, LARGE // 8, 0] * 3:
            results = [rank.exchange(to=end, sent=[noise(size, 1)], source=end) for rank, end in zip(ranks, ends, strict=True)]  # fmt: skip  # noqa: E501
            assert [received(result) for result in results] == [noise(size, 1)] * 2
    finally:
        done.set()
        thread.join()


def test_signs_of_life_fill_a_channel_that_nobody_reads(ends: tuple[Channel, Channel], alarm: int) -> None:
    """More than the kernel takes: what has gone of the last one is finished before the next message."""
    ends[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ends[1].socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(500_000):
        ends[0].beat()
    sent = Rank(alarm).exchange(to=ends[0], sent=[b"after all"])
    assert received(Rank(alarm).exchange(source=ends[1])) == b"after all"
    sent.result(SOON)


def test_a_rank_that_waits_for_another_still_gives_signs_of_life(
    two_pairs: list[tuple[socket.socket, socket.socket]], alarm: int
) -> None:
    """It has sent its message to rank 1 and waits for rank 2; rank 1 must not take it for dead."""
    (to_1, of_1), (to_2, of_2) = two_pairs
    channel_to_1 = Channel(to_1, 1, "private")
    waiting = Rank(alarm).exchange(to=channel_to_1, sent=[b"x"], source=Channel(to_2, 2, "private"))
    of_1.settimeout(SOON)
    assert of_1.recv(100) == FRAME.pack(DATA, TAG, 1) + b"x"
    of_1.setblocking(False)
    deadline, came = time.monotonic() + SOON, b""
    while not came and time.monotonic() < deadline:
        channel_to_1.beat()
        with suppress(BlockingIOError):
            came = of_1.recv(FRAME.size)
    assert came == FRAME.pack(BEAT, 0, 0)
    assert not waiting.done()
    Rank(alarm).exchange(to=Channel(of_2, 0, "private"), sent=[b"y"]).result(SOON)
    assert received(waiting) == b"y"


def test_a_peer_that_lives_may_be_slow(ends: tuple[Channel, Channel], alarm: int) -> None:
    """Neither who waits for its message nor who cannot send to it takes it for dead, so long as it gives signs."""
    data = noise(LARGE, 1)
    waiting = Rank(alarm, PATIENCE).exchange(to=ends[0], sent=[data], source=ends[0])
    until = time.monotonic() + 3 * PATIENCE
    while time.monotonic() < until:
        ends[1].beat()
        time.sleep(PATIENCE / 10)
    result = Rank(alarm).exchange(to=ends[1], sent=[b"here"], source=ends[1])
    assert received(waiting) == b"here"
    assert received(result) == data


@pytest.mark.parametrize("sends", [False, True])
def test_a_silent_peer_is_lost_within_the_patience(ends: tuple[Channel, Channel], alarm: int, sends: bool) -> None:
    began = time.monotonic()
    ends[1].beat()
    rank = Rank(alarm, PATIENCE)
    result = rank.exchange(to=ends[0], sent=[bytes(LARGE)]) if sends else rank.exchange(source=ends[0])
    with pytest.raises(PeerLost, match=r"rank 1 was silent for 0\.4 s \(private\)") as caught:
        result.result(SOON)
    assert caught.value.rank == 1
    assert PATIENCE <= time.monotonic() - began < LATE


def test_a_silent_source_is_lost_while_there_is_much_to_send(
    two_pairs: list[tuple[socket.socket, socket.socket]], alarm: int
) -> None:
    """That something goes on with one does not hide that the other is silent."""
    (to_1, of_1), (to_2, _) = two_pairs
    done = threading.Event()

    def drain() -> None:
        with suppress(ConnectionResetError):  # at the end, as not all that was sent is read
            while not done.is_set() and of_1.recv(2**12):
                Channel(of_1, 0, "private").beat()
                of_1.setblocking(True)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    result = Rank(alarm, PATIENCE).exchange(
        to=Channel(to_1, 1, "private"), sent=[bytes(2**30)], source=Channel(to_2, 2, "private")
    )
    with pytest.raises(PeerLost, match="rank 2 was silent"):
        result.result(LATE + PATIENCE)
    done.set()


@pytest.mark.parametrize("sends", [False, True])
def test_a_closed_peer_is_lost_at_once(ends: tuple[Channel, Channel], alarm: int, sends: bool) -> None:
    began = time.monotonic()
    rank = Rank(alarm)
    result = rank.exchange(to=ends[0], sent=[bytes(LARGE)]) if sends else rank.exchange(source=ends[0])
    ends[1].close()
    with pytest.raises(PeerLost, match=r"rank 1 is gone \(.*; private\)"):
        result.result(SOON)
    assert time.monotonic() - began < LATE


def test_what_came_before_the_end_is_received(ends: tuple[Channel, Channel], alarm: int) -> None:
    sender = Rank(alarm)
    sender.exchange(1, to=ends[0], sent=[b"one"]).result(SOON)
    sender.exchange(2, to=ends[0], sent=[b"two"]).result(SOON)
    ends[0].close()
    receiver = Rank(alarm)
    assert received(receiver.exchange(1, source=ends[1])) == b"one"
    assert received(receiver.exchange(2, source=ends[1])) == b"two"
    with pytest.raises(PeerLost, match="it has closed the connection"):
        receiver.exchange(3, source=ends[1]).result(SOON)


def test_who_leaves_says_so(ends: tuple[Channel, Channel], alarm: int) -> None:
    Rank(alarm).exchange(to=ends[0], sent=[b"the last"]).result(SOON)
    ends[1].beat()  # which nobody has read when it leaves
    leaving = threading.Thread(target=part, args=([ends[0].farewell()], SOON, time.monotonic() + SOON))
    leaving.start()
    receiver = Rank(alarm)
    assert received(receiver.exchange(source=ends[1])) == b"the last"
    with pytest.raises(PeerLost, match="rank 0 has left"):
        receiver.exchange(source=ends[1]).result(SOON)
    leaving.join(SOON)
    ends[0].beat()  # does nothing any more
    assert ends[0].fileno() == -1


@pytest.mark.parametrize("size", [5, 4 * 2**20])
def test_the_last_message_is_not_lost(stack: ExitStack, alarm: int, size: int) -> None:
    """Though the peer's signs of life come and are not read, and the peer takes its time."""
    for _ in range(20):
        pair = tcp_pair()
        one, other = Channel(stack.enter_context(pair[0]), 1, "private"), Channel(stack.enter_context(pair[1]), 0, "private")  # fmt: skip  # noqa: E501
        other.beat()
        data = noise(size, size)
        sent = Rank(alarm).exchange(to=one, sent=[data])

        def leave(sent: Future[memoryview | None] = sent, one: Channel = one) -> None:
            sent.result(SOON)
            part([one.farewell()], SOON, time.monotonic() + SOON)

        leaving = threading.Thread(target=leave)
        leaving.start()
        other.beat()
        assert received(Rank(alarm).exchange(source=other)) == data
        leaving.join(SOON)


def test_nobody_waits_for_ever_to_leave(alarm: int, stack: ExitStack) -> None:
    """The peer lives and takes nothing until the deadline; or it is silent, and then the patience is enough."""
    one, other = tcp_pair()
    stack.enter_context(other)
    channel = Channel(one, 1, "private")
    with pytest.raises(DeadlinePassed):
        Rank(alarm).exchange(to=channel, sent=[bytes(LARGE)], seconds=0.1).result(SOON)
    began = time.monotonic()
    part([channel.farewell()], PATIENCE, began + SOON)
    assert PATIENCE <= time.monotonic() - began < LATE
    assert one.fileno() == -1

    one, other = tcp_pair()
    stack.enter_context(other)
    channel = Channel(one, 1, "private")
    with pytest.raises(DeadlinePassed):
        Rank(alarm).exchange(to=channel, sent=[bytes(LARGE)], seconds=0.1).result(SOON)
    began = time.monotonic()
    part([channel.farewell()], SOON, began + 0.2)
    assert 0.2 <= time.monotonic() - began < LATE


def test_another_tag_is_a_disagreement(ends: tuple[Channel, Channel], alarm: int) -> None:
    Rank(alarm).exchange(0x02000001, to=ends[0], sent=[b"x"]).result(SOON)
    expected = r"rank 0 is in another collective operation \(its message is 0x2000001, expected 0x3000001\)"
    with pytest.raises(Disagreement, match=expected):
        Rank(alarm).exchange(0x03000001, source=ends[1]).result(SOON)


@pytest.mark.parametrize("sends", [False, True])
def test_the_deadline(ends: tuple[Channel, Channel], alarm: int, sends: bool) -> None:
    began = time.monotonic()
    rank = Rank(alarm)
    large = [bytes(LARGE)]
    result = (
        rank.exchange(to=ends[0], sent=[*large], seconds=0.2) if sends else rank.exchange(source=ends[0], seconds=0.2)
    )
    with pytest.raises(DeadlinePassed, match="before rank 1 had done its part"):
        result.result(SOON)
    assert 0.2 <= time.monotonic() - began < LATE


def test_the_deadline_holds_while_bytes_trickle_in(ends: tuple[Channel, Channel], alarm: int) -> None:
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
        Rank(alarm).exchange(source=ends[1], seconds=0.3).result(SOON)
    assert 0.3 <= time.monotonic() - began < LATE
    done.set()
    thread.join()


def test_after_the_deadline_what_is_there_is_still_taken(ends: tuple[Channel, Channel], alarm: int) -> None:
    Rank(alarm).exchange(to=ends[0], sent=[b"in time"]).result(SOON)
    assert received(Rank(alarm).exchange(source=ends[1], seconds=-1)) == b"in time"


def test_after_half_a_message_nothing_else_is_sent(ends: tuple[Channel, Channel], alarm: int) -> None:
    """A sign of life within it would be taken for its contents."""
    with pytest.raises(DeadlinePassed):
        Rank(alarm).exchange(to=ends[0], sent=[bytes(LARGE)], seconds=0.2).result(SOON)
    ends[1].socket.settimeout(0.2)
    came = 0
    with pytest.raises(TimeoutError):
        while True:
            ends[0].beat()
            data = ends[1].socket.recv(2**20)
            assert not data[FRAME.size * (came == 0) :].strip(b"\0")
            came += len(data)
    assert FRAME.size < came < LARGE


@pytest.mark.parametrize("cut", [1, FRAME.size - 1, FRAME.size, FRAME.size + 5, AHEAD + FRAME.size + 3])
def test_half_a_frame(ends: tuple[Channel, Channel], alarm: int, cut: int) -> None:
    """What is missing of it comes later, or the peer is lost."""
    data = noise(2 * AHEAD, 3)
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
                result.result(SOON)


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
def test_a_frame_that_there_is_not(ends: tuple[Channel, Channel], alarm: int, kind: int) -> None:
    ends[0].socket.send(struct.pack(">B3xIQ", kind, 0, 0))
    with pytest.raises(PeerLost, match=f"rank 0 sends a frame of kind {kind}, which there is not"):
        Rank(alarm).exchange(source=ends[1]).result(SOON)


def test_a_room_that_raises_is_told(ends: tuple[Channel, Channel], alarm: int) -> None:
    def room(size: int) -> memoryview:
        raise MemoryError(f"{size} bytes")

    Rank(alarm).exchange(to=ends[0], sent=[bytes(1000)]).result(SOON)
    with pytest.raises(MemoryError, match="1000 bytes"):
        Rank(alarm).exchange(source=ends[1], room=room).result(SOON)


def test_an_alarm_ends_the_waiting(ends: tuple[Channel, Channel], alarm: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        incoming = Incoming(ends[0], TAG, lambda size: memoryview(bytearray(size)))
        waiting = pool.submit(transfer, None, incoming, alarm, time.monotonic() + SOON, SOON)
        os.eventfd_write(alarm, 1)
        assert waiting.result(SOON) is False


def test_a_cut_channel_is_lost_at_both_ends(ends: tuple[Channel, Channel], alarm: int) -> None:
    results = [Rank(alarm).exchange(source=end) for end in ends]
    ends[0].cut()
    for result in results:
        with pytest.raises(PeerLost, match="it has closed the connection"):
            result.result(SOON)


def test_bytes_of_the_frames() -> None:
    assert [FRAME.pack(kind, 0, 0).hex() for kind in (BEAT, BYE)] == ["02" + "00" * 15, "03" + "00" * 15]
    assert FRAME.pack(DATA, TAG, 3).hex() == "01000000010000070000000000000003"
