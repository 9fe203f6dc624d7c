"""A real server over real sockets: who may join, what it answers, and that it lives through bad clients."""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import socket
import struct
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from fmi import messages, tokens
from fmi.group import joined
from fmi.messages import MAX_BODY, TYPES, encode
from support.rendezvous import SECRET, SOON, Server
from support.rendezvous_clients import Raw, memory, open_files, ranks, run_fmi, served

BAD_CLIENTS = 2000
MEMORY = 20 * 2**20  # bytes by which BAD_CLIENTS at once may enlarge the server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served() as running:
        yield running


# ---- Who may join ----


def test_the_server_speaks_first(server: Server) -> None:
    with Raw(server) as one, Raw(server) as other:
        assert one.hello.public == one.private
        assert one.hello.needs_secret
        assert one.hello.nonce != other.hello.nonce
        assert abs(one.hello.time - other.hello.time) < SOON


@pytest.mark.parametrize("secret", [b"wrong", b"", SECRET + b" ", SECRET[:-1]])
def test_who_does_not_know_the_secret_is_refused(server: Server, secret: bytes) -> None:
    with Raw(server) as one:
        one.say(one.joining("survey", 0, 2, secret))
        assert one.refusal() == messages.Refused("token", "rank 0 does not know the secret of job survey")


def test_the_token_of_one_job_is_not_that_of_another(server: Server) -> None:
    with Raw(server) as one:
        join = one.joining("survey", 0, 2)
        token = tokens.job_token(SECRET, "other")
        proof = tokens.join_proof(token, one.hello.nonce, "survey", 0, 2, one.private, join.nonce)
        one.say(messages.Join("survey", 0, 2, join.private, join.nonce, proof))
        assert one.refusal().code == "token"


def test_a_recorded_join_is_of_no_use_on_another_connection(server: Server) -> None:
    with Raw(server) as one, Raw(server) as other:
        recorded = encode(one.joining("recorded", 0, 2))
        one.socket.sendall(recorded)
        assert isinstance(one.receive(), messages.Welcome)
        other.socket.sendall(recorded)
        assert other.refusal().code == "token"
        assert one.ask(messages.Ping(1)) == messages.Pong(1)
        one.socket.sendall(recorded)
        assert one.refusal() == messages.Refused("order", "Join was not to come from a rank that is there")


def test_no_field_of_a_join_can_be_changed(server: Server) -> None:
    for changed in ({"job": "other"}, {"rank": 1}, {"size": 3}, {"private": ("10.0.0.1", 1)}, {"nonce": bytes(16)}):
        with Raw(server) as one:
            one.say(messages.Join(**(vars(one.joining("survey", 0, 2)) | changed)))
            assert one.refusal().code == "token"


def test_without_a_secret_anybody_may_join_from_this_machine() -> None:
    with served(secret=b"") as open_server, Raw(open_server) as one:
        assert not one.hello.needs_secret
        assert isinstance(one.ask(one.joining("survey", 0, 1, b"")), messages.Welcome)
        assert one.receive() == messages.Ready()


# ---- A job ----


def test_a_job_from_its_beginning_to_its_end(server: Server) -> None:
    with Raw(server) as one, Raw(server) as other:
        first = one.join("whole", 0, 2)
        second = other.join("whole", 1, 2)
        assert first.group == second.group
        assert one.receive() == other.receive() == messages.Ready()
        one.say(messages.Connect(1))
        start, at_other = one.receive(), other.receive()
        assert isinstance(start, messages.Start)
        assert isinstance(at_other, messages.Start)
        assert (start.peer, start.public, start.private) == (1, other.private, other.private)
        assert (at_other.peer, at_other.public, at_other.private) == (0, one.private, one.private)
        assert (start.pair, start.nonce) == (at_other.pair, at_other.nonce)
        assert min(start.after, at_other.after) == 0
        one.say(messages.Connected(start.pair, "private"))
        assert one.ask(messages.Next(7)) == messages.Number(7, 0)
        assert other.ask(messages.Next(7)) == messages.Number(7, 1)
        assert one.ask(messages.Ping(2**63 - 1)) == messages.Pong(2**63 - 1)
        one.say(messages.Leave())
        assert one.receive() is None
        assert other.receive() == messages.Left(0, "left")
        assert other.ask(messages.Next(8)) == messages.Number(8, 2)
        other.say(messages.Leave())
        assert other.receive() is None
    for rank in (0, 1):
        assert server.await_event("joined", job="whole", rank=rank)["address"] == "127.0.0.1"
        server.await_event("left", job="whole", rank=rank, level="info")
    server.await_event("complete", job="whole", size=2, group=first.group)


