"""Reading any range of a file, local or on S3, and whatever wants a binary file on top of that.

Ranges of a local file are mapped, not copied: they are the page cache's own pages until someone writes to them. So the
file must stay as it is for as long as they live: what is overwritten in place shows in them, and touching what was cut
off kills the process (SIGBUS). Files of this program are replaced whole, which does neither.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ..errors import StorageError, explained
from .s3 import is_s3, s3_client, s3_parts, timed_read

LARGEST_PAGE = 2**21  # bytes that Linux caches, and gives up, as one piece at most
T = TypeVar("T")

READS = 5  # attempts at a range of an object
BLOCK = 2**17  # bytes of a file that are read to look at a few
PIECE = 2**18  # bytes of an answer from S3 that are copied to their place at a time
_POPULATE_READ = 22  # madvise's MADV_POPULATE_READ (Linux 5.14 or newer), which Python has no name for


class RangeReader(Protocol):
    """A file of known size of which any range can be read."""

    size: int

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer from this offset. Raises StorageError where the file ends before."""

    def read(self, offset: int, length: int) -> memoryview:
        """The bytes of this range, the caller's own to change, also after the reader is closed.

        Raises StorageError where the file ends before or cannot be read.
        """

    def forget(self, offset: int, length: int) -> None:
        """Says that this range is not read again: the system gives up the pages that it caches of it.

        It keeps those that some array still maps, and those that reach beyond the range: a page is up to LARGEST_PAGE.
        Does nothing on S3.
        """

    def __enter__(self) -> RangeReader: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...  # fmt: skip  # noqa: E501


def _ends_early(uri: str, size: int) -> StorageError:
    return StorageError(f"{uri} ends at byte {size} where more was expected; it was truncated, copy it again")


class _LocalReader:
    def __init__(self, path: str) -> None:
        self.path = path
        with explained(path, "read"):
            self._file = os.open(path, os.O_RDONLY)
            self.size = os.fstat(self._file).st_size
            if Path(path).is_dir():
                os.close(self._file)
                raise IsADirectoryError(errno.EISDIR, "", path)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        with explained(self.path, "read"):
            while done < len(buffer):
                count = os.preadv(self._file, [buffer[done:]], offset + done)
                if count == 0:
                    raise _ends_early(self.path, os.fstat(self._file).st_size)
                done += count

    def read(self, offset: int, length: int) -> memoryview:
        if not length:  # to mmap, 0 is the whole file
            return memoryview(bytearray())
        before = offset % mmap.ALLOCATIONGRANULARITY
        with explained(self.path, "read"):
            try:  # compares with the size that the file has now
                pages = mmap.mmap(self._file, before + length, access=mmap.ACCESS_COPY, offset=offset - before)
            except ValueError:
                raise _ends_early(self.path, os.fstat(self._file).st_size) from None
            _load(pages)
        return memoryview(pages)[before:]

    def forget(self, offset: int, length: int) -> None:
        if length and hasattr(os, "posix_fadvise"):  # to posix_fadvise, 0 is the rest of the file
            with explained(self.path, "read"):
                os.posix_fadvise(self._file, offset, length, os.POSIX_FADV_DONTNEED)

    def __enter__(self) -> _LocalReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _load(pages: mmap.mmap) -> None:
    """Reads all the pages now, so that a broken disk is an OSError here and not a SIGBUS at the first touch."""
    pages.madvise(mmap.MADV_SEQUENTIAL)  # or the system also reads what lies before them
    try:
        pages.madvise(_POPULATE_READ)
    except OSError as error:
        if error.errno == errno.EFAULT:
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
        if error.errno != errno.EINVAL:  # an older Linux: the pages are read as they are touched
            raise


def again_if_broken(read: Callable[..., T], *arguments: object) -> T:
    """What `read` gives; again if the connection breaks in the middle of an answer, of which boto3 takes no care."""
    from botocore import exceptions
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

    broken = (exceptions.IncompleteReadError, exceptions.ResponseStreamingError, exceptions.ReadTimeoutError)
    again = Retrying(
        retry=retry_if_exception_type(broken), stop=stop_after_attempt(READS),
        wait=wait_random_exponential(0.2, 5), reraise=True,
    )  # fmt: skip
    return again(read, *arguments)


def read_object(uri: str) -> bytes:
    """The whole of a small object on S3, with one request. Raises StorageError if it is absent or unreadable."""
    bucket, key = s3_parts(uri)
    with explained(uri, "read"):
        return again_if_broken(_whole, bucket, key)


def _whole(bucket: str, key: str) -> bytes:
    with timed_read():
        data: bytes = s3_client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return data


class _S3Reader:
    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.bucket, self.key = s3_parts(uri)
        with explained(uri, "read"):
            head = s3_client().head_object(Bucket=self.bucket, Key=self.key)
        self.size = int(head["ContentLength"])
        self._etag = head["ETag"]

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if not len(buffer):
            return
        if offset + len(buffer) > self.size:
            raise _ends_early(self.uri, self.size)
        with explained(self.uri, "read"):
            again_if_broken(self._fill, offset, buffer)

    def _fill(self, offset: int, buffer: memoryview) -> None:
        with timed_read():
            answer = s3_client().get_object(
                Bucket=self.bucket, Key=self.key, IfMatch=self._etag,
                Range=f"bytes={offset}-{offset + len(buffer) - 1}",
            )  # fmt: skip
            if answer["ContentLength"] != len(buffer):
                given = f"{answer['ContentLength']} bytes at {offset} where {len(buffer)} were asked for"
                raise StorageError(f"{self.uri} gave {given}; use a server that knows ranges")
            at = 0
            for piece in answer["Body"].iter_chunks(PIECE):
                buffer[at : at + len(piece)] = piece
                at += len(piece)

    def read(self, offset: int, length: int) -> memoryview:
        data = memoryview(bytearray(length))
        self.read_into(offset, data)
        return data

    def forget(self, offset: int, length: int) -> None:
        pass

    def __enter__(self) -> _S3Reader:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open_ranges(uri: str) -> RangeReader:
    """Opens a file for reading ranges. Raises StorageError if it is absent or unreadable."""
    return _S3Reader(uri) if is_s3(uri) else _LocalReader(uri)


class RangeFile(io.RawIOBase):
    """A RangeReader as a raw binary file; use it through `seekable`.

    Small reads come from whole blocks that are kept: a format's header is read in many jumps, each a request on S3.
    """

    def __init__(self, reader: RangeReader) -> None:
        self._reader, self._position = reader, 0
        self._block = lru_cache(maxsize=4)(self._read_block)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + (0, self._position, self._reader.size)[whence]
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._reader.size - self._position))
        if count > BLOCK:
            self._reader.read_into(self._position, view[:count])
        elif count:
            number, within = divmod(self._position, BLOCK)
            piece = self._block(number)[within : within + count]
            count = len(piece)
            view[:count] = piece
        self._position += count
        return count

    def _read_block(self, number: int) -> memoryview:
        start = number * BLOCK
        block = memoryview(bytearray(min(BLOCK, self._reader.size - start)))
        self._reader.read_into(start, block)
        return block


def seekable(reader: RangeReader) -> io.BufferedReader:
    """The reader as a buffered binary file, for libraries that want one (zipfile, h5py)."""
    return io.BufferedReader(RangeFile(reader), 2**16)
