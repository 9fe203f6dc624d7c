"""The emulated Internet of network namespaces: its NATs, its failures, and its removal."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cosmicai.bench.nat_lab import networks
from cosmicai.bench.nat_lab.networks import UNSUPPORTED, Host, Internet, Nat, explain_unsupported
from cosmicai.errors import InputError
from support.rendezvous import internet as internet

QUIET_TIME = 0.3  # seconds within which everything here happens, including the retransmission of a packet
TIMEOUT = 10  # seconds, more than anything here takes
PORTS = (40001, 40002)
Make = Callable[..., socket.socket]


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if why := explain_unsupported():
        pytest.skip(why)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Close the sockets of a test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def tcp(stack: ExitStack) -> Make:
    """Return a function that creates a socket on a host, bound to a port of its address."""

    def make(host: Host, port: int = 0) -> socket.socket:
        with host.enter():
            made = stack.enter_context(socket.socket())
        made.settimeout(TIMEOUT)
        made.bind((host.address, port))
        return made

    return make


@pytest.fixture
def listen(tcp: Make) -> Make:
    """Return a function that creates a listening socket on a host."""

    def make(host: Host, port: int = PORTS[0]) -> socket.socket:
        made = tcp(host, port)
        made.listen()
        return made

    return make


def connect(client: socket.socket, listener: socket.socket, address: str) -> socket.socket:
    """Connect to the listener at an address, and return the listener's end."""
    client.connect((address, listener.getsockname()[1]))
    return listener.accept()[0]


def assert_communicate(one: socket.socket, other: socket.socket) -> None:
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"hello")
        assert receiver.recv(5) == b"hello"


def assert_silent(*sockets: socket.socket) -> None:
    """Check that nothing arrives, neither data nor an end of stream nor a reset."""
    for each in sockets:
        each.settimeout(QUIET_TIME)
        with pytest.raises(TimeoutError):
            each.recv(1)


def test_hosts_with_public_addresses_reach_each_other(internet: Internet, tcp: Make, listen: Make) -> None:
    server, other = internet.host(), internet.host()
    assert server.address == server.public_address != other.address
    listener, client = listen(server), tcp(other)
    with connect(client, listener, server.address) as accepted:
        assert accepted.getpeername() == client.getsockname()
        assert_communicate(client, accepted)


def test_a_nat_uses_its_own_address_and_keeps_the_port(internet: Internet, tcp: Make, listen: Make) -> None:
    server, a = internet.host(), internet.host(Nat())
    assert a.address != a.public_address
    client = tcp(a, PORTS[1])
    with connect(client, listen(server), server.address) as accepted:
        assert accepted.getpeername() == (a.public_address, PORTS[1])
        assert client.getsockname() == (a.address, PORTS[1])
        assert_communicate(client, accepted)


def test_a_random_nat_gives_each_connection_another_port(internet: Internet, tcp: Make, listen: Make) -> None:
    server, a = internet.host(), internet.host(Nat(random=True))
    ports = []
    for port in range(40010, 40014):
        with connect(tcp(a, port), listen(server, port), server.address) as accepted:
            address, seen = accepted.getpeername()
            assert address == a.public_address
            ports.append(seen - port)
    # One port may be the same by chance, with a probability of 1 in 60,000.
    assert ports.count(0) <= 1


@pytest.mark.parametrize("random", [False, True])
def test_a_nat_that_drops_leaves_the_sender_waiting(internet: Internet, tcp: Make, listen: Make, random: bool) -> None:
    server, a = internet.host(), internet.host(Nat(random=random))
    listener, client = listen(a), tcp(server)
    listener.settimeout(QUIET_TIME)
    client.settimeout(QUIET_TIME)
    with pytest.raises(TimeoutError):
        client.connect((a.public_address, PORTS[0]))
    with pytest.raises(TimeoutError):
        listener.accept()


def test_a_nat_that_refuses_answers_with_a_reset(internet: Internet, tcp: Make, listen: Make) -> None:
    server, a = internet.host(), internet.host(Nat("refuse"))
    listener = listen(a)
    with pytest.raises(ConnectionRefusedError):
        tcp(server).connect((a.public_address, PORTS[0]))
    listener.settimeout(QUIET_TIME)
    with pytest.raises(TimeoutError):
        listener.accept()
    # The refused connection does not block the port: an outgoing connection can use it, and receives its reply.
    with connect(tcp(a, PORTS[1]), listen(server), server.address) as accepted:
        assert accepted.getpeername() == (a.public_address, PORTS[1])


