"""A real server over real sockets: authentication, answers, and robustness against invalid clients."""

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
from fmi.group import connect
from fmi.messages import MAX_BODY, TYPES, encode
from support.rendezvous import SECRET, TIMEOUT, Server
from support.rendezvous_clients import RawClient, checked_server, joined_ranks, memory, open_files, run_fmi

INVALID_CLIENTS = 2000
MEMORY = 20 * 2**20  # bytes by which INVALID_CLIENTS may enlarge the server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with checked_server() as running:
        yield running


# ---- Authentication ----


def test_the_server_sends_the_first_message(server: Server) -> None:
    with RawClient(server) as one, RawClient(server) as other:
        assert one.hello.public == one.private
        assert one.hello.needs_secret
        assert one.hello.nonce != other.hello.nonce
        assert abs(one.hello.time - other.hello.time) < TIMEOUT


@pytest.mark.parametrize("secret", [b"wrong", b"", SECRET + b" ", SECRET[:-1]])
def test_a_wrong_secret_is_refused(server: Server, secret: bytes) -> None:
    with RawClient(server) as one:
        one.send(one.join_message("survey", 0, 2, secret))
        assert one.receive_refusal() == messages.Refused("token", "rank 0 does not know the secret of job survey")


def test_the_token_of_another_job_is_refused(server: Server) -> None:
    with RawClient(server) as one:
        join = one.join_message("survey", 0, 2)
        token = tokens.job_token(SECRET, "other")
        proof = tokens.join_proof(token, one.hello.nonce, "survey", 0, 2, one.private, join.nonce)
        one.send(messages.Join("survey", 0, 2, join.private, join.nonce, proof))
        assert one.receive_refusal().code == "token"


def test_a_recorded_join_is_refused_on_another_connection(server: Server) -> None:
    with RawClient(server) as one, RawClient(server) as other:
        recorded = encode(one.join_message("recorded", 0, 2))
        one.socket.sendall(recorded)
        assert isinstance(one.receive(), messages.Welcome)
        other.socket.sendall(recorded)
        assert other.receive_refusal().code == "token"
        assert one.request(messages.Ping(1)) == messages.Pong(1)
        one.socket.sendall(recorded)
        assert one.receive_refusal() == messages.Refused("order", "a rank that has joined must not send this Join")


def test_a_modified_join_is_refused(server: Server) -> None:
    for changed in ({"job": "other"}, {"rank": 1}, {"size": 3}, {"private": ("10.0.0.1", 1)}, {"nonce": bytes(16)}):
        with RawClient(server) as one:
            one.send(messages.Join(**(vars(one.join_message("survey", 0, 2)) | changed)))
            assert one.receive_refusal().code == "token"


def test_without_a_secret_any_local_process_may_join() -> None:
    with checked_server(secret=b"") as open_server, RawClient(open_server) as one:
        assert not one.hello.needs_secret
        assert isinstance(one.request(one.join_message("survey", 0, 1, b"")), messages.Welcome)
        assert one.receive() == messages.Ready()


# ---- Jobs ----


def test_a_whole_job(server: Server) -> None:
    with RawClient(server) as one, RawClient(server) as other:
        first = one.join("whole", 0, 2)
        second = other.join("whole", 1, 2)
        assert first.group == second.group
        assert one.receive() == other.receive() == messages.Ready()
        one.send(messages.Connect(1))
        start, at_other = one.receive(), other.receive()
        assert isinstance(start, messages.Start)
        assert isinstance(at_other, messages.Start)
        assert (start.peer, start.public, start.private) == (1, other.private, other.private)
        assert (at_other.peer, at_other.public, at_other.private) == (0, one.private, one.private)
        assert (start.pair, start.nonce) == (at_other.pair, at_other.nonce)
        assert min(start.after, at_other.after) == 0
        one.send(messages.Connected(start.pair, "private"))
        assert one.request(messages.Next(7)) == messages.Number(7, 0)
        assert other.request(messages.Next(7)) == messages.Number(7, 1)
        assert one.request(messages.Ping(2**63 - 1)) == messages.Pong(2**63 - 1)
        one.send(messages.Leave())
        assert one.receive() is None
        assert other.receive() == messages.Left(0, "left")
        assert other.request(messages.Next(8)) == messages.Number(8, 2)
        other.send(messages.Leave())
        assert other.receive() is None
    for rank in (0, 1):
        assert server.await_event("joined", job="whole", rank=rank)["address"] == "127.0.0.1"
        server.await_event("left", job="whole", rank=rank, level="info")
    server.await_event("complete", job="whole", size=2, group=first.group)


