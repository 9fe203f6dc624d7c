"""Who does what: items cut from shards, and dealt to ranks beforehand or as they come."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from ..ranks.communicator import Communicator
from ..surveys.survey import ShardEntry
from .plan import WorkItem

ITEM_GALAXIES = 2048  # about what a killed rank loses; rounded up to whole batches
# Parts of what a rank has to do: the largest item at the beginning of the survey, and at its end, where the last ranks
# to be done keep all others waiting. With service times as the published Lambda records have them, 1,000 ranks that do
# ten partitions of 25 MB each then lose 2% instead of 10% (`cosmicai bench ranks`).
FAIR_SHARE, LAST_SHARE = 0.05, 0.005

T = TypeVar("T")


def cut(shards: Sequence[ShardEntry], batch_size: int, inner_batch: int, ranks: int = 1) -> tuple[WorkItem, ...]:
    """The work items of these shards: every galaxy once, in survey order.

    An item is about ITEM_GALAXIES and, where several ranks share the work, no larger than FAIR_SHARE of what each has
    to do, and smaller and smaller down to LAST_SHARE, if that is at least an inner batch. It is some whole batches of a
    shard, or within one batch some whole inner batches, so that every galaxy meets the same neighbours in the engine
    however the work is cut, and gets the same redshift.
    """
    largest = -(-ITEM_GALAXIES // batch_size) * batch_size
    total, before, items = sum(shard.galaxies for shard in shards), 0, []
    for index, shard in enumerate(shards):
        start = 0
        while start < shard.galaxies:
            size = largest
            if ranks > 1:
                left = 1 - (before + start) / total
                size = min(size, int((LAST_SHARE + (FAIR_SHARE - LAST_SHARE) * left) * total / ranks))
            if size >= batch_size:
                span = size = size // batch_size * batch_size
            else:
                span, size = batch_size, max(inner_batch, size // inner_batch * inner_batch)
            end = min(start + span, shard.galaxies)
            items += [WorkItem(index, row, min(row + size, end)) for row in range(start, end, size)]
            start = end
        before += shard.galaxies
    return tuple(items)


def largest_first(items: Iterable[WorkItem]) -> list[WorkItem]:
    """The order in which items are handed out: the last ones, for which all wait, are small."""
    return sorted(items, key=lambda item: (item.start - item.stop, item))


def owners(sizes: Iterable[int], world_size: int) -> Iterator[int]:
    """The rank that gets each of these items, largest first: the one with the fewest galaxies so far."""
    loads = [(0, rank) for rank in range(world_size)]
    for size in sizes:
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + size, rank))
        yield rank


def share(items: Iterable[WorkItem], rank: int, world_size: int) -> list[WorkItem]:
    """The items of one rank, in survey order, as all ranks know them without talking."""
    ordered = largest_first(items)
    dealt = zip(ordered, owners((item.galaxies for item in ordered), world_size), strict=True)
    return sorted(item for item, owner in dealt if owner == rank)


def counted(items: Sequence[T], communicator: Communicator) -> Iterator[T]:
    """Items as this rank gets to them, each to one rank only: the counter says which is next."""
    while (number := communicator.next_item()) < len(items):
        yield items[number]


def agree_on_missing(items: Sequence[WorkItem], done: set[WorkItem], communicator: Communicator) -> list[WorkItem]:
    """What rank 0 finds missing, the same on every rank; another one may have looked when more was done."""
    missing = np.array([item not in done for item in items], bool) if communicator.rank == 0 else None
    told = communicator.broadcast(None if missing is None else np.packbits(missing).tobytes().hex())
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(told), np.uint8), count=len(items))
    return [item for item, bit in zip(items, bits, strict=True) if bit]
