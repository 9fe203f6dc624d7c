"""Groups with a real server on loopback, including servers and ranks that are killed."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmi import collectives
from fmi.control import Endpoint
from fmi.errors import CollectiveMismatch, DeadlinePassed, FMIError, PeerLost, RequestRefused, ServerLost
from fmi.group import Group, Timing, connect
from support.fmi_ranks import (
    MAX_DELAY,
    QUICK,
    SECRET,
    TIMEOUT,
    Process,
    deadline,
    error_text,
    new_job,
    rank_processes,
    run_all,
    run_ranks,
)
from support.rendezvous import Server, rendezvous_server

DIRECT, RELAYED = ("private", "punched"), ("relay",)
BOTH_WAYS = pytest.mark.parametrize("routes", [DIRECT, RELAYED], ids=["direct", "relayed"])
REPEATS = 40


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    """A server that the tests leave running."""
    with rendezvous_server() as server:
        yield server


@pytest.fixture
def endpoint(shared_server: Server) -> Endpoint:
    return shared_server.endpoint


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own."""
    with rendezvous_server() as server:
        yield server


def send(group: Group, dest: int, data: bytes = b"", tag: int = 1) -> None:
    assert group.exchange(tag, deadline(), dest=dest, buffers=[data]) is None


def receive(group: Group, source: int, tag: int = 1) -> bytes:
    body = group.exchange(tag, deadline(), source=source)
    assert body is not None
    return bytes(body)


# ---- Messages ----


@BOTH_WAYS
def test_every_rank_sends_to_every_other(endpoint: Endpoint, routes: tuple[str, ...]) -> None:
    size = 5

    def run(group: Group) -> tuple[list[bytes], dict[int, str]]:
        found = []
        for step in range(1, size):
            dest, source = (group.rank + step) % size, (group.rank - step) % size
            data = [b"%d" % group.rank, b" to %d" % dest]
            body = group.exchange(step, deadline(), dest=dest, buffers=data, source=source)
            assert body is not None
            found.append(bytes(body))
        return found, group.routes

    for rank, (found, connected) in enumerate(run_all(endpoint, size, run, routes=routes)):
        assert found == [b"%d to %d" % ((rank - step) % size, rank) for step in range(1, size)]
        assert connected == {peer: routes[0] for peer in range(size) if peer != rank}


@pytest.mark.parametrize("size", [0, 5, 3 * 2**20])
@BOTH_WAYS
def test_the_last_message_of_a_rank_that_leaves_arrives(endpoint: Endpoint, routes: tuple[str, ...], size: int) -> None:
    """Also if the other rank is late and sends heartbeats, which are not read any more."""
    data = os.urandom(size)

    def late(group: Group) -> bytes:
        group.request_connections([0])
        time.sleep(0.03 * (next(number) % 3))
        return receive(group, 0)

    number = itertools.count()
    timing = Timing(heartbeat_interval=0.002, silence_timeout=TIMEOUT)
    for _ in range(REPEATS):
        found = run_ranks(endpoint, [lambda group: send(group, 1, data), late], routes=routes, timing=timing)
        assert found[1].value == data, found


@BOTH_WAYS
def test_the_last_message_arrives_without_a_request_of_the_receiver(
    endpoint: Endpoint, routes: tuple[str, ...]
) -> None:
    """The sender requests the connection, and has left before the receiver requests it."""

    def late(group: Group) -> bytes:
        time.sleep(0.2)
        return receive(group, 0)

    for _ in range(5):
        found = run_ranks(endpoint, [lambda group: send(group, 1, b"x" * 100_000), late], routes=routes)
        assert found[1].value == b"x" * 100_000, found


@BOTH_WAYS
def test_a_rank_that_has_left_is_not_waited_for(endpoint: Endpoint, routes: tuple[str, ...]) -> None:
    found = run_ranks(endpoint, [lambda _: None, lambda group: receive(group, 0)], routes=routes, timing=QUICK)
    assert error_text(found[1], PeerLost).startswith("rank 0 ")
    # A relay with one attached end is waited for as long as any other.
    assert found[1].at - found[0].at < MAX_DELAY + (QUICK.relay_timeout if routes == RELAYED else 0)