def test_two_jobs_with_the_same_ranks_are_independent(server: Server) -> None:
    with ExitStack() as stack:
        jobs = {name: [stack.enter_context(RawClient(server)) for _ in range(3)] for name in ("one", "two")}
        for rank in range(3):
            assert len({members[rank].join(job, rank, 3).group for job, members in jobs.items()}) == 2
        for members in jobs.values():
            assert [member.receive() for member in members] == [messages.Ready()] * 3
        for rank in range(3):
            assert {members[rank].request(messages.Next(rank)) for members in jobs.values()} == {
                messages.Number(rank, rank)
            }
        for members in jobs.values():
            members[2].send(messages.Connect(0))
            members[1].send(messages.Connect(0))
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
            assert member.request(messages.Ping(rank)) == messages.Pong(rank)
    server.await_event("lost", job="one", rank=2, level="warning")


def test_each_number_is_sent_once_under_concurrent_requests(server: Server) -> None:
    def count(member: RawClient) -> list[int]:
        for request in range(100):  # all of them before the first answer
            member.send(messages.Next(request))
        answers = [member.receive() for _ in range(100)]
        assert [answer.request for answer in answers if isinstance(answer, messages.Number)] == list(range(100))
        return [answer.number for answer in answers if isinstance(answer, messages.Number)]

    with joined_ranks(server, "count", 4) as members, ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(count, members))
    assert sorted(number for own in numbers for number in own) == list(range(400))
    assert all(own == sorted(own) for own in numbers)


def test_a_second_client_of_a_rank_replaces_the_first_in_an_incomplete_group(server: Server) -> None:
    with RawClient(server) as old, RawClient(server) as new, RawClient(server) as other:
        group = old.join("early", 0, 2).group
        assert new.join("early", 0, 2).group == group
        assert old.receive_refusal() == messages.Refused("replaced", "rank 0 of job early has joined again")
        assert other.join("early", 1, 2).group == group
        assert new.receive() == other.receive() == messages.Ready()


def test_a_second_client_of_a_rank_ends_a_complete_group(server: Server) -> None:
    with joined_ranks(server, "late", 3) as old, ExitStack() as stack:
        assert old[0].request(messages.Next(0)) == messages.Number(0, 0)
        new = [stack.enter_context(RawClient(server)) for _ in range(3)]
        group = new[1].join("late", 1, 3).group
        assert old[1].receive_refusal().code == "replaced"
        for rank in (0, 2):
            assert old[rank].receive() == messages.Left(1, "replaced")
            assert old[rank].receive() is None
        assert new[0].join("late", 0, 3).group == group
        assert new[2].join("late", 2, 3).group == group
        assert [one.receive() for one in new] == [messages.Ready()] * 3
        assert new[2].request(messages.Next(0)) == messages.Number(0, 0)


def test_inconsistent_ranks_are_refused(server: Server) -> None:
    with RawClient(server) as first, RawClient(server) as two, RawClient(server) as three, RawClient(server) as four:
        first.join("sizes", 0, 2)
        two.send(two.join_message("sizes", 1, 3))
        assert two.receive_refusal().code == "size"
        three.send(three.join_message("sizes", 2, 2))
        assert three.receive_refusal().code == "rank"
        four.send(four.join_message("sizes", 0, 4097))
        assert four.receive_refusal().code == "rank"
        assert first.request(messages.Ping(1)) == messages.Pong(1)


