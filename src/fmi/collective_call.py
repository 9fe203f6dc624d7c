"""One call of a collective by one rank: what its messages are, and how a disagreement is noticed and told.

A message begins with the call that it is of, in little-endian bytes:

    0   4 bytes   0; 1 if its sender knows of a disagreement
    4   4 bytes   length of the text
    8             the call, such as `broadcast(root=0)`, or the disagreement in a sentence; zeros to a multiple of 16

Behind a call come values (see fmi.values) or the elements of one array, and nothing behind a disagreement. The
messages of a barrier are empty, and those of a ring, before which all ranks have agreed, are elements alone.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import Disagreement
from .values import Buffer, bytes_of, new_memory, padding

if TYPE_CHECKING:
    from .group import Group

START = struct.Struct("<II")

# What a rank has of a reduction: elements, or why there can be none, which it goes on to tell the others.
Partial = NDArray[Any] | Disagreement


class Call:
    """Its tag, its deadline, and what its messages begin with."""

    def __init__(self, group: Group, kind: int, timeout: float | None) -> None:
        # The tag before anything can be wrong, so that a rank that gives up does not take the same one again.
        self.group, self._tag = group, group.next_tag(kind)
        self._deadline = time.monotonic() + (group.timeout if timeout is None else timeout)
        self._what, self._start = "", b""

    def begin(self, what: str, peers: Iterable[int | None]) -> None:
        """Says what is called, and begins to connect to all those that it takes."""
        self._what, self._start = what, _start(0, what)
        self.group.wish({peer for peer in peers if peer is not None})

    def exchange(
        self, source: int, room: Callable[[int], memoryview], to: int | None = None, sent: Sequence[Buffer] = ()
    ) -> memoryview:
        """What `source` sends, while this rank sends these bytes alone."""
        message = self.group.exchange(self._tag, self._deadline, to=to, buffers=sent, source=source, room=room)
        assert message is not None  # as there is a source
        return message

    def send(self, to: int, sent: Sequence[Buffer]) -> None:
        """Sends these bytes behind the call."""
        self.group.exchange(self._tag, self._deadline, to=to, buffers=[self._start, *sent])

    def receive(self, source: int, to: int | None = None, sent: Sequence[Buffer] = ()) -> memoryview:
        """What `source` sends behind its call, while this rank sends these bytes behind its own.

        Raises Disagreement if the calls differ.
        """
        return self._opened(
            self.exchange(source, new_memory, to, [self._start, *sent] if to is not None else ()), source
        )

    def tell(self, to: int, partial: Partial) -> None:
        """Sends what this rank has of a reduction."""
        self.group.exchange(self._tag, self._deadline, to=to, buffers=self._told(partial))

    def trade(self, source: int, partial: Partial, to: int | None = None) -> Partial:
        """What `source` has of a reduction, of the type of what this rank has, which it sends meanwhile."""
        message = self.exchange(source, new_memory, to, self._told(partial) if to is not None else ())
        if isinstance(partial, Disagreement):
            return partial
        try:
            return np.frombuffer(self._opened(message, source), partial.dtype)
        except Disagreement as found:
            return found

    def _told(self, partial: Partial) -> list[Buffer]:
        if isinstance(partial, Disagreement):
            return [_start(1, str(partial))]
        return [self._start, bytes_of(partial)]

    def _opened(self, message: memoryview, source: int) -> memoryview:
        if message[: len(self._start)] == self._start:
            return message[len(self._start) :]
        is_disagreement, length = START.unpack_from(message)
        text = str(message[START.size : START.size + length], "utf-8")
        own = f"rank {self.group.rank} calls {self._what}"
        raise Disagreement(text if is_disagreement else f"rank {source} calls {text} where {own}")


def _start(is_disagreement: int, text: str) -> bytes:
    data = text.encode()
    data = START.pack(is_disagreement, len(data)) + data
    return data + padding(len(data))