def test_two_jobs_with_the_same_ranks_do_not_mix(server: Server) -> None:
    with ExitStack() as stack:
        jobs = {name: [stack.enter_context(Raw(server)) for _ in range(3)] for name in ("one", "two")}
        for rank in range(3):
            assert len({members[rank].join(job, rank, 3).group for job, members in jobs.items()}) == 2
        for members in jobs.values():
            assert [member.receive() for member in members] == [messages.Ready()] * 3
        for rank in range(3):
            assert {members[rank].ask(messages.Next(rank)) for members in jobs.values()} == {
                messages.Number(rank, rank)
            }
        for members in jobs.values():
            members[2].say(messages.Connect(0))
            members[1].say(messages.Connect(0))
        pairs = set()
        for members in jobs.values():
            starts = [members[rank].receive() for rank in (1, 2)]
            for start in starts:
                assert isinstance(start, messages.Start)
                assert (start.peer, start.private) == (0, members[0].private)
                pairs.add((start.pair, start.nonce))
            at_0 = [members[0].receive() for _ in range(2)]
            assert {start.private for start in at_0 if isinstance(start, messages.Start)} == {
                members[rank].private for rank in (1, 2)
            }
        assert len(pairs) == 4
        jobs["one"][2].socket.close()
        assert [jobs["one"][rank].receive() for rank in (0, 1)] == [messages.Left(2, "lost")] * 2
        for rank, member in enumerate(jobs["two"]):
            assert member.ask(messages.Ping(rank)) == messages.Pong(rank)
    server.await_event("lost", job="one", rank=2, level="warning")


def test_numbers_that_many_ask_for_at_once_are_each_given_once(server: Server) -> None:
    def count(member: Raw) -> list[int]:
        for request in range(100):  # all before the first answer
            member.say(messages.Next(request))
        answers = [member.receive() for _ in range(100)]
        assert [answer.request for answer in answers if isinstance(answer, messages.Number)] == list(range(100))
        return [answer.number for answer in answers if isinstance(answer, messages.Number)]

    with ranks(server, "count", 4) as members, ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(count, members))
    assert sorted(number for own in numbers for number in own) == list(range(400))
    assert all(own == sorted(own) for own in numbers)


def test_a_second_client_of_a_rank_replaces_the_first_before_all_are_there(server: Server) -> None:
    with Raw(server) as old, Raw(server) as new, Raw(server) as other:
        group = old.join("early", 0, 2).group
        assert new.join("early", 0, 2).group == group
        assert old.refusal() == messages.Refused("replaced", "rank 0 of job early has come anew")
        assert other.join("early", 1, 2).group == group
        assert new.receive() == other.receive() == messages.Ready()


def test_a_second_client_of_a_rank_ends_a_complete_group(server: Server) -> None:
    with ranks(server, "late", 3) as old, ExitStack() as stack:
        assert old[0].ask(messages.Next(0)) == messages.Number(0, 0)
        new = [stack.enter_context(Raw(server)) for _ in range(3)]
        group = new[1].join("late", 1, 3).group
        assert old[1].refusal().code == "replaced"
        for rank in (0, 2):
            assert old[rank].receive() == messages.Left(1, "replaced")
            assert old[rank].receive() is None
        assert new[0].join("late", 0, 3).group == group
        assert new[2].join("late", 2, 3).group == group
        assert [one.receive() for one in new] == [messages.Ready()] * 3
        assert new[2].ask(messages.Next(0)) == messages.Number(0, 0)


def test_ranks_that_do_not_fit_are_refused(server: Server) -> None:
    with Raw(server) as first, Raw(server) as two, Raw(server) as three, Raw(server) as four:
        first.join("sizes", 0, 2)
        two.say(two.joining("sizes", 1, 3))
        assert two.refusal().code == "size"
        three.say(three.joining("sizes", 2, 2))
        assert three.refusal().code == "rank"
        four.say(four.joining("sizes", 0, 4097))
        assert four.refusal().code == "rank"
        assert first.ask(messages.Ping(1)) == messages.Pong(1)


# ---- What expires ----


def test_ranks_that_wait_in_vain_hear_who_is_missing() -> None:
    with served("--max-wait", "0.2") as server, Raw(server) as one, Raw(server) as other:
        one.join("waits", 1, 4)
        other.join("waits", 2, 4)
        sentence = "job waits waited 0.2 s for all 4 ranks; missing 0, 3"
        assert one.refusal() == other.refusal() == messages.Refused("expired", sentence)
        server.await_event("expired", job="waits", size=4, level="warning")


