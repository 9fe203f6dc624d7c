"""Groups with a real server on loopback, which is killed, and whose ranks are."""

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
from fmi.errors import DeadlinePassed, Disagreement, FMIError, PeerLost, Refused, ServerLost
from fmi.group import Group, Timing, joined
from support.fmi_ranks import (
    LATE,
    QUICK,
    SECRET,
    SOON,
    Process,
    deadline,
    new_job,
    outcomes,
    processes,
    raised,
    together,
)
from support.rendezvous import Server, serving

DIRECT, RELAYED = ("private", "punched"), ("relay",)
BOTH_WAYS = pytest.mark.parametrize("routes", [DIRECT, RELAYED], ids=["direct", "relayed"])
REPEATS = 40


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    """One that no test may harm."""
    with serving() as server:
        yield server


@pytest.fixture
def endpoint(shared_server: Server) -> Endpoint:
    return shared_server.endpoint


@pytest.fixture
def server() -> Iterator[Server]:
    """One of the test's own."""
    with serving() as server:
        yield server


def send(group: Group, to: int, data: bytes = b"", tag: int = 1) -> None:
    assert group.exchange(tag, deadline(), to=to, buffers=[data]) is None


def receive(group: Group, source: int, tag: int = 1) -> bytes:
    body = group.exchange(tag, deadline(), source=source)
    assert body is not None
    return bytes(body)


# ---- Messages ----


@BOTH_WAYS
def test_each_sends_to_each(endpoint: Endpoint, routes: tuple[str, ...]) -> None:
    size = 5

    def run(group: Group) -> tuple[list[bytes], dict[int, str]]:
        found = []
        for step in range(1, size):
            to, source = (group.rank + step) % size, (group.rank - step) % size
            body = group.exchange(step, deadline(), to=to, buffers=[b"%d" % group.rank, b" to %d" % to], source=source)
            assert body is not None
            found.append(bytes(body))
        return found, group.routes

    for rank, (found, how) in enumerate(together(endpoint, size, run, routes=routes)):
        assert found == [b"%d to %d" % ((rank - step) % size, rank) for step in range(1, size)]
        assert how == {peer: routes[0] for peer in range(size) if peer != rank}


@pytest.mark.parametrize("size", [0, 5, 3 * 2**20])
@BOTH_WAYS
def test_the_last_message_of_a_rank_that_leaves_at_once_arrives(
    endpoint: Endpoint, routes: tuple[str, ...], size: int
) -> None:
    """Also where the other gives signs of life, which nobody reads any more, and comes late."""
    data = os.urandom(size)

    def late(group: Group) -> bytes:
        group.wish([0])
        time.sleep(0.03 * (next(number) % 3))
        return receive(group, 0)

    number = itertools.count()
    timing = Timing(beat=0.002, patience=SOON)
    for _ in range(REPEATS):
        found = outcomes(endpoint, [lambda group: send(group, 1, data), late], routes=routes, timing=timing)
        assert found[1].value == data, found


@BOTH_WAYS
def test_the_last_message_arrives_when_the_other_has_no_wish_yet(endpoint: Endpoint, routes: tuple[str, ...]) -> None:
    """The pair meets because the sender wants it, and the sender has left before the receiver asks."""

    def late(group: Group) -> bytes:
        time.sleep(0.2)
        return receive(group, 0)

    for _ in range(5):
        found = outcomes(endpoint, [lambda group: send(group, 1, b"x" * 100_000), late], routes=routes)
        assert found[1].value == b"x" * 100_000, found


@BOTH_WAYS
def test_who_has_left_without_a_word_is_not_waited_for(endpoint: Endpoint, routes: tuple[str, ...]) -> None:
    found = outcomes(endpoint, [lambda _: None, lambda group: receive(group, 0)], routes=routes, timing=QUICK)
    assert raised(found[1], PeerLost).startswith("rank 0 ")
    # A relay of which one end has come is waited for as long as any.
    assert found[1].at - found[0].at < LATE + (QUICK.relaying if routes == RELAYED else 0)