# ---- Timeouts ----


def test_waiting_ranks_are_refused_and_the_missing_ones_named() -> None:
    with checked_server("--max-wait", "0.2") as server, RawClient(server) as one, RawClient(server) as other:
        one.join("waits", 1, 4)
        other.join("waits", 2, 4)
        sentence = "job waits waited 0.2 s for all 4 ranks; missing 0, 3"
        assert one.receive_refusal() == other.receive_refusal() == messages.Refused("expired", sentence)
        server.await_event("expired", job="waits", size=4, level="warning")


def test_a_job_ends_at_its_deadline() -> None:
    with checked_server("--max-deadline", "0.2") as server, joined_ranks(server, "long", 2) as members:
        sentence = "job long has reached its time limit of 0.2 s"
        assert [one.receive_refusal() for one in members] == [messages.Refused("deadline", sentence)] * 2


def test_a_silent_rank_is_lost() -> None:
    with checked_server("--max-silence", "0.5") as server, joined_ranks(server, "silent", 2) as (one, other):
        while not select.select([one.socket], [], [], 0.1)[0]:
            one.send(messages.Ping(0))
            assert one.receive() == messages.Pong(0)
        assert one.receive() == messages.Left(1, "lost")
        assert other.receive_refusal().code == "slow"


def test_a_slow_first_message_is_refused() -> None:
    with (
        checked_server("--max-first", "0.2") as server,
        RawClient(server) as silent,
        RawClient(server) as partial,
        RawClient(server) as slow,
    ):
        partial.socket.sendall(b"FM\x01")
        frame = encode(slow.join_message("slow", 0, 1))
        sent = 0
        while not select.select([slow.socket], [], [], 0.02)[0]:
            slow.socket.sendall(frame[sent : sent + 1])
            sent += 1
        assert sent < len(frame)
        for one in (silent, partial, slow):
            assert one.receive_refusal() == messages.Refused("slow", "no message arrived in the time allowed")


def test_a_message_must_be_complete_soon_after_it_begins() -> None:
    with checked_server("--max-first", "0.2") as server, joined_ranks(server, "partial", 2) as (one, other):
        one.socket.sendall(encode(messages.Ping(1))[:-1])
        assert one.receive_refusal().code == "slow"
        assert other.receive() == messages.Left(0, "lost")


# ---- Order of messages ----


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
def test_the_first_message_must_be_join_or_attach(server: Server, kind: type[messages.Message]) -> None:
    with RawClient(server) as one:
        one.send(EXAMPLES[kind])
        assert one.receive_refusal() == messages.Refused("order", "the first message must be JOIN or ATTACH")


@pytest.mark.parametrize("is_complete", [False, True])
@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_a_rank_may_send_only_its_own_messages(server: Server, kind: type[messages.Message], is_complete: bool) -> None:
    allowed = [messages.Ping, messages.Leave, *([messages.Next] if is_complete else [])]
    if kind in allowed:
        return
    with RawClient(server) as one:
        one.join("order", 0, 1 if is_complete else 2)
        if is_complete:
            assert one.receive() == messages.Ready()
        one.send(EXAMPLES[kind])  # rank 0 cannot connect to itself, and has no pair
        assert one.receive_refusal().code == "order"


def test_a_pair_is_connected_by_one_of_three_routes(server: Server) -> None:
    with joined_ranks(server, "ways", 2) as (one, other):
        start = one.request(messages.Connect(1))
        assert isinstance(start, messages.Start)
        other.send(messages.Connected(start.pair, "punched"))  # only the lower rank may send it
        assert isinstance(other.receive(), messages.Start)
        assert other.receive_refusal().code == "order"
        assert one.receive() == messages.Left(1, "lost")
        one.send(messages.Connected(start.pair, "guessed"))
        assert one.receive_refusal().code == "order"


