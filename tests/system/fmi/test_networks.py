"""The Internet of namespaces is as it says: its NATs, its faults, its end."""

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

from cosmicai.bench import networks
from cosmicai.bench.networks import NONE_HERE, Host, Internet, Nat, missing
from cosmicai.errors import InputError
from support.rendezvous import internet as internet

NOTHING = 0.3  # seconds within which whatever happens here has happened, a packet sent again too
SOON = 10  # seconds that nothing here takes
PORTS = (40001, 40002)
Make = Callable[..., socket.socket]


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if why := missing():
        pytest.skip(why)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes the sockets of a test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def tcp(stack: ExitStack) -> Make:
    """Makes a socket on a host, at this port of its address."""

    def make(host: Host, port: int = 0) -> socket.socket:
        with host.inside():
            made = stack.enter_context(socket.socket())
        made.settimeout(SOON)
        made.bind((host.address, port))
        return made

    return make


@pytest.fixture
def listen(tcp: Make) -> Make:
    """Makes a socket that listens on a host."""

    def make(host: Host, port: int = PORTS[0]) -> socket.socket:
        made = tcp(host, port)
        made.listen()
        return made

    return make


def connected(client: socket.socket, listener: socket.socket, address: str) -> socket.socket:
    """Connects to the listener by an address, and returns the listener's end."""
    client.connect((address, listener.getsockname()[1]))
    return listener.accept()[0]


def assert_talk(one: socket.socket, other: socket.socket) -> None:
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"hello")
        assert receiver.recv(5) == b"hello"


def assert_silent(*sockets: socket.socket) -> None:
    """Nothing comes, no end and no reset either."""
    for each in sockets:
        each.settimeout(NOTHING)
        with pytest.raises(TimeoutError):
            each.recv(1)


def test_hosts_with_public_addresses_reach_each_other(internet: Internet, tcp: Make, listen: Make) -> None:
    server, other = internet.host(), internet.host()
    assert server.address == server.public_address != other.address
    listener, client = listen(server), tcp(other)
    with connected(client, listener, server.address) as accepted:
        assert accepted.getpeername() == client.getsockname()
        assert_talk(client, accepted)


def test_a_nat_shows_its_own_address_and_keeps_the_port(internet: Internet, tcp: Make, listen: Make) -> None:
    server, a = internet.host(), internet.host(Nat())
    assert a.address != a.public_address
    client = tcp(a, PORTS[1])
    with connected(client, listen(server), server.address) as accepted:
        assert accepted.getpeername() == (a.public_address, PORTS[1])
        assert client.getsockname() == (a.address, PORTS[1])
        assert_talk(client, accepted)


def test_a_random_nat_gives_each_connection_another_port(internet: Internet, tcp: Make, listen: Make) -> None:
    server, a = internet.host(), internet.host(Nat(random=True))
    ports = []
    for port in range(40010, 40014):
        with connected(tcp(a, port), listen(server, port), server.address) as accepted:
            address, seen = accepted.getpeername()
            assert address == a.public_address
            ports.append(seen - port)
    # One of them may be its own by chance, one in 60,000.
    assert ports.count(0) <= 1


@pytest.mark.parametrize("random", [False, True])
def test_a_nat_that_drops_leaves_the_sender_waiting(internet: Internet, tcp: Make, listen: Make, random: bool) -> None:
    server, a = internet.host(), internet.host(Nat(random=random))
    listener, client = listen(a), tcp(server)
    listener.settimeout(NOTHING)
    client.settimeout(NOTHING)
    with pytest.raises(TimeoutError):
        client.connect((a.public_address, PORTS[0]))
    with pytest.raises(TimeoutError):
        listener.accept()