@BOTH_WAYS
def test_a_wish_that_is_never_used_harms_nobody(endpoint: Endpoint, routes: tuple[str, ...]) -> None:
    """Its ranks leave while they are being connected; the others go on."""

    def leave(group: Group) -> None:
        group.wish([1, 2])

    def go_on(group: Group) -> list[bytes]:
        group.wish([0])
        peer = 3 - group.rank
        found = []
        for step in range(20):
            found.append(bytes(group.exchange(step, deadline(), to=peer, buffers=[b"x"], source=peer) or b""))
            time.sleep(0.002)
        return found

    for _ in range(REPEATS // 4):
        found = outcomes(endpoint, [leave, go_on, go_on], routes=routes, timing=QUICK)
        assert [one.error for one in found] == [None] * 3
        assert [one.value for one in found[1:]] == [[b"x"] * 20] * 2


def test_a_rank_alone(endpoint: Endpoint) -> None:
    def run(group: Group) -> list[Any]:
        collectives.barrier(group)
        return [group.next_item(), group.next_item(), group.routes]

    assert together(endpoint, 1, run) == [[0, 1, {}]]


@pytest.mark.parametrize("peer", [-1, 2, 0])
def test_a_peer_that_there_is_not(endpoint: Endpoint, peer: int) -> None:
    found = outcomes(endpoint, [lambda group: group.wish([peer]), lambda _: None])
    assert isinstance(found[0].error, ValueError)
    assert f"cannot talk to rank {peer}" in str(found[0].error)


def test_the_deadline_of_a_message(endpoint: Endpoint) -> None:
    def impatient(group: Group) -> None:
        collectives.barrier(group)
        group.exchange(1, time.monotonic() + 0.2, source=1)

    def patient(group: Group) -> None:
        collectives.barrier(group)
        time.sleep(0.5)

    found = outcomes(endpoint, [impatient, patient])
    assert "before rank 1 had done its part" in raised(found[0], DeadlinePassed)


def test_after_an_error_a_group_is_of_no_use(endpoint: Endpoint) -> None:
    """Neither may the rank that has hidden it leave as if it had done its part."""

    def hide(group: Group) -> list[str]:
        collectives.barrier(group)
        said = []
        for what in (lambda: group.exchange(2, deadline(), source=1), lambda: send(group, 1), group.next_item):
            with pytest.raises(Disagreement) as caught:
                what()
            said.append(str(caught.value))
        return said

    def other(group: Group) -> None:
        collectives.barrier(group)
        send(group, 0, tag=3)
        receive(group, 0, tag=4)

    found = outcomes(endpoint, [hide, other])
    assert found[0].value == ["rank 1 is in another collective operation (its message is 0x3, expected 0x2); "
                              "all ranks must call the same ones in the same order"] * 3  # fmt: skip
    assert "rank 0 is" in raised(found[1], PeerLost)


def test_different_operations_are_a_disagreement(endpoint: Endpoint) -> None:
    whats: list[Callable[[Group], Any]] = [
        collectives.barrier, lambda group: collectives.allreduce(group, np.zeros(3))]  # fmt: skip
    found = outcomes(endpoint, whats)
    kinds = {type(one.error) for one in found}
    assert Disagreement in kinds
    assert kinds <= {Disagreement, PeerLost}


# ---- The counter ----


def test_items_are_given_once_whichever_thread_asks(endpoint: Endpoint) -> None:
    ranks, threads, each = 3, 4, 25

    def run(group: Group) -> list[list[int]]:
        with ThreadPoolExecutor(threads) as pool:
            tasks = [pool.submit(lambda: [group.next_item() for _ in range(each)]) for _ in range(threads)]
            for step in range(10):  # while the rank's own thread talks to the others
                collectives.allreduce(group, np.array([step]))
            found = [task.result() for task in tasks]
        collectives.barrier(group)
        return found

    found = [numbers for rank in together(endpoint, ranks, run) for numbers in rank]
    assert sorted(itertools.chain(*found)) == list(range(ranks * threads * each))
    assert all(numbers == sorted(numbers) for numbers in found)


def test_jobs_with_the_same_ranks_do_not_meet(endpoint: Endpoint) -> None:
    """Each has its own messages and its own counter."""
    jobs, size = 6, 3
    found: dict[int, list[Any]] = {}

    def job(number: int) -> None:
        def run(group: Group) -> tuple[list[Any], list[int]]:
            everyone = [collectives.allgather(group, [number, group.rank]) for _ in range(10)]
            return everyone, [group.next_item() for _ in range(10)]

        found[number] = together(endpoint, size, run)

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

    options = {"join_timeout": 2 * SOON, "timeout": 2 * SOON, "timing": Timing(punching=10.0)}
    found = together(endpoint, size, run, **options)
    assert found == [([rank**2 for rank in range(size)], size * (size - 1) / 2)] * size


# ---- Who cannot join ----


def test_ranks_that_do_not_come_by_the_deadline(endpoint: Endpoint) -> None:
    began = time.monotonic()
    with (
        pytest.raises(DeadlinePassed, match="not all 3 ranks of job survey came in time"),
        joined(endpoint, "survey", 1, 3, SECRET, join_timeout=0.3),
    ):
        pass
    assert 0.3 <= time.monotonic() - began < LATE


def test_the_server_names_the_ranks_that_are_missing() -> None:
    with serving("--max-wait", "0.5") as server:
        began = time.monotonic()
        with (
            pytest.raises(Refused, match=r"job survey waited 0\.5 s for all 4 ranks; missing 0, 2, 3$") as caught,
            joined(server.endpoint, "survey", 1, 4, SECRET),
        ):
            pass
        assert caught.value.code == "expired"
        assert time.monotonic() - began < LATE


@pytest.mark.parametrize(("own", "servers"), [(b"wrong", SECRET), (b"", SECRET), (SECRET, b"")])
def test_a_wrong_secret(own: bytes, servers: bytes) -> None:
    with serving(secret=servers) as server:
        with (
            pytest.raises(Refused, match="give all ranks and the server the same one in FMI_SECRET") as caught,
            joined(server.endpoint, "survey", 0, 1, own),
        ):
            pass
        assert caught.value.code == "token"


def test_another_size(server: Server) -> None:
    def rank(number: int, size: int) -> None:
        with joined(server.endpoint, "survey", number, size, SECRET, join_timeout=SOON):
            pass

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(rank, 0, 2)
        server.await_event("joined", job="survey", rank=0)
        with pytest.raises(
            Refused, match="job survey has 2 ranks and this one says 3; start all of them alike"
        ) as caught:
            rank(1, 3)
        assert caught.value.code == "size"
        rank(1, 2)
        first.result(SOON)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_no_server() -> None:
    port = closed_port()
    with (
        pytest.raises(ServerLost, match=rf"no rendezvous server answers at 127\.0\.0\.1:{port} \(.*refused\)"),
        joined(Endpoint("127.0.0.1", port), "survey", 0, 1),
    ):
        pass


@pytest.mark.parametrize(
    "says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"FM\x02\x01\0\0\0\0", b"FM\x01\x01\0\0\0\1\xc1"]
)
def test_something_that_is_no_server(says: bytes) -> None:
    """It is silent, or speaks of something else."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        answering = pool.submit(lambda: listener.accept()[0].sendall(says) or time.sleep(0.6))  # type: ignore[func-returns-value]
        began = time.monotonic()
        with (
            pytest.raises(ServerLost, match="no rendezvous server answers at 127"),
            joined(Endpoint(*listener.getsockname()), "survey", 0, 1, join_timeout=0.4),
        ):
            pass
        assert time.monotonic() - began < LATE
        answering.result()


# ---- Ranks that go ----


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_who_leaves_by_an_exception_is_lost_to_the_others(endpoint: Endpoint, error: type[BaseException]) -> None:
    def fail(group: Group) -> None:
        collectives.barrier(group)
        raise error("it cannot")

    def go_on(group: Group) -> None:
        collectives.barrier(group)
        collectives.barrier(group)

    found = outcomes(endpoint, [go_on, fail, go_on, go_on])
    assert isinstance(found[1].error, error)
    for one in (found[0], *found[2:]):
        raised(one, PeerLost)
        assert one.at - found[1].at < LATE


@pytest.mark.parametrize("with_server", [True, False], ids=["server", "no server"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_rank_that_is_killed_ends_the_barrier_of_all(server: Server, with_server: bool, how: signal.Signals) -> None:
    with processes(server.endpoint, 5) as ranks:
        others = [one for one in ranks if one.rank != 2]
        if not with_server:
            server.kill()
        for one in others:
            one.tell("barrier")
        time.sleep(0.2)  # most of them wait by now
        began = time.monotonic()
        ranks[2].process.send_signal(how)
        assert_lost(others, began, LATE)


def assert_lost(ranks: list[Process], began: float, within: float) -> None:
    """Each has got a PeerLost in so many seconds."""
    for one in ranks:
        answer = one.answer()
        assert answer["error"] == "PeerLost", answer
        assert answer["at"] - began < within


@pytest.mark.parametrize(
    ("routes", "with_server"),
    [(DIRECT, True), (DIRECT, False), (RELAYED, True)],
    ids=["direct", "no server", "relayed"],
)
def test_a_rank_that_is_stopped_is_lost_within_the_patience(
    server: Server, routes: tuple[str, ...], with_server: bool
) -> None:
    """Its kernel answers for it, but gives no signs of life."""
    with processes(server.endpoint, 3, QUICK, routes) as ranks:
        if not with_server:
            server.kill()
        os.kill(ranks[1].process.pid, signal.SIGSTOP)
        began = time.monotonic()
        for rank in (0, 2):
            ranks[rank].tell("barrier")
        assert_lost([ranks[0], ranks[2]], began, QUICK.patience + LATE)


@BOTH_WAYS
def test_the_slowest_is_waited_for(endpoint: Endpoint, routes: tuple[str, ...]) -> None:
    """Longer than the patience: it lives."""

    def run(group: Group) -> float:
        collectives.barrier(group)
        if group.rank == 1:
            time.sleep(3 * QUICK.patience)
        return float(collectives.allreduce(group, np.ones(2))[0])

    assert together(endpoint, 3, run, timing=QUICK, routes=routes) == [3.0] * 3


def test_a_second_client_of_a_rank_takes_its_place_before_all_have_come(server: Server) -> None:
    job = new_job()

    def rank(number: int) -> int:
        with joined(server.endpoint, job, number, 2, SECRET, join_timeout=SOON) as group:
            collectives.barrier(group)
            return group.next_item()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(rank, 0)
        server.await_event("joined", job=job, rank=0)
        second = pool.submit(rank, 0)
        with pytest.raises(Refused, match=f"rank 0 of job {job} has come anew") as caught:
            first.result(SOON)
        assert caught.value.code == "replaced"
        assert sorted([rank(1), second.result(SOON)]) == [0, 1]


def test_a_rank_that_comes_anew_ends_the_group(endpoint: Endpoint) -> None:
    """The others are told, and the newcomer begins with all of them anew."""
    job, met = new_job(), threading.Barrier(4)

    def go_on(group: Group) -> None:
        collectives.barrier(group)
        met.wait(SOON)
        receive(group, 2 - group.rank if group.rank != 1 else 0)

    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(outcomes, endpoint, [go_on] * 3, job=job)
        met.wait(SOON)
        time.sleep(0.1)
        again = outcomes(endpoint, [lambda group: collectives.allgather(group, group.rank)] * 3, job=job)
        found = before.result(SOON)
    assert [one.value for one in again] == [[0, 1, 2]] * 3
    for one in found:
        assert isinstance(one.error, PeerLost | Refused)
        assert "anew" in str(one.error) or "is gone" in str(one.error)


# ---- The server goes ----


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_without_the_server_the_connected_go_on(how: str, server: Server) -> None:
    """What needs it is an error at once, or within the patience if it is only silent."""
    met = threading.Barrier(4)

    def run(group: Group) -> list[Any]:
        collectives.barrier(group)  # of three ranks: each is connected with both others
        group.next_item()
        met.wait(SOON)
        met.wait(SOON)
        began = time.monotonic()
        with pytest.raises(ServerLost) as caught:
            group.next_item()
        seconds = time.monotonic() - began
        sums = [float(collectives.allreduce(group, np.array([1.0 * step]))[0]) for step in range(20)]
        with pytest.raises(ServerLost):
            group.next_item()
        return [seconds, str(caught.value), sums]

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(outcomes, server.endpoint, [run] * 3, timing=QUICK)
        met.wait(SOON)
        if how == "kill":
            server.kill()
        else:
            server.process.send_signal(signal.SIGSTOP)
        met.wait(SOON)
        found = running.result(SOON)
    for one in found:
        assert one.error is None
        seconds, why, sums = one.value
        assert seconds < LATE
        assert "rendezvous server" in why
        assert sums == [3.0 * step for step in range(20)]


def test_without_the_server_there_are_no_new_pairs(server: Server) -> None:
    met = threading.Barrier(5)

    def run(group: Group) -> tuple[float, bytes]:
        peer = group.rank ^ 1
        found = group.exchange(1, deadline(), to=peer, buffers=[b"before"], source=peer)
        met.wait(SOON)
        met.wait(SOON)
        began = time.monotonic()
        with pytest.raises(ServerLost):
            group.exchange(2, deadline(), source=group.rank ^ 2)
        seconds = time.monotonic() - began
        found = group.exchange(3, deadline(), to=peer, buffers=[b"after"], source=peer)
        assert found is not None
        return seconds, bytes(found)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(outcomes, server.endpoint, [run] * 4)
        met.wait(SOON)
        server.kill()
        met.wait(SOON)
        found = running.result(SOON)
    for one in found:
        assert one.error is None
        assert one.value[0] < LATE
        assert one.value[1] == b"after"


def test_without_the_server_relayed_ranks_lose_each_other(server: Server) -> None:
    with processes(server.endpoint, 2, routes=RELAYED) as ranks:
        for one in ranks:
            one.tell("routes")
        assert [one.answer()["value"] for one in ranks] == [{"1": "relay"}, {"0": "relay"}]
        began = time.monotonic()
        server.kill()
        for one in ranks:
            one.tell("barrier")
        assert_lost(ranks, began, LATE)


def test_a_server_that_dies_while_ranks_wait_for_others(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:

        def wait() -> None:
            with joined(server.endpoint, "survey", 0, 2, SECRET, join_timeout=SOON):
                pass

        waiting = pool.submit(wait)
        server.await_event("joined", job="survey", rank=0)
        began = time.monotonic()
        server.kill()
        with pytest.raises(ServerLost):
            waiting.result(SOON)
        assert time.monotonic() - began < LATE


# ---- Nothing is left behind ----


def test_groups_leave_no_file_and_no_thread(endpoint: Endpoint) -> None:
    def fail(group: Group) -> None:
        collectives.barrier(group)
        if group.rank == 1:
            raise RuntimeError("it cannot")
        collectives.barrier(group)

    def seen() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before = seen()
    for what in (collectives.barrier, fail, lambda group: group.wish([(group.rank + 1) % 3])):
        for routes in (DIRECT, RELAYED):
            outcomes(endpoint, [what] * 3, routes=routes, timing=QUICK)
    for wrong in ({"secret": b"wrong"}, {"join_timeout": 0.0}):
        assert all(isinstance(one.error, FMIError) for one in outcomes(endpoint, [collectives.barrier], **wrong))
    until = time.monotonic() + SOON  # in which threads that were meeting a peer come to their end
    while seen() != before and time.monotonic() < until:
        time.sleep(0.01)
    assert seen() == before