# ---- Invalid clients ----


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
    with RawClient(server) as one:
        if has_joined:
            one.join("garbage", 0, 2)
        try:
            one.socket.sendall(garbage)
        except (BrokenPipeError, ConnectionResetError):
            assert len(garbage) > MAX_BODY
        assert one.receive_refusal().code == "protocol"
    with RawClient(server) as other:
        other.join("garbage", 1, 2)  # the first has disconnected, so the group is not complete


def test_a_client_that_disconnects_within_a_message_is_lost(server: Server) -> None:
    with joined_ranks(server, "amid", 2) as (one, other):
        one.socket.sendall(encode(messages.Next(0))[:5])
        one.socket.close()
        assert other.receive() == messages.Left(0, "lost")


def test_a_client_that_resets_the_connection_is_lost(server: Server) -> None:
    with joined_ranks(server, "reset", 2) as (one, other):
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.socket.close()
        assert other.receive() == messages.Left(0, "lost")


def test_a_client_that_floods_without_reading_is_disconnected(server: Server) -> None:
    with RawClient(server) as other, RawClient(server, buffer=4096) as flood:
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
        assert other.request(messages.Ping(1)) == messages.Pong(1)


def test_authenticated_clients_keep_their_connections_at_the_limit() -> None:
    with (
        checked_server("--max-connections", "3") as server,
        joined_ranks(server, "two", 2) as members,
        RawClient(server) as oldest,
        RawClient(server) as newer,
    ):
        sentence = "this connection gives way to a new one because it has not authenticated itself"
        assert oldest.receive_refusal() == messages.Refused("busy", sentence)
        newer.join("one", 0, 1)
        assert newer.receive() == messages.Ready()
        with socket.create_connection(("127.0.0.1", server.endpoint.port), timeout=TIMEOUT) as late:
            frame = encode(messages.Refused("busy", "this server has reached its limit of connections"))
            assert late.recv(1000) == frame
            assert late.recv(1000) == b""
        for number, one in enumerate([*members, newer]):
            assert one.request(messages.Ping(number)) == messages.Pong(number)
        newer.send(messages.Leave())
        assert newer.receive() is None
        with RawClient(server) as one:
            one.join("one", 0, 1)


def test_the_number_of_jobs_is_limited() -> None:
    with checked_server("--max-jobs", "1") as server, joined_ranks(server, "first", 1), RawClient(server) as one:
        one.send(one.join_message("second", 0, 1))
        assert one.receive_refusal() == messages.Refused("busy", "this server has 1 jobs already; try again later")


def run_rank(server: Server, rank: int, size: int, done: dict[int, tuple[list[int], bytes, dict[int, str]]]) -> None:
    """Run a real rank, which joins, requests items, and sends a large message around a ring through the server."""
    message = random.Random(rank).randbytes(3_000_000)
    with connect(server.endpoint, "real", rank, size, SECRET, timeout=TIMEOUT, routes=("relay",)) as group:
        numbers = [group.next_item() for _ in range(50)]
        dest, source = (rank + 1) % size, (rank - 1) % size
        tag, deadline = group.next_tag(1), threading.TIMEOUT_MAX
        received = group.exchange(tag, deadline, dest=dest, buffers=[message], source=source)
        assert received is not None
        done[rank] = numbers, bytes(received), dict(group.routes)
        for target in (dest, source):  # no rank leaves before all have received everything
            group.exchange(group.next_tag(1), deadline, dest=target, buffers=[b""], source=dest + source - target)


