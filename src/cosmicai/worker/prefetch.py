"""Reading ahead: the next galaxies come while the last ones are being predicted."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..runs.plan import Plan, WorkItem
from ..storage.parallel import in_order
from ..storage.s3 import is_s3
from ..surveys.quality import input_flags
from ..surveys.shard import Galaxies, Shard
from ..surveys.survey import Survey

FETCHED_ROWS = 512  # of 20.5 kB each
FETCHES = 4  # of these from S3 under way at once

T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """Some consecutive galaxies of an item and their flags (N,) uint8. Flagged galaxies are blanked in place."""

    item: WorkItem
    stop: int  # row of the shard after the last one
    galaxies: Galaxies
    flag: NDArray[np.uint8]

    @property
    def is_last(self) -> bool:
        """Whether the item ends here."""
        return self.stop == self.item.stop


@dataclass(frozen=True)
class Unreadable:
    """An item that cannot be read, from some batch on, and why."""

    item: WorkItem
    reason: str


class Ahead(Generic[T]):
    """Values of which the next one is already being made, by the reader's only thread; it starts at once."""

    def __init__(self, values: Iterator[T], reader: ThreadPoolExecutor) -> None:
        self._values, self._reader = values, reader
        self.coming = reader.submit(next, values, None)

    def take(self) -> T | None:
        """The next value, for which it waits; None after the last."""
        value = self.coming.result()
        if value is not None:
            self.coming = self._reader.submit(next, self._values, None)
        return value


def read_items(
    plan: Plan, items: Iterable[WorkItem], rows: int, in_use: int, fetches: int = FETCHES
) -> Iterator[Rows | Unreadable]:
    """The galaxies of these items, at most so many rows of a batch at a time, one after the other.

    From S3, where a request costs more than memory, about FETCHED_ROWS are fetched at a time, and so many of an item's
    fetches are under way. Of a survey that does not fit beside everything else into the system's cache of files, what
    lies more than `in_use` galaxies back is dropped from that cache: at most so many may still be referred to.
    """
    survey, is_large = Survey(plan.survey, plan.shards), _is_large(plan)
    rows, fetches = (fetched_rows(plan, rows), fetches) if is_s3(plan.survey) else (rows, 0)
    behind: deque[tuple[Shard, WorkItem]] = deque()
    index, shard = -1, None  # of the item before, unless it could not be read or is closed
    try:
        for item in items:
            try:
                if shard is None or item.shard != index:
                    index, shard = item.shard, survey.open(plan.shards[item.shard])
                behind.append((shard, item))
                # The next item is asked for when this one is read, since it may be given to us only after that.
                yield from in_order(partial(_read, shard, item), _pieces(plan, item, rows), fetches)
            except InputError as error:
                shard = None
                yield Unreadable(item, str(error))
            while behind and sum(later.galaxies for _, later in islice(behind, 1, None)) >= in_use:
                oldest, done = behind.popleft()
                if is_large:
                    oldest.forget(done.start, done.stop)
                if all(oldest is not later for later, _ in behind):
                    oldest.__exit__()
                    shard = None if shard is oldest else shard
    finally:
        for opened in {id(opened): opened for opened, _ in behind}.values():
            opened.__exit__()


def fetched_rows(plan: Plan, rows: int) -> int:
    """How many galaxies of a batch are fetched from S3 at a time, where so many are predicted at a time."""
    return min(plan.batch_size, max(rows, FETCHED_ROWS // rows * rows))


def _pieces(plan: Plan, item: WorkItem, rows: int) -> Iterator[tuple[int, int]]:
    """First and last row of at most so many galaxies at a time, never of two batches."""
    for batch in range(item.start // plan.batch_size * plan.batch_size, item.stop, plan.batch_size):
        end = min(batch + plan.batch_size, item.stop)
        for start in range(max(batch, item.start), end, rows):
            yield start, min(start + rows, end)


def _read(shard: Shard, item: WorkItem, piece: tuple[int, int]) -> Rows:
    return _sound(item, piece[1], shard.read(*piece))


def _sound(item: WorkItem, stop: int, galaxies: Galaxies) -> Rows:
    flag = input_flags(galaxies.image, galaxies.magnitude)
    if flag.any():  # blanked, not left out, so that no neighbour's batch changes
        galaxies.image[flag != 0] = 0
        galaxies.magnitude[flag != 0] = 0
    return Rows(item, stop, galaxies, flag)


def _is_large(plan: Plan) -> bool:
    """Whether the survey would push everything else out of the system's cache of files."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sum(shard.bytes for shard in plan.shards) > memory / 4
