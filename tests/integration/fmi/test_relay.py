"""Relays between two ranks through the server, and how they end."""

from __future__ import annotations

import asyncio
import random
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fmi import messages
from fmi.messages import encode
from fmi.relay import DISCONNECTED, LIMIT_REACHED, relay
from fmi.shutdown import GracefulClose, close_gracefully
from support.rendezvous import TIMEOUT, Server
from support.rendezvous_clients import (
    RawClient,
    checked_server,
    joined_ranks,
    memory,
    open_files,
    relayed_ends,
    request_relay,
)

MEMORY = 4 * 2**20  # bytes of memory that a relay may cost if the receiver does not read


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with checked_server() as running:
        yield running


def reset(own: socket.socket) -> None:
    """Reset a connection, as a crash does."""
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    own.close()


def failure(control: RawClient) -> str:
    """Return the reason why a rank's relay has failed."""
    failed = control.receive()
    assert isinstance(failed, messages.Failed), failed
    return failed.why


# ---- Data ----


def test_each_end_receives_what_the_other_sends(server: Server) -> None:
    with joined_ranks(server, "both", 2) as (low, high), relayed_ends(server, "both", low, high) as (one, other):
        for number in range(100):
            one.socket.sendall(b"there%d" % number)
            assert other.receive_bytes(len(b"there%d" % number)) == b"there%d" % number
            other.socket.sendall(b"back")
            assert one.receive_bytes(4) == b"back"
        server.await_event("relaying", job="both", ranks=[0, 1])


def test_large_data_in_both_directions_arrives_unchanged(server: Server) -> None:
    sent = [random.Random(number).randbytes(20_000_000) for number in range(2)]
    with joined_ranks(server, "much", 2) as (low, high), relayed_ends(server, "much", low, high) as ends:
        senders = [
            threading.Thread(target=end.socket.sendall, args=(data,)) for end, data in zip(ends, sent, strict=True)
        ]
        received: list[bytes] = [b"", b""]

        def receive(number: int) -> None:
            received[number] = ends[number].receive_bytes(20_000_000)

        receivers = [threading.Thread(target=receive, args=(number,)) for number in range(2)]
        for thread in (*senders, *receivers):
            thread.start()
        for thread in (*senders, *receivers):
            thread.join()
    assert received == sent[::-1]


def test_one_end_may_finish_sending_before_the_other(server: Server) -> None:
    with joined_ranks(server, "half", 2) as (low, high), relayed_ends(server, "half", low, high) as (one, other):
        one.socket.sendall(b"all")
        one.socket.shutdown(socket.SHUT_WR)
        assert other.receive_bytes(10) == b"all"
        other.socket.sendall(b"more")
        other.socket.shutdown(socket.SHUT_WR)
        assert one.receive_bytes(10) == b"more"
        assert server.await_event("relayed", job="half")["why"] == ""
        for control in (low, high):
            assert control.request(messages.Ping(1)) == messages.Pong(1)  # without a FAILED before


def test_an_end_that_has_finished_sending_may_disconnect(server: Server) -> None:
    with joined_ranks(server, "goes", 2) as (low, high), relayed_ends(server, "goes", low, high) as (one, other):
        one.socket.sendall(b"bye")
        one.socket.shutdown(socket.SHUT_WR)
        assert other.receive_bytes(10) == b"bye"
        reset(one.socket)
        other.socket.sendall(b"a heartbeat, which arrives at a closed connection")
        other.socket.shutdown(socket.SHUT_WR)
        assert server.await_event("relayed", job="goes")["why"] == ""
        assert high.request(messages.Ping(1)) == messages.Pong(1)


def test_data_of_a_closed_end_arrives_while_the_other_end_still_sends(server: Server) -> None:
    """If the server closed a connection with unread data, the data that it still has to deliver would be lost."""
    data = random.Random(2).randbytes(2**20)
    with joined_ranks(server, "late", 2) as (low, high), relayed_ends(server, "late", low, high) as (one, other):
        one.socket.sendall(data)
        # Returns when the server's kernel has received everything.
        close_gracefully([GracefulClose(one.socket, b"")], TIMEOUT, time.monotonic() + TIMEOUT)
        for _ in range(100):
            other.socket.sendall(b"a heartbeat")
            assert high.request(messages.Ping(1)) == messages.Pong(1)  # the server has received it
        assert other.receive_bytes(len(data) + 1) == data


