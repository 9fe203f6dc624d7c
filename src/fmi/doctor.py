"""Diagnostics: whether this host can connect through a rendezvous server, how fast, and through what kind of NAT."""

from __future__ import annotations

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

import msgspec

from . import SECRET_VARIABLE
from .control import Endpoint, connect_to_server, create_shared_port_socket
from .errors import FMIError, ServerLost
from .group import Group, connect
from .measure import measure_counter, measure_round_trips, measure_transfers
from .messages import ROUTES, Address

TIMEOUT = 15.0  # seconds for each diagnostic
MAX_CLOCK_OFFSET = 2.0  # seconds
REPEATS, TRANSFERS = 50, 3
SIZE = 16 * 2**20  # bytes


@dataclass(frozen=True)
class Diagnostic:
    """The result of one check; `passed` is None if it could not be determined."""

    name: str
    passed: bool | None
    message: str


def run_diagnostics(endpoint: Endpoint, secret: bytes, health_port: int | None = None) -> list[Diagnostic]:
    """Return the results of all checks, as far as the server can be reached and accepts the secret."""
    try:
        began = time.perf_counter()
        connection, hello = connect_to_server(endpoint, time.monotonic() + TIMEOUT)
        seconds = time.perf_counter() - began
    except FMIError as error:
        return [Diagnostic("reachable", False, str(error))]
    with connection:
        local: Address = connection.getsockname()[:2]
        offset = hello.time - time.time() + seconds / 2
        results = [
            Diagnostic("reachable", True, f"{endpoint} answers in {seconds * 1000:.1f} ms"),
            Diagnostic(
                "clock",
                abs(offset) <= MAX_CLOCK_OFFSET,
                f"the server's clock differs by {offset:+.3f} s, with an uncertainty of {seconds / 2:.3f} s",
            ),
            _diagnose_nat(endpoint, local, hello.public, health_port or endpoint.port + 1),
        ]
    results.append(_diagnose("authenticated", partial(_check_secret, endpoint, secret, hello.needs_secret)))
    if results[-1].passed:
        results.append(_diagnose("connection", partial(_check_connection, endpoint, secret, ROUTES)))
        results.append(_diagnose("relay", partial(_check_connection, endpoint, secret, ("relay",))))
    return results


def _diagnose_nat(endpoint: Endpoint, local: Address, public: Address, health_port: int) -> Diagnostic:
    """Determine the NAT between this host and the server from the public addresses of two connections of one port."""
    if local == public:
        return Diagnostic("NAT", True, f"none: the server sees the local address {_text(local)}")
    mapping = f"{_text(local)} is {_text(public)} to the server"
    try:
        second = _request_address(endpoint.host, health_port, local)
    except (OSError, ValueError, HTTPException):
        guess = "keeps ports, so hole punching may work" if local[1] == public[1] else "changes ports"
        hint = f"no definite answer without access to port {health_port} of the server"
        return Diagnostic("NAT", None, f"{mapping}; the NAT {guess} ({hint})")
    if second == public:
        return Diagnostic("NAT", True, f"{mapping} on all its ports, so hole punching works")
    message = f"{mapping} and {_text(second)} to its port {health_port}, so hole punching cannot work"
    return Diagnostic("NAT", True, message)


def _request_address(host: str, port: int, local: Address) -> Address:
    """Return the public address of a connection to the server's health port from the given local address."""
    connection = HTTPConnection(host, port, timeout=TIMEOUT)
    connection.sock = create_shared_port_socket(socket.AF_INET6 if ":" in local[0] else socket.AF_INET)
    with closing(connection):
        connection.sock.bind(local)
        connection.sock.settimeout(TIMEOUT)
        connection.sock.connect((host, port))
        connection.request("GET", "/address")
        return msgspec.json.decode(connection.getresponse().read(), type=Address)


def _check_secret(endpoint: Endpoint, secret: bytes, needs_secret: bool) -> str:
    if needs_secret and not secret:
        raise ServerLost(f"the server needs a secret; set {SECRET_VARIABLE} to it")
    with connect(endpoint, _new_job(), 0, 1, secret, join_timeout=TIMEOUT, timeout=TIMEOUT) as group:
        seconds = median(measure_counter(group, REPEATS))
    method = "with the secret" if needs_secret else "without a secret, which this server does not need"
    return f"{method}; the counter answers in {seconds * 1e6:.0f} us"


def _check_connection(endpoint: Endpoint, secret: bytes, routes: Sequence[str]) -> str:
    """Measure the connection between two ranks of one job in two threads of this process."""
    job = _new_job()

    def run_rank(rank: int) -> tuple[str, float, float]:
        with connect(endpoint, job, rank, 2, secret, join_timeout=TIMEOUT, timeout=TIMEOUT, routes=routes) as group:
            return _measure(group, 1 - rank)

    with ThreadPoolExecutor(2) as pool:
        (route, round_trip, transfer), _ = pool.map(run_rank, range(2))
    return f"{route}: 8 bytes there and back in {round_trip * 1e6:.0f} us, {SIZE / transfer / 1e6:,.0f} MB/s"


def _measure(group: Group, peer: int) -> tuple[str, float, float]:
    round_trips = measure_round_trips(group, peer, REPEATS)
    transfers = measure_transfers(group, peer, SIZE, TRANSFERS)
    return group.routes[peer], median(round_trips), median(transfers)


def _diagnose(name: str, check: Callable[[], str]) -> Diagnostic:
    try:
        return Diagnostic(name, True, check())
    except (FMIError, OSError) as error:
        return Diagnostic(name, False, str(error))


def _new_job() -> str:
    return f"doctor-{uuid.uuid4()}"


def _text(address: Address) -> str:
    return str(Endpoint(*address))
