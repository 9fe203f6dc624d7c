"""The worker's end of the socket to its supervisor: lines of ASCII text over a descriptor that the rank inherits.

The rank sends `next`, `finished ITEM` or `failed ITEM` and, at most once in HEARTBEAT_INTERVAL, `alive`. The reply to
`next` is the name of an item, or an empty line when there is nothing more to do.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress

from ..runs.plan import WorkItem
from .sources import WorkSource

SOCKET_VARIABLE = "COSMICAI_LAUNCHER_FD"  # the number of the descriptor
HEARTBEAT_INTERVAL = 0.5  # seconds


class SupervisorSource(WorkSource):
    """Items that the supervisor assigns one by one. If the supervisor has ended there are no more."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._replies = self._socket.makefile("r", encoding="ascii")
        self._sending = threading.Lock()
        self._last_heartbeat = 0.0

    def __iter__(self) -> Iterator[WorkItem]:
        while name := self._request_item():
            if (item := WorkItem.from_name(name)) is not None:
                yield item

    def completed(self, item: WorkItem) -> None:
        """Report that this item is written."""
        self._send(f"finished {item.name}")

    def failed(self, item: WorkItem, reason: str) -> None:
        """Report that this item cannot be done; the supervisor finds the reason in the run folder."""
        self._send(f"failed {item.name}")

    def heartbeat(self) -> None:
        """Report that the rank makes progress, unless it just did."""
        now = time.monotonic()
        if now - self._last_heartbeat > HEARTBEAT_INTERVAL:
            self._last_heartbeat = now
            self._send("alive")

    def close(self) -> None:
        """Shut the connection down; a thread that waits for the next item gets none."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _request_item(self) -> str:
        self._send("next")
        try:
            return self._replies.readline().strip()
        except OSError:
            return ""

    def _send(self, line: str) -> None:
        # If the supervisor has ended, the next request for an item finds out.
        with suppress(OSError), self._sending:
            self._socket.sendall(f"{line}\n".encode("ascii"))


def supervisor_from_environment(environment: Mapping[str, str]) -> SupervisorSource | None:
    """Return the source of a rank that a supervisor has started, None for any other rank."""
    descriptor = environment.get(SOCKET_VARIABLE)
    return SupervisorSource(int(descriptor)) if descriptor else None
