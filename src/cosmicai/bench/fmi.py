"""`cosmicai bench fmi`: communication of ranks by package fmi, compared with plain TCP and gloo."""

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
from ..measurement.machine import describe_machine
from ..measurement.subprocesses import last_line
from ..measurement.table import MeasurementColumn, MeasurementTable
from .fmi_rank import LARGE, SECRET
from .nat_lab.networks import Internet, Nat, explain_unsupported
from .timing import summarize_spread

SERVE = (sys.executable, "-m", "fmi", "serve", "--port", "0")
ENVIRONMENT = {"FMI_SECRET": SECRET.decode(), "OMP_NUM_THREADS": "1"}
COLUMNS = (
    MeasurementColumn("figure", "figure"),
    MeasurementColumn("network", "network"),
    MeasurementColumn("ranks", "ranks", "d"),
    MeasurementColumn("by", "by"),
    MeasurementColumn("microseconds", "us", ",.0f"),
    MeasurementColumn("microseconds_min", "min", ",.0f"),
    MeasurementColumn("microseconds_max", "max", ",.0f"),
    MeasurementColumn("mb_per_second", "MB/s", ",.0f"),
    MeasurementColumn("relative", "speed, of the first", ".2f"),
)
StartProcess = Callable[..., "subprocess.Popen[str]"]
Times = dict[str, list[float]]  # seconds by figure
Key = tuple[str, str, int]  # figure, network, ranks


def bench_fmi(ranks: Sequence[int], joining: int, repeats: int, notify: Callable[[str], None]) -> MeasurementTable:
    """Measure times in microseconds: median and range over `repeats` passes of the median of each pass.

    `round trip` is for 8 bytes, and `transfer` for 64 MB (2^20 bytes) until the sender knows that they were received:
    between two hosts behind separate NATs, which needs network namespaces and hence root, and on loopback. `relative`
    is the speed relative to plain TCP. `barrier` and `allreduce` (of float32) are on loopback, relative to torch's
    gloo. `join` is from the start of `joining` ranks until all know that all have joined. Raises InputError if a rank
    fails.
    """
    if reason := explain_unsupported():
        notify(f"no NATs: {reason}")
    medians: dict[Key, Times] = defaultdict(lambda: defaultdict(list))
    for number in range(1, repeats + 1):
        notify(f"pass {number} of {repeats}")
        if not reason:
            _add(medians, "NATs", 2, _measure_between_nats())
        with _serve(subprocess.Popen, "127.0.0.1") as endpoint:
            _add(medians, "loopback", 2, _measure_on_loopback(endpoint))
            for size in ranks:
                gloo = _measure_ranks("gloo", size, str(_find_free_port()))
                _add(medians, "loopback", size, {"gloo": gloo, "fmi": _measure_ranks("fmi", size, endpoint)})
            _add(medians, "loopback", joining, {"fmi": _measure_joining(joining, endpoint)})
    rows = [_make_row(key, by, times) for key, ways in medians.items() for by, times in _compare(ways)]
    return MeasurementTable("Communication of ranks", COLUMNS, rows, describe_machine(), {"repeats": repeats})


def _add(medians: dict[Key, Times], network: str, ranks: int, times_by_way: dict[str, Times]) -> None:
    for way, figures in times_by_way.items():
        for figure, times in figures.items():
            medians[figure, network, ranks][way].append(median(times))


def _compare(ways: Times) -> list[tuple[str, dict[str, float]]]:
    """Return median, range and speed relative to the first way, for each way to communicate."""
    first = median(next(iter(ways.values())))
    return [
        (way, {**summarize_spread("seconds", times), "relative": first / median(times)}) for way, times in ways.items()
    ]


def _make_row(key: Key, by: str, times: dict[str, float]) -> dict[str, Any]:
    figure, network, ranks = key
    row: dict[str, Any] = {"figure": figure, "network": network, "ranks": ranks, "by": by}
    for end in ("", "_min", "_max"):
        row[f"microseconds{end}"] = times[f"seconds{end}"] * 1e6
    row["mb_per_second"] = LARGE / 2**20 / times["seconds"] if figure == "transfer" else None
    row["relative"] = None if figure.startswith("join") else times["relative"]
    return row


def _measure_between_nats() -> dict[str, Times]:
    """Measure between two hosts behind NATs that preserve ports and drop unsolicited packets."""
    with Internet() as internet:
        server, one, other = internet.host(), internet.host(Nat()), internet.host(Nat())
        with _serve(server.popen, "0.0.0.0", server.address) as endpoint:
            places = {"plain": (other.public_address, one.public_address)}
            places |= dict.fromkeys(("punched", "relay"), (endpoint, endpoint))
            return {
                f"{way} TCP" if way == "plain" else way: _collect(
                    [_start_rank(host.popen, way, rank, 2, at[rank]) for rank, host in enumerate((one, other))],
                    way == "plain",
                )[0]
                for way, at in places.items()
            }


def _measure_on_loopback(endpoint: str) -> dict[str, Times]:
    places = {"loopback": str(_find_free_port()), "private": endpoint, "relay": endpoint}
    return {"plain TCP" if way == "loopback" else way: _measure_ranks(way, 2, at) for way, at in places.items()}


def _measure_ranks(measurement: str, size: int, place: str) -> Times:
    """Return what rank 0 of `size` ranks on this machine measures."""
    return _collect([_start_rank(subprocess.Popen, measurement, rank, size, place) for rank in range(size)])[0]


def _measure_joining(size: int, endpoint: str) -> Times:
    """Return seconds from the start of the first rank until the last one has joined, and has passed a barrier."""
    ranks = [_start_rank(subprocess.Popen, "join", rank, size, endpoint) for rank in range(size)]
    started, joined, passed = zip(*(times["join"] for times in _collect(ranks, synchronize=True)), strict=True)
    return {"join": [max(joined) - min(started)], "join, barrier": [max(passed) - min(started)]}


def _start_rank(start: StartProcess, measurement: str, rank: int, size: int, place: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"{__package__}.fmi_rank", measurement, str(rank), str(size), place]
    pipe = subprocess.PIPE
    return start(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=os.environ | ENVIRONMENT)


def _collect(ranks: Sequence[subprocess.Popen[str]], synchronize: bool = False) -> list[Times]:
    """Return what each rank printed, after a common start with `synchronize`. Raises InputError if one fails."""
    try:
        if synchronize:
            for rank in ranks:
                assert rank.stdout
                rank.stdout.readline()
            for rank in ranks:
                assert rank.stdin
                rank.stdin.write("go\n")
                rank.stdin.flush()
        outputs = [rank.communicate() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        if rank.returncode:
            raise InputError(f"a rank of `bench fmi` failed: {last_line(errors)}")
    return [json.loads(output) for output, _ in outputs]


@contextmanager
def _serve(start: StartProcess, host: str, address: str = "127.0.0.1") -> Iterator[str]:
    """Run a rendezvous server and yield its endpoint."""
    server_process = partial(start, [*SERVE, "--host", host], stdout=subprocess.PIPE, text=True)
    with server_process(env=os.environ | ENVIRONMENT) as server:
        assert server.stdout
        try:
            yield f"{address}:{json.loads(server.stdout.readline())['port']}"
        finally:
            server.terminate()
            server.communicate()


def _find_free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])
