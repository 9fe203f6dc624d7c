"""A rank's line to the launcher that watches over it: lines of text over a socket that it was born with.

The rank sends `next`, `finished ITEM` or `failed ITEM` and, at most every TELL_EVERY seconds, `alive`; an answer to
`next` is the name of an item, or an empty line when there is nothing more to do.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

DESCRIPTOR = "COSMICAI_LAUNCHER_FD"
TELL_EVERY = 0.5  # seconds


class Launcher(Protocol):
    """Whoever says what a rank does next, and is told how it goes."""

    def next_item(self) -> str | None:
        """The name of the next item, for which it may wait; None if there is none. For one thread."""

    def finished(self, item: str) -> None:
        """This item is written."""

    def failed(self, item: str) -> None:
        """This item cannot be done, as is noted in the run folder."""

    def alive(self) -> None:
        """Something was computed."""

    def hang_up(self) -> None:
        """Nothing more is asked or answered: a thread that waits for the next item has none."""


class Line(Launcher):
    """The launcher, as its rank sees it. One that is gone has nothing more to do."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._answers = self._socket.makefile("r", encoding="ascii")
        self._sending = threading.Lock()
        self._told = 0.0

    def next_item(self) -> str | None:
        self._send("next")
        try:
            return self._answers.readline().strip() or None
        except OSError:
            return None

    def finished(self, item: str) -> None:
        self._send(f"finished {item}")

    def failed(self, item: str) -> None:
        self._send(f"failed {item}")

    def alive(self) -> None:
        now = time.monotonic()
        if now - self._told > TELL_EVERY:
            self._told = now
            self._send("alive")

    def hang_up(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _send(self, line: str) -> None:
        # A launcher that is gone says so to next_item.
        with suppress(OSError), self._sending:
            self._socket.sendall(f"{line}\n".encode("ascii"))


class Nobody:
    """For a rank that no launcher watches over."""

    def finished(self, item: str) -> None:
        """Nobody to tell."""

    def failed(self, item: str) -> None:
        """Nobody to tell."""

    def alive(self) -> None:
        """Nobody to tell."""

    def hang_up(self) -> None:
        """Nobody to leave."""


def launcher_of(environment: Mapping[str, str]) -> Launcher | None:
    """The launcher that watches over this process, if one does."""
    descriptor = environment.get(DESCRIPTOR)
    return Line(int(descriptor)) if descriptor else None
