"""Hosts on an isolated Internet, some behind NATs: network namespaces with the kernel's TCP and iptables.

File descriptors of this process keep the anonymous namespaces, so that they end with it at the latest. All interfaces
are inside them: nothing is visible outside, and any number of processes can do this at the same time.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Literal, Self

from ...errors import InputError
from .namespaces import create_namespace, enter_namespace, kill_processes, run_in_namespace, run_ip

UNSUPPORTED = "network namespaces cannot be created here"
PUBLIC = "11.0.0.0/16"  # software treats these as public, unlike the ranges reserved for documentation
NETLINK_NETFILTER, CT_DELETE, REQUEST_AND_ACK = 12, 0x102, 0x5  # <linux/netlink.h>, nfnetlink_conntrack.h
REFUSE = "-A INPUT -p tcp --syn -j REJECT --reject-with tcp-reset"
# Packets of a connection that a NAT has dropped from its table are neither a SYN nor a reply to one.
RULES = """*filter
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
{refuse}
-A INPUT -j DROP
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i wire -p tcp --syn -j ACCEPT
-A FORWARD -j DROP
COMMIT
*nat
-A POSTROUTING -o eth0 -j MASQUERADE {random}
COMMIT
"""


@functools.cache
def explain_unsupported() -> str | None:
    """Return why `Internet` cannot work here, in a sentence that begins with UNSUPPORTED, or None if it can."""
    if os.geteuid() != 0:
        return f"{UNSUPPORTED}: only root can create them"
    for tool in ("ip", "bridge", "iptables-restore"):
        if not shutil.which(tool):
            return f"{UNSUPPORTED}: {tool} is not installed (Debian: iproute2 iptables)"
    try:
        with Internet() as internet:
            internet.host(Nat("refuse", random=True)).clear_nat_table()
    except (OSError, InputError) as error:
        return f"{UNSUPPORTED}: {error}"
    return None


@dataclass(frozen=True)
class Nat:
    """The behaviour of a NAT. It passes TCP connections opened from its private side and does no hairpinning.

    It drops unsolicited SYNs, or refuses them with a RST, and drops all other packets outside connections. It preserves
    the ports of its hosts if they are free, or with `random` assigns a random one to each connection. Each NAT has a
    private network of its own, so that hosts behind different NATs may have the same address.
    """

    unsolicited: Literal["drop", "refuse"] = "drop"
    random: bool = False
    network: str = "192.168.1.0/24"


@dataclass
class Subnet:
    """A bridge named `wire` in a namespace, which has its first address and routes for its hosts."""

    namespace: int
    subnet: IPv4Network
    public_address: str | None  # of its NAT; None on the Internet itself
    hosts: int = 0

    def attach(self, namespace: int) -> tuple[str, str]:
        """Connect eth0 of a namespace to the bridge; return its address and the name of the port on the bridge."""
        self.hosts += 1
        address, port = self.subnet[self.hosts + 1], f"port{self.hosts}"
        link = f"link add {port} type veth peer name eth0 netns /proc/self/fd/{namespace}"
        run_ip(self.namespace, link, f"link set {port} master wire up", pass_fds=[namespace])
        mine = f"addr add {address}/{self.subnet.prefixlen} dev eth0"
        run_ip(namespace, "link set lo up", mine, "link set eth0 up", f"route add default via {self.subnet[1]}")
        return str(address), port


@dataclass(frozen=True)
class Host:
    """A machine with one interface. Without a NAT its address and public address are the same."""

    address: str
    public_address: str
    namespace: int = field(repr=False)
    port: str = field(repr=False)
    network: Subnet = field(repr=False)
    started: list[subprocess.Popen[Any]] = field(repr=False)  # by all hosts of this Internet

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Put the sockets, processes and threads that this thread creates during the context on this host."""
        with enter_namespace(self.namespace):
            yield

    def popen(self, command: Sequence[str | os.PathLike[str]], **arguments: Any) -> subprocess.Popen[Any]:
        """Start a process on the host, as subprocess.Popen does."""
        with self.enter():
            self.started.append(subprocess.Popen(command, **arguments))
            return self.started[-1]

    def run(self, command: Sequence[str | os.PathLike[str]], **arguments: Any) -> subprocess.CompletedProcess[Any]:
        """Run a command on the host, as subprocess.run does."""
        with self.enter():
            return subprocess.run(command, **arguments)

    def clear_nat_table(self) -> None:
        """Clear the connection table of its NAT, which then drops packets of these connections.

        Raises InputError if the host has no NAT.
        """
        if self.network.public_address is None:
            raise InputError(f"{self.address} is not behind a NAT; only a host behind one has a table to clear")
        with enter_namespace(self.network.namespace):
            kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        with kernel:
            # A "delete" message without a filter deletes all that this namespace tracks, as `conntrack --flush` does.
            kernel.send(struct.pack("=IHHIIBBH", 20, CT_DELETE, REQUEST_AND_ACK, 0, 0, socket.AF_UNSPEC, 0, 0))
            (error,) = struct.unpack_from("=i", kernel.recv(4096), 16)
        if error:
            raise OSError(-error, os.strerror(-error))

    def disconnect(self) -> None:
        """Let nothing pass its link until `reconnect`, while its interface stays up.

        Attempts to connect wait, from hosts on the same network for at most 3 s (EHOSTUNREACH).
        """
        run_in_namespace(self.network.namespace, f"bridge link set dev {self.port} state 0".split())  # disabled

    def reconnect(self) -> None:
        """Let packets pass its link again."""
        run_in_namespace(self.network.namespace, f"bridge link set dev {self.port} state 3".split())  # forwarding


