"""Performance of the connection between two ranks, in seconds; both call the same function with each other's rank."""

from __future__ import annotations

import time
from collections.abc import Callable

from .group import Group

KIND = 255  # of the messages' tags
SMALL = 8  # bytes


def measure_round_trips(group: Group, peer: int, repeats: int) -> list[float]:
    """Return the times of `repeats` round trips of 8 bytes; those of the lower rank are the full round trips."""
    data = bytes(SMALL)

    def exchange(tag: int, deadline: float) -> None:
        if group.rank < peer:
            group.exchange(tag, deadline, dest=peer, buffers=[data])
            group.exchange(tag, deadline, source=peer)
        else:
            group.exchange(tag, deadline, source=peer)
            group.exchange(tag, deadline, dest=peer, buffers=[data])

    return _measure(group, exchange, repeats)


def measure_transfers(group: Group, peer: int, size: int, repeats: int) -> list[float]:
    """Return the times of `repeats` transfers of `size` bytes from the lower to the higher rank.

    A transfer ends when the lower rank knows that all bytes have arrived.
    """
    # Not zeros: the kernel may map all pages of zeros to a single one.
    data, memory = b"\1" * size, memoryview(bytearray(size))

    def exchange(tag: int, deadline: float) -> None:
        if group.rank < peer:
            group.exchange(tag, deadline, dest=peer, buffers=[data])
            group.exchange(tag, deadline, source=peer)
        else:
            group.exchange(tag, deadline, source=peer, allocate=lambda size: memory[:size])
            group.exchange(tag, deadline, dest=peer, buffers=[b"!"])

    return _measure(group, exchange, repeats)


def measure_counter(group: Group, repeats: int) -> list[float]:
    """Return the times of `repeats` requests for the next item."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        group.next_item()
        times.append(time.perf_counter() - began)
    return times


def _measure(group: Group, exchange: Callable[[int, float], None], repeats: int) -> list[float]:
    """Return the times of `repeats` exchanges after a first one, which makes the connection."""
    times = []
    for _ in range(repeats + 1):
        tag, deadline = group.next_tag(KIND), time.monotonic() + group.timeout
        began = time.perf_counter()
        exchange(tag, deadline)
        times.append(time.perf_counter() - began)
    return times[1:]
