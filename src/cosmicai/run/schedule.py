"""Who does what: items cut from shards, and dealt to ranks beforehand or as they come."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from ..galaxies.survey import ShardEntry
from ..ranks.communicator import Communicator
from .plan import WorkItem

ITEM_GALAXIES = 2048  # about what a killed rank loses; rounded up to whole batches
FAIR_SHARE = 0.05  # of what a rank has to do: the largest item, and so about what the last rank is late

T = TypeVar("T")


def cut(shards: Sequence[ShardEntry], batch_size: int, inner_batch: int, ranks: int = 1) -> tuple[WorkItem, ...]:
    """The work items of these shards: every galaxy once, in survey order.

    An item is about ITEM_GALAXIES and, where several ranks share the work, no larger than FAIR_SHARE of what each has
    to do, if that is at least an inner batch. It is some whole batches of a shard, or within one batch some whole inner
    batches, so that every galaxy meets the same neighbours in the engine however the work is cut, and gets the same
    redshift.
    """
    largest = -(-ITEM_GALAXIES // batch_size) * batch_size
    if ranks > 1:
        largest = min(largest, int(FAIR_SHARE * sum(shard.galaxies for shard in shards) / ranks))
    if largest >= batch_size:
        span = size = largest // batch_size * batch_size
    else:
        span, size = batch_size, max(inner_batch, largest // inner_batch * inner_batch)
    return tuple(
        WorkItem(index, start, min(start + size, end))
        for index, shard in enumerate(shards)
        for begin in range(0, shard.galaxies, span)
        for end in (min(begin + span, shard.galaxies),)
        for start in range(begin, end, size)
    )


def largest_first(items: Iterable[WorkItem]) -> list[WorkItem]:
    """The order in which items are handed out: the last ones, for which all wait, are small."""
    return sorted(items, key=lambda item: (item.start - item.stop, item))


def share(items: Iterable[WorkItem], rank: int, world_size: int) -> list[WorkItem]:
    """The items of one rank, in survey order: dealt longest first, each to the rank with the fewest galaxies so far."""
    loads = [(0, other) for other in range(world_size)]
    mine = []
    for item in largest_first(items):
        load, receiver = loads[0]
        heapq.heapreplace(loads, (load + item.galaxies, receiver))
        if receiver == rank:
            mine.append(item)
    return sorted(mine)


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
