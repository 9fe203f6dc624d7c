"""Planning who does what: shards are split into work items, and items are assigned to ranks."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence

from ..surveys.survey import ShardEntry
from .plan import WorkItem

ITEM_GALAXIES = 2048  # about what is lost when a rank is killed; rounded up to whole batches
# Parts of a rank's even share: the largest item at the beginning of the survey, and at its end, where all ranks wait
# for the last ones. With service times as in the published Lambda records, 1,000 ranks with ten partitions of 25 MB
# each then lose 2% instead of 10% (`cosmicai bench ranks`).
FAIR_SHARE, LAST_SHARE = 0.05, 0.005


def split_work(shards: Sequence[ShardEntry], batch_size: int, inner_batch: int, ranks: int = 1) -> tuple[WorkItem, ...]:
    """Return the work items of these shards: every galaxy once, in survey order.

    An item has about ITEM_GALAXIES. If several ranks share the work, it is at most FAIR_SHARE of a rank's even share at
    the beginning of the survey, falling to LAST_SHARE at its end, but at least an inner batch. An item is a number of
    whole batches of a shard, or within one batch a number of whole inner batches: every galaxy is in the same inner
    batch however the work is split, and so gets the same redshift.
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
    """Return the items in the order of dynamic scheduling: the last ones, for which all ranks wait, are small."""
    return sorted(items, key=lambda item: (item.start - item.stop, item))


def assign_ranks(sizes: Sequence[int], world_size: int) -> Iterator[int]:
    """Yield the rank of each item, given the items' sizes, largest first: the rank with the fewest galaxies so far.

    This is the greedy algorithm LPT (longest processing time first; Graham 1969).
    """
    # No more ranks than items get one, so that memory does not grow with a world size that is much larger.
    loads = [(0, rank) for rank in range(min(world_size, len(sizes)))]
    for size in sizes:
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + size, rank))
        yield rank


def static_assignment(items: Iterable[WorkItem], rank: int, world_size: int) -> list[WorkItem]:
    """Return the items of one rank, in survey order. Every rank gets the same assignment without communication."""
    ordered = largest_first(items)
    assigned = zip(ordered, assign_ranks([item.galaxies for item in ordered], world_size), strict=True)
    return sorted(item for item, owner in assigned if owner == rank)
