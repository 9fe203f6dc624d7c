"""Scheduling of work items to supervised ranks: bookkeeping without processes, so that every case can be tested."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable

from ...runs.plan import WorkItem
from ...runs.schedule import largest_first, static_assignment

MAX_CRASHES = 2  # ranks that an item may crash before it is given up


class WorkScheduler:
    """Assigns items to ranks on request; a rank holds several at a time, since it reads ahead.

    The items of a lost rank are suspected of having crashed it. A suspect is assigned only to a rank that holds
    nothing, which then gets nothing else until that item is finished: a second crash has exactly one cause, which is
    given up.
    """

    def __init__(self, missing: Iterable[WorkItem], ranks: int, schedule: str) -> None:
        items = largest_first(missing)
        self._open = set(items)
        self._assigned: dict[int, deque[WorkItem]] = {}
        self._queue: deque[WorkItem] = deque()
        if schedule == "static":
            self._assigned = {rank: deque(static_assignment(items, rank, ranks)) for rank in range(ranks)}
        else:
            self._queue = deque(items)
        self._suspects: deque[WorkItem] = deque()
        self._held: dict[int, set[WorkItem]] = {rank: set() for rank in range(ranks)}
        self._crashes: Counter[WorkItem] = Counter()

    @property
    def is_done(self) -> bool:
        """Whether every item is finished or given up."""
        return not self._open

    def held_by(self, rank: int) -> Collection[WorkItem]:
        """Return the items that a rank works on."""
        return self._held[rank]

    def next_item(self, rank: int) -> WorkItem | None:
        """Assign an item to a rank and return it; None if there is none for it now, though there may be one later."""
        held = self._held[rank]
        if any(self._crashes[item] for item in held):
            return None
        if self._suspects and not held:
            item = self._suspects.popleft()
        elif queue := self._assigned.get(rank) or self._queue:
            item = queue.popleft()
        else:
            return None
        held.add(item)
        return item

    def item_finished(self, rank: int, item: WorkItem) -> None:
        """Record that an item is written, or recorded as failed, and needs no rank any more."""
        self._held[rank].discard(item)
        self._open.discard(item)

    def rank_lost(self, rank: int) -> list[WorkItem]:
        """Take back the items of a rank that has died, and return those that are given up after too many crashes."""
        given_up = []
        for item in sorted(self._held[rank]):
            self._crashes[item] += 1
            if self._crashes[item] < MAX_CRASHES:
                self._suspects.append(item)
            else:
                given_up.append(item)
                self._open.discard(item)
        self._held[rank].clear()
        return given_up

    def rank_retired(self, rank: int) -> None:
        """Make the items that were assigned to a rank in advance available to all; the rank does not return."""
        self._queue.extend(self._assigned.pop(rank, ()))
