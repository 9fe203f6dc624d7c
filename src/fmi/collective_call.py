"""One call of a collective operation by one rank: its messages, and how a mismatch is detected and passed on.

A message begins with the call that it belongs to, in little-endian bytes:

    0   4 bytes   0; 1 if the sender knows of a mismatch
    4   4 bytes   length of the text
    8             the call, such as `broadcast(root=0)`, or a sentence about the mismatch; zeros to a multiple of 16

A call is followed by values (see fmi.values) or by the elements of one array, a mismatch by nothing. The messages of a
barrier are empty, and those of a ring, before which all ranks have compared their calls, contain elements only.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import CollectiveMismatch
from .values import Buffer, allocate_buffer, array_bytes, padding

if TYPE_CHECKING:
    from .group import Group

HEADER = struct.Struct("<II")

# The intermediate result of a reduction, or a mismatch, which is passed on to the other ranks instead.
Partial = NDArray[Any] | CollectiveMismatch


class CollectiveCall:
    """The tag of a call, its deadline, and the header of its messages."""

    def __init__(self, group: Group, kind: int, timeout: float | None) -> None:
        # Take a tag before anything can fail, so that a rank that gives up does not use the same tag again.
        self.group, self._tag = group, group.next_tag(kind)
        self._deadline = time.monotonic() + (group.timeout if timeout is None else timeout)
        self._signature, self._header = "", b""

    def begin(self, signature: str, peers: Iterable[int | None]) -> None:
        """Set the signature of the call, and request connections to all peers that it involves."""
        self._signature, self._header = signature, _encode_header(0, signature)
        self.group.request_connections({peer for peer in peers if peer is not None})

    def exchange(
        self, source: int, allocate: Callable[[int], memoryview], dest: int | None = None, data: Sequence[Buffer] = ()
    ) -> memoryview:
        """Receive a message from `source` while sending these bytes, without a header, to `dest`."""
        message = self.group.exchange(
            self._tag, self._deadline, dest=dest, buffers=data, source=source, allocate=allocate
        )
        assert message is not None  # since there is a source
        return message

    def send(self, dest: int, data: Sequence[Buffer]) -> None:
        """Send the header followed by these bytes."""
        self.group.exchange(self._tag, self._deadline, dest=dest, buffers=[self._header, *data])

    def receive(self, source: int, dest: int | None = None, data: Sequence[Buffer] = ()) -> memoryview:
        """Return what `source` sends after its header, while this rank sends its header and these bytes to `dest`.

        Raises CollectiveMismatch if the calls differ.
        """
        outgoing = [self._header, *data] if dest is not None else ()
        return self._check_header(self.exchange(source, allocate_buffer, dest, outgoing), source)

    def send_partial(self, dest: int, partial: Partial) -> None:
        """Send this rank's intermediate result of a reduction."""
        self.group.exchange(self._tag, self._deadline, dest=dest, buffers=self._encode_partial(partial))

    def exchange_partial(self, source: int, partial: Partial, dest: int | None = None) -> Partial:
        """Return the intermediate result of `source`, of the dtype of this rank's own, while sending that to `dest`."""
        outgoing = self._encode_partial(partial) if dest is not None else ()
        message = self.exchange(source, allocate_buffer, dest, outgoing)
        if isinstance(partial, CollectiveMismatch):
            return partial
        try:
            return np.frombuffer(self._check_header(message, source), partial.dtype)
        except CollectiveMismatch as mismatch:
            return mismatch

    def _encode_partial(self, partial: Partial) -> list[Buffer]:
        if isinstance(partial, CollectiveMismatch):
            return [_encode_header(1, str(partial))]
        return [self._header, array_bytes(partial)]

    def _check_header(self, message: memoryview, source: int) -> memoryview:
        """Return a message without its header. Raises CollectiveMismatch if it belongs to another call."""
        if message[: len(self._header)] == self._header:
            return message[len(self._header) :]
        is_mismatch, length = HEADER.unpack_from(message)
        text = str(message[HEADER.size : HEADER.size + length], "utf-8")
        own = f"rank {self.group.rank} calls {self._signature}"
        raise CollectiveMismatch(text if is_mismatch else f"rank {source} calls {text} while {own}")


def _encode_header(is_mismatch: int, text: str) -> bytes:
    data = text.encode()
    data = HEADER.pack(is_mismatch, len(data)) + data
    return data + padding(len(data))
