"""Groups over networks with NATs: real namespaces, a real server on a host of its own, a thread for each rank."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cosmicai.bench.networks import Host, Internet, Nat
from fmi import collectives
from fmi.errors import PeerLost, ServerLost
from fmi.group import Group, Timing
from support.fmi_ranks import LATE, QUICK, SOON, Outcome, deadline, outcomes, processes, raised
from support.rendezvous import Server, serving
from support.rendezvous import internet as internet

REPEATS = 5
DROP, REFUSE = Nat("drop"), Nat("refuse")
RANDOM, RANDOM_REFUSE = Nat("drop", random=True), Nat("refuse", random=True)
ANY_NAT = pytest.mark.parametrize("nat", [DROP, REFUSE, RANDOM], ids=["drop", "refuse", "random"])


@pytest.fixture
def host_of_server(internet: Internet) -> Host:
    return internet.host()


@pytest.fixture
def server(host_of_server: Host) -> Iterator[Server]:
    with serving("--max-silence", "2", host=host_of_server.address, popen=host_of_server.popen) as server:
        yield server


def on_hosts(
    server: Server, hosts: Sequence[Host], what: Callable[[Group], Any], timing: Timing = QUICK
) -> list[Outcome]:
    """What the ranks, one on each host, get."""
    return outcomes(server.endpoint, [what] * len(hosts), places=[host.inside for host in hosts], timing=timing)


def meet_all(group: Group) -> dict[int, str]:
    """Sends something to all others and receives their answers; how they are connected."""
    others = [rank for rank in range(group.size) if rank != group.rank]
    group.wish(others)
    for step in range(1, group.size):
        to, source = (group.rank + step) % group.size, (group.rank - step) % group.size
        data = np.random.default_rng(group.rank).bytes(200_000)
        found = group.exchange(step, deadline(), to=to, buffers=[data], source=source)
        assert found is not None
        assert bytes(found) == np.random.default_rng(source).bytes(200_000)
    return group.routes


def routes_of_two(server: Server, one: Host, other: Host) -> tuple[str, str]:
    """How they are connected, as each of both sees it."""
    found = on_hosts(server, [one, other], meet_all)
    assert [outcome.error for outcome in found] == [None, None]
    return found[0].value[1], found[1].value[0]


# ---- Which way ----


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (None, None, "private"),
        (None, DROP, "punched"),
        (REFUSE, None, "punched"),
        (RANDOM, None, "punched"),  # who has a public address is simply called
        (None, RANDOM_REFUSE, "punched"),
        (DROP, DROP, "punched"),
        (DROP, Nat("drop", network="10.1.0.0/16"), "punched"),
        (RANDOM, DROP, "relay"),
        (REFUSE, RANDOM, "relay"),
        (RANDOM, RANDOM, "relay"),
        (RANDOM_REFUSE, RANDOM_REFUSE, "relay"),
    ],
    ids=str,
)
def test_the_way_between_two_hosts(
    internet: Internet, server: Server, one: Nat | None, other: Nat | None, expected: str
) -> None:
    hosts = internet.host(one), internet.host(other)
    for _ in range(2 if expected == "relay" else REPEATS):
        assert routes_of_two(server, *hosts) == (expected, expected)


@pytest.mark.parametrize(("one", "other"), [(REFUSE, REFUSE), (DROP, REFUSE), (REFUSE, DROP)], ids=str)
def test_nats_that_refuse_are_passed_one_way_or_the_other(
    internet: Internet, server: Server, one: Nat, other: Nat
) -> None:
    """What comes before the own side has called is answered by a reset; a later try may find the way."""
    hosts = internet.host(one), internet.host(other)
    for _ in range(REPEATS):
        assert routes_of_two(server, *hosts) in [("punched", "punched"), ("relay", "relay")]


@ANY_NAT
def test_two_behind_one_nat(internet: Internet, server: Server, nat: Nat) -> None:
    one = internet.host(nat)
    other = internet.host(beside=one)
    for _ in range(REPEATS):
        assert routes_of_two(server, one, other) == ("private", "private")


def test_the_same_private_address_behind_two_nats(internet: Internet, server: Server) -> None:
    one, other = internet.host(DROP), internet.host(DROP)
    assert one.address == other.address
    assert routes_of_two(server, one, other) == ("punched", "punched")


def test_somebody_else_at_the_peers_private_address(internet: Internet, server: Server) -> None:
    """In the own network there is a host with the peer's address, on which every port answers with something."""
    one, other = internet.host(DROP), internet.host(DROP)
    beside = internet.host(beside=one)  # has 192.168.1.3
    far = internet.host(beside=other)
    assert far.address == beside.address
    script = (
        "import socket; s = socket.create_server(('', 7)); print(flush=True)\nwhile True: s.accept()[0].send(b'x' * 99)"
    )
    redirect = ["iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "7"]
    beside.run(redirect, check=True)
    stranger = beside.popen(["/usr/bin/env", "python3", "-c", script], stdout=-1)
    assert stranger.stdout
    assert stranger.stdout.readline() == b"\n"
    assert routes_of_two(server, one, far) == ("punched", "punched")
    stranger.stdout.close()


def test_several_ranks_on_each_host(internet: Internet, server: Server) -> None:
    """Each has a port of its own, and its NAT a place for each."""
    hosts = [internet.host(DROP), internet.host(DROP)]
    found = on_hosts(server, [hosts[0], hosts[1]] * 3, meet_all)
    assert [one.error for one in found] == [None] * 6
    for rank, one in enumerate(found):
        assert one.value == {
            peer: "private" if peer % 2 == rank % 2 else "punched" for peer in range(6) if peer != rank
        }


# ---- All at once ----


def test_collectives_over_all_kinds_of_networks(internet: Internet, server: Server) -> None:
    nats: list[Nat | None] = [None, DROP, REFUSE, RANDOM, None, DROP]
    hosts = [internet.host(nat) for nat in nats]
    hosts.append(internet.host(beside=hosts[1]))
    nats.append(nats[1])

    def expected(one: int, other: int) -> set[str]:
        kinds = nats[one], nats[other]
        if {one, other} == {1, 6} or kinds == (None, None):
            return {"private"}
        if None in kinds:
            return {"punched"}
        if RANDOM in kinds:
            return {"relay"}
        return {"punched", "relay"} if REFUSE in kinds else {"punched"}

    def run(group: Group) -> tuple[dict[int, str], list[list[float]], list[int], int]:
        routes = meet_all(group)
        sums = []
        for size in (1, 1000, 300_000):  # the last by the ring
            collectives.barrier(group)
            array = np.arange(size, dtype=np.float64) * (group.rank + 1)
            total = collectives.allreduce(group, array)
            assert np.array_equal(total, np.arange(size) * sum(range(1, group.size + 1)))
            sums.append([float(total[0]), float(total[-1])])
        everyone = collectives.allgather(group, group.rank * 10)
        return routes, sums, everyone, group.next_item()

    found = on_hosts(server, hosts, run)
    assert [one.error for one in found] == [None] * 7
    for rank, one in enumerate(found):
        routes, sums, everyone, _ = one.value
        assert sums == [[0.0, 28.0 * (size - 1)] for size in (1, 1000, 300_000)]
        assert everyone == [10 * other for other in range(7)]
        for peer, how in routes.items():
            assert how in expected(rank, peer), (rank, peer)
            assert how == found[peer].value[0][rank]
    assert sorted(one.value[3] for one in found) == list(range(7))
    kinds = {how for one in found for how in one.value[0].values()}
    assert kinds == {"private", "punched", "relay"}


# ---- What breaks ----


class Running:
    """Ranks that have met all others, and then do something once it is told that they may."""

    def __init__(self, server: Server, hosts: Sequence[Host], then: Callable[[Group], Any], timing: Timing) -> None:
        self._met, self._go = threading.Barrier(len(hosts) + 1), threading.Event()
        self._pool = ThreadPoolExecutor(1)

        def run(group: Group) -> tuple[dict[int, str], Any]:
            routes = meet_all(group)
            collectives.barrier(group)
            self._met.wait(SOON)
            self._go.wait(SOON)
            return routes, then(group)

        self._found: Future[list[Outcome]] = self._pool.submit(on_hosts, server, hosts, run, timing)

    def await_all(self) -> None:
        self._met.wait(SOON)

    def go_on(self) -> list[Outcome]:
        self._go.set()
        found = self._found.result(2 * SOON)
        self._pool.shutdown()
        return found


@pytest.mark.parametrize("breaks", ["forget", "cut"])
@ANY_NAT
def test_a_lost_connection_is_an_error_within_the_patience(
    internet: Internet, server: Server, nat: Nat, breaks: str
) -> None:
    """For all ranks: also for those that do not wait for the one that is lost. Nothing tells that it is but silence."""
    hosts = [internet.host(DROP), internet.host(nat), internet.host()]
    running = Running(server, hosts, collectives.barrier, QUICK)
    running.await_all()
    began = time.monotonic()
    getattr(hosts[1], breaks)()
    found = running.go_on()
    for one in found:
        raised(one, PeerLost)
        assert one.at - began < QUICK.patience + LATE


@pytest.mark.parametrize("breaks", ["forget", "cut"])
def test_a_lost_connection_in_the_midst_of_a_large_message(internet: Internet, server: Server, breaks: str) -> None:
    """Neither who sends nor who receives hangs."""
    hosts = [internet.host(DROP), internet.host(DROP)]
    under_way = threading.Event()

    def then(group: Group) -> None:
        def room(size: int) -> memoryview:
            under_way.set()
            return memoryview(bytearray(size))

        peer = 1 - group.rank
        for step in range(10**6):
            group.exchange(step, deadline(), to=peer, buffers=[bytes(2**25)], source=peer, room=room)

    running = Running(server, hosts, then, QUICK)
    running.await_all()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(running.go_on)
        assert under_way.wait(SOON)
        began = time.monotonic()
        getattr(hosts[1], breaks)()
        for one in found.result(2 * SOON):
            raised(one, PeerLost)
            assert one.at - began < QUICK.patience + LATE


def test_a_link_that_is_soon_mended_is_not_noticed(internet: Internet, server: Server) -> None:
    hosts = [internet.host(DROP), internet.host(RANDOM), internet.host()]
    timing = Timing(beat=0.1, patience=SOON, punching=1.0, relaying=5.0)

    def total(group: Group) -> float:
        return float(collectives.allreduce(group, np.array([2.0**group.rank]))[0])

    running = Running(server, hosts, total, timing)
    running.await_all()
    hosts[0].cut()
    mending = threading.Timer(0.5, hosts[0].mend)
    mending.start()
    found = running.go_on()
    mending.join()
    assert [one.error for one in found] == [None] * 3
    expected = [{1: "relay", 2: "punched"}, {0: "relay", 2: "punched"}, {0: "punched", 1: "punched"}]
    assert [one.value for one in found] == [(routes, 7.0) for routes in expected]


def test_when_the_server_is_cut_off_the_punched_go_on(internet: Internet, host_of_server: Host, server: Server) -> None:
    """What needs the server is an error within the patience."""
    hosts = [internet.host(DROP), internet.host(DROP), internet.host()]

    def then(group: Group) -> list[float]:
        began = time.monotonic()
        with pytest.raises(ServerLost, match="was silent for 1 s"):
            group.next_item()
        assert time.monotonic() - began < QUICK.patience + LATE
        return [float(collectives.allreduce(group, np.array([1.0 * step]))[0]) for step in range(10)]

    running = Running(server, hosts, then, QUICK)
    running.await_all()
    host_of_server.cut()
    found = running.go_on()
    host_of_server.mend()
    for one in found:
        assert one.error is None
        assert set(one.value[0].values()) == {"punched"}
        assert one.value[1] == [3.0 * step for step in range(10)]


def test_a_rank_behind_a_nat_that_is_killed(internet: Internet, server: Server) -> None:
    """A process, of which the kernel closes the connections, through its NAT too."""
    hosts = [internet.host(DROP), internet.host(DROP), internet.host(RANDOM)]
    with processes(server.endpoint, 3, QUICK, popens=[host.popen for host in hosts]) as ranks:
        for one in ranks:
            one.tell("sum")
        assert [one.answer()["value"] for one in ranks] == [7.0] * 3
        for rank in (0, 2):
            ranks[rank].tell("barrier")
        began = time.monotonic()
        ranks[1].process.kill()
        for rank in (0, 2):
            answer = ranks[rank].answer()
            assert answer["error"] == "PeerLost"
            assert answer["at"] - began < LATE
