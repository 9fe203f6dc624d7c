"""One rank of `cosmicai bench fmi`: `... WHAT RANK SIZE WHERE` measures something with the others, prints JSON."""

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
MOST, LEAST_SECONDS, FEWEST = 200, 1.0, 3  # repeats of a collective: at least so long or so often, and no more
SECRET = b"bench"
PATIENCE = 120.0  # seconds


def plain(rank: int, _: int, where: str) -> dict[str, list[float]]:
    """A TCP connection that both ends open at once, with nothing on it but the bytes."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.bind(("", PORT))
    own.settimeout(PATIENCE)
    _at_the_same_time()
    own.connect((where, PORT))
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return both_ways(own, rank)


def loopback(rank: int, _: int, where: str) -> dict[str, list[float]]:
    """The same on one machine, where one end listens."""
    if rank == 0:
        with socket.create_server(("127.0.0.1", int(where))) as listener:
            own, _address = listener.accept()
    else:
        own = _connected(int(where))
    own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    own.settimeout(PATIENCE)
    return both_ways(own, rank)


def _connected(port: int) -> socket.socket:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def both_ways(own: socket.socket, rank: int) -> dict[str, list[float]]:
    """Times of round trips and transfers as `fmi.measure` has them, without it."""
    memory = memoryview(bytearray(b"\1" * LARGE))

    def receive(size: int) -> None:
        done = 0
        while done < size:
            done += own.recv_into(memory[done:size])

    def once(size: int, answer: int) -> float:
        begun = time.perf_counter()
        if rank == 0:
            own.sendall(memory[:size])
            receive(answer)
        else:
            receive(size)
            own.sendall(memory[:answer])
        return time.perf_counter() - begun

    return {
        "round trip": [once(SMALL, SMALL) for _ in range(ROUND_TRIPS + 1)][1:],
        "transfer": [once(LARGE, 1) for _ in range(TRANSFERS + 1)][1:],
    }


def by_route(route: str) -> Callable[[int, int, str], dict[str, list[float]]]:
    """A channel of the package fmi."""

    def measure(rank: int, size: int, where: str) -> dict[str, list[float]]:
        from fmi.control import Endpoint
        from fmi.group import joined
        from fmi.measure import round_trips, transfers

        with joined(Endpoint.parse(where), route, rank, size, SECRET, routes=(route,)) as group:
            small = round_trips(group, 1 - rank, ROUND_TRIPS)
            found = {"round trip": small, "transfer": transfers(group, 1 - rank, LARGE, TRANSFERS)}
            if group.routes != {1 - rank: route}:
                raise RuntimeError(f"the ranks are connected by {group.routes}, not by {route}")
            return found

    return measure


def join(rank: int, size: int, where: str) -> dict[str, list[float]]:
    """Joins when all are told to; says when it began and when all were there (seconds since 1970)."""
    from fmi.collectives import barrier
    from fmi.control import Endpoint
    from fmi.group import joined

    _at_the_same_time()
    begun = time.time()
    with joined(Endpoint.parse(where), "join", rank, size, SECRET) as group:
        ready = time.time()
        barrier(group)
        return {"join": [begun, ready, time.time()]}


def fmi(rank: int, size: int, where: str) -> dict[str, list[float]]:
    """Barrier and allreduce of the package fmi."""
    from fmi import collectives
    from fmi.control import Endpoint
    from fmi.group import joined

    with joined(Endpoint.parse(where), "collectives", rank, size, SECRET) as group:
        return repeated(
            lambda: collectives.barrier(group),
            lambda values: collectives.allreduce(group, values),
            lambda go_on: bool(collectives.broadcast(group, go_on)),
            rank,
        )


def gloo(rank: int, size: int, where: str) -> dict[str, list[float]]:
    """Those of torch's gloo, in place, as gloo likes it."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{where}", rank=rank, world_size=size)

    def agreed(go_on: bool) -> bool:
        told = torch.tensor([float(go_on)])
        dist.broadcast(told, 0)
        return bool(told)

    found = repeated(lambda: dist.barrier(), lambda values: dist.all_reduce(torch.from_numpy(values)), agreed, rank)
    dist.destroy_process_group()
    return found


def repeated(
    barrier: Callable[[], Any], allreduce: Callable[[Any], Any], agreed: Callable[[bool], bool], rank: int
) -> dict[str, list[float]]:
    """Times of each collective after a first one; rank 0 says how often."""
    turns: dict[str, Callable[[], Any]] = {"barrier": barrier}
    for name, size in REDUCED.items():
        values = np.full(size // 4, 1e-3, np.float32)
        turns[f"allreduce {name}"] = partial(allreduce, values)
    found = {}
    for name, turn in turns.items():
        times: list[float] = []
        turn()
        go_on = True
        while go_on:
            barrier()
            for _ in range(1 if "MB" in name else 20):
                begun = time.perf_counter()
                turn()
                times.append(time.perf_counter() - begun)
            enough = len(times) >= MOST or (sum(times) > LEAST_SECONDS and len(times) >= FEWEST)
            go_on = agreed(not enough)
        found[name] = times
    return found


def _at_the_same_time() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


MEASURED: dict[str, Callable[[int, int, str], dict[str, list[float]]]] = {
    "plain": plain, "loopback": loopback, "join": join, "fmi": fmi, "gloo": gloo,
    **{route: by_route(route) for route in ("private", "punched", "relay")},
}  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    what, number, count, place = sys.argv[1:]
    print(json.dumps(MEASURED[what](int(number), int(count), place)), flush=True)
