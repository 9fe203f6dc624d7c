"""The collectives over real connections, direct ones and through a real server's relay."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fmi.collectives import allgather, allreduce, barrier, broadcast, gather, reduce, scan, scatter
from fmi.group import Group, connect
from support.rendezvous import SECRET, Server, rendezvous_server

ELEMENTS = 400_001  # of float64: 3 MB, above RING_THRESHOLD
TURNS = 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with rendezvous_server() as server:
        yield server


def operand(rank: int) -> np.ndarray:
    """Return integers, so that sums are exact in any order."""
    return np.random.default_rng(rank).integers(-1000, 1000, ELEMENTS).astype(np.float64)


def run_all(group: Group) -> dict[str, Any]:
    """Return a rank's results of every collective, with large and small arrays, one after the other."""
    rank, mine = group.rank, operand(group.rank)
    found: dict[str, Any] = {}
    for turn in range(TURNS):
        barrier(group)
        found[f"small {turn}"] = int(allreduce(group, np.array([rank + turn]))[0])
    found["allreduce"] = allreduce(group, mine)
    found["reduce"] = reduce(group, mine, "max", root=group.size - 1)
    found["scan"] = scan(group, mine)
    found["broadcast"] = broadcast(group, mine if rank == 1 else None, root=1)
    found["scatter"] = scatter(group, [operand(other) for other in range(group.size)] if rank == 0 else None)
    found["gather"] = gather(group, {"of": rank, "what": mine})
    found["allgather"] = allgather(group, ["text", rank, None])
    found["items"] = [group.next_item() for _ in range(TURNS)]
    found["routes"] = set(group.routes.values())
    return found


def is_same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other)) and one.dtype == other.dtype


@pytest.mark.parametrize("route", ["private", "relay"])
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_the_results_of_all_ranks(server: Server, size: int, route: str) -> None:
    job = secrets.token_hex(8)

    def run(rank: int) -> dict[str, Any]:
        with connect(server.endpoint, job, rank, size, SECRET, routes=(route,)) as group:
            return run_all(group)

    with ThreadPoolExecutor(size) as pool:
        ranks = list(pool.map(run, range(size)))
    arrays = [operand(rank) for rank in range(size)]
    for rank, found in enumerate(ranks):
        assert [found[f"small {turn}"] for turn in range(TURNS)] == [
            size * turn + sum(range(size)) for turn in range(TURNS)
        ]
        assert is_same(found["allreduce"], sum(arrays))
        assert is_same(found["scan"], sum(arrays[: rank + 1]))
        assert is_same(found["broadcast"], arrays[1])
        assert is_same(found["scatter"], arrays[rank])
        assert found["allgather"] == [["text", other, None] for other in range(size)]
        assert found["routes"] == {route}
    assert [found["reduce"] is None for found in ranks] == [True] * (size - 1) + [False]
    assert is_same(ranks[-1]["reduce"], np.maximum.reduce(arrays))
    assert [found["gather"] for found in ranks[1:]] == [None] * (size - 1)
    assert [one["of"] for one in ranks[0]["gather"]] == list(range(size))
    assert all(is_same(one["what"], array) for one, array in zip(ranks[0]["gather"], arrays, strict=True))
    assert sorted(item for found in ranks for item in found["items"]) == list(range(size * TURNS))
