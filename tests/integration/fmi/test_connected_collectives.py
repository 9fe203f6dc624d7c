"""The collectives over real connections: ranks that have met at a real server, directly and through its relay."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fmi.collectives import allgather, allreduce, barrier, broadcast, gather, reduce, scan, scatter
from fmi.group import Group, joined
from support.rendezvous import SECRET, Server, serving

ELEMENTS = 400_001  # of float64: 3 MB, above RING_FROM
TURNS = 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def own(rank: int) -> np.ndarray:
    """Whole numbers, so that sums are exact whatever their order is."""
    return np.random.default_rng(rank).integers(-1000, 1000, ELEMENTS).astype(np.float64)


def all_of_it(group: Group) -> dict[str, Any]:
    """What a rank has of every collective, large and small, one after the other."""
    rank, mine = group.rank, own(group.rank)
    found: dict[str, Any] = {}
    for turn in range(TURNS):
        barrier(group)
        found[f"small {turn}"] = int(allreduce(group, np.array([rank + turn]))[0])
    found["allreduce"] = allreduce(group, mine)
    found["reduce"] = reduce(group, mine, "max", root=group.size - 1)
    found["scan"] = scan(group, mine)
    found["broadcast"] = broadcast(group, mine if rank == 1 else None, root=1)
    found["scatter"] = scatter(group, [own(other) for other in range(group.size)] if rank == 0 else None)
    found["gather"] = gather(group, {"of": rank, "what": mine})
    found["allgather"] = allgather(group, ["text", rank, None])
    found["items"] = [group.next_item() for _ in range(TURNS)]
    found["routes"] = set(group.routes.values())
    return found


def same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other)) and one.dtype == other.dtype


@pytest.mark.parametrize("route", ["private", "relay"])
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_what_all_ranks_have_in_the_end(server: Server, size: int, route: str) -> None:
    job = secrets.token_hex(8)

    def run(rank: int) -> dict[str, Any]:
        with joined(server.endpoint, job, rank, size, SECRET, routes=(route,)) as group:
            return all_of_it(group)

    with ThreadPoolExecutor(size) as pool:
        ranks = list(pool.map(run, range(size)))
    arrays = [own(rank) for rank in range(size)]
    for rank, found in enumerate(ranks):
        assert [found[f"small {turn}"] for turn in range(TURNS)] == [
            size * turn + sum(range(size)) for turn in range(TURNS)
        ]
        assert same(found["allreduce"], sum(arrays))
        assert same(found["scan"], sum(arrays[: rank + 1]))
        assert same(found["broadcast"], arrays[1])
        assert same(found["scatter"], arrays[rank])
        assert found["allgather"] == [["text", other, None] for other in range(size)]
        assert found["routes"] == {route}
    assert [found["reduce"] is None for found in ranks] == [True] * (size - 1) + [False]
    assert same(ranks[-1]["reduce"], np.maximum.reduce(arrays))
    assert [found["gather"] for found in ranks[1:]] == [None] * (size - 1)
    assert [one["of"] for one in ranks[0]["gather"]] == list(range(size))
    assert all(same(one["what"], array) for one, array in zip(ranks[0]["gather"], arrays, strict=True))
    assert sorted(item for found in ranks for item in found["items"]) == list(range(size * TURNS))
