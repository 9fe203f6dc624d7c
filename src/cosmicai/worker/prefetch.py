"""Prefetching: the next galaxies are read while the previous ones are being predicted."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..runs.plan import Plan, WorkItem
from ..storage.parallel import map_in_order
from ..storage.s3 import is_s3
from ..surveys.quality import blank_unusable
from ..surveys.shard import Galaxies, Shard
from ..surveys.survey import Survey

FETCHED_ROWS = 512  # galaxies of 20.5 kB per request to S3
FETCHES = 4  # requests to S3 at a time

T = TypeVar("T")


@dataclass(frozen=True)
class Chunk:
    """Consecutive galaxies of a work item and their flags (N,) uint8. Unusable galaxies are blanked, not left out.

    With the last chunk of an item `is_checked` says whether all bytes of the item were compared with checksums.
    """

    item: WorkItem
    stop: int  # row of the shard after the last one
    galaxies: Galaxies
    flag: NDArray[np.uint8]
    is_checked: bool = False

    @property
    def is_last(self) -> bool:
        """Whether the item ends with this chunk."""
        return self.stop == self.item.stop


@dataclass(frozen=True)
class ReadFailure:
    """An item that cannot be read, at all or from some row on, and the reason."""

    item: WorkItem
    reason: str


class Prefetcher(Generic[T]):
    """Takes the next value of an iterator in another thread while the previous one is used; it starts at once."""

    def __init__(self, values: Iterator[T], reader: ThreadPoolExecutor) -> None:
        self._values, self._reader = values, reader
        self.pending = reader.submit(next, values, None)

    def take(self) -> T | None:
        """Wait for the next value and return it; None after the last."""
        value = self.pending.result()
        if value is not None:
            self.pending = self._reader.submit(next, self._values, None)
        return value


def read_items(
    plan: Plan, items: Iterable[WorkItem], rows: int, in_use: int, fetches: int = FETCHES
) -> Iterator[Chunk | ReadFailure]:
    """Yield the galaxies of these items in order, in chunks of at most `rows` that never span two batches.

    From S3, where requests cost more than memory, chunks are of about FETCHED_ROWS, and `fetches` of an item are
    requested at a time. If the survey is too large for the page cache, rows more than `in_use` galaxies back are
    dropped from the cache.
    """
    survey, is_large = Survey(plan.survey, plan.shards), _is_large(plan)
    rows, fetches = (rows_per_fetch(plan, rows), fetches) if is_s3(plan.survey) else (rows, 0)
    retained: deque[tuple[Shard, WorkItem]] = deque()
    index, shard = -1, None  # of the previous item, unless it could not be read or is closed
    try:
        for item in items:
            try:
                if shard is None or item.shard != index:
                    index, shard = item.shard, survey.open(plan.shards[item.shard])
                retained.append((shard, item))
                # The next item is taken only after this one is read: a source may wait for this one's completion.
                yield from _read_item(plan, item, shard, rows, fetches)
            except InputError as error:
                shard = None
                yield ReadFailure(item, str(error))
            while retained and sum(later.galaxies for _, later in islice(retained, 1, None)) >= in_use:
                oldest, done = retained.popleft()
                if is_large:
                    oldest.drop_cached(done.start, done.stop)
                if all(oldest is not later for later, _ in retained):
                    oldest.__exit__()
                    shard = None if shard is oldest else shard
    finally:
        for opened in {id(opened): opened for opened, _ in retained}.values():
            opened.__exit__()


def rows_per_fetch(plan: Plan, rows: int) -> int:
    """Return how many galaxies one request to S3 fetches if the engine predicts `rows` at a time."""
    return min(plan.batch_size, max(rows, FETCHED_ROWS // rows * rows))


def _chunk_ranges(plan: Plan, item: WorkItem, rows: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop of an item's chunks: at most `rows` galaxies, all of one batch."""
    for batch in range(item.start // plan.batch_size * plan.batch_size, item.stop, plan.batch_size):
        end = min(batch + plan.batch_size, item.stop)
        for start in range(max(batch, item.start), end, rows):
            yield start, min(start + rows, end)


def _read_item(plan: Plan, item: WorkItem, shard: Shard, rows: int, fetches: int) -> Iterator[Chunk]:
    """Yield the chunks of an item. Raises InputError, at the latest with the last one, if its bytes are damaged."""
    is_checked, images = shard.checksums is not None, None
    if item.galaxies == shard.galaxies and shard.digest:
        images = shard.check_images()
    ranges = list(_chunk_ranges(plan, item, rows))
    for (_, stop), galaxies in zip(ranges, map_in_order(lambda row: shard.read(*row), ranges, fetches), strict=True):
        if images:
            is_checked = images.add(galaxies.image) == item.galaxies
        flag = blank_unusable(galaxies.image, galaxies.magnitude)
        yield Chunk(item, stop, galaxies, flag, is_checked)


def _is_large(plan: Plan) -> bool:
    """Return whether the survey would evict everything else from the page cache."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sum(shard.bytes for shard in plan.shards) > memory / 4
