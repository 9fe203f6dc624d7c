"""Local paths and s3:// addresses behind the same few calls.

A write either happens whole or not at all: locally beside the target, fsynced and renamed; on S3 one PUT.
S3 credentials, region and endpoint are boto3's own (AWS_ENDPOINT_URL and so on).
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from .errors import StorageError


@dataclass(frozen=True)
class Entry:
    """A file of a folder: its name and its size in bytes."""

    name: str
    bytes: int


def is_s3(uri: str) -> bool:
    """Whether the address is one of S3."""
    return uri.startswith("s3://")


def join(uri: str, *names: str) -> str:
    """The address of something inside a folder."""
    return "/".join([uri.rstrip("/"), *names]) if is_s3(uri) else str(Path(uri, *names))


def absolute(uri: str) -> str:
    """The address as it holds from any working directory."""
    return uri.rstrip("/") if is_s3(uri) else str(Path(uri).resolve())


def basename(uri: str) -> str:
    """The last part of an address."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts `2.pt` before `10.pt`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


@contextmanager
def explained(uri: str, action: str) -> Iterator[None]:
    """Turns an operating system's or S3's error into one sentence that names the file."""
    try:
        yield
    except OSError as error:
        raise StorageError(_reason(uri, action, error)) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("boto3", "botocore", "s3transfer"):
            raise
        raise StorageError(f"cannot {action} {uri}: {_s3_reason(error)}") from error


def _reason(uri: str, action: str, error: OSError) -> str:
    known = {
        errno.ENOENT: "it does not exist; check the path",
        errno.EACCES: "permission denied; choose a place you may use or mend its permissions",
        errno.EPERM: "permission denied; choose a place you may use or mend its permissions",
        errno.EROFS: "the file system is read-only; choose another place",
        errno.ENOSPC: "no space left on the device; free some space or choose another place, then run again",
        errno.EDQUOT: "your disk quota is used up; free some space or choose another place, then run again",
        errno.EISDIR: "it is a folder where a file was expected",
        errno.ENOTDIR: "a part of its path is a file where a folder was expected",
        errno.EEXIST: "a part of its path is a file where a folder was expected",
    }
    return f"cannot {action} {uri}: {known.get(error.errno or 0, error.strerror or str(error))}"


def _s3_reason(error: Exception) -> str:
    known = {
        "404": "it does not exist; check the bucket and the key",
        "NoSuchKey": "it does not exist; check the bucket and the key",
        "NoSuchBucket": "the bucket does not exist; check its name and your region",
        "PreconditionFailed": "it was replaced while it was being read; run again",
    }
    code = str(getattr(error, "response", {}).get("Error", {}).get("Code"))
    return known.get(code, f"{error}; check the address, your credentials and region")


@cache
def s3_client() -> Any:
    """One boto3 client for the process, with adaptive retries (8 unless AWS_MAX_ATTEMPTS says otherwise)."""
    import boto3
    from botocore.config import Config

    retries = {"mode": "adaptive"} | ({} if "AWS_MAX_ATTEMPTS" in os.environ else {"max_attempts": 8})
    return boto3.client("s3", config=Config(retries=retries))


