"""Hosts on an Internet of their own, some behind NATs: real network namespaces, with the kernel's TCP and iptables.

The namespaces have no names. File descriptors of this process hold them, so that they end with it at the latest, and
all interfaces are in them: nothing is seen outside, and any number of processes may do this at once.
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

from ..errors import InputError
from .namespaces import command, inside, ip, kill_all, new_namespace

NONE_HERE = "there can be no network namespaces here"
PUBLIC = "11.0.0.0/16"  # addresses that software takes for public ones, as those for documentation are not
NETLINK_NETFILTER, CT_DELETE, REQUEST_AND_ACK = 12, 0x102, 0x5  # <linux/netlink.h>, nfnetlink_conntrack.h
REFUSE = "-A INPUT -p tcp --syn -j REJECT --reject-with tcp-reset"
# What comes of a connection that a NAT has forgotten is neither a SYN nor a reply to it.
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
def missing() -> str | None:
    """Why there can be no Internet here, in one sentence that begins with NONE_HERE; None if there can."""
    if os.geteuid() != 0:
        return f"{NONE_HERE}: only root can make them"
    for tool in ("ip", "bridge", "iptables-restore"):
        if not shutil.which(tool):
            return f"{NONE_HERE}: {tool} is not installed (Debian: iproute2 iptables)"
    try:
        with Internet() as internet:
            internet.host(Nat("refuse", random=True)).forget()
    except (OSError, InputError) as error:
        return f"{NONE_HERE}: {error}"
    return None


@dataclass(frozen=True)
class Nat:
    """How a NAT behaves. It passes TCP, of connections that were begun from its own side; it has no hairpin.

    SYNs that nobody asked for it drops, or refuses with a RST; all else that is not of a connection it drops. It keeps
    the ports of its hosts where they are free, or with `random` takes another for each connection. Every NAT has a
    private network to itself, so that hosts behind two of them may have the same address.
    """

    unsolicited: Literal["drop", "refuse"] = "drop"
    random: bool = False
    network: str = "192.168.1.0/24"


@dataclass
class Network:
    """A bridge named `wire` in a namespace, which has the first address on it and is the router of its hosts."""

    namespace: int
    subnet: IPv4Network
    public_address: str | None  # of its NAT; None for the Internet itself
    hosts: int = 0

    def attach(self, namespace: int) -> tuple[str, str]:
        """Links eth0 of a namespace to the bridge: its address, and the name of the bridge's end."""
        self.hosts += 1
        address, port = self.subnet[self.hosts + 1], f"port{self.hosts}"
        link = f"link add {port} type veth peer name eth0 netns /proc/self/fd/{namespace}"
        ip(self.namespace, link, f"link set {port} master wire up", pass_fds=[namespace])
        mine = f"addr add {address}/{self.subnet.prefixlen} dev eth0"
        ip(namespace, "link set lo up", mine, "link set eth0 up", f"route add default via {self.subnet[1]}")
        return str(address), port


@dataclass(frozen=True)
class Host:
    """A machine with one interface. Its address, and that which others see it by, are the same if it has no NAT."""

    address: str
    public_address: str
    namespace: int = field(repr=False)
    port: str = field(repr=False)
    network: Network = field(repr=False)
    started: list[subprocess.Popen[Any]] = field(repr=False)  # by anyone on this Internet

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Whatever sockets this thread makes meanwhile, and processes and threads it starts, belong to the host."""
        with inside(self.namespace):
            yield

    def popen(self, command: Sequence[str | os.PathLike[str]], **arguments: Any) -> subprocess.Popen[Any]:
        """Starts a process on the host, as subprocess.Popen does."""
        with self.inside():
            self.started.append(subprocess.Popen(command, **arguments))
            return self.started[-1]

    def run(self, command: Sequence[str | os.PathLike[str]], **arguments: Any) -> subprocess.CompletedProcess[Any]:
        """Runs a command on the host, as subprocess.run does."""
        with self.inside():
            return subprocess.run(command, **arguments)

    def forget(self) -> None:
        """Its NAT forgets all connections through it. What either side still sends of them is dropped.

        Raises InputError if it has no NAT.
        """
        if self.network.public_address is None:
            raise InputError(f"{self.address} is behind no NAT that could forget")
        with inside(self.network.namespace):
            kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        with kernel:
            # "Delete", without a word of what: all that this namespace tracks. `conntrack --flush` says the same.
            kernel.send(struct.pack("=IHHIIBBH", 20, CT_DELETE, REQUEST_AND_ACK, 0, 0, socket.AF_UNSPEC, 0, 0))
            (error,) = struct.unpack_from("=i", kernel.recv(4096), 16)
        if error:
            raise OSError(-error, os.strerror(-error))

    def cut(self) -> None:
        """Nothing passes its link until `mend`, and its interface does not tell. Whoever tries to connect waits, but on
        the same network not for more than 3 s (EHOSTUNREACH)."""
        command(self.network.namespace, f"bridge link set dev {self.port} state 0".split())  # disabled

    def mend(self) -> None:
        """Its link works again."""
        command(self.network.namespace, f"bridge link set dev {self.port} state 3".split())  # forwarding


class Internet:
    """Makes hosts, in a `with`. At its end all of them and all processes on them are gone.

    What is sent to an address outside PUBLIC, as to a private one of others, vanishes. Raises InputError or OSError
    where the system does not let it (`missing`).
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
                process.kill()  # wherever it is now
            kill_all(self._namespaces)
            for process in self._started:
                process.wait()
        finally:
            for namespace in self._namespaces:
                os.close(namespace)

    def host(self, nat: Nat | None = None, *, beside: Host | None = None) -> Host:
        """A new host: with a public address, behind a new NAT, or beside another behind the same."""
        network = beside.network if beside else self._behind(nat) if nat else self._network
        namespace = self._namespace()
        address, port = network.attach(namespace)
        return Host(address, network.public_address or address, namespace, port, network, self._started)

    def _behind(self, nat: Nat) -> Network:
        namespace = self._namespace()
        address, _ = self._network.attach(namespace)
        refuse, random = REFUSE * (nat.unsolicited == "refuse"), "--random-fully" * nat.random
        command(namespace, ["iptables-restore"], RULES.format(refuse=refuse, random=random))
        return self._bridge(namespace, nat.network, address, routes=True)

    def _bridge(self, namespace: int, subnet: str, public_address: str | None, routes: bool) -> Network:
        network = Network(namespace, IPv4Network(subnet), public_address)
        router = f"{network.subnet[1]}/{network.subnet.prefixlen}"
        ip(namespace, "link add wire type bridge", f"addr add {router} dev wire", "link set wire up")
        with inside(namespace):  # a new namespace routes if the machine does
            Path("/proc/sys/net/ipv4/ip_forward").write_text(str(int(routes)))
        return network

    def _namespace(self) -> int:
        self._namespaces.append(new_namespace())
        return self._namespaces[-1]