def test_a_nat_that_refuses_answers_with_a_reset(internet: Internet, tcp: Make, listen: Make) -> None:
    server, a = internet.host(), internet.host(Nat("refuse"))
    listener = listen(a)
    with pytest.raises(ConnectionRefusedError):
        tcp(server).connect((a.public_address, PORTS[0]))
    listener.settimeout(NOTHING)
    with pytest.raises(TimeoutError):
        listener.accept()
    # What it has refused leaves no trace: the way out has its port, and a reply comes in.
    with connected(tcp(a, PORTS[1]), listen(server), server.address) as accepted:
        assert accepted.getpeername() == (a.public_address, PORTS[1])


def test_only_who_was_called_may_answer(internet: Internet, tcp: Make, listen: Make) -> None:
    """A connection through the NAT opens its port to the other end of it alone."""
    server, stranger, a = internet.host(), internet.host(), internet.host(Nat("refuse"))
    with connected(tcp(a, PORTS[1]), listen(server), server.address):
        for intruder in (tcp(stranger), tcp(server)):
            with pytest.raises(ConnectionRefusedError):
                intruder.connect((a.public_address, PORTS[1]))


@pytest.mark.parametrize(("unsolicited", "error"), [("drop", TimeoutError), ("refuse", ConnectionRefusedError)])
def test_behind_one_nat_only_private_addresses_reach(
    internet: Internet, tcp: Make, listen: Make, unsolicited: str, error: type[OSError]
) -> None:
    a = internet.host(Nat(unsolicited))  # type: ignore[arg-type]
    b = internet.host(beside=a)
    assert a.public_address == b.public_address
    assert a.address != b.address
    listener = listen(a)
    client = tcp(b)
    with connected(client, listener, a.address) as accepted:
        assert accepted.getpeername() == client.getsockname()  # the NAT is not between
        assert_talk(client, accepted)
    client = tcp(b)
    client.settimeout(NOTHING)
    with pytest.raises(error):
        client.connect((a.public_address, PORTS[0]))


def test_hosts_behind_two_nats_may_have_one_address(internet: Internet, tcp: Make, listen: Make) -> None:
    server, a, b = internet.host(), internet.host(Nat()), internet.host(Nat())
    assert a.address == b.address
    assert a.public_address != b.public_address
    listener = listen(server)
    clients = [tcp(host, PORTS[1]) for host in (a, b)]
    ends = [connected(client, listener, server.address) for client in clients]
    for host, client, end in zip((a, b), clients, ends, strict=True):
        with end:
            assert end.getpeername() == (host.public_address, PORTS[1])
            assert_talk(client, end)


def test_a_private_address_of_others_is_silent(internet: Internet, tcp: Make, listen: Make) -> None:
    server, a, b = internet.host(), internet.host(Nat(network="10.0.0.0/16")), internet.host(Nat())
    listener = listen(a)
    assert a.address == "10.0.0.2"
    for host in (server, b):
        client = tcp(host)
        client.settimeout(NOTHING)
        with pytest.raises(TimeoutError):
            client.connect((a.address, PORTS[0]))
    listener.settimeout(NOTHING)
    with pytest.raises(TimeoutError):
        listener.accept()


def open_at_once(tcp: Make, a: Host, b: Host, seconds: float) -> tuple[list[socket.socket], list[OSError]]:
    """Both hosts connect to the other at once, from and to the PORTS: their sockets, and errors if there were any."""
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
    sockets, errors = open_at_once(tcp, a, b, SOON)
    assert not errors
    assert [each.getpeername() for each in sockets] == [(b.public_address, PORTS[1]), (a.public_address, PORTS[0])]
    assert_talk(*sockets)


def test_no_simultaneous_open_through_a_random_nat(internet: Internet, tcp: Make) -> None:
    _, errors = open_at_once(tcp, internet.host(Nat()), internet.host(Nat(random=True)), 1.5)  # SYNs at 0 and 1 s
    assert [type(error) for error in errors] == [TimeoutError] * 2


