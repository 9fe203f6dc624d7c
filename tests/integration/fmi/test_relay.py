"""What two ranks send to each other through the server, and how that ends."""

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
from fmi.relay import ENOUGH, GONE, relay
from fmi.shutdown import Farewell, part
from support.rendezvous import SOON, Server
from support.rendezvous_clients import Raw, memory, open_files, ranks, relay_of, relayed, served

MEMORY = 4 * 2**20  # bytes by which a relay that nobody reads from may enlarge the server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served() as running:
        yield running


def reset(own: socket.socket) -> None:
    """Ends a connection as a crash does."""
    own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    own.close()


def failure(control: Raw) -> str:
    """Why a rank's relay has failed."""
    failed = control.receive()
    assert isinstance(failed, messages.Failed), failed
    return failed.why


# ---- What is relayed ----


def test_each_end_gets_what_the_other_sends(server: Server) -> None:
    with ranks(server, "both", 2) as (low, high), relayed(server, "both", low, high) as (one, other):
        for number in range(100):
            one.socket.sendall(b"there%d" % number)
            assert other.exactly(len(b"there%d" % number)) == b"there%d" % number
            other.socket.sendall(b"back")
            assert one.exactly(4) == b"back"
        server.await_event("relaying", job="both", ranks=[0, 1])


def test_much_goes_both_ways_at_once_and_arrives_as_it_was(server: Server) -> None:
    sent = [random.Random(number).randbytes(20_000_000) for number in range(2)]
    with ranks(server, "much", 2) as (low, high), relayed(server, "much", low, high) as ends:
        senders = [
            threading.Thread(target=end.socket.sendall, args=(data,)) for end, data in zip(ends, sent, strict=True)
        ]
        got: list[bytes] = [b"", b""]

        def receive(number: int) -> None:
            got[number] = ends[number].exactly(20_000_000)

        receivers = [threading.Thread(target=receive, args=(number,)) for number in range(2)]
        for thread in (*senders, *receivers):
            thread.start()
        for thread in (*senders, *receivers):
            thread.join()
    assert got == sent[::-1]


def test_one_end_may_say_all_before_the_other(server: Server) -> None:
    with ranks(server, "half", 2) as (low, high), relayed(server, "half", low, high) as (one, other):
        one.socket.sendall(b"all")
        one.socket.shutdown(socket.SHUT_WR)
        assert other.exactly(10) == b"all"
        other.socket.sendall(b"more")
        other.socket.shutdown(socket.SHUT_WR)
        assert one.exactly(10) == b"more"
        assert server.await_event("relayed", job="half")["why"] == ""
        for control in (low, high):
            assert control.ask(messages.Ping(1)) == messages.Pong(1)  # and no FAILED before


def test_an_end_that_has_said_all_may_go(server: Server) -> None:
    with ranks(server, "goes", 2) as (low, high), relayed(server, "goes", low, high) as (one, other):
        one.socket.sendall(b"bye")
        one.socket.shutdown(socket.SHUT_WR)
        assert other.exactly(10) == b"bye"
        reset(one.socket)
        other.socket.sendall(b"a sign of life, which comes to a closed connection")
        other.socket.shutdown(socket.SHUT_WR)
        assert server.await_event("relayed", job="goes")["why"] == ""
        assert high.ask(messages.Ping(1)) == messages.Pong(1)


def test_all_arrives_of_an_end_that_is_gone_while_the_other_still_says_something(server: Server) -> None:
    """Else the server would close a connection on which something came that it has not read, and what it still had to
    deliver there would be lost."""
    data = random.Random(2).randbytes(2**20)
    with ranks(server, "late", 2) as (low, high), relayed(server, "late", low, high) as (one, other):
        one.socket.sendall(data)
        part([Farewell(one.socket, b"")], SOON, time.monotonic() + SOON)  # once the server's kernel has it all
        for _ in range(100):
            other.socket.sendall(b"a sign of life")
            assert high.ask(messages.Ping(1)) == messages.Pong(1)  # so that the server has seen it
        assert other.exactly(len(data) + 1) == data


