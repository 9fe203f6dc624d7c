"""Where a rank gets its work items from: a fixed share, a shared counter, claims in the run folder, up to a deadline.

Every source is a `WorkSource`, the only way in which the worker learns what to do. `supervisor_socket` holds one more,
for ranks that a supervisor starts and watches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from ..ranks.communicator import Communicator
from ..ranks.environment import Rank
from ..runs.plan import WorkItem
from ..runs.schedule import largest_first, static_assignment
from ..runs.store import RunFolder

# Seconds before the time limit by which everything is written, and the largest share of the limit that this may be.
MARGIN, MARGIN_SHARE = 4.0, 0.1


class OutOfTime(Exception):
    """The time limit is near and some items are left; another invocation continues."""


class TooSlow(Exception):
    """Not even one item was completed within the time limit."""


class WorkSource(Protocol):
    """Where a rank learns which work items to do, and to which it reports what became of them.

    Items are taken one at a time by the thread that reads ahead; the other methods are called by the main thread.
    """

    def __iter__(self) -> Iterator[WorkItem]:
        """Iterate over the rank's items. The iterator may block until the next item is known."""

    def completed(self, item: WorkItem) -> None:
        """Report that the part of this item is written."""

    def failed(self, item: WorkItem, reason: str) -> None:
        """Report that this item cannot be done; the failure is already recorded in the run folder."""

    def heartbeat(self) -> None:
        """Report that the rank makes progress. May raise an exception to stop the rank."""

    def close(self) -> None:
        """End the iteration, also for a thread that waits for the next item. Nothing is requested afterwards."""


class UnsupervisedSource(WorkSource):
    """Base of sources that need no reports, because the run folder holds all that other ranks need to know."""

    def completed(self, item: WorkItem) -> None:
        """Do nothing."""
        return

    def failed(self, item: WorkItem, reason: str) -> None:
        """Do nothing."""
        return

    def heartbeat(self) -> None:
        """Do nothing."""
        return

    def close(self) -> None:
        """Do nothing, since no item is ever waited for."""
        return


