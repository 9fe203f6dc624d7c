"""A guard against damaged global heaps, in which HDF5 would search for ever.

Such a heap holds the texts of attributes: objects that follow each other, each with its length. HDF5 does not go on
from one that ends where it begins.
"""

from __future__ import annotations

import io
import struct
from typing import Any

from ..storage.ranges import RangeFile, RangeReader

_SIGNATURE = b"GCOL\1\0\0\0"
_COLLECTION = struct.Struct("<8sQ")  # signature and version, bytes of the whole
_OBJECT = struct.Struct("<H6xQ")  # number, 0 for free space; bytes of its data, or of all of the free space


class HeapCheckingFile(io.BufferedReader):
    """A file as h5py reads it: a heap in which HDF5 would not come to an end has no signature, for which it is refused.

    An exception would leave HDF5 in a state in which the process does not end.
    """

    def __init__(self, reader: RangeReader) -> None:
        super().__init__(RangeFile(reader), 2**16)

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        view = memoryview(buffer).cast("B")[:count]
        if view[: len(_SIGNATURE)] == _SIGNATURE and _is_endless(view):
            view[: len(_SIGNATURE)] = bytes(len(_SIGNATURE))
        return count


def has_endless_heap(data: bytes) -> bool:
    """Return whether a file in memory has a heap in which HDF5 would not come to an end."""
    at = data.find(_SIGNATURE)
    while at >= 0:
        if _is_endless(memoryview(data)[at:]):
            return True
        at = data.find(_SIGNATURE, at + 1)
    return False


def _is_endless(heap: memoryview) -> bool:
    if len(heap) < _COLLECTION.size:
        return False
    end = min(len(heap), _COLLECTION.unpack_from(heap)[1])
    at = _COLLECTION.size
    while at + _OBJECT.size <= end:
        number, length = _OBJECT.unpack_from(heap, at)
        step = length if number == 0 else (_OBJECT.size + (length + 7) // 8 * 8) % 2**64  # as HDF5 computes it
        if step == 0:
            return True
        at += step
    return False