@pytest.mark.parametrize("unsolicited", ["drop", "refuse"])
def test_what_a_nat_has_forgotten_is_dead_and_silent(
    internet: Internet, tcp: Make, listen: Make, unsolicited: str
) -> None:
    server, a = internet.host(), internet.host(Nat(unsolicited))  # type: ignore[arg-type]
    b, elsewhere = internet.host(beside=a), internet.host(Nat())
    listener = listen(server)
    clients = [tcp(host) for host in (a, b, elsewhere)]
    ends = [connected(client, listener, server.address) for client in clients]
    for client, end in zip(clients, ends, strict=True):
        assert_talk(client, end)
    a.forget()
    for each in (*clients[:2], *ends[:2]):
        each.sendall(b"lost")
    assert_silent(*clients[:2], *ends[:2])
    assert_talk(clients[2], ends[2])  # another NAT has forgotten nothing
    with connected(tcp(a), listener, server.address) as again:
        assert again.getpeername()[0] == a.public_address
    for end in ends:
        end.close()


def test_without_a_nat_nothing_is_forgotten(internet: Internet) -> None:
    with pytest.raises(InputError, match="behind no NAT"):
        internet.host().forget()


@pytest.mark.parametrize("nat", [None, Nat()])
def test_a_cut_link_is_silent_and_what_was_sent_comes_when_it_is_mended(
    internet: Internet, tcp: Make, listen: Make, nat: Nat | None
) -> None:
    server, a, other = internet.host(), internet.host(nat), internet.host()
    listener, client, bystander = listen(server), tcp(a), tcp(other)
    with (
        connected(client, listener, server.address) as accepted,
        connected(bystander, listener, server.address) as beside,
    ):
        assert_talk(client, accepted)
        a.cut()
        client.sendall(b"outwards")
        accepted.sendall(b"inwards")
        assert_silent(client, accepted)
        assert_talk(bystander, beside)
        a.mend()
        client.settimeout(SOON)
        accepted.settimeout(SOON)
        assert accepted.recv(8) == b"outwards"
        assert client.recv(7) == b"inwards"


def test_a_cut_host_has_its_loopback(internet: Internet, tcp: Make, listen: Make) -> None:
    a = internet.host(Nat())
    a.cut()
    with connected(tcp(a), listen(a), a.address):
        pass
    with a.inside(), socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=SOON).close()


def test_commands_run_on_the_host(internet: Internet) -> None:
    a = internet.host(Nat())
    shown = a.run(["ip", "-brief", "address", "show", "eth0"], capture_output=True, text=True, check=True).stdout
    assert a.address in shown
    process = a.popen(["ip", "-brief", "address", "show", "eth0"], stdout=subprocess.PIPE, text=True)
    assert process.communicate(timeout=SOON)[0] == shown
    assert a.run(["false"]).returncode == 1


def test_threads_and_sockets_of_a_host_stay_its_own(internet: Internet, listen: Make) -> None:
    server, a = internet.host(), internet.host(Nat())
    listener = listen(server)

    def connect() -> None:
        began.wait()
        socket.create_connection((server.address, PORTS[0]), timeout=SOON).close()

    began = threading.Event()
    with a.inside():
        thread = threading.Thread(target=connect)
        thread.start()
    began.set()
    accepted, (address, _) = listener.accept()
    accepted.close()
    thread.join()
    assert address == a.public_address


def seen() -> tuple[set[str], bytes, str]:
    """What an Internet could leave to this process: descriptors, interfaces, its own namespace."""
    opened = {f"{path.name} {path.readlink()}" for path in Path("/proc/self/fd").iterdir() if path.exists()}
    interfaces = subprocess.run(["ip", "-brief", "link"], stdout=subprocess.PIPE, check=True).stdout
    return opened, interfaces, str(Path("/proc/thread-self/ns/net").readlink())