def test_only_the_remote_end_of_a_connection_may_answer(internet: Internet, tcp: Make, listen: Make) -> None:
    """A connection through the NAT opens its port only for the other end."""
    server, other, a = internet.host(), internet.host(), internet.host(Nat("refuse"))
    with connect(tcp(a, PORTS[1]), listen(server), server.address):
        for intruder in (tcp(other), tcp(server)):
            with pytest.raises(ConnectionRefusedError):
                intruder.connect((a.public_address, PORTS[1]))


@pytest.mark.parametrize(("unsolicited", "error"), [("drop", TimeoutError), ("refuse", ConnectionRefusedError)])
def test_behind_one_nat_only_private_addresses_are_reachable(
    internet: Internet, tcp: Make, listen: Make, unsolicited: str, error: type[OSError]
) -> None:
    a = internet.host(Nat(unsolicited))  # type: ignore[arg-type]
    b = internet.host(same_network_as=a)
    assert a.public_address == b.public_address
    assert a.address != b.address
    listener = listen(a)
    client = tcp(b)
    with connect(client, listener, a.address) as accepted:
        assert accepted.getpeername() == client.getsockname()  # not through the NAT
        assert_communicate(client, accepted)
    client = tcp(b)
    client.settimeout(QUIET_TIME)
    with pytest.raises(error):
        client.connect((a.public_address, PORTS[0]))


def test_hosts_behind_two_nats_may_have_the_same_address(internet: Internet, tcp: Make, listen: Make) -> None:
    server, a, b = internet.host(), internet.host(Nat()), internet.host(Nat())
    assert a.address == b.address
    assert a.public_address != b.public_address
    listener = listen(server)
    clients = [tcp(host, PORTS[1]) for host in (a, b)]
    ends = [connect(client, listener, server.address) for client in clients]
    for host, client, end in zip((a, b), clients, ends, strict=True):
        with end:
            assert end.getpeername() == (host.public_address, PORTS[1])
            assert_communicate(client, end)


def test_a_private_address_of_another_network_does_not_answer(internet: Internet, tcp: Make, listen: Make) -> None:
    server, a, b = internet.host(), internet.host(Nat(network="10.0.0.0/16")), internet.host(Nat())
    listener = listen(a)
    assert a.address == "10.0.0.2"
    for host in (server, b):
        client = tcp(host)
        client.settimeout(QUIET_TIME)
        with pytest.raises(TimeoutError):
            client.connect((a.address, PORTS[0]))
    listener.settimeout(QUIET_TIME)
    with pytest.raises(TimeoutError):
        listener.accept()


