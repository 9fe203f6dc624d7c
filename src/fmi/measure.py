"""How fast two ranks of a group are, in seconds; both of them call the same function with each other's rank."""

from __future__ import annotations

import time
from collections.abc import Callable

from .group import Group

KIND = 255  # of the messages' tags
SMALL = 8  # bytes


def round_trips(group: Group, peer: int, repeats: int) -> list[float]:
    """Of 8 bytes to the peer and back, as the lower rank sees them; the higher one gets the times of its own turn."""
    data = bytes(SMALL)

    def once(tag: int, deadline: float) -> None:
        if group.rank < peer:
            group.exchange(tag, deadline, to=peer, buffers=[data])
            group.exchange(tag, deadline, source=peer)
        else:
            group.exchange(tag, deadline, source=peer)
            group.exchange(tag, deadline, to=peer, buffers=[data])

    return _timed(group, once, repeats)


def transfers(group: Group, peer: int, size: int, repeats: int) -> list[float]:
    """Of so many bytes from the lower to the higher rank, until the lower one knows that all have come."""
    # Not zeros, of which the kernel may have one page for all.
    data, memory = b"\1" * size, memoryview(bytearray(size))

    def once(tag: int, deadline: float) -> None:
        if group.rank < peer:
            group.exchange(tag, deadline, to=peer, buffers=[data])
            group.exchange(tag, deadline, source=peer)
        else:
            group.exchange(tag, deadline, source=peer, room=lambda size: memory[:size])
            group.exchange(tag, deadline, to=peer, buffers=[b"!"])

    return _timed(group, once, repeats)


def counts(group: Group, repeats: int) -> list[float]:
    """Of asking the server for the next item."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        group.next_item()
        times.append(time.perf_counter() - begun)
    return times


def _timed(group: Group, once: Callable[[int, float], None], repeats: int) -> list[float]:
    """The times after a first one, which makes the connection."""
    times = []
    for _ in range(repeats + 1):
        tag, deadline = group.next_tag(KIND), time.monotonic() + group.timeout
        begun = time.perf_counter()
        once(tag, deadline)
        times.append(time.perf_counter() - begun)
    return times[1:]
