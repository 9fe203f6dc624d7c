"""Memory for ranges of files, used again once nobody holds what was read into it.

New memory costs as much as reading a cached file into it, since the system clears its pages and maps them one by one.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque

SMALL = 2**16  # bytes up to which memory is new, from Python's own
STEP = 2**20  # bytes of which every other buffer is a multiple
LARGEST_KEPT = 2**24  # bytes
_free: deque[mmap.mmap] = deque(maxlen=4)  # the one last used at the end; a deque needs no lock


def allocate(length: int) -> memoryview:
    """Return a writable buffer of this many bytes of any value; it is free again when no view of it is left."""
    if length <= SMALL:
        return memoryview(bytearray(length))
    import numpy as np  # the commands that read no galaxies start without it

    buffer = _take(length) or mmap.mmap(-1, -(-length // STEP) * STEP)
    view = np.frombuffer(buffer, np.uint8, length)  # one for each user, and all that is made of it refers to it
    weakref.finalize(view, _keep, buffer).atexit = False
    return view.data


def _take(length: int) -> mmap.mmap | None:
    """Return a free buffer that is large enough; one that is too small is left to the system."""
    try:
        buffer = _free.pop()
    except IndexError:
        return None
    return buffer if len(buffer) >= length else None


def _keep(buffer: mmap.mmap) -> None:
    if len(buffer) <= LARGEST_KEPT:
        _free.append(buffer)
