"""Files at local paths and s3:// addresses behind the same few calls.

A write either happens whole or not at all: locally beside the target, fsynced and renamed; on S3 one PUT.
S3 credentials, region and endpoint are boto3's own (AWS_ENDPOINT_URL and so on).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import StorageError, explained
from .ranges import open_ranges, read_object
from .s3 import is_s3, s3_client, s3_parts


@dataclass(frozen=True)
class Entry:
    """A file of a folder: its name and its size in bytes."""

    name: str
    bytes: int


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


def list_files(uri: str, begin: str = "") -> list[Entry]:
    """The files directly in a folder whose names begin so, in natural order, all of them (S3 is paged).

    Empty if there is no folder.
    """
    return list_folder(uri, begin)[0]


def list_folder(uri: str, begin: str = "") -> tuple[list[Entry], list[str]]:
    """The files directly in a folder, as `list_files` gives them, and its folders' names, in the same order.

    A link to a folder is none.
    """
    entries: list[Entry] = []
    folders: list[str] = []
    if is_s3(uri):
        bucket, key = s3_parts(uri)
        folder = f"{key.rstrip('/')}/" if key else ""
        asked = {"Bucket": bucket, "Prefix": folder + begin, "Delimiter": "/"}
        with explained(uri, "list"):
            for page in s3_client().get_paginator("list_objects_v2").paginate(**asked):
                entries += [Entry(item["Key"][len(folder) :], item["Size"]) for item in page.get("Contents", [])]
                folders += [item["Prefix"][len(folder) : -1] for item in page.get("CommonPrefixes", [])]
    elif Path(uri).is_dir():
        with explained(uri, "list"), os.scandir(uri) as found:
            for item in found:
                with suppress(FileNotFoundError):  # another process renamed or removed it meanwhile
                    if not item.name.startswith(begin):
                        continue
                    if item.is_file():
                        entries.append(Entry(item.name, item.stat().st_size))
                    elif item.is_dir(follow_symlinks=False):
                        folders.append(item.name)
    files = sorted((entry for entry in entries if entry.name), key=lambda entry: natural_key(entry.name))
    return files, sorted((name for name in folders if name), key=natural_key)


def read_bytes(uri: str) -> bytes:
    """The whole of a small file."""
    if is_s3(uri):
        return read_object(uri)
    with open_ranges(uri) as reader:
        data = bytearray(reader.size)
        reader.read_into(0, memoryview(data))
        return bytes(data)


def read_if_there(uri: str) -> bytes | None:
    """The whole of a small file that another process may remove at any moment; None if there is none."""
    try:
        return read_bytes(uri)
    except StorageError:
        if exists(uri):
            raise
        return None


def sha256(uri: str) -> str:
    """SHA-256 of a file of any size, in hexadecimal."""
    digest, buffer = hashlib.sha256(), bytearray(2**22)
    with open_ranges(uri) as reader:
        for offset in range(0, reader.size, len(buffer)):
            view = memoryview(buffer)[: min(len(buffer), reader.size - offset)]
            reader.read_into(offset, view)
            digest.update(view)
    return digest.hexdigest()


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Writes a small file whole or not at all, replacing what was there."""
    if is_s3(uri):
        bucket, key = s3_parts(uri)
        with explained(uri, "write"):
            s3_client().put_object(Bucket=bucket, Key=key, Body=bytes(data))  # boto3 takes no memoryview
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
                answer = error.response["ResponseMetadata"]
                if answer["HTTPStatusCode"] not in (409, 412):
                    raise
                # It may have been this very request, repeated by boto3 because the answer to it was lost.
                return bool(answer.get("RetryAttempts")) and read_bytes(uri) == data
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