def test_a_job_ends_at_its_deadline() -> None:
    with served("--max-deadline", "0.2") as server, ranks(server, "long", 2) as members:
        sentence = "job long has taken 0.2 s, all that it may"
        assert [one.refusal() for one in members] == [messages.Refused("deadline", sentence)] * 2


def test_a_rank_that_is_silent_is_lost() -> None:
    with served("--max-silence", "0.5") as server, ranks(server, "silent", 2) as (one, other):
        while not select.select([one.socket], [], [], 0.1)[0]:
            one.say(messages.Ping(0))
            assert one.receive() == messages.Pong(0)
        assert one.receive() == messages.Left(1, "lost")
        assert other.refusal().code == "slow"


def test_who_says_nothing_at_first_is_sent_away() -> None:
    with served("--max-first", "0.2") as server, Raw(server) as mute, Raw(server) as halting, Raw(server) as slow:
        halting.socket.sendall(b"FM\x01")
        frame = encode(slow.joining("slow", 0, 1))
        said = 0
        while not select.select([slow.socket], [], [], 0.02)[0]:
            slow.socket.sendall(frame[said : said + 1])
            said += 1
        assert said < len(frame)
        for one in (mute, halting, slow):
            assert one.refusal() == messages.Refused("slow", "nothing came in the time that is allowed")


def test_a_message_of_a_rank_must_end_soon_after_it_has_begun() -> None:
    with served("--max-first", "0.2") as server, ranks(server, "halting", 2) as (one, other):
        one.socket.sendall(encode(messages.Ping(1))[:-1])
        assert one.refusal().code == "slow"
        assert other.receive() == messages.Left(0, "lost")


# ---- What is out of order ----


FIRST = [kind for kind in TYPES if kind not in (messages.Join, messages.Attach)]
EXAMPLES: dict[type[messages.Message], messages.Message] = {
    messages.Hello: messages.Hello(bytes(16), True, ("10.0.0.1", 1), 0.0),
    messages.Join: messages.Join("order", 0, 1, ("10.0.0.1", 1), bytes(16), bytes(32)),
    messages.Welcome: messages.Welcome(0, bytes(32)),
    messages.Ready: messages.Ready(),
    messages.Connect: messages.Connect(0),
    messages.Start: messages.Start(1, 0, bytes(16), ("10.0.0.1", 1), ("10.0.0.1", 1), 0.0),
    messages.Connected: messages.Connected(0, "relay"),
    messages.Unreached: messages.Unreached(0),
    messages.Relay: messages.Relay(0, bytes(16)),
    messages.Attach: messages.Attach("order", 0, 0, bytes(16), bytes(32)),
    messages.Attached: messages.Attached(),
    messages.Failed: messages.Failed(0, ""),
    messages.Next: messages.Next(0),
    messages.Number: messages.Number(0, 0),
    messages.Ping: messages.Ping(0),
    messages.Pong: messages.Pong(0),
    messages.Left: messages.Left(0, "lost"),
    messages.Leave: messages.Leave(),
    messages.Refused: messages.Refused("", ""),
}


@pytest.mark.parametrize("kind", FIRST, ids=lambda kind: kind.__name__)
def test_the_first_message_is_join_or_attach(server: Server, kind: type[messages.Message]) -> None:
    with Raw(server) as one:
        one.say(EXAMPLES[kind])
        assert one.refusal() == messages.Refused("order", "the first message must be JOIN or ATTACH")


@pytest.mark.parametrize("is_complete", [False, True])
@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_a_rank_says_only_what_is_its_to_say(server: Server, kind: type[messages.Message], is_complete: bool) -> None:
    allowed = [messages.Ping, messages.Leave, *([messages.Next] if is_complete else [])]
    if kind in allowed:
        return
    with Raw(server) as one:
        one.join("order", 0, 1 if is_complete else 2)
        if is_complete:
            assert one.receive() == messages.Ready()
        one.say(EXAMPLES[kind])  # rank 0 cannot ask for itself, and has no pair
        assert one.refusal().code == "order"


def test_a_pair_is_connected_in_one_of_three_ways(server: Server) -> None:
    with ranks(server, "ways", 2) as (one, other):
        start = one.ask(messages.Connect(1))
        assert isinstance(start, messages.Start)
        other.say(messages.Connected(start.pair, "punched"))  # which is the lower rank's to say
        assert isinstance(other.receive(), messages.Start)
        assert other.refusal().code == "order"
        assert one.receive() == messages.Left(1, "lost")
        one.say(messages.Connected(start.pair, "guessed"))
        assert one.refusal().code == "order"