def test_an_end_that_does_not_read_blocks_the_sender(server: Server) -> None:
    before, data = memory(server), random.Random(1).randbytes(2**20)
    with joined_ranks(server, "slow", 2) as (low, high), relayed_ends(server, "slow", low, high) as (one, other):
        sent = 0
        one.socket.setblocking(False)
        while select.select([], [one.socket], [], 0.3)[1]:
            sent += one.socket.send(data[sent % len(data) :])
        assert sent < 2**26
        assert memory(server) - before < MEMORY
        assert low.request(messages.Ping(1)) == messages.Pong(1)
        received = other.receive_bytes(sent)
    assert received == (data * (sent // len(data) + 1))[:sent]


def test_a_relay_closes_its_files(server: Server) -> None:
    with joined_ranks(server, "files", 2) as (low, high):
        with relayed_ends(server, "files", low, high) as (one, other):
            one.socket.sendall(b"x")
            assert other.receive_bytes(1) == b"x"
            before = open_files(server)
        server.await_event("relayed", job="files")
        assert open_files(server) <= before - 4  # the pipes; the connections may still be open
        assert high.request(messages.Ping(1)) == messages.Pong(1)


# ---- Authentication ----


def test_a_recorded_attach_is_refused(server: Server) -> None:
    with joined_ranks(server, "record", 2) as (low, high), RawClient(server) as first, RawClient(server) as second:
        recorded = encode(first.attach_message("record", 0, request_relay(low, high, 1)))
        first.socket.sendall(recorded)
        second.socket.sendall(recorded)
        assert second.receive_refusal() == messages.Refused("token", "rank 0 does not know the secret of job record")


@pytest.mark.parametrize("secret", [b"wrong", b""])
def test_a_ticket_is_refused_without_the_secret(server: Server, secret: bytes) -> None:
    with joined_ranks(server, "intruder", 2) as (low, high), RawClient(server) as intruder:
        intruder.send(intruder.attach_message("intruder", 0, request_relay(low, high, 1), secret))
        assert intruder.receive_refusal().code == "token"


def test_a_ticket_is_valid_once_for_each_end(server: Server) -> None:
    with joined_ranks(server, "ticket", 3) as members, ExitStack() as stack:
        ticket = request_relay(members[0], members[1], 1)
        another = request_relay(members[0], members[2], 2)
        ends = [stack.enter_context(RawClient(server)) for _ in range(6)]
        ends[0].send(ends[0].attach_message("ticket", 1, ticket))
        wrong = [(1, ticket), (2, ticket), (0, messages.Relay(ticket.pair, another.ticket))]
        for end, (rank, shown) in zip(ends[1:4], wrong, strict=True):
            end.send(end.attach_message("ticket", rank, shown))
            assert end.receive_refusal().code == "ticket"
        ends[4].send(ends[4].attach_message("ticket", 0, ticket))
        assert ends[0].receive() == ends[4].receive() == messages.Attached()
        ends[5].send(ends[5].attach_message("ticket", 0, ticket))
        assert ends[5].receive_refusal().code == "ticket"
        ends[0].socket.sendall(b"still")
        assert ends[4].receive_bytes(5) == b"still"


def test_an_end_without_the_other_end_is_refused() -> None:
    with (
        checked_server("--max-meeting", "0.2") as server,
        joined_ranks(server, "alone", 2) as (low, high),
        RawClient(server) as end,
    ):
        end.send(end.attach_message("alone", 0, request_relay(low, high, 1)))
        why = "the other end of the relay did not connect within 0.2 s"
        assert end.receive_refusal() == messages.Refused("expired", why)
        assert failure(low) == failure(high) == why


def test_the_number_of_relays_of_a_job_is_limited() -> None:
    with checked_server("--max-relays", "1") as server, joined_ranks(server, "many", 3) as members:
        request_relay(members[0], members[1], 1)
        start = members[0].request(messages.Connect(2))
        assert isinstance(start, messages.Start)
        assert isinstance(members[2].receive(), messages.Start)
        members[0].send(messages.Unreached(start.pair))
        assert failure(members[0]) == failure(members[2]) == "job many has reached this server's relay limit"


# ---- End of a relay ----


def test_a_job_that_has_reached_its_limit_of_bytes_loses_its_relay() -> None:
    with checked_server("--max-relayed-bytes", "1000") as server, joined_ranks(server, "quota", 2) as (low, high):
        with relayed_ends(server, "quota", low, high) as (one, other):
            one.socket.sendall(bytes(600))
            assert other.receive_bytes(600) == bytes(600)
            other.socket.sendall(bytes(400))
            assert one.receive_bytes(400) == bytes(400)
            one.socket.sendall(b"x")
            assert other.receive_bytes(1) == b""
            assert one.receive_bytes(1) == b""
        assert failure(low) == failure(high) == f"the relay has ended: {LIMIT_REACHED}"
        assert low.request(messages.Ping(1)) == messages.Pong(1)


def test_an_end_that_disconnects_ends_the_relay(server: Server) -> None:
    with joined_ranks(server, "dies", 2) as (low, high), relayed_ends(server, "dies", low, high) as (one, other):
        one.socket.sendall(b"last")
        assert other.receive_bytes(4) == b"last"
        reset(one.socket)
        assert other.receive_bytes(1) == b""
        assert failure(low) == failure(high) == f"the relay has ended: {DISCONNECTED}"


def test_an_end_may_disconnect_while_it_waits(server: Server) -> None:
    with joined_ranks(server, "waits", 2) as (low, high), RawClient(server) as second:
        ticket = request_relay(low, high, 1)
        with RawClient(server) as first:
            first.send(first.attach_message("waits", 0, ticket))
        second.send(second.attach_message("waits", 1, ticket))
        assert second.receive() in (messages.Attached(), None)
        assert second.receive_bytes(1) == b""
        answer = high.request(messages.Ping(1))
        assert (high.receive() if isinstance(answer, messages.Failed) else answer) == messages.Pong(1)


def test_an_end_may_disconnect_while_it_attaches(server: Server) -> None:
    with joined_ranks(server, "comes", 2) as (low, high), RawClient(server) as first, RawClient(server) as second:
        relay = request_relay(low, high, 1)
        first.send(first.attach_message("comes", 0, relay))
        server.process.send_signal(signal.SIGSTOP)  # it receives both events at the same time
        second.send(second.attach_message("comes", 1, relay))
        reset(second.socket)
        server.process.send_signal(signal.SIGCONT)
        assert first.receive() == messages.Attached()
        assert first.receive() is None
        assert low.request(messages.Ping(1)) == messages.Pong(1)


@pytest.mark.parametrize("first", [0, 1])
def test_a_group_that_ends_closes_its_relays(server: Server, first: int) -> None:
    job = f"group{first}"
    with joined_ranks(server, job, 2) as (low, high), ExitStack() as stack:
        relay = request_relay(low, high, 1)
        ends = [stack.enter_context(RawClient(server)) for _ in range(2)]
        for rank in (first, 1 - first):  # either of them may attach second
            ends[rank].send(ends[rank].attach_message(job, rank, relay))
        assert [end.receive() for end in ends] == [messages.Attached()] * 2
        with RawClient(server) as new:
            new.join(job, 0, 2)
            assert [end.receive_bytes(1) for end in ends] == [b"", b""]


def test_a_silent_relay_ends() -> None:
    with checked_server("--max-silence", "0.3") as server, joined_ranks(server, "hush", 2) as members:
        low, high = members
        with relayed_ends(server, "hush", low, high) as (one, other):
            while not select.select([one.socket], [], [], 0.05)[0]:
                for control in members:
                    control.send(messages.Ping(0))
            assert one.receive_bytes(1) == other.receive_bytes(1) == b""
        why = "the relay has ended: both ends were silent for 0.3 s"
        assert server.await_event("relayed", job="hush")["why"] in why
        for control in members:
            answer = control.receive()
            while answer == messages.Pong(0):
                answer = control.receive()
            assert isinstance(answer, messages.Failed)
            assert answer.why == why


def test_a_server_that_stops_closes_its_relays() -> None:
    with checked_server() as server, ExitStack() as stack:
        ends, members = [], []
        for number in range(8):
            low, high = stack.enter_context(joined_ranks(server, f"stop{number}", 2))
            members += [low, high]
            ends += stack.enter_context(relayed_ends(server, f"stop{number}", low, high))
        server.end()
        assert [end.receive_bytes(1) for end in ends] == [b""] * 16
        assert [control.receive() for control in members] == [None] * 16


# ---- Without a server ----


def connect_pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname(), timeout=TIMEOUT)
        other, _ = listener.accept()
    other.setblocking(False)
    return one, other


def test_a_relay_ends_when_an_end_stops_reading() -> None:
    async def run() -> str:
        with outside[0], outside[1], inside[0], inside[1]:
            outside[0].setblocking(False)
            try:
                while True:
                    outside[0].send(bytes(2**20))
            except BlockingIOError:
                pass
            return await relay(*inside, lambda _: True, 0.1)

    outside, inside = zip(connect_pair(), connect_pair(), strict=True)
    assert asyncio.run(run()) == "both ends were silent for 0.1 s"


def test_all_bytes_are_counted_in_both_directions() -> None:
    counted: list[int] = []

    def count(size: int) -> bool:
        counted.append(size)
        return True

    async def run() -> str:
        with outside[0], outside[1], inside[0], inside[1]:
            for number, own in enumerate(outside):
                own.sendall(bytes(1000 + number))
                own.shutdown(socket.SHUT_WR)
            return await relay(*inside, count, TIMEOUT)

    outside, inside = zip(connect_pair(), connect_pair(), strict=True)
    assert asyncio.run(run()) == ""
    assert sum(counted) == 2001