def s3_parts(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// address. Raises StorageError if there is no bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{uri} names no bucket; expected s3://BUCKET/PREFIX")
    return bucket, key


class RangeReader(Protocol):
    """A file of known size of which any range can be read."""

    size: int

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer from this offset. Raises StorageError where the file ends before."""

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
                    raise _ends_early(self.path, self.size)
                done += count

    def __enter__(self) -> _LocalReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


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
            answer = s3_client().get_object(
                Bucket=self.bucket, Key=self.key, IfMatch=self._etag,
                Range=f"bytes={offset}-{offset + len(buffer) - 1}",
            )  # fmt: skip
            data = answer["Body"].read()
        if len(data) != len(buffer):
            raise StorageError(f"{self.uri} gave {len(data)} of {len(buffer)} bytes at {offset}; upload it again")
        buffer[:] = data

    def __enter__(self) -> _S3Reader:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def open_ranges(uri: str) -> RangeReader:
    """Opens a file for reading ranges. Raises StorageError if it is absent or unreadable."""
    return _S3Reader(uri) if is_s3(uri) else _LocalReader(uri)


class RangeFile(io.RawIOBase):
    """A RangeReader as a raw binary file; use it through `seekable`."""

    def __init__(self, reader: RangeReader) -> None:
        self._reader, self._position = reader, 0

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
        self._reader.read_into(self._position, view[:count])
        self._position += count
        return count


def seekable(reader: RangeReader) -> io.BufferedReader:
    """The reader as a buffered binary file, for libraries that want one (zipfile, h5py)."""
    return io.BufferedReader(RangeFile(reader), 2**16)


def exists(uri: str) -> bool:
    """Whether there is a file (or, locally, a folder) at the address."""
    if not is_s3(uri):
        with explained(uri, "look at"):
            return Path(uri).exists()
    bucket, key = s3_parts(uri)
    with explained(uri, "look at"):
        answer = s3_client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    return any(item["Key"] == key for item in answer.get("Contents", []))


def is_folder(uri: str) -> bool:
    """Whether the address is a folder: a local directory, or an S3 prefix with objects under it."""
    if not is_s3(uri):
        with explained(uri, "look at"):
            return Path(uri).is_dir()
    bucket, key = s3_parts(uri)
    prefix = f"{key.rstrip('/')}/" if key else ""
    with explained(uri, "look at"):
        return bool(s3_client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("KeyCount"))


def list_files(uri: str) -> list[Entry]:
    """The files directly in a folder, in natural order, all of them (S3 is paged); empty if there is no folder."""
    entries: list[Entry] = []
    if is_s3(uri):
        bucket, key = s3_parts(uri)
        prefix = f"{key.rstrip('/')}/" if key else ""
        with explained(uri, "list"):
            pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
            for page in pages:
                entries += [Entry(item["Key"][len(prefix) :], item["Size"]) for item in page.get("Contents", [])]
    elif Path(uri).is_dir():
        with explained(uri, "list"), os.scandir(uri) as found:
            for item in found:
                with suppress(FileNotFoundError):  # another process renamed or removed it meanwhile
                    if item.is_file():
                        entries.append(Entry(item.name, item.stat().st_size))
    return sorted((entry for entry in entries if entry.name), key=lambda entry: natural_key(entry.name))


def read_bytes(uri: str) -> bytes:
    """The whole of a small file."""
    with open_ranges(uri) as reader:
        data = bytearray(reader.size)
        reader.read_into(0, memoryview(data))
        return bytes(data)


def sha256(uri: str) -> str:
    """SHA-256 of a file of any size, in hexadecimal."""
    digest, buffer = hashlib.sha256(), bytearray(2**22)
    with open_ranges(uri) as reader:
        for offset in range(0, reader.size, len(buffer)):
            view = memoryview(buffer)[: min(len(buffer), reader.size - offset)]
            reader.read_into(offset, view)
            digest.update(view)
    return digest.hexdigest()


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a small file whole or not at all, replacing what was there."""
    if is_s3(uri):
        bucket, key = s3_parts(uri)
        with explained(uri, "write"):
            s3_client().put_object(Bucket=bucket, Key=key, Body=data)
        return
    with replacing(uri) as beside, explained(uri, "write"):
        beside.write_bytes(data)


def create_bytes(uri: str, data: bytes) -> bool:
    """Like `write_bytes`, but only the first of several writers succeeds; says whether this one did."""
    if is_s3(uri):
        from botocore.exceptions import ClientError

        bucket, key = s3_parts(uri)
        with explained(uri, "write"):
            try:
                s3_client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                    return False
                raise
        return True
    target = Path(uri)
    with explained(uri, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(target)
        try:
            beside.write_bytes(data)
            _sync(beside)
            os.link(beside, target)
        except FileExistsError:
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "", uri) from None
            return False
        finally:
            _discard(beside)
        _sync(target.parent)
    return True


@contextmanager
def replacing(uri: str) -> Iterator[Path]:
    """Gives a path to write to; when the block ends well the file takes the target's place, else it vanishes.

    For S3 the path is a local temporary file that is uploaded at the end.
    """
    if is_s3(uri):
        import tempfile

        bucket, key = s3_parts(uri)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, basename(uri))
            yield path
            with explained(uri, "write"):
                s3_client().upload_file(str(path), bucket, key)
        return
    target = Path(uri)
    with explained(uri, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(target)
    try:
        yield beside
        with explained(uri, "write"):
            _sync(beside)
            beside.replace(target)
            _sync(target.parent)
    finally:
        _discard(beside)


def remove(uri: str) -> None:
    """Removes a file; nothing happens if there is none."""
    with explained(uri, "remove"):
        if is_s3(uri):
            bucket, key = s3_parts(uri)
            s3_client().delete_object(Bucket=bucket, Key=key)
        else:
            Path(uri).unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")


def _discard(beside: Path) -> None:
    with suppress(OSError):  # what made the write fail is the error to report
        beside.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
