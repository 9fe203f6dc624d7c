"""Many slow things at once, taken in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(function: Callable[[T], R], values: Iterable[T], threads: int) -> Iterator[R]:
    """What the function makes of each value, in their order, with so many threads at work; none: in this thread.

    Values are taken as they are needed, and no more results than there are threads wait to be taken. An error of the
    function comes in its place and ends it.
    """
    if not threads:
        yield from map(function, values)
        return
    under_way: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, "parallel") as pool:
        try:
            for value in values:
                under_way.append(pool.submit(function, value))
                if len(under_way) >= threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
