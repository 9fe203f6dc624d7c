"""Groups in networks with NATs: real namespaces, a real server on a host of its own, and one thread per rank."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cosmicai.bench.nat_lab.networks import Host, Internet, Nat
from fmi import collectives
from fmi.errors import PeerLost, ServerLost
from fmi.group import Group, Timing
from support.fmi_ranks import (
    MAX_DELAY,
    QUICK,
    TIMEOUT,
    Outcome,
    deadline,
    error_text,
    rank_processes,
    run_ranks,
)
from support.rendezvous import Server, rendezvous_server
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
    with rendezvous_server("--max-silence", "2", host=host_of_server.address, popen=host_of_server.popen) as server:
        yield server


def run_on_hosts(
    server: Server, hosts: Sequence[Host], function: Callable[[Group], Any], timing: Timing = QUICK
) -> list[Outcome]:
    """Run one rank on each host, and return their results."""
    return run_ranks(server.endpoint, [function] * len(hosts), hosts=[host.enter for host in hosts], timing=timing)


def exchange_with_all(group: Group) -> dict[int, str]:
    """Exchange data with all other ranks, and return the routes to them."""
    others = [rank for rank in range(group.size) if rank != group.rank]
    group.request_connections(others)
    for step in range(1, group.size):
        dest, source = (group.rank + step) % group.size, (group.rank - step) % group.size
        data = np.random.default_rng(group.rank).bytes(200_000)
        found = group.exchange(step, deadline(), dest=dest, buffers=[data], source=source)
        assert found is not None
        assert bytes(found) == np.random.default_rng(source).bytes(200_000)
    return group.routes


def routes_of_two(server: Server, one: Host, other: Host) -> tuple[str, str]:
    """Return the route between two hosts, as each of them reports it."""
    found = run_on_hosts(server, [one, other], exchange_with_all)
    assert [outcome.error for outcome in found] == [None, None]
    return found[0].value[1], found[1].value[0]


# ---- Routes ----


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (None, None, "private"),
        (None, DROP, "punched"),
        (REFUSE, None, "punched"),
        (RANDOM, None, "punched"),  # a host with a public address accepts connections
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
def test_the_route_between_two_hosts(
    internet: Internet, server: Server, one: Nat | None, other: Nat | None, expected: str
) -> None:
    hosts = internet.host(one), internet.host(other)
    for _ in range(2 if expected == "relay" else REPEATS):
        assert routes_of_two(server, *hosts) == (expected, expected)


@pytest.mark.parametrize(("one", "other"), [(REFUSE, REFUSE), (DROP, REFUSE), (REFUSE, DROP)], ids=str)
def test_nats_that_refuse_are_traversed_or_relayed(internet: Internet, server: Server, one: Nat, other: Nat) -> None:
    """A connection that arrives before the own one has left is reset; a later attempt may succeed."""
    hosts = internet.host(one), internet.host(other)
    for _ in range(REPEATS):
        assert routes_of_two(server, *hosts) in [("punched", "punched"), ("relay", "relay")]


@ANY_NAT
def test_two_hosts_behind_one_nat(internet: Internet, server: Server, nat: Nat) -> None:
    one = internet.host(nat)
    other = internet.host(same_network_as=one)
    for _ in range(REPEATS):
        assert routes_of_two(server, one, other) == ("private", "private")


def test_the_same_private_address_behind_two_nats(internet: Internet, server: Server) -> None:
    one, other = internet.host(DROP), internet.host(DROP)
    assert one.address == other.address
    assert routes_of_two(server, one, other) == ("punched", "punched")


def test_an_unknown_host_at_the_private_address_of_the_peer(internet: Internet, server: Server) -> None:
    """In the own network another host has the peer's address, and all its ports answer with invalid data."""
    one, other = internet.host(DROP), internet.host(DROP)
    neighbour = internet.host(same_network_as=one)  # has 192.168.1.3
    far = internet.host(same_network_as=other)
    assert far.address == neighbour.address
    script = (
        "import socket; s = socket.create_server(('', 7)); print(flush=True)\nwhile True: s.accept()[0].send(b'x' * 99)"
    )
    redirect = ["iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-j", "REDIRECT", "--to-ports", "7"]
    neighbour.run(redirect, check=True)
    intruder = neighbour.popen(["/usr/bin/env", "python3", "-c", script], stdout=-1)
    assert intruder.stdout
    assert intruder.stdout.readline() == b"\n"
    assert routes_of_two(server, one, far) == ("punched", "punched")
    intruder.stdout.close()


