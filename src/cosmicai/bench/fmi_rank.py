"""One rank of `cosmicai bench fmi`: `... MEASUREMENT RANK SIZE PLACE` measures with the other ranks and prints JSON."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

PORT = 7000  # at both ends of a plain connection
SMALL, LARGE = 8, 64 * 2**20  # bytes
ROUND_TRIPS, TRANSFERS = 300, 3
REDUCED = {"1 KB": 2**10, "16 MB": 16 * 2**20}  # bytes of float32
MAX_REPEATS, MIN_SECONDS, MIN_REPEATS = 200, 1.0, 3  # of a collective
SECRET = b"bench"
TIMEOUT = 120.0  # seconds


def measure_plain(rank: int, _: int, place: str) -> dict[str, list[float]]:
    """Measure a TCP connection that both ends open at the same time, without any protocol on it."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.bind(("", PORT))
    own.settimeout(TIMEOUT)
    _wait_for_start()
    own.connect((place, PORT))
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return measure_socket(own, rank)


def measure_loopback(rank: int, _: int, place: str) -> dict[str, list[float]]:
    """Measure a TCP connection on one machine, where one end listens."""
    if rank == 0:
        with socket.create_server(("127.0.0.1", int(place))) as listener:
            own, _address = listener.accept()
    else:
        own = _connect(int(place))
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    own.settimeout(TIMEOUT)
    return measure_socket(own, rank)


def _connect(port: int) -> socket.socket:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def measure_socket(own: socket.socket, rank: int) -> dict[str, list[float]]:
    """Return times of round trips and transfers defined as in `fmi.measure`, without package fmi."""
    memory = memoryview(bytearray(b"\1" * LARGE))

    def receive(size: int) -> None:
        done = 0
        while done < size:
            done += own.recv_into(memory[done:size])

    def exchange(size: int, answer: int) -> float:
        begin = time.perf_counter()
        if rank == 0:
            own.sendall(memory[:size])
            receive(answer)
        else:
            receive(size)
            own.sendall(memory[:answer])
        return time.perf_counter() - begin

    return {
        "round trip": [exchange(SMALL, SMALL) for _ in range(ROUND_TRIPS + 1)][1:],
        "transfer": [exchange(LARGE, 1) for _ in range(TRANSFERS + 1)][1:],
    }


def make_route_measurement(route: str) -> Callable[[int, int, str], dict[str, list[float]]]:
    """Return a function that measures a channel of package fmi by this route."""

    def measure(rank: int, size: int, place: str) -> dict[str, list[float]]:
        from fmi.control import Endpoint
        from fmi.group import connect
        from fmi.measure import measure_round_trips, measure_transfers

        with connect(Endpoint.parse(place), route, rank, size, SECRET, routes=(route,)) as group:
            small = measure_round_trips(group, 1 - rank, ROUND_TRIPS)
            found = {"round trip": small, "transfer": measure_transfers(group, 1 - rank, LARGE, TRANSFERS)}
            if group.routes != {1 - rank: route}:
                raise RuntimeError(f"the ranks are connected by {group.routes}, not by {route}")
            return found

    return measure


def measure_join(rank: int, size: int, place: str) -> dict[str, list[float]]:
    """Join when all ranks are ready; return when this began, when all had joined and when all had passed a barrier.

    Times are in seconds since 1970.
    """
    from fmi.collectives import barrier
    from fmi.control import Endpoint
    from fmi.group import connect

    _wait_for_start()
    begin = time.time()
    with connect(Endpoint.parse(place), "join", rank, size, SECRET) as group:
        joined = time.time()
        barrier(group)
        return {"join": [begin, joined, time.time()]}


def measure_fmi(rank: int, size: int, place: str) -> dict[str, list[float]]:
    """Measure barrier and allreduce of package fmi."""
    from fmi import collectives
    from fmi.control import Endpoint
    from fmi.group import connect

    with connect(Endpoint.parse(place), "collectives", rank, size, SECRET) as group:
        return measure_collectives(
            lambda: collectives.barrier(group),
            lambda values: collectives.allreduce(group, values),
            lambda is_continued: bool(collectives.broadcast(group, is_continued)),
        )


def measure_gloo(rank: int, size: int, place: str) -> dict[str, list[float]]:
    """Measure barrier and allreduce of torch's gloo, in place, which is its fastest form."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{place}", rank=rank, world_size=size)

    def broadcast(is_continued: bool) -> bool:
        flag = torch.tensor([float(is_continued)])
        dist.broadcast(flag, 0)
        return bool(flag)

    times = measure_collectives(
        lambda: dist.barrier(), lambda values: dist.all_reduce(torch.from_numpy(values)), broadcast
    )
    dist.destroy_process_group()
    return times


def measure_collectives(
    barrier: Callable[[], Any], allreduce: Callable[[Any], Any], broadcast: Callable[[bool], bool]
) -> dict[str, list[float]]:
    """Return times of each collective after a warm-up; rank 0 decides by `broadcast` when to stop."""
    trials: dict[str, Callable[[], Any]] = {"barrier": barrier}
    for name, size in REDUCED.items():
        values = np.full(size // 4, 1e-3, np.float32)
        trials[f"allreduce {name}"] = partial(allreduce, values)
    measured = {}
    for name, trial in trials.items():
        times: list[float] = []
        trial()
        is_continued = True
        while is_continued:
            barrier()
            for _ in range(1 if "MB" in name else 20):
                begin = time.perf_counter()
                trial()
                times.append(time.perf_counter() - begin)
            enough = len(times) >= MAX_REPEATS or (sum(times) > MIN_SECONDS and len(times) >= MIN_REPEATS)
            is_continued = broadcast(not enough)
        measured[name] = times
    return measured


def _wait_for_start() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


MEASUREMENTS: dict[str, Callable[[int, int, str], dict[str, list[float]]]] = {
    "plain": measure_plain, "loopback": measure_loopback, "join": measure_join, "fmi": measure_fmi,
    "gloo": measure_gloo,
    **{route: make_route_measurement(route) for route in ("private", "punched", "relay")},
}  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    measurement, rank_text, size_text, where = sys.argv[1:]
    print(json.dumps(MEASUREMENTS[measurement](int(rank_text), int(size_text), where)), flush=True)
