"""Can this host talk through that server, how well, and what is its NAT like?"""

from __future__ import annotations

import json
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from statistics import median

from . import SECRET
from .control import Endpoint, reach, shareable
from .errors import FMIError, ServerLost
from .group import Group, joined
from .measure import counts, round_trips, transfers
from .messages import ROUTES, Address

PATIENCE = 15.0  # seconds for each thing that is tried
LARGEST_OFFSET = 2.0  # seconds between the clocks
REPEATS, TRANSFERS = 50, 3
SIZE = 16 * 2**20  # bytes


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what was seen; `passed` is None where it could not be told."""

    name: str
    passed: bool | None
    said: str


def checks(endpoint: Endpoint, secret: bytes, health_port: int | None = None) -> list[Check]:
    """All that can be known from here, without more where the server is not reached or lets nobody in."""
    try:
        begun = time.perf_counter()
        own, hello = reach(endpoint, time.monotonic() + PATIENCE)
        seconds = time.perf_counter() - begun
    except FMIError as error:
        return [Check("reachable", False, str(error))]
    with own:
        local: Address = own.getsockname()[:2]
        offset = hello.time - time.time() + seconds / 2
        found = [
            Check("reachable", True, f"{endpoint} answers in {seconds * 1000:.1f} ms"),
            Check(
                "clock", abs(offset) <= LARGEST_OFFSET,
                f"the server's is {offset:+.3f} s from this one's, give or take {seconds / 2:.3f} s",
            ),
            _nat(endpoint, local, hello.public, health_port or endpoint.port + 1),
        ]  # fmt: skip
    found.append(_tried("authenticated", partial(_authenticated, endpoint, secret, hello.needs_secret)))
    if found[-1].passed:
        found.append(_tried("to itself", partial(_to_itself, endpoint, secret, ROUTES)))
        found.append(_tried("by relay", partial(_to_itself, endpoint, secret, ("relay",))))
    return found


def _nat(endpoint: Endpoint, local: Address, public: Address, health_port: int) -> Check:
    """What lies between this host and the server, from how two connections of one port look from outside."""
    if local == public:
        return Check("NAT", True, f"none: the server sees {_text(local)}, as it is here")
    seen = f"{_text(local)} is {_text(public)} to the server"
    try:
        elsewhere = _address_seen(endpoint.host, health_port, local)
    except (OSError, ValueError, HTTPException):
        kept = "keeps ports, so punching may work" if local[1] == public[1] else "changes ports"
        return Check("NAT", None, f"{seen}; it {kept} (port {health_port} of the server would tell more)")
    if elsewhere == public:
        return Check("NAT", True, f"{seen} on all its ports, so that punching works")
    return Check("NAT", True, f"{seen} and {_text(elsewhere)} to its port {health_port}, so that punching cannot work")


def _address_seen(host: str, port: int, local: Address) -> Address:
    """What the server's health port says of a connection from the port from which we talk to the server."""
    connection = HTTPConnection(host, port, timeout=PATIENCE)
    connection.sock = shareable(socket.AF_INET6 if ":" in local[0] else socket.AF_INET)
    with closing(connection):
        connection.sock.bind(local)
        connection.sock.settimeout(PATIENCE)
        connection.sock.connect((host, port))
        connection.request("GET", "/address")
        seen, seen_port = json.loads(connection.getresponse().read())
    return str(seen), int(seen_port)


def _authenticated(endpoint: Endpoint, secret: bytes, needs_secret: bool) -> str:
    if needs_secret and not secret:
        raise ServerLost(f"the server needs a secret; set {SECRET} to it")
    with joined(endpoint, _job(), 0, 1, secret, join_timeout=PATIENCE, timeout=PATIENCE) as group:
        asked = median(counts(group, REPEATS))
    how = "by the secret" if needs_secret else "without a secret, as this server wants it"
    return f"{how}; the counter answers in {asked * 1e6:.0f} us"


def _to_itself(endpoint: Endpoint, secret: bytes, routes: Sequence[str]) -> str:
    """Two ranks of one job in two threads of this process."""
    job = _job()

    def rank(number: int) -> tuple[str, float, float]:
        with joined(endpoint, job, number, 2, secret, join_timeout=PATIENCE, timeout=PATIENCE, routes=routes) as group:
            return _measured(group, 1 - number)

    with ThreadPoolExecutor(2) as pool:
        (how, small, large), _ = pool.map(rank, range(2))
    return f"{how}: 8 bytes there and back in {small * 1e6:.0f} us, {SIZE / large / 1e6:,.0f} MB/s"


def _measured(group: Group, peer: int) -> tuple[str, float, float]:
    small, large = round_trips(group, peer, REPEATS), transfers(group, peer, SIZE, TRANSFERS)
    return group.routes[peer], median(small), median(large)


def _tried(name: str, what: Callable[[], str]) -> Check:
    try:
        return Check(name, True, what())
    except (FMIError, OSError) as error:
        return Check(name, False, str(error))


def _job() -> str:
    return f"doctor-{uuid.uuid4()}"


def _text(address: Address) -> str:
    return str(Endpoint(*address))