def test_several_ranks_on_each_host(internet: Internet, server: Server) -> None:
    """Each rank has its own port, which the NAT maps separately."""
    hosts = [internet.host(DROP), internet.host(DROP)]
    found = run_on_hosts(server, [hosts[0], hosts[1]] * 3, exchange_with_all)
    assert [one.error for one in found] == [None] * 6
    for rank, one in enumerate(found):
        assert one.value == {
            peer: "private" if peer % 2 == rank % 2 else "punched" for peer in range(6) if peer != rank
        }


# ---- Collectives ----


def test_collectives_in_all_kinds_of_networks(internet: Internet, server: Server) -> None:
    nats: list[Nat | None] = [None, DROP, REFUSE, RANDOM, None, DROP]
    hosts = [internet.host(nat) for nat in nats]
    hosts.append(internet.host(same_network_as=hosts[1]))
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
        routes = exchange_with_all(group)
        sums = []
        for size in (1, 1000, 300_000):  # the last one by the ring
            collectives.barrier(group)
            array = np.arange(size, dtype=np.float64) * (group.rank + 1)
            total = collectives.allreduce(group, array)
            assert np.array_equal(total, np.arange(size) * sum(range(1, group.size + 1)))
            sums.append([float(total[0]), float(total[-1])])
        everyone = collectives.allgather(group, group.rank * 10)
        return routes, sums, everyone, group.next_item()

    found = run_on_hosts(server, hosts, run)
    assert [one.error for one in found] == [None] * 7
    for rank, one in enumerate(found):
        routes, sums, everyone, _ = one.value
        assert sums == [[0.0, 28.0 * (size - 1)] for size in (1, 1000, 300_000)]
        assert everyone == [10 * other for other in range(7)]
        for peer, route in routes.items():
            assert route in expected(rank, peer), (rank, peer)
            assert route == found[peer].value[0][rank]
    assert sorted(one.value[3] for one in found) == list(range(7))
    kinds = {route for one in found for route in one.value[0].values()}
    assert kinds == {"private", "punched", "relay"}


# ---- Failures ----


class RunningRanks:
    """Ranks that have exchanged data with all others, and then run a function when the test continues them."""

    def __init__(self, server: Server, hosts: Sequence[Host], then: Callable[[Group], Any], timing: Timing) -> None:
        self._met, self._go = threading.Barrier(len(hosts) + 1), threading.Event()
        self._pool = ThreadPoolExecutor(1)

        def run(group: Group) -> tuple[dict[int, str], Any]:
            routes = exchange_with_all(group)
            collectives.barrier(group)
            self._met.wait(TIMEOUT)
            self._go.wait(TIMEOUT)
            return routes, then(group)

        self._found: Future[list[Outcome]] = self._pool.submit(run_on_hosts, server, hosts, run, timing)

    def wait_until_connected(self) -> None:
        self._met.wait(TIMEOUT)

    def continue_all(self) -> list[Outcome]:
        self._go.set()
        found = self._found.result(2 * TIMEOUT)
        self._pool.shutdown()
        return found


@pytest.mark.parametrize("failure", ["clear_nat_table", "disconnect"])
@ANY_NAT
def test_a_lost_connection_is_an_error_after_the_silence_timeout(
    internet: Internet, server: Server, nat: Nat, failure: str
) -> None:
    """The only symptom is silence. Ranks that do not wait for the lost one raise the error, too."""
    hosts = [internet.host(DROP), internet.host(nat), internet.host()]
    running = RunningRanks(server, hosts, collectives.barrier, QUICK)
    running.wait_until_connected()
    began = time.monotonic()
    getattr(hosts[1], failure)()
    found = running.continue_all()
    for one in found:
        error_text(one, PeerLost)
        assert one.at - began < QUICK.silence_timeout + MAX_DELAY


