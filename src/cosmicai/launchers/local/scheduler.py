"""Which rank does which item: nothing but bookkeeping, so that every turn of it can be tested."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable

from ...runs.plan import WorkItem
from ...runs.schedule import largest_first, share

DEADLY = 2  # ranks that an item may end before it is set aside


class Dealer:
    """Deals items to ranks that ask, which hold some at a time, since they read ahead.

    What a dead rank held is suspected of its death. A suspect goes only to a rank that holds nothing, which then gets
    nothing else until it has finished it: so the second death names one item, which is set aside.
    """

    def __init__(self, missing: Iterable[WorkItem], ranks: int, schedule: str) -> None:
        items = largest_first(missing)
        self._left = set(items)
        self._own: dict[int, deque[WorkItem]] = {}
        self._common: deque[WorkItem] = deque()
        if schedule == "static":
            self._own = {rank: deque(share(items, rank, ranks)) for rank in range(ranks)}
        else:
            self._common = deque(items)
        self._suspects: deque[WorkItem] = deque()
        self._held: dict[int, set[WorkItem]] = {rank: set() for rank in range(ranks)}
        self._deaths: Counter[WorkItem] = Counter()

    @property
    def is_done(self) -> bool:
        """Whether every item is finished or set aside."""
        return not self._left

    def held(self, rank: int) -> Collection[WorkItem]:
        """What a rank works on."""
        return self._held[rank]

    def next_for(self, rank: int) -> WorkItem | None:
        """The rank's next item; None if there is none for it now: ask again when anything has changed."""
        held = self._held[rank]
        if any(self._deaths[item] for item in held):
            return None
        if self._suspects and not held:
            item = self._suspects.popleft()
        elif own := self._own.get(rank) or self._common:
            item = own.popleft()
        else:
            return None
        held.add(item)
        return item

    def finished(self, rank: int, item: WorkItem) -> None:
        """An item is written, or noted as one that cannot be done."""
        self._held[rank].discard(item)
        self._left.discard(item)

    def died(self, rank: int) -> list[WorkItem]:
        """Takes back what a dead rank held; returns the items that are set aside for having ended too many ranks."""
        deadly = []
        for item in sorted(self._held[rank]):
            self._deaths[item] += 1
            if self._deaths[item] < DEADLY:
                self._suspects.append(item)
            else:
                deadly.append(item)
                self._left.discard(item)
        self._held[rank].clear()
        return deadly

    def leave(self, rank: int) -> None:
        """The rank does not come back: what was dealt to it beforehand is everybody's."""
        self._common.extend(self._own.pop(rank, ()))