# ---- Bad clients ----


GARBAGE = {
    "zeros": bytes(8),
    "http": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tls": bytes.fromhex("16030100a5010000a10303") + bytes(40),
    "noise": random.Random(1).randbytes(5000),
    "version": b"FM\x02\x02\0\0\0\x01\x90",
    "type": b"FM\x01\x14\0\0\0\x01\x90",
    "oversize": b"FM\x01\x02" + struct.pack(">I", MAX_BODY + 1),
    "vast": b"FM\x01\x02\xff\xff\xff\xff" + bytes(100_000),
    "empty": b"FM\x01\x02\0\0\0\0",
    "no msgpack": b"FM\x01\x02\0\0\0\x01\xc1",
    "few fields": b"FM\x01\x02\0\0\0\x03\x92\0\0",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("has_joined", [False, True])
def test_garbage_is_refused(server: Server, garbage: bytes, has_joined: bool) -> None:
    with Raw(server) as one:
        if has_joined:
            one.join("garbage", 0, 2)
        try:
            one.socket.sendall(garbage)
        except (BrokenPipeError, ConnectionResetError):
            assert len(garbage) > MAX_BODY
        assert one.refusal().code == "protocol"
    with Raw(server) as other:
        other.join("garbage", 1, 2)  # the first is gone, so nobody is READY


def test_a_client_that_goes_amid_a_message_is_gone(server: Server) -> None:
    with ranks(server, "amid", 2) as (one, other):
        one.socket.sendall(encode(messages.Next(0))[:5])
        one.socket.close()
        assert other.receive() == messages.Left(0, "lost")


def test_a_client_that_resets_the_connection_is_gone(server: Server) -> None:
    with ranks(server, "reset", 2) as (one, other):
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.socket.close()
        assert other.receive() == messages.Left(0, "lost")


def test_who_floods_without_reading_is_dropped(server: Server) -> None:
    with Raw(server) as other, Raw(server, buffer=4096) as flood:
        other.join("flood", 1, 2)
        flood.join("flood", 0, 2)
        assert other.receive() == messages.Ready()
        before = memory(server)
        pings, sent = encode(messages.Ping(2**63 - 1)) * 1000, 0
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while sent < 2**30:
                sent += flood.socket.send(pings)
        assert other.receive() == messages.Left(0, "lost")
        assert memory(server) - before < 2**20
        assert other.ask(messages.Ping(1)) == messages.Pong(1)


def test_when_all_connections_are_taken_those_who_say_who_they_are_keep_them() -> None:
    with (
        served("--max-connections", "3") as server,
        ranks(server, "two", 2) as members,
        Raw(server) as oldest,
        Raw(server) as newer,
    ):
        sentence = "others want the connection of one who does not say who it is"
        assert oldest.refusal() == messages.Refused("busy", sentence)
        newer.join("one", 0, 1)
        assert newer.receive() == messages.Ready()
        with socket.create_connection(("127.0.0.1", server.endpoint.port), timeout=SOON) as late:
            frame = encode(messages.Refused("busy", "this server has all the connections that it may have"))
            assert late.recv(1000) == frame
            assert late.recv(1000) == b""
        for number, one in enumerate([*members, newer]):
            assert one.ask(messages.Ping(number)) == messages.Pong(number)
        newer.say(messages.Leave())
        assert newer.receive() is None
        with Raw(server) as one:
            one.join("one", 0, 1)


def test_there_are_so_many_jobs_and_no_more() -> None:
    with served("--max-jobs", "1") as server, ranks(server, "first", 1), Raw(server) as one:
        one.say(one.joining("second", 0, 1))
        assert one.refusal() == messages.Refused("busy", "there are 1 jobs already; try again later")


def work(server: Server, rank: int, size: int, done: dict[int, tuple[list[int], bytes, dict[int, str]]]) -> None:
    """What a real rank does: it joins, counts, and sends a large message round a ring through the server."""
    message = random.Random(rank).randbytes(3_000_000)
    with joined(server.endpoint, "real", rank, size, SECRET, timeout=SOON, routes=("relay",)) as group:
        numbers = [group.next_item() for _ in range(50)]
        to, source = (rank + 1) % size, (rank - 1) % size
        tag, deadline = group.next_tag(1), threading.TIMEOUT_MAX
        got = group.exchange(tag, deadline, to=to, buffers=[message], source=source)
        assert got is not None
        done[rank] = numbers, bytes(got), dict(group.routes)
        for target in (to, source):  # so that nobody goes before all have all
            group.exchange(group.next_tag(1), deadline, to=target, buffers=[b""], source=to + source - target)


@contextmanager
def files_allowed(count: int) -> Iterator[None]:
    """This process, and those that it starts, may have so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_bad_clients_do_not_disturb_a_job_and_cost_little() -> None:
    with ExitStack() as stack:
        with files_allowed(256):
            server = stack.enter_context(served())  # which allows itself more
        stack.enter_context(files_allowed(2 * BAD_CLIENTS))
        before = memory(server)
        half = encode(messages.Join("x" * 200, 0, 1, ("10.0.0.1", 1), bytes(16), bytes(32)))[:-1]
        sayings = [b"", half, b"FM\x01\x02\0\0\x08\0" + bytes(2047), b"FM"]  # nothing, and what is never whole
        for number in range(BAD_CLIENTS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.endpoint.port), timeout=SOON))
            client.sendall(sayings[number % len(sayings)])
        for number in range(BAD_CLIENTS // 4):  # these come and go meanwhile
            with socket.create_connection(("127.0.0.1", server.endpoint.port), timeout=SOON) as client:
                client.sendall(list(GARBAGE.values())[number % 8][:64])
        done: dict[int, tuple[list[int], bytes, dict[int, str]]] = {}
        size = 4
        threads = [threading.Thread(target=work, args=(server, rank, size, done)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(number for numbers, _, _ in done.values() for number in numbers) == list(range(50 * size))
        for rank in range(size):
            assert done[rank][1] == random.Random((rank - 1) % size).randbytes(3_000_000)
            assert set(done[rank][2].values()) == {"relay"}
        assert open_files(server) > BAD_CLIENTS  # they are still there
        assert memory(server, "VmHWM") - before < MEMORY
        for rank in range(size):
            server.await_event("left", job="real", rank=rank)


# ---- Starting and stopping ----


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_a_secret_a_server_does_not_listen_for_the_world(host: str) -> None:
    done = run_fmi("serve", "--host", host, "--port", "0", secret=b"")
    assert done.returncode == 2
    sentence = f"Error: without a secret a server listens on loopback only, not on {host}; set FMI_SECRET\n"
    assert (done.stdout, done.stderr) == ("", sentence)


def test_with_a_secret_it_does() -> None:
    with served("--host", "0.0.0.0") as server, Raw(server) as one:
        assert server.await_event("serving")["host"] == "0.0.0.0"
        one.join("world", 0, 1)


@pytest.mark.parametrize("option", ["--port", "--health-port"])
def test_a_port_that_is_taken_is_told_in_a_sentence(server: Server, option: str) -> None:
    done = run_fmi("serve", "--port", "0", option, str(server.endpoint.port))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: cannot listen on 127.0.0.1:")
    assert "in use" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--port=65535", "--max-wait=0", "--max-ranks=0", "--max-first=-1", "--max-jobs=x"])
def test_settings_that_cannot_be_are_refused(option: str) -> None:
    done = run_fmi("serve", option)
    assert done.returncode == 2
    assert f"Invalid value for '{option.partition('=')[0]}'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order(number: signal.Signals) -> None:
    with served() as server, ranks(server, "ended", 2) as members, Raw(server) as stranger:
        os.kill(server.process.pid, number)
        assert server.process.wait(SOON) == 0
        assert [one.receive() for one in (*members, stranger)] == [None] * 3
        stopped = server.await_event("stopped")
        assert (stopped["jobs"], stopped["ranks"], stopped["connections"]) == (0, 0, 0)


def test_the_log_shows_nothing_that_is_secret() -> None:
    with served() as server:
        with ranks(server, "logged", 2) as members:
            proofs = [one.joining("logged", 0, 2).proof for one in members]
            with Raw(server) as wrong:
                join = wrong.joining("logged", 0, 2, b"wrong")
                wrong.say(join)
                assert wrong.refusal().code == "token"
            nonces = [wrong.hello.nonce, *(one.hello.nonce for one in members)]
        server.await_event("lost", job="logged", rank=1)
        lines = server.events
    assert {"time", "level", "event"} <= set.intersection(*(set(line) for line in lines[:-1]))
    events = [line["event"] for line in lines]
    assert events[0] == "serving"
    assert events[-2:] == ["stopped", "ended"]
    assert {"joined", "complete", "refused", "lost"} <= set(events)
    said = repr(lines)
    for hidden in (tokens.job_token(SECRET, "logged"), join.proof, *proofs, *nonces):
        assert hidden.hex() not in said
        assert b64encode(hidden).decode() not in said
        assert repr(hidden)[2:-1] not in said
