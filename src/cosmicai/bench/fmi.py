"""`cosmicai bench fmi`: ranks that talk by package fmi, beside plain TCP and beside gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

from ..errors import InputError
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from .fmi_rank import LARGE, SECRET
from .networks import Internet, Nat, missing
from .timing import spread

SERVE = (sys.executable, "-m", "fmi", "serve", "--port", "0")
ENVIRONMENT = {"FMI_SECRET": SECRET.decode(), "OMP_NUM_THREADS": "1"}
COLUMNS = (
    Column("figure", "figure"),
    Column("network", "network"),
    Column("ranks", "ranks", "d"),
    Column("by", "by"),
    Column("microseconds", "us", ",.0f"),
    Column("microseconds_min", "min", ",.0f"),
    Column("microseconds_max", "max", ",.0f"),
    Column("mb_per_second", "MB/s", ",.0f"),
    Column("relative", "speed, of the first", ".2f"),
)
Start = Callable[..., "subprocess.Popen[str]"]
Key = tuple[str, str, int]  # figure, network, ranks


def bench_fmi(ranks: Sequence[int], joining: int, repeats: int, tell: Callable[[str], None]) -> Report:
    """Times in microseconds: median, least and largest of the medians of each of so many passes.

    `round trip` is of 8 bytes, `transfer` of 64 MB (2^20 bytes) until the sender knows that they have come: between
    two hosts behind NATs of their own in network namespaces (root alone can make them) and on loopback. `relative` is
    the speed against plain TCP there. `barrier` and `allreduce` (of float32) are on loopback, against torch's gloo.
    `join` is from the start of so many ranks until all know that all are there. Raises InputError if a rank fails.
    """
    if why := missing():
        tell(f"no NATs: {why}")
    found: dict[Key, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(1, repeats + 1):
        tell(f"pass {number} of {repeats}")
        if not why:
            _add(found, "NATs", 2, _between_nats())
        with _served(subprocess.Popen, "127.0.0.1") as endpoint:
            _add(found, "loopback", 2, _on_loopback(endpoint))
            for size in ranks:
                by = {"gloo": _together("gloo", size, str(_free_port())), "fmi": _together("fmi", size, endpoint)}
                _add(found, "loopback", size, by)
            begun, ready, met = _joined(joining, endpoint)
            _add(found, "loopback", joining, {"fmi": {"join": [ready - begun], "join, barrier": [met - begun]}})
    rows = [_row(key, by, times) for key, ways in found.items() for by, times in _in_order(ways)]
    return Report("Ranks that talk", COLUMNS, rows, machine(), {"repeats": repeats})


def _add(found: dict[Key, dict[str, list[float]]], network: str, ranks: int, by: dict[str, Any]) -> None:
    for way, figures in by.items():
        for figure, times in figures.items():
            found[figure, network, ranks][way].append(median(times))


def _in_order(ways: dict[str, list[float]]) -> list[tuple[str, dict[str, float]]]:
    first = median(next(iter(ways.values())))
    return [(way, {**spread("seconds", times), "relative": first / median(times)}) for way, times in ways.items()]


def _row(key: Key, by: str, times: dict[str, float]) -> dict[str, Any]:
    figure, network, ranks = key
    row: dict[str, Any] = {"figure": figure, "network": network, "ranks": ranks, "by": by}
    for end in ("", "_min", "_max"):
        row[f"microseconds{end}"] = times[f"seconds{end}"] * 1e6
    row["mb_per_second"] = LARGE / 2**20 / times["seconds"] if figure == "transfer" else None
    row["relative"] = None if figure.startswith("join") else times["relative"]
    return row


def _between_nats() -> dict[str, dict[str, list[float]]]:
    """Two hosts behind NATs that keep ports and drop what nobody asked for."""
    with Internet() as internet:
        server, one, other = internet.host(), internet.host(Nat()), internet.host(Nat())
        with _served(server.popen, "0.0.0.0", server.address) as endpoint:
            places = {"plain": (other.public_address, one.public_address)}
            places |= dict.fromkeys(("punched", "relay"), (endpoint, endpoint))
            return {
                f"{way} TCP" if way == "plain" else way: _answers(
                    [_started(host.popen, way, rank, 2, at[rank]) for rank, host in enumerate((one, other))],
                    way == "plain",
                )[0]
                for way, at in places.items()
            }


def _on_loopback(endpoint: str) -> dict[str, dict[str, list[float]]]:
    places = {"loopback": str(_free_port()), "private": endpoint, "relay": endpoint}
    return {"plain TCP" if way == "loopback" else way: _together(way, 2, at) for way, at in places.items()}


def _together(what: str, size: int, where: str) -> dict[str, list[float]]:
    """What rank 0 of so many on this machine measures."""
    return _answers([_started(subprocess.Popen, what, rank, size, where) for rank in range(size)])[0]


def _joined(size: int, endpoint: str) -> tuple[float, float, float]:
    """When the first of so many began, the last knew that all were there, and had met all in a barrier."""
    ranks = [_started(subprocess.Popen, "join", rank, size, endpoint) for rank in range(size)]
    begun, ready, met = zip(*(answer["join"] for answer in _answers(ranks, True)), strict=True)
    return min(begun), max(ready), max(met)


def _started(start: Start, what: str, rank: int, size: int, where: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"{__package__}.fmi_child", what, str(rank), str(size), where]
    pipe = subprocess.PIPE
    return start(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=os.environ | ENVIRONMENT)


def _answers(ranks: Sequence[subprocess.Popen[str]], at_once: bool = False) -> list[dict[str, list[float]]]:
    """What each rank printed; those that begin `at_once` are told when all are there. Raises InputError."""
    try:
        if at_once:
            for rank in ranks:
                assert rank.stdout
                rank.stdout.readline()
            for rank in ranks:
                assert rank.stdin
                rank.stdin.write("go\n")
                rank.stdin.flush()
        told = [rank.communicate() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, complaint) in zip(ranks, told, strict=True):
        if rank.returncode:
            last = (complaint.strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(f"a rank of `bench fmi` failed: {last}")
    return [json.loads(answer) for answer, _ in told]


@contextmanager
def _served(start: Start, host: str, address: str = "127.0.0.1") -> Iterator[str]:
    """The endpoint of a rendezvous server."""
    quiet = partial(start, [*SERVE, "--host", host], stdout=subprocess.PIPE, text=True)
    with quiet(env=os.environ | ENVIRONMENT) as server:
        assert server.stdout
        try:
            yield f"{address}:{json.loads(server.stdout.readline())['port']}"
        finally:
            server.terminate()
            server.communicate()


def _free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])
