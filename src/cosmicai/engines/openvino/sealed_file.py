"""Files of the cache that hold a part of the network: its output for a test input, and what computes it.

A file is a header of HEADER bytes, then the expected output as .npy, padded with zeros, then the content. The header
has the digest of all that follows and of the file's name, so that one flipped bit is found before it is used.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import xxhash
from numpy.typing import NDArray

from .compiled_cache import UnusableFile

MAGIC = b"cosmicai-cache/1"
HEADER = struct.Struct("<16s16sQQ16x")  # MAGIC, XXH3-128 digest, bytes of the .npy with its padding, bytes that follow


def seal(name: str, expected: NDArray[np.float32], content: bytes | memoryview) -> memoryview:
    """Return the file of this name."""
    file = io.BytesIO()
    file.write(bytes(HEADER.size))
    np.save(file, expected)
    file.write(bytes(-file.tell() % HEADER.size))
    expected_bytes = file.tell() - HEADER.size
    file.write(content)
    data = file.getbuffer()
    data[: HEADER.size] = _header(name, expected_bytes, data[HEADER.size :])
    return data


def unseal(name: str, file: io.BufferedIOBase) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return the expected output and the content from bytes that are read once and equal to their digest.

    Raises UnusableFile if they do not.
    """
    header = file.read(HEADER.size)
    if not header.startswith(MAGIC) or len(header) < HEADER.size:
        raise UnusableFile("it is damaged, or of another version of this program")
    _, _, expected_bytes, written = HEADER.unpack(header)
    found = file.seek(0, io.SEEK_END) - HEADER.size
    if found != written:  # before memory is taken for them
        raise UnusableFile(f"it is damaged, it holds {found} bytes where {written} were written")
    content = np.empty(found, np.uint8)
    file.seek(HEADER.size)
    if file.readinto(content.data) != found or _header(name, expected_bytes, content.data) != header:
        raise UnusableFile("it is damaged, its bytes differ from their digest")
    return np.load(io.BytesIO(content[:expected_bytes].data), allow_pickle=False), content[expected_bytes:]


def _header(name: str, expected_bytes: int, content: memoryview) -> bytes:
    digest = xxhash.xxh3_128(f"{name} {expected_bytes} ".encode())
    digest.update(content)  # SHA-256 would take 47 ms for the full-size network, more than a tenth of a start
    return HEADER.pack(MAGIC, digest.digest(), expected_bytes, len(content))