def test_what_an_end_does_not_read_is_kept_back(server: Server) -> None:
    before, data = memory(server), random.Random(1).randbytes(2**20)
    with ranks(server, "slow", 2) as (low, high), relayed(server, "slow", low, high) as (one, other):
        sent = 0
        one.socket.setblocking(False)
        while select.select([], [one.socket], [], 0.3)[1]:
            sent += one.socket.send(data[sent % len(data) :])
        assert sent < 2**26
        assert memory(server) - before < MEMORY
        assert low.ask(messages.Ping(1)) == messages.Pong(1)
        got = other.exactly(sent)
    assert got == (data * (sent // len(data) + 1))[:sent]


def test_a_relay_gives_everything_back(server: Server) -> None:
    with ranks(server, "files", 2) as (low, high):
        with relayed(server, "files", low, high) as (one, other):
            one.socket.sendall(b"x")
            assert other.exactly(1) == b"x"
            before = open_files(server)
        server.await_event("relayed", job="files")
        assert open_files(server) <= before - 4  # the pipes; the connections may still be there
        assert high.ask(messages.Ping(1)) == messages.Pong(1)


# ---- Who may ----


def test_a_recorded_attach_is_of_no_use(server: Server) -> None:
    with ranks(server, "record", 2) as (low, high), Raw(server) as first, Raw(server) as second:
        recorded = encode(first.attaching("record", 0, relay_of(low, high, 1)))
        first.socket.sendall(recorded)
        second.socket.sendall(recorded)
        assert second.refusal() == messages.Refused("token", "rank 0 does not know the secret of job record")


@pytest.mark.parametrize("secret", [b"wrong", b""])
def test_a_ticket_is_of_no_use_without_the_secret(server: Server, secret: bytes) -> None:
    with ranks(server, "thief", 2) as (low, high), Raw(server) as thief:
        thief.say(thief.attaching("thief", 0, relay_of(low, high, 1), secret))
        assert thief.refusal().code == "token"


def test_a_ticket_is_of_use_once_for_each_end(server: Server) -> None:
    with ranks(server, "ticket", 3) as members, ExitStack() as stack:
        ticket = relay_of(members[0], members[1], 1)
        another = relay_of(members[0], members[2], 2)
        ends = [stack.enter_context(Raw(server)) for _ in range(6)]
        ends[0].say(ends[0].attaching("ticket", 1, ticket))
        wrong = [(1, ticket), (2, ticket), (0, messages.Relay(ticket.pair, another.ticket))]
        for end, (rank, shown) in zip(ends[1:4], wrong, strict=True):
            end.say(end.attaching("ticket", rank, shown))
            assert end.refusal().code == "ticket"
        ends[4].say(ends[4].attaching("ticket", 0, ticket))
        assert ends[0].receive() == ends[4].receive() == messages.Attached()
        ends[5].say(ends[5].attaching("ticket", 0, ticket))
        assert ends[5].refusal().code == "ticket"
        ends[0].socket.sendall(b"still")
        assert ends[4].exactly(5) == b"still"


def test_an_end_whose_other_does_not_come_is_sent_away() -> None:
    with served("--max-meeting", "0.2") as server, ranks(server, "alone", 2) as (low, high), Raw(server) as end:
        end.say(end.attaching("alone", 0, relay_of(low, high, 1)))
        why = "the other end of a relay did not come within 0.2 s"
        assert end.refusal() == messages.Refused("expired", why)
        assert failure(low) == failure(high) == why


def test_a_job_has_so_many_relays() -> None:
    with served("--max-relays", "1") as server, ranks(server, "many", 3) as members:
        relay_of(members[0], members[1], 1)
        start = members[0].ask(messages.Connect(2))
        assert isinstance(start, messages.Start)
        assert isinstance(members[2].receive(), messages.Start)
        members[0].say(messages.Unreached(start.pair))
        assert failure(members[0]) == failure(members[2]) == "job many has used up what this server relays for one job"


# ---- How it ends ----


def test_a_job_that_has_used_up_its_bytes_loses_its_relay() -> None:
    with served("--max-relayed-bytes", "1000") as server, ranks(server, "quota", 2) as (low, high):
        with relayed(server, "quota", low, high) as (one, other):
            one.socket.sendall(bytes(600))
            assert other.exactly(600) == bytes(600)
            other.socket.sendall(bytes(400))
            assert one.exactly(400) == bytes(400)
            one.socket.sendall(b"x")
            assert other.exactly(1) == b""
            assert one.exactly(1) == b""
        assert failure(low) == failure(high) == f"the relay has ended: {ENOUGH}"
        assert low.ask(messages.Ping(1)) == messages.Pong(1)


def test_an_end_that_dies_ends_the_relay(server: Server) -> None:
    with ranks(server, "dies", 2) as (low, high), relayed(server, "dies", low, high) as (one, other):
        one.socket.sendall(b"last")
        assert other.exactly(4) == b"last"
        reset(one.socket)
        assert other.exactly(1) == b""
        assert failure(low) == failure(high) == f"the relay has ended: {GONE}"


def test_an_end_that_dies_while_it_waits_is_no_harm(server: Server) -> None:
    with ranks(server, "waits", 2) as (low, high), Raw(server) as second:
        ticket = relay_of(low, high, 1)
        with Raw(server) as first:
            first.say(first.attaching("waits", 0, ticket))
        second.say(second.attaching("waits", 1, ticket))
        assert second.receive() in (messages.Attached(), None)
        assert second.exactly(1) == b""
        heard = high.ask(messages.Ping(1))
        assert (high.receive() if isinstance(heard, messages.Failed) else heard) == messages.Pong(1)


def test_an_end_that_dies_as_it_comes_is_no_harm(server: Server) -> None:
    with ranks(server, "comes", 2) as (low, high), Raw(server) as first, Raw(server) as second:
        relay = relay_of(low, high, 1)
        first.say(first.attaching("comes", 0, relay))
        server.process.send_signal(signal.SIGSTOP)  # so that it finds both at once
        second.say(second.attaching("comes", 1, relay))
        reset(second.socket)
        server.process.send_signal(signal.SIGCONT)
        assert first.receive() == messages.Attached()
        assert first.receive() is None
        assert low.ask(messages.Ping(1)) == messages.Pong(1)


@pytest.mark.parametrize("first", [0, 1])
def test_a_group_that_ends_ends_its_relays(server: Server, first: int) -> None:
    job = f"group{first}"
    with ranks(server, job, 2) as (low, high), ExitStack() as stack:
        relay = relay_of(low, high, 1)
        ends = [stack.enter_context(Raw(server)) for _ in range(2)]
        for rank in (first, 1 - first):  # either may be the one that has come second
            ends[rank].say(ends[rank].attaching(job, rank, relay))
        assert [end.receive() for end in ends] == [messages.Attached()] * 2
        with Raw(server) as new:
            new.join(job, 0, 2)
            assert [end.exactly(1) for end in ends] == [b"", b""]


def test_a_relay_on_which_nobody_speaks_ends() -> None:
    with served("--max-silence", "0.3") as server, ranks(server, "hush", 2) as members:
        low, high = members
        with relayed(server, "hush", low, high) as (one, other):
            while not select.select([one.socket], [], [], 0.05)[0]:
                for control in members:
                    control.say(messages.Ping(0))
            assert one.exactly(1) == other.exactly(1) == b""
        why = "the relay has ended: nobody said anything for 0.3 s"
        assert server.await_event("relayed", job="hush")["why"] in why
        for control in members:
            heard = control.receive()
            while heard == messages.Pong(0):
                heard = control.receive()
            assert isinstance(heard, messages.Failed)
            assert heard.why == why


def test_a_server_that_stops_ends_its_relays() -> None:
    with served() as server, ExitStack() as stack:
        ends, members = [], []
        for number in range(8):
            low, high = stack.enter_context(ranks(server, f"stop{number}", 2))
            members += [low, high]
            ends += stack.enter_context(relayed(server, f"stop{number}", low, high))
        server.end()
        assert [end.exactly(1) for end in ends] == [b""] * 16
        assert [control.receive() for control in members] == [None] * 16


# ---- Without a server ----


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname(), timeout=SOON)
        other, _ = listener.accept()
    other.setblocking(False)
    return one, other


def test_an_end_that_stops_reading_is_given_up_after_a_silence() -> None:
    async def run() -> str:
        with outside[0], outside[1], inside[0], inside[1]:
            outside[0].setblocking(False)
            try:
                while True:
                    outside[0].send(bytes(2**20))
            except BlockingIOError:
                pass
            return await relay(*inside, lambda _: True, 0.1)

    outside, inside = zip(connected(), connected(), strict=True)
    assert asyncio.run(run()) == "nobody said anything for 0.1 s"


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
            return await relay(*inside, count, SOON)

    outside, inside = zip(connected(), connected(), strict=True)
    assert asyncio.run(run()) == ""
    assert sum(counted) == 2001