@pytest.mark.parametrize("failure", ["clear_nat_table", "disconnect"])
def test_a_lost_connection_within_a_large_message(internet: Internet, server: Server, failure: str) -> None:
    """Neither the sender nor the receiver hangs."""
    hosts = [internet.host(DROP), internet.host(DROP)]
    under_way = threading.Event()

    def then(group: Group) -> None:
        def allocate(size: int) -> memoryview:
            under_way.set()
            return memoryview(bytearray(size))

        peer = 1 - group.rank
        for step in range(10**6):
            group.exchange(step, deadline(), dest=peer, buffers=[bytes(2**25)], source=peer, allocate=allocate)

    running = RunningRanks(server, hosts, then, QUICK)
    running.wait_until_connected()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(running.continue_all)
        assert under_way.wait(TIMEOUT)
        began = time.monotonic()
        getattr(hosts[1], failure)()
        for one in found.result(2 * TIMEOUT):
            error_text(one, PeerLost)
            assert one.at - began < QUICK.silence_timeout + MAX_DELAY


def test_a_short_interruption_is_no_error(internet: Internet, server: Server) -> None:
    hosts = [internet.host(DROP), internet.host(RANDOM), internet.host()]
    timing = Timing(heartbeat_interval=0.1, silence_timeout=TIMEOUT, punching_timeout=1.0, relay_timeout=5.0)

    def total(group: Group) -> float:
        return float(collectives.allreduce(group, np.array([2.0**group.rank]))[0])

    running = RunningRanks(server, hosts, total, timing)
    running.wait_until_connected()
    hosts[0].disconnect()
    reconnection = threading.Timer(0.5, hosts[0].reconnect)
    reconnection.start()
    found = running.continue_all()
    reconnection.join()
    assert [one.error for one in found] == [None] * 3
    expected = [{1: "relay", 2: "punched"}, {0: "relay", 2: "punched"}, {0: "punched", 1: "punched"}]
    assert [one.value for one in found] == [(routes, 7.0) for routes in expected]


def test_punched_connections_continue_without_the_server(
    internet: Internet, host_of_server: Host, server: Server
) -> None:
    """Operations that need the server fail after the silence timeout."""
    hosts = [internet.host(DROP), internet.host(DROP), internet.host()]

    def then(group: Group) -> list[float]:
        began = time.monotonic()
        with pytest.raises(ServerLost, match="was silent for 1 s"):
            group.next_item()
        assert time.monotonic() - began < QUICK.silence_timeout + MAX_DELAY
        return [float(collectives.allreduce(group, np.array([1.0 * step]))[0]) for step in range(10)]

    running = RunningRanks(server, hosts, then, QUICK)
    running.wait_until_connected()
    host_of_server.disconnect()
    found = running.continue_all()
    host_of_server.reconnect()
    for one in found:
        assert one.error is None
        assert set(one.value[0].values()) == {"punched"}
        assert one.value[1] == [3.0 * step for step in range(10)]


def test_a_killed_rank_behind_a_nat(internet: Internet, server: Server) -> None:
    """The kernel closes the connections of the process, also through its NAT."""
    hosts = [internet.host(DROP), internet.host(DROP), internet.host(RANDOM)]
    with rank_processes(server.endpoint, 3, QUICK, popens=[host.popen for host in hosts]) as ranks:
        for one in ranks:
            one.start("sum")
        assert [one.receive_answer()["value"] for one in ranks] == [7.0] * 3
        for rank in (0, 2):
            ranks[rank].start("barrier")
        began = time.monotonic()
        ranks[1].process.kill()
        for rank in (0, 2):
            answer = ranks[rank].receive_answer()
            assert answer["error"] == "PeerLost"
            assert answer["at"] - began < MAX_DELAY
