"""Slow calls, such as requests to S3, in parallel and with their results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(function: Callable[[T], R], values: Iterable[T], threads: int) -> Iterator[R]:
    """Yield the function's result for each value, in order, from this many threads; with 0, from this thread.

    Values are consumed lazily: at most `threads` calls are in progress or have results that were not taken yet. An
    exception of the function is raised in its place and ends the iteration.
    """
    if not threads:
        yield from map(function, values)
        return
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, "parallel") as pool:
        try:
            for value in values:
                pending.append(pool.submit(function, value))
                if len(pending) >= threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