def open_simultaneously(tcp: Make, a: Host, b: Host, seconds: float) -> tuple[list[socket.socket], list[OSError]]:
    """Connect two hosts to each other at the same time, from and to PORTS; return their sockets and errors."""
    sockets = [tcp(host, port) for host, port in zip((a, b), PORTS, strict=True)]
    errors: list[OSError] = []

    def connect(own: socket.socket, host: Host, port: int) -> None:
        own.settimeout(seconds)
        try:
            own.connect((host.public_address, port))
        except OSError as error:
            errors.append(error)

    threads = [
        threading.Thread(target=connect, args=each) for each in zip(sockets, (b, a), reversed(PORTS), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sockets, errors


def test_simultaneous_open_through_two_nats(internet: Internet, tcp: Make) -> None:
    a, b = internet.host(Nat()), internet.host(Nat())
    sockets, errors = open_simultaneously(tcp, a, b, TIMEOUT)
    assert not errors
    assert [each.getpeername() for each in sockets] == [(b.public_address, PORTS[1]), (a.public_address, PORTS[0])]
    assert_communicate(*sockets)


def test_no_simultaneous_open_through_a_random_nat(internet: Internet, tcp: Make) -> None:
    _, errors = open_simultaneously(
        tcp, internet.host(Nat()), internet.host(Nat(random=True)), 1.5
    )  # SYNs at 0 and 1 s
    assert [type(error) for error in errors] == [TimeoutError] * 2


@pytest.mark.parametrize("unsolicited", ["drop", "refuse"])
def test_connections_that_a_nat_has_forgotten_are_silent(
    internet: Internet, tcp: Make, listen: Make, unsolicited: str
) -> None:
    server, a = internet.host(), internet.host(Nat(unsolicited))  # type: ignore[arg-type]
    b, remote = internet.host(same_network_as=a), internet.host(Nat())
    listener = listen(server)
    clients = [tcp(host) for host in (a, b, remote)]
    ends = [connect(client, listener, server.address) for client in clients]
    for client, end in zip(clients, ends, strict=True):
        assert_communicate(client, end)
    a.clear_nat_table()
    for each in (*clients[:2], *ends[:2]):
        each.sendall(b"lost")
    assert_silent(*clients[:2], *ends[:2])
    assert_communicate(clients[2], ends[2])  # another NAT is not affected
    with connect(tcp(a), listener, server.address) as again:
        assert again.getpeername()[0] == a.public_address
    for end in ends:
        end.close()


def test_a_host_without_a_nat_has_no_nat_table(internet: Internet) -> None:
    with pytest.raises(InputError, match="is not behind a NAT"):
        internet.host().clear_nat_table()


@pytest.mark.parametrize("nat", [None, Nat()])
def test_a_disconnected_host_is_silent_and_data_arrives_after_reconnection(
    internet: Internet, tcp: Make, listen: Make, nat: Nat | None
) -> None:
    server, a, other = internet.host(), internet.host(nat), internet.host()
    listener, client, bystander = listen(server), tcp(a), tcp(other)
    with (
        connect(client, listener, server.address) as accepted,
        connect(bystander, listener, server.address) as unaffected,
    ):
        assert_communicate(client, accepted)
        a.disconnect()
        client.sendall(b"outwards")
        accepted.sendall(b"inwards")
        assert_silent(client, accepted)
        assert_communicate(bystander, unaffected)
        a.reconnect()
        client.settimeout(TIMEOUT)
        accepted.settimeout(TIMEOUT)
        assert accepted.recv(8) == b"outwards"
        assert client.recv(7) == b"inwards"


def test_a_disconnected_host_keeps_its_loopback(internet: Internet, tcp: Make, listen: Make) -> None:
    a = internet.host(Nat())
    a.disconnect()
    with connect(tcp(a), listen(a), a.address):
        pass
    with a.enter(), socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=TIMEOUT).close()


def test_commands_run_on_the_host(internet: Internet) -> None:
    a = internet.host(Nat())
    shown = a.run(["ip", "-brief", "address", "show", "eth0"], capture_output=True, text=True, check=True).stdout
    assert a.address in shown
    process = a.popen(["ip", "-brief", "address", "show", "eth0"], stdout=subprocess.PIPE, text=True)
    assert process.communicate(timeout=TIMEOUT)[0] == shown
    assert a.run(["false"]).returncode == 1


def test_threads_and_sockets_stay_on_their_host(internet: Internet, listen: Make) -> None:
    server, a = internet.host(), internet.host(Nat())
    listener = listen(server)

    def connect() -> None:
        began.wait()
        socket.create_connection((server.address, PORTS[0]), timeout=TIMEOUT).close()

    began = threading.Event()
    with a.enter():
        thread = threading.Thread(target=connect)
        thread.start()
    began.set()
    accepted, (address, _) = listener.accept()
    accepted.close()
    thread.join()
    assert address == a.public_address


def list_resources() -> tuple[set[str], bytes, str]:
    """Return what an Internet could leave in this process: files, interfaces, and the network namespace."""
    opened = {f"{path.name} {path.readlink()}" for path in Path("/proc/self/fd").iterdir() if path.exists()}
    interfaces = subprocess.run(["ip", "-brief", "link"], stdout=subprocess.PIPE, check=True).stdout
    return opened, interfaces, str(Path("/proc/thread-self/ns/net").readlink())


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("end", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_everything_is_removed(end: type[BaseException] | None, stack: ExitStack) -> None:
    before = list_resources()
    stubborn = "trap '' INT TERM HUP; setsid sleep 1000 & echo $$ $!; wait"
    pids: list[int] = []

    def use() -> None:
        with Internet() as internet:
            hosts = [internet.host(), internet.host(Nat())]
            hosts.append(internet.host(same_network_as=hosts[1]))
            for host in hosts:
                shell = host.popen(["sh", "-c", stubborn], stdout=subprocess.PIPE, text=True)
                pipe = stack.enter_context(shell.stdout)  # type: ignore[arg-type]
                pids.extend(map(int, pipe.readline().split()))
            pids.append(hosts[0].popen(["unshare", "--net", "sleep", "1000"]).pid)  # in another namespace
            assert all(is_alive(pid) for pid in pids)
            if end:
                with hosts[2].enter():
                    raise end

    if end:
        with pytest.raises(end):
            use()
    else:
        use()
    assert len(pids) == 7
    assert not any(is_alive(pid) for pid in pids)
    stack.close()
    assert list_resources() == before


def test_a_thread_on_a_host_survives_the_removal() -> None:
    before = list_resources()
    with ExitStack() as later, Internet() as internet:  # the Internet ends first
        later.enter_context(internet.host().enter())
    assert list_resources() == before


def test_the_removal_disconnects_remaining_sockets(tcp: Make, listen: Make) -> None:
    """A socket keeps its namespace alive, but not the link to other hosts."""
    with Internet() as internet:
        server, a = internet.host(), internet.host(Nat())
        listener, client = listen(server), tcp(a)
        with a.enter():
            kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with connect(client, listener, server.address) as accepted:
            assert_communicate(client, accepted)
    deadline = time.monotonic() + TIMEOUT
    with kept:
        # For a datagram socket this looks up a route, without sending anything.
        while (code := kept.connect_ex((server.address, PORTS[0]))) != errno.ENETUNREACH:
            assert time.monotonic() < deadline, code


@pytest.mark.parametrize("tool", ["ip", "iptables-restore"])
def test_a_failing_tool_is_reported_and_everything_removed(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list_resources()
    failing = tmp_path / tool
    failing.write_text("#!/bin/sh\necho a failure >&2; exit 3\n")
    failing.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(InputError, match=f"^{tool}.* failed: a failure$"), Internet() as internet:
            internet.host(Nat())
    assert list_resources() == before


IN_A_PROCESS = """
import socket, sys
from cosmicai.bench.nat_lab.networks import Internet, Nat

with Internet() as internet:
    server, a = internet.host(), internet.host(Nat())
    with server.enter():
        listener = socket.create_server((server.address, 7000))
    print(server.address, a.public_address, flush=True)
    for _ in range(3):
        sys.stdin.readline()
        with a.enter():
            client = socket.create_connection((server.address, 7000), timeout=10)
        accepted, (address, _) = listener.accept()
        accepted.sendall(sys.argv[1].encode())
        print(address, client.recv(100).decode(), flush=True)
        a.clear_nat_table()
        accepted.sendall(b"lost")
    sys.stdin.readline()
"""


def test_two_processes_are_independent(stack: ExitStack) -> None:
    """Both use the same addresses and ports, and clear the table of their own NAT only."""
    command = [sys.executable, "-c", IN_A_PROCESS]
    both = {
        name: stack.enter_context(
            subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        )
        for name in ("one", "other")
    }
    hosts = {name: process.stdout.readline().split() for name, process in both.items()}  # type: ignore[union-attr]
    assert hosts["one"] == hosts["other"] != []
    for _ in range(3):
        for process in both.values():
            process.stdin.write("\n")  # type: ignore[union-attr]
        for name, process in both.items():
            assert process.stdout.readline().split() == [hosts[name][1], name]  # type: ignore[union-attr]
    both["one"].communicate("\n", timeout=TIMEOUT)
    assert both["one"].returncode == 0
    both["other"].communicate("\n", timeout=TIMEOUT)
    assert both["other"].returncode == 0


def test_the_reason_why_it_is_unsupported_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def reason() -> str | None:
        explain_unsupported.cache_clear()
        return explain_unsupported()

    monkeypatch.setattr(networks, "create_namespace", refuse)
    try:
        assert reason() == f"{UNSUPPORTED}: [Errno 1] Operation not permitted"
        monkeypatch.setenv("PATH", "")
        assert reason() == f"{UNSUPPORTED}: ip is not installed (Debian: iproute2 iptables)"
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert reason() == f"{UNSUPPORTED}: only root can create them"
    finally:
        explain_unsupported.cache_clear()