@contextmanager
def limit_open_files(count: int) -> Iterator[None]:
    """Limit the open files of this process, and of those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_invalid_clients_do_not_disturb_a_job_and_use_little_memory() -> None:
    with ExitStack() as stack:
        with limit_open_files(256):
            server = stack.enter_context(checked_server())  # raises its own limit
        stack.enter_context(limit_open_files(2 * INVALID_CLIENTS))
        before = memory(server)
        half = encode(messages.Join("x" * 200, 0, 1, ("10.0.0.1", 1), bytes(16), bytes(32)))[:-1]
        starts = [b"", half, b"FM\x01\x02\0\0\x08\0" + bytes(2047), b"FM"]  # nothing, and incomplete messages
        for number in range(INVALID_CLIENTS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.endpoint.port), timeout=TIMEOUT))
            client.sendall(starts[number % len(starts)])
        for number in range(INVALID_CLIENTS // 4):  # these connect and disconnect
            with socket.create_connection(("127.0.0.1", server.endpoint.port), timeout=TIMEOUT) as client:
                client.sendall(list(GARBAGE.values())[number % 8][:64])
        done: dict[int, tuple[list[int], bytes, dict[int, str]]] = {}
        size = 4
        threads = [threading.Thread(target=run_rank, args=(server, rank, size, done)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(number for numbers, _, _ in done.values() for number in numbers) == list(range(50 * size))
        for rank in range(size):
            assert done[rank][1] == random.Random((rank - 1) % size).randbytes(3_000_000)
            assert set(done[rank][2].values()) == {"relay"}
        assert open_files(server) > INVALID_CLIENTS  # they are still connected
        assert memory(server, "VmHWM") - before < MEMORY
        for rank in range(size):
            server.await_event("left", job="real", rank=rank)


# ---- Starting and stopping ----


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_a_secret_a_server_listens_on_loopback_only(host: str) -> None:
    done = run_fmi("serve", "--host", host, "--port", "0", secret=b"")
    assert done.returncode == 2
    sentence = f"Error: without a secret a server listens on loopback only, not on {host}; set FMI_SECRET\n"
    assert (done.stdout, done.stderr) == ("", sentence)


def test_with_a_secret_a_server_listens_on_any_address() -> None:
    with checked_server("--host", "0.0.0.0") as server, RawClient(server) as one:
        assert server.await_event("serving")["host"] == "0.0.0.0"
        one.join("world", 0, 1)


@pytest.mark.parametrize("option", ["--port", "--health-port"])
def test_a_port_in_use_is_reported_in_one_sentence(server: Server, option: str) -> None:
    done = run_fmi("serve", "--port", "0", option, str(server.endpoint.port))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: cannot listen on 127.0.0.1:")
    assert "in use" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--port=65535", "--max-wait=0", "--max-ranks=0", "--max-first=-1", "--max-jobs=x"])
def test_invalid_settings_are_refused(option: str) -> None:
    done = run_fmi("serve", option)
    assert done.returncode == 2
    assert f"Invalid value for '{option.partition('=')[0]}'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_gracefully(number: signal.Signals) -> None:
    with checked_server() as server, joined_ranks(server, "ended", 2) as members, RawClient(server) as unauthenticated:
        os.kill(server.process.pid, number)
        assert server.process.wait(TIMEOUT) == 0
        assert [one.receive() for one in (*members, unauthenticated)] == [None] * 3
        stopped = server.await_event("stopped")
        assert (stopped["jobs"], stopped["ranks"], stopped["connections"]) == (0, 0, 0)


def test_the_log_contains_no_secrets() -> None:
    with checked_server() as server:
        with joined_ranks(server, "logged", 2) as members:
            proofs = [one.join_message("logged", 0, 2).proof for one in members]
            with RawClient(server) as wrong:
                join = wrong.join_message("logged", 0, 2, b"wrong")
                wrong.send(join)
                assert wrong.receive_refusal().code == "token"
            nonces = [wrong.hello.nonce, *(one.hello.nonce for one in members)]
        server.await_event("lost", job="logged", rank=1)
        lines = server.events
    assert {"time", "level", "event"} <= set.intersection(*(set(line) for line in lines[:-1]))
    events = [line["event"] for line in lines]
    assert events[0] == "serving"
    assert events[-2:] == ["stopped", "ended"]
    assert {"joined", "complete", "refused", "lost"} <= set(events)
    text = repr(lines)
    for hidden in (tokens.job_token(SECRET, "logged"), join.proof, *proofs, *nonces):
        assert hidden.hex() not in text
        assert b64encode(hidden).decode() not in text
        assert repr(hidden)[2:-1] not in text