def alive(pid: int) -> bool:
    """Whether the process is there, and is more than a number that its parent has not asked for."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("end", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_behind(end: type[BaseException] | None, stack: ExitStack) -> None:
    before = seen()
    stubborn = "trap '' INT TERM HUP; setsid sleep 1000 & echo $$ $!; wait"
    pids: list[int] = []

    def use() -> None:
        with Internet() as internet:
            hosts = [internet.host(), internet.host(Nat())]
            hosts.append(internet.host(beside=hosts[1]))
            for host in hosts:
                shell = host.popen(["sh", "-c", stubborn], stdout=subprocess.PIPE, text=True)
                pipe = stack.enter_context(shell.stdout)  # type: ignore[arg-type]
                pids.extend(map(int, pipe.readline().split()))
            pids.append(hosts[0].popen(["unshare", "--net", "sleep", "1000"]).pid)  # has left for another namespace
            assert all(alive(pid) for pid in pids)
            if end:
                with hosts[2].inside():
                    raise end

    if end:
        with pytest.raises(end):
            use()
    else:
        use()
    assert len(pids) == 7
    assert not any(alive(pid) for pid in pids)
    stack.close()
    assert seen() == before


def test_a_thread_that_is_inside_at_the_end_lives() -> None:
    before = seen()
    with ExitStack() as later, Internet() as internet:  # the Internet ends first
        later.enter_context(internet.host().inside())
    assert seen() == before


def test_the_end_parts_the_sockets_that_are_kept(tcp: Make, listen: Make) -> None:
    """A socket keeps its namespace, but not the link to the others."""
    with Internet() as internet:
        server, a = internet.host(), internet.host(Nat())
        listener, client = listen(server), tcp(a)
        with a.inside():
            kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with connected(client, listener, server.address) as accepted:
            assert_talk(client, accepted)
    deadline = time.monotonic() + SOON
    with kept:
        # Of datagrams this looks for a way out, and sends nothing.
        while (code := kept.connect_ex((server.address, PORTS[0]))) != errno.ENETUNREACH:
            assert time.monotonic() < deadline, code


@pytest.mark.parametrize("tool", ["ip", "iptables-restore"])
def test_where_a_tool_fails_it_is_told_and_nothing_left(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = seen()
    failing = tmp_path / tool
    failing.write_text("#!/bin/sh\necho it cannot >&2; exit 3\n")
    failing.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(InputError, match=f"^{tool}.* failed: it cannot$"), Internet() as internet:
            internet.host(Nat())
    assert seen() == before


IN_A_PROCESS = """
import socket, sys
from cosmicai.bench.networks import Internet, Nat

with Internet() as internet:
    server, a = internet.host(), internet.host(Nat())
    with server.inside():
        listener = socket.create_server((server.address, 7000))
    print(server.address, a.public_address, flush=True)
    for _ in range(3):
        sys.stdin.readline()
        with a.inside():
            client = socket.create_connection((server.address, 7000), timeout=10)
        accepted, (address, _) = listener.accept()
        accepted.sendall(sys.argv[1].encode())
        print(address, client.recv(100).decode(), flush=True)
        a.forget()
        accepted.sendall(b"lost")
    sys.stdin.readline()
"""


def test_two_processes_do_not_disturb_each_other(stack: ExitStack) -> None:
    """Both have the same addresses and ports, and either's NAT forgets its own connections only."""
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
    both["one"].communicate("\n", timeout=SOON)
    assert both["one"].returncode == 0
    both["other"].communicate("\n", timeout=SOON)
    assert both["other"].returncode == 0


def test_why_there_can_be_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def why() -> str | None:
        missing.cache_clear()
        return missing()

    monkeypatch.setattr(networks, "new_namespace", refuse)
    try:
        assert why() == f"{NONE_HERE}: [Errno 1] Operation not permitted"
        monkeypatch.setenv("PATH", "")
        assert why() == f"{NONE_HERE}: ip is not installed (Debian: iproute2 iptables)"
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        assert why() == f"{NONE_HERE}: only root can make them"
    finally:
        missing.cache_clear()
