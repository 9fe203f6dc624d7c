"""Read byte ranges of a file, local or on S3, directly or through a seekable binary file.

Ranges are read into memory, not mapped: access to a mapped file that another program truncates kills the process
(SIGBUS), and data overwritten in place would change under those who have checked them.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Any, Protocol, TypeVar

from ..errors import StorageError, describe_os_errors
from .buffers import allocate
from .local import open_with_state, retry_stale
from .s3 import head_object, is_s3, s3_client, split_s3_uri, time_read

LARGEST_PAGE = 2**21  # bytes of the largest piece of the page cache that Linux handles as one
T = TypeVar("T")

READS = 5  # attempts to read a range of an object
BLOCK = 2**17  # bytes that are read at once to serve small reads of a file
PIECE = 2**18  # bytes of a response from S3 that are copied at a time


class RangeReader(Protocol):
    """An open file of known size, in bytes, that can be read in ranges; an object on S3 has an `etag`, else empty."""

    uri: str
    size: int
    etag: str

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from this offset. Raises StorageError if the file ends before."""

    def read(self, offset: int, length: int) -> memoryview:
        """Return the bytes of a range as a writable buffer that stays valid after the reader is closed.

        Raises StorageError if the file ends before or cannot be read.
        """

    def drop_cached(self, offset: int, length: int) -> None:
        """Release the pages of the page cache that hold this range, which is not read again.

        Pages that reach beyond the range stay; a page has up to LARGEST_PAGE bytes. On S3 this has no effect.
        """

    def __enter__(self) -> RangeReader: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...  # fmt: skip  # noqa: E501


def _ends_early(uri: str, size: int) -> StorageError:
    return StorageError(f"{uri} ends at byte {size} where more was expected; it was truncated, copy it again")


class _LocalReader:
    etag = ""

    def __init__(self, path: str) -> None:
        self.uri = path
        with describe_os_errors(path, "read"):
            self._file, self._state = retry_stale(open_with_state, path)
        self.size = self._state.st_size

    def _reopening(self, read: Callable[..., T], *arguments: Any) -> T:
        """Return the result of a read, repeated on the file opened anew if its handle is stale."""

        def attempt() -> T:
            try:
                return read(*arguments)
            except OSError as error:
                if error.errno == errno.ESTALE:
                    self._reopen()
                raise

        with describe_os_errors(self.uri, "read"):
            return retry_stale(attempt)

    def _reopen(self) -> None:
        file, state = retry_stale(open_with_state, self.uri)
        try:
            if any(getattr(state, name) != getattr(self._state, name) for name in ("st_ino", "st_size", "st_mtime_ns")):
                raise StorageError(f"cannot read {self.uri}: it was replaced while it was being read; run again")
            os.dup2(file, self._file, inheritable=False)
        finally:
            os.close(file)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            count = self._reopening(lambda start: os.preadv(self._file, [buffer[start:]], offset + start), done)
            if count == 0:
                raise _ends_early(self.uri, os.fstat(self._file).st_size)
            done += count

    def read(self, offset: int, length: int) -> memoryview:
        if offset + length > (size := os.fstat(self._file).st_size):  # before memory is taken for it
            raise _ends_early(self.uri, size)
        data = allocate(length)
        self.read_into(offset, data)
        return data

    def drop_cached(self, offset: int, length: int) -> None:
        if length and hasattr(os, "posix_fadvise"):  # posix_fadvise takes 0 for the rest of the file
            with describe_os_errors(self.uri, "read"):
                os.posix_fadvise(self._file, offset, length, os.POSIX_FADV_DONTNEED)

    def __enter__(self) -> _LocalReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def retry_broken_reads(read: Callable[..., T], *arguments: object) -> T:
    """Return the result of `read`, retried if the connection breaks within a response, which boto3 does not retry."""
    from botocore import exceptions
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

    broken = (exceptions.IncompleteReadError, exceptions.ResponseStreamingError, exceptions.ReadTimeoutError)
    retrying = Retrying(
        retry=retry_if_exception_type(broken), stop=stop_after_attempt(READS),
        wait=wait_random_exponential(0.2, 5), reraise=True,
    )  # fmt: skip
    return retrying(read, *arguments)


def read_object(uri: str) -> bytes:
    """Return the content of a small object on S3, read by one request. Raises StorageError if it cannot be read."""
    bucket, key = split_s3_uri(uri)
    with describe_os_errors(uri, "read"):
        return retry_broken_reads(_get_object, bucket, key)


def _get_object(bucket: str, key: str) -> bytes:
    with time_read():
        data: bytes = s3_client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return data


class _S3Reader:
    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.bucket, self.key = split_s3_uri(uri)
        with describe_os_errors(uri, "read"):
            head = head_object(self.bucket, self.key)
        self.size = int(head["ContentLength"])
        self._etag = head["ETag"]
        self.etag = str(self._etag).strip('"')

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if not len(buffer):
            return
        if offset + len(buffer) > self.size:
            raise _ends_early(self.uri, self.size)
        with describe_os_errors(self.uri, "read"):
            retry_broken_reads(self._fill, offset, buffer)

    def _fill(self, offset: int, buffer: memoryview) -> None:
        with time_read():
            response = s3_client().get_object(
                Bucket=self.bucket, Key=self.key, IfMatch=self._etag,
                Range=f"bytes={offset}-{offset + len(buffer) - 1}",
            )  # fmt: skip
            if response["ContentLength"] != len(buffer):
                raise StorageError(
                    f"{self.uri} was sent with {response['ContentLength']} bytes where the {len(buffer)} from byte "
                    f"{offset} on were requested; use a server that supports ranges"
                )
            at = 0
            for piece in response["Body"].iter_chunks(PIECE):
                buffer[at : at + len(piece)] = piece
                at += len(piece)

    def read(self, offset: int, length: int) -> memoryview:
        data = allocate(length)
        self.read_into(offset, data)
        return data

    def drop_cached(self, offset: int, length: int) -> None:
        pass

    def __enter__(self) -> _S3Reader:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open_ranges(uri: str) -> RangeReader:
    """Open a file for reading ranges. Raises StorageError if it is absent or unreadable."""
    return _S3Reader(uri) if is_s3(uri) else _LocalReader(uri)


class RangeFile(io.RawIOBase):
    """A RangeReader as a raw binary file; use it through `as_file`.

    Small reads are served from cached blocks: the header of a format is read in many jumps, and each would be a request
    to S3.
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


def as_file(reader: RangeReader) -> io.BufferedReader:
    """Return the reader as a buffered binary file, for libraries that need one (zipfile, h5py)."""
    return io.BufferedReader(RangeFile(reader), 2**16)