@BOTH_WAYS
def test_an_unused_request_is_harmless(endpoint: Endpoint, routes: tuple[str, ...]) -> None:
    """One rank leaves while it is being connected; the others continue."""

    def leave(group: Group) -> None:
        group.request_connections([1, 2])

    def continue_group(group: Group) -> list[bytes]:
        group.request_connections([0])
        peer = 3 - group.rank
        found = []
        for step in range(20):
            found.append(bytes(group.exchange(step, deadline(), dest=peer, buffers=[b"x"], source=peer) or b""))
            time.sleep(0.002)
        return found

    for _ in range(REPEATS // 4):
        found = run_ranks(endpoint, [leave, continue_group, continue_group], routes=routes, timing=QUICK)
        assert [one.error for one in found] == [None] * 3
        assert [one.value for one in found[1:]] == [[b"x"] * 20] * 2


def test_a_single_rank(endpoint: Endpoint) -> None:
    def run(group: Group) -> list[Any]:
        collectives.barrier(group)
        return [group.next_item(), group.next_item(), group.routes]

    assert run_all(endpoint, 1, run) == [[0, 1, {}]]


@pytest.mark.parametrize("peer", [-1, 2, 0])
def test_an_invalid_peer_is_refused(endpoint: Endpoint, peer: int) -> None:
    found = run_ranks(endpoint, [lambda group: group.request_connections([peer]), lambda _: None])
    assert isinstance(found[0].error, ValueError)
    assert f"cannot connect to rank {peer}" in str(found[0].error)


def test_the_deadline_of_a_message(endpoint: Endpoint) -> None:
    def wait_briefly(group: Group) -> None:
        collectives.barrier(group)
        group.exchange(1, time.monotonic() + 0.2, source=1)

    def sleep(group: Group) -> None:
        collectives.barrier(group)
        time.sleep(0.5)

    found = run_ranks(endpoint, [wait_briefly, sleep])
    assert "before rank 1 completed its part" in error_text(found[0], DeadlinePassed)


def test_a_group_cannot_be_used_after_an_error(endpoint: Endpoint) -> None:
    """A rank that suppresses the error counts as lost when it leaves."""

    def suppress_errors(group: Group) -> list[str]:
        collectives.barrier(group)
        texts = []
        for operation in (lambda: group.exchange(2, deadline(), source=1), lambda: send(group, 1), group.next_item):
            with pytest.raises(CollectiveMismatch) as caught:
                operation()
            texts.append(str(caught.value))
        return texts

    def other(group: Group) -> None:
        collectives.barrier(group)
        send(group, 0, tag=3)
        receive(group, 0, tag=4)

    found = run_ranks(endpoint, [suppress_errors, other])
    assert found[0].value == ["rank 1 is in another collective operation (its message is 0x3, expected 0x2); "
                              "all ranks must call the same ones in the same order"] * 3  # fmt: skip
    assert "rank 0 is" in error_text(found[1], PeerLost)


def test_different_operations_are_a_mismatch(endpoint: Endpoint) -> None:
    functions: list[Callable[[Group], Any]] = [
        collectives.barrier, lambda group: collectives.allreduce(group, np.zeros(3))]  # fmt: skip
    found = run_ranks(endpoint, functions)
    kinds = {type(one.error) for one in found}
    assert CollectiveMismatch in kinds
    assert kinds <= {CollectiveMismatch, PeerLost}


# ---- The counter ----


def test_each_item_is_returned_once_to_any_thread(endpoint: Endpoint) -> None:
    ranks, threads, each = 3, 4, 25

    def run(group: Group) -> list[list[int]]:
        with ThreadPoolExecutor(threads) as pool:
            tasks = [pool.submit(lambda: [group.next_item() for _ in range(each)]) for _ in range(threads)]
            for step in range(10):  # while the main thread of the rank communicates
                collectives.allreduce(group, np.array([step]))
            found = [task.result() for task in tasks]
        collectives.barrier(group)
        return found

    found = [numbers for rank in run_all(endpoint, ranks, run) for numbers in rank]
    assert sorted(itertools.chain(*found)) == list(range(ranks * threads * each))
    assert all(numbers == sorted(numbers) for numbers in found)


def test_jobs_with_the_same_ranks_are_independent(endpoint: Endpoint) -> None:
    """Each has its own messages and its own counter."""
    jobs, size = 6, 3
    found: dict[int, list[Any]] = {}

    def job(number: int) -> None:
        def run(group: Group) -> tuple[list[Any], list[int]]:
            everyone = [collectives.allgather(group, [number, group.rank]) for _ in range(10)]
            return everyone, [group.next_item() for _ in range(10)]

        found[number] = run_all(endpoint, size, run)

    threads = [threading.Thread(target=job, args=(number,)) for number in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(jobs):
        assert [everyone for everyone, _ in found[number]] == [[[[number, rank] for rank in range(size)]] * 10] * size
        assert sorted(itertools.chain(*(items for _, items in found[number]))) == list(range(10 * size))


@pytest.mark.parametrize("size", [64])
def test_many_ranks(endpoint: Endpoint, size: int) -> None:
    def run(group: Group) -> tuple[list[int], float]:
        collectives.barrier(group)
        everyone = collectives.allgather(group, group.rank**2)
        return everyone, float(collectives.allreduce(group, np.array([float(group.rank)]))[0])

    options = {"join_timeout": 2 * TIMEOUT, "timeout": 2 * TIMEOUT, "timing": Timing(punching_timeout=10.0)}
    found = run_all(endpoint, size, run, **options)
    assert found == [([rank**2 for rank in range(size)], size * (size - 1) / 2)] * size


# ---- Joining ----


def test_ranks_that_do_not_join_by_the_deadline(endpoint: Endpoint) -> None:
    began = time.monotonic()
    with (
        pytest.raises(DeadlinePassed, match="not all 3 ranks of job survey joined in time"),
        connect(endpoint, "survey", 1, 3, SECRET, join_timeout=0.3),
    ):
        pass
    assert 0.3 <= time.monotonic() - began < MAX_DELAY


def test_the_server_names_the_ranks_that_are_missing() -> None:
    with rendezvous_server("--max-wait", "0.5") as server:
        began = time.monotonic()
        with (
            pytest.raises(
                RequestRefused, match=r"job survey waited 0\.5 s for all 4 ranks; missing 0, 2, 3$"
            ) as caught,
            connect(server.endpoint, "survey", 1, 4, SECRET),
        ):
            pass
        assert caught.value.code == "expired"
        assert time.monotonic() - began < MAX_DELAY


@pytest.mark.parametrize(("own", "servers"), [(b"wrong", SECRET), (b"", SECRET), (SECRET, b"")])
def test_a_wrong_secret(own: bytes, servers: bytes) -> None:
    with rendezvous_server(secret=servers) as server:
        with (
            pytest.raises(RequestRefused, match="give all ranks and the server the same one in FMI_SECRET") as caught,
            connect(server.endpoint, "survey", 0, 1, own),
        ):
            pass
        assert caught.value.code == "token"


def test_another_size(server: Server) -> None:
    def rank(number: int, size: int) -> None:
        with connect(server.endpoint, "survey", number, size, SECRET, join_timeout=TIMEOUT):
            pass

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(rank, 0, 2)
        server.await_event("joined", job="survey", rank=0)
        with pytest.raises(
            RequestRefused, match="job survey has 2 ranks and this one states 3; start all ranks with the same size"
        ) as caught:
            rank(1, 3)
        assert caught.value.code == "size"
        rank(1, 2)
        first.result(TIMEOUT)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_no_server() -> None:
    port = closed_port()
    with (
        pytest.raises(ServerLost, match=rf"no rendezvous server answers at 127\.0\.0\.1:{port} \(.*refused\)"),
        connect(Endpoint("127.0.0.1", port), "survey", 0, 1),
    ):
        pass


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"FM\x02\x01\0\0\0\0", b"FM\x01\x01\0\0\0\1\xc1"]
)
def test_another_program_at_the_port_of_the_server(answer: bytes) -> None:
    """It sends nothing, or data of another protocol."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        answering = pool.submit(lambda: listener.accept()[0].sendall(answer) or time.sleep(0.6))  # type: ignore[func-returns-value]
        began = time.monotonic()
        with (
            pytest.raises(ServerLost, match="no rendezvous server answers at 127"),
            connect(Endpoint(*listener.getsockname()), "survey", 0, 1, join_timeout=0.4),
        ):
            pass
        assert time.monotonic() - began < MAX_DELAY
        answering.result()


# ---- Lost ranks ----


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_rank_that_leaves_by_an_exception_is_lost(endpoint: Endpoint, error: type[BaseException]) -> None:
    def fail(group: Group) -> None:
        collectives.barrier(group)
        raise error("a failure")

    def continue_group(group: Group) -> None:
        collectives.barrier(group)
        collectives.barrier(group)

    found = run_ranks(endpoint, [continue_group, fail, continue_group, continue_group])
    assert isinstance(found[1].error, error)
    for one in (found[0], *found[2:]):
        error_text(one, PeerLost)
        assert one.at - found[1].at < MAX_DELAY


@pytest.mark.parametrize("with_server", [True, False], ids=["server", "no server"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_rank_ends_the_barrier_of_all(server: Server, with_server: bool, how: signal.Signals) -> None:
    with rank_processes(server.endpoint, 5) as ranks:
        others = [one for one in ranks if one.rank != 2]
        if not with_server:
            server.kill()
        for one in others:
            one.start("barrier")
        time.sleep(0.2)  # most of them are waiting by then
        began = time.monotonic()
        ranks[2].process.send_signal(how)
        assert_lost(others, began, MAX_DELAY)


def assert_lost(ranks: list[Process], began: float, within: float) -> None:
    """Check that each of these ranks has raised PeerLost within a time in seconds."""
    for one in ranks:
        answer = one.receive_answer()
        assert answer["error"] == "PeerLost", answer
        assert answer["at"] - began < within


@pytest.mark.parametrize(
    ("routes", "with_server"),
    [(DIRECT, True), (DIRECT, False), (RELAYED, True)],
    ids=["direct", "no server", "relayed"],
)
def test_a_stopped_rank_is_lost_after_the_silence_timeout(
    server: Server, routes: tuple[str, ...], with_server: bool
) -> None:
    """Its kernel acknowledges data, but sends no heartbeats."""
    with rank_processes(server.endpoint, 3, QUICK, routes) as ranks:
        if not with_server:
            server.kill()
        os.kill(ranks[1].process.pid, signal.SIGSTOP)
        began = time.monotonic()
        for rank in (0, 2):
            ranks[rank].start("barrier")
        assert_lost([ranks[0], ranks[2]], began, QUICK.silence_timeout + MAX_DELAY)


@BOTH_WAYS
def test_the_slowest_rank_is_waited_for(endpoint: Endpoint, routes: tuple[str, ...]) -> None:
    """Longer than the silence timeout, since it sends heartbeats."""

    def run(group: Group) -> float:
        collectives.barrier(group)
        if group.rank == 1:
            time.sleep(3 * QUICK.silence_timeout)
        return float(collectives.allreduce(group, np.ones(2))[0])

    assert run_all(endpoint, 3, run, timing=QUICK, routes=routes) == [3.0] * 3


def test_a_second_client_of_a_rank_replaces_the_first_in_an_incomplete_group(server: Server) -> None:
    job = new_job()

    def rank(number: int) -> int:
        with connect(server.endpoint, job, number, 2, SECRET, join_timeout=TIMEOUT) as group:
            collectives.barrier(group)
            return group.next_item()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(rank, 0)
        server.await_event("joined", job=job, rank=0)
        second = pool.submit(rank, 0)
        with pytest.raises(RequestRefused, match=f"rank 0 of job {job} has joined again") as caught:
            first.result(TIMEOUT)
        assert caught.value.code == "replaced"
        assert sorted([rank(1), second.result(TIMEOUT)]) == [0, 1]


def test_a_rank_that_joins_a_complete_group_again_ends_it(endpoint: Endpoint) -> None:
    """The other ranks are notified, and all ranks can begin a new group."""
    job, started = new_job(), threading.Barrier(4)

    def continue_group(group: Group) -> None:
        collectives.barrier(group)
        started.wait(TIMEOUT)
        receive(group, 2 - group.rank if group.rank != 1 else 0)

    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(run_ranks, endpoint, [continue_group] * 3, job=job)
        started.wait(TIMEOUT)
        time.sleep(0.1)
        again = run_ranks(endpoint, [lambda group: collectives.allgather(group, group.rank)] * 3, job=job)
        found = before.result(TIMEOUT)
    assert [one.value for one in again] == [[0, 1, 2]] * 3
    for one in found:
        assert isinstance(one.error, PeerLost | RequestRefused)
        assert "joined again" in str(one.error) or "is lost" in str(one.error)


# ---- Lost servers ----


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_connected_ranks_continue_without_the_server(how: str, server: Server) -> None:
    """Operations that need it fail at once, or after the silence timeout if it is only silent."""
    started = threading.Barrier(4)

    def run(group: Group) -> list[Any]:
        collectives.barrier(group)  # of three ranks: each is connected with both others
        group.next_item()
        started.wait(TIMEOUT)
        started.wait(TIMEOUT)
        began = time.monotonic()
        with pytest.raises(ServerLost) as caught:
            group.next_item()
        seconds = time.monotonic() - began
        sums = [float(collectives.allreduce(group, np.array([1.0 * step]))[0]) for step in range(20)]
        with pytest.raises(ServerLost):
            group.next_item()
        return [seconds, str(caught.value), sums]

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_ranks, server.endpoint, [run] * 3, timing=QUICK)
        started.wait(TIMEOUT)
        if how == "kill":
            server.kill()
        else:
            server.process.send_signal(signal.SIGSTOP)
        started.wait(TIMEOUT)
        found = running.result(TIMEOUT)
    for one in found:
        assert one.error is None
        seconds, why, sums = one.value
        assert seconds < MAX_DELAY
        assert "rendezvous server" in why
        assert sums == [3.0 * step for step in range(20)]


def test_no_new_pairs_are_connected_without_the_server(server: Server) -> None:
    started = threading.Barrier(5)

    def run(group: Group) -> tuple[float, bytes]:
        peer = group.rank ^ 1
        found = group.exchange(1, deadline(), dest=peer, buffers=[b"before"], source=peer)
        started.wait(TIMEOUT)
        started.wait(TIMEOUT)
        began = time.monotonic()
        with pytest.raises(ServerLost):
            group.exchange(2, deadline(), source=group.rank ^ 2)
        seconds = time.monotonic() - began
        found = group.exchange(3, deadline(), dest=peer, buffers=[b"after"], source=peer)
        assert found is not None
        return seconds, bytes(found)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_ranks, server.endpoint, [run] * 4)
        started.wait(TIMEOUT)
        server.kill()
        started.wait(TIMEOUT)
        found = running.result(TIMEOUT)
    for one in found:
        assert one.error is None
        assert one.value[0] < MAX_DELAY
        assert one.value[1] == b"after"


def test_relayed_ranks_are_lost_without_the_server(server: Server) -> None:
    with rank_processes(server.endpoint, 2, routes=RELAYED) as ranks:
        for one in ranks:
            one.start("routes")
        assert [one.receive_answer()["value"] for one in ranks] == [{"1": "relay"}, {"0": "relay"}]
        began = time.monotonic()
        server.kill()
        for one in ranks:
            one.start("barrier")
        assert_lost(ranks, began, MAX_DELAY)


def test_a_server_that_is_killed_while_ranks_wait_for_others(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:

        def wait() -> None:
            with connect(server.endpoint, "survey", 0, 2, SECRET, join_timeout=TIMEOUT):
                pass

        waiting = pool.submit(wait)
        server.await_event("joined", job="survey", rank=0)
        began = time.monotonic()
        server.kill()
        with pytest.raises(ServerLost):
            waiting.result(TIMEOUT)
        assert time.monotonic() - began < MAX_DELAY


# ---- Cleanup ----


def test_groups_leave_no_files_and_threads(endpoint: Endpoint) -> None:
    def fail(group: Group) -> None:
        collectives.barrier(group)
        if group.rank == 1:
            raise RuntimeError("a failure")
        collectives.barrier(group)

    def count_resources() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before = count_resources()
    for function in (collectives.barrier, fail, lambda group: group.request_connections([(group.rank + 1) % 3])):
        for routes in (DIRECT, RELAYED):
            run_ranks(endpoint, [function] * 3, routes=routes, timing=QUICK)
    for wrong in ({"secret": b"wrong"}, {"join_timeout": 0.0}):
        assert all(isinstance(one.error, FMIError) for one in run_ranks(endpoint, [collectives.barrier], **wrong))
    until = time.monotonic() + TIMEOUT  # until the threads that were connecting to a peer have ended
    while count_resources() != before and time.monotonic() < until:
        time.sleep(0.01)
    assert count_resources() == before