class Internet:
    """A context that creates hosts; at its end they and all processes on them are removed.

    Packets to addresses outside PUBLIC, such as private ones, are lost. Raises InputError or OSError if the system does
    not permit it (`explain_unsupported`).
    """

    def __enter__(self) -> Self:
        self._namespaces: list[int] = []
        self._started: list[subprocess.Popen[Any]] = []
        try:
            self._network = self._bridge(self._namespace(), PUBLIC, None, routes=False)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for process in self._started:
                process.kill()  # even if it has moved to another namespace
            kill_processes(self._namespaces)
            for process in self._started:
                process.wait()
        finally:
            for namespace in self._namespaces:
                os.close(namespace)

    def host(self, nat: Nat | None = None, *, same_network_as: Host | None = None) -> Host:
        """Create a host: with a public address, behind a new NAT, or on the network of another host."""
        network = same_network_as.network if same_network_as else self._behind(nat) if nat else self._network
        namespace = self._namespace()
        address, port = network.attach(namespace)
        return Host(address, network.public_address or address, namespace, port, network, self._started)

    def _behind(self, nat: Nat) -> Subnet:
        namespace = self._namespace()
        address, _ = self._network.attach(namespace)
        refuse, random = REFUSE * (nat.unsolicited == "refuse"), "--random-fully" * nat.random
        run_in_namespace(namespace, ["iptables-restore"], RULES.format(refuse=refuse, random=random))
        return self._bridge(namespace, nat.network, address, routes=True)

    def _bridge(self, namespace: int, subnet: str, public_address: str | None, routes: bool) -> Subnet:
        network = Subnet(namespace, IPv4Network(subnet), public_address)
        router = f"{network.subnet[1]}/{network.subnet.prefixlen}"
        run_ip(namespace, "link add wire type bridge", f"addr add {router} dev wire", "link set wire up")
        with enter_namespace(namespace):  # a new namespace routes if the machine does
            Path("/proc/sys/net/ipv4/ip_forward").write_text(str(int(routes)))
        return network

    def _namespace(self) -> int:
        self._namespaces.append(create_namespace())
        return self._namespaces[-1]