class StaticSource(UnsupervisedSource):
    """A fixed sequence of items, such as a rank's share by static assignment."""

    def __init__(self, items: Iterable[WorkItem]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[WorkItem]:
        return iter(self._items)


class CounterSource(UnsupervisedSource):
    """Dynamic scheduling over a communicator: a shared counter gives each item to the rank that is free first.

    Every rank passes the same items (see `find_missing`), which are handed out largest first.
    """

    def __init__(self, items: Iterable[WorkItem], communicator: Communicator) -> None:
        self._items, self._communicator = largest_first(items), communicator

    def __iter__(self) -> Iterator[WorkItem]:
        while (number := self._communicator.next_item()) < len(self._items):
            yield self._items[number]


class ClaimSource(UnsupervisedSource):
    """A rank's static share first, then items that ranks which died, are late or never start have left.

    For ranks of one submission that cannot communicate: a claim in the run folder gives each remaining item to one of
    them. Items whose claimants are not at work any more come last: one of them may have ended its claimant.
    """

    def __init__(self, run: RunFolder, rank: Rank) -> None:
        self._run, self._rank = run, rank

    def __iter__(self) -> Iterator[WorkItem]:
        run, rank, items = self._run, self._rank, self._run.plan().items
        # Assigned from all items, not only the missing ones: a rank that starts later finds more of them done.
        own = static_assignment(items, rank.rank, rank.world_size)
        yield from skip_completed(run, own)
        excluded = run.parts() | set(own)  # of its own, the last ones may not be written yet
        remaining = [item for item in items if item not in excluded]
        # Other ranks go through their share forwards, so this one goes backwards, each from another position.
        first = len(remaining) * (rank.rank + 1) // rank.world_size
        held = []
        for item in reversed(remaining[first:] + remaining[:first]):
            if self._is_left(item):
                if run.claim(item, rank):
                    yield item
                else:
                    held.append(item)
        for item in held:
            if self._is_left(item) and run.take_over(item, rank):
                yield item

    def _is_left(self, item: WorkItem) -> bool:
        """Return whether an item is not done. What an earlier submission could not do is tried again."""
        return not self._run.has_part(item) and not self._run.has_failed_in(self._rank.submission, item)


class DeadlineSource(WorkSource):
    """The items of another source, as long as the time limit leaves time for one more.

    An item is expected to take as long as the longest one so far. Reports are passed on to the other source.
    """

    def __init__(self, source: WorkSource, seconds_left: Callable[[], float]) -> None:
        self._source, self._seconds_left = source, seconds_left
        self._margin = min(MARGIN, MARGIN_SHARE * seconds_left())
        self._started: dict[WorkItem, float] = {}
        self._longest = 0.0  # seconds from handing out an item to its completion, including waits for other items
        self._has_completed = False

    def __iter__(self) -> Iterator[WorkItem]:
        """Iterate over the items that can be completed in time. The first one is always tried."""
        items = iter(self._source)
        # The time is checked first: an item that was taken from the other source would be missing there.
        while not self._started or self._seconds_left() > self._longest + self._margin:
            item = next(items, None)
            if item is None:
                return
            self._started[item] = time.perf_counter()
            yield item

    def completed(self, item: WorkItem) -> None:
        """Learn how long items take."""
        self._longest = max(self._longest, time.perf_counter() - self._started[item])
        self._has_completed = True
        self._source.completed(item)

    def failed(self, item: WorkItem, reason: str) -> None:
        """Pass the report on; a failed item is no estimate of how long others take."""
        self._source.failed(item, reason)

    def heartbeat(self) -> None:
        """Raise OutOfTime, or TooSlow if no item was completed, once the current items cannot be completed in time."""
        if self._seconds_left() > self._margin / 2:
            self._source.heartbeat()
            return
        if not self._has_completed:
            raise TooSlow("not one item was done within the time limit; give the function more time or memory")
        raise OutOfTime("the time limit came before the end of an item; what was finished is kept")

    def close(self) -> None:
        """Close the other source."""
        self._source.close()


def select_source(
    run: RunFolder, rank: Rank, schedule: str = "dynamic", communicator: Communicator | None = None
) -> WorkSource:
    """Return the source of a rank without supervisor: by `schedule`, and by whether the ranks can communicate.

    With a communicator this is a collective operation.
    """
    if communicator is not None:
        missing = find_missing(run, communicator)
        if schedule == "static":
            return StaticSource(static_assignment(missing, rank.rank, rank.world_size))
        return CounterSource(missing, communicator)
    if schedule == "static" or rank.submission is None:
        return StaticSource(skip_completed(run, static_assignment(run.plan().items, rank.rank, rank.world_size)))
    return ClaimSource(run, rank)


def skip_completed(run: RunFolder, items: Sequence[WorkItem]) -> Iterator[WorkItem]:
    """Yield those items that have no part when their turn comes."""
    done = run.parts()
    yield from (item for item in items if item not in done and not run.has_part(item))


def find_missing(run: RunFolder, communicator: Communicator) -> list[WorkItem]:
    """Return the plan's items that have no part, the same list on every rank. A collective operation."""
    done = run.parts() if communicator.rank == 0 else set()
    return agree_on_missing(run.plan().items, done, communicator)


def agree_on_missing(items: Sequence[WorkItem], done: set[WorkItem], communicator: Communicator) -> list[WorkItem]:
    """Return the items that are not in rank 0's set `done`, regardless of the other ranks' sets.

    Ranks list the run folder at different times, so that each could find others done. A collective operation.
    """
    missing = np.array([item not in done for item in items], bool) if communicator.rank == 0 else None
    encoded = communicator.broadcast(None if missing is None else np.packbits(missing).tobytes().hex())
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(encoded), np.uint8), count=len(items))
    return [item for item, bit in zip(items, bits, strict=True) if bit]
