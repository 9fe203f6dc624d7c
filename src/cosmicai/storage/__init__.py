"""Read, write and list files at local paths and s3:// addresses with the same calls.

Every write is atomic: locally a temporary file in the target's folder is fsynced and renamed; on S3 it is one PUT.
S3 credentials, region and endpoint are those of boto3 (AWS_ENDPOINT_URL and so on).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import StorageError, describe_os_errors
from .local import read_file, retry_stale
from .ranges import open_ranges, read_object
from .s3 import is_s3, s3_client, split_s3_uri
from .temporary import create_from, discard, remove_leftovers, rename_over, temporary_path

RUN_SUBFOLDERS = ("parts", "records", "failures", "claims", "logs", "network", "functions", "submissions")


@dataclass(frozen=True)
class Entry:
    """A file in a folder: its name, its size in bytes and, on S3, its ETag, which says nothing of other copies."""

    name: str
    bytes: int
    etag: str = field(default="", compare=False)


def join(uri: str, *names: str) -> str:
    """Return the address of something inside a folder."""
    return "/".join([uri.rstrip("/"), *names]) if is_s3(uri) else str(Path(uri, *names))


def absolute(uri: str) -> str:
    """Return the address in a form that is valid from any working directory.

    Raises StorageError for one of another kind, such as https://, which would be taken for a path.
    """
    if not is_s3(uri) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", uri):
        raise StorageError(f"{uri} is neither a path nor an address on S3; write those as s3://BUCKET/KEY")
    return uri.rstrip("/") if is_s3(uri) else str(Path(uri).resolve())


def basename(uri: str) -> str:
    """Return the last part of an address."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts `2.pt` before `10.pt`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def s3_key(name: str) -> bytes:
    """Return a sort key that puts `10.pt` before `2.pt`, as S3 lists names: by their bytes in UTF-8."""
    return name.encode(errors="surrogateescape")


def exists(uri: str) -> bool:
    """Return whether there is a file (or, locally, a folder) at the address."""
    if not is_s3(uri):
        with describe_os_errors(uri, "inspect"):
            return retry_stale(Path(uri).exists)
    bucket, key = split_s3_uri(uri)
    with describe_os_errors(uri, "inspect"):
        response = s3_client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
    return any(item["Key"] == key for item in response.get("Contents", []))


def is_folder(uri: str) -> bool:
    """Return whether the address is a folder: a local directory, or an S3 prefix with objects under it."""
    if not is_s3(uri):
        with describe_os_errors(uri, "inspect"):
            return retry_stale(Path(uri).is_dir)
    bucket, key = split_s3_uri(uri)
    folder = f"{key.rstrip('/')}/" if key else ""
    with describe_os_errors(uri, "inspect"):
        return bool(s3_client().list_objects_v2(Bucket=bucket, Prefix=folder, MaxKeys=1).get("KeyCount"))


def list_files(uri: str, prefix: str = "") -> list[Entry]:
    """Return the files directly in a folder whose names start with `prefix`, in natural order.

    All pages of an S3 listing are read. A folder that does not exist has no files.
    """
    return list_folder(uri, prefix)[0]


def list_folder(uri: str, prefix: str = "") -> tuple[list[Entry], list[str]]:
    """Return the files directly in a folder, as `list_files` does, and the names of its subfolders in natural order.

    A symbolic link to a folder is not listed.
    """
    if is_s3(uri):
        entries: list[Entry] = []
        folders: list[str] = []
        bucket, key = split_s3_uri(uri)
        folder = f"{key.rstrip('/')}/" if key else ""
        request = {"Bucket": bucket, "Prefix": folder + prefix, "Delimiter": "/"}
        with describe_os_errors(uri, "list"):
            for page in s3_client().get_paginator("list_objects_v2").paginate(**request):
                for item in page.get("Contents", []):
                    entries.append(Entry(item["Key"][len(folder) :], item["Size"], item["ETag"].strip('"')))
                folders += [item["Prefix"][len(folder) : -1] for item in page.get("CommonPrefixes", [])]
    else:
        with describe_os_errors(uri, "list"):
            entries, folders = retry_stale(_scan_folder, uri, prefix)
    files = sorted((entry for entry in entries if entry.name), key=lambda entry: natural_key(entry.name))
    return files, sorted((name for name in folders if name), key=natural_key)


def _scan_folder(path: str, prefix: str) -> tuple[list[Entry], list[str]]:
    entries, folders = [], []
    if not Path(path).is_dir():
        return [], []
    with os.scandir(path) as found:
        for item in found:
            with suppress(FileNotFoundError):  # another process renamed or removed it meanwhile
                if not item.name.startswith(prefix):
                    continue
                if item.is_file():
                    entries.append(Entry(item.name, item.stat().st_size))
                elif item.is_dir(follow_symlinks=False):
                    folders.append(item.name)
    return entries, folders


def read_bytes(uri: str) -> bytes:
    """Return the content of a small file."""
    return read_object(uri) if is_s3(uri) else read_file(uri)


def read_if_exists(uri: str) -> bytes | None:
    """Return the content of a small file that another process may remove at any moment; None if it does not exist."""
    try:
        return read_bytes(uri)
    except StorageError:
        if exists(uri):
            raise
        return None


def sha256(uri: str) -> str:
    """Return the SHA-256 of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    for piece in read_pieces(uri):
        digest.update(piece)
    return digest.hexdigest()


def read_pieces(uri: str, size: int = 2**22) -> Iterator[memoryview]:
    """Yield the bytes of a file of any size in pieces of this size; the next piece overwrites the one before."""
    buffer = bytearray(size)
    with open_ranges(uri) as reader:
        for offset in range(0, reader.size, size):
            view = memoryview(buffer)[: min(size, reader.size - offset)]
            reader.read_into(offset, view)
            yield view


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Write a small file atomically, replacing an earlier one."""
    if is_s3(uri):
        bucket, key = split_s3_uri(uri)
        with describe_os_errors(uri, "write"):
            s3_client().put_object(Bucket=bucket, Key=key, Body=bytes(data))  # boto3 takes no memoryview
        return
    with atomic_write(uri) as temporary, describe_os_errors(uri, "write"):
        retry_stale(temporary.write_bytes, data)


def create_bytes(uri: str, data: bytes) -> bool:
    """Write a file unless it exists: of several writers only the first succeeds. Return whether this one did."""
    if is_s3(uri):
        from botocore.exceptions import ClientError

        bucket, key = split_s3_uri(uri)
        with describe_os_errors(uri, "write"):
            try:
                s3_client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            except ClientError as error:
                response = error.response["ResponseMetadata"]
                if response["HTTPStatusCode"] not in (409, 412):
                    raise
                # boto3 may have repeated this very request because the response was lost.
                return bool(response.get("RetryAttempts")) and read_bytes(uri) == data
        return True
    target = Path(uri)
    with describe_os_errors(uri, "write"):
        retry_stale(target.parent.mkdir, parents=True, exist_ok=True)
        temporary = temporary_path(target)
        try:
            retry_stale(temporary.write_bytes, data)
            is_first = create_from(temporary, target)
        finally:
            discard(temporary)
        if not is_first and target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "", uri)
    return is_first


@contextmanager
def atomic_write(uri: str) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces the target when the block succeeds and is removed otherwise.

    For S3 the path is a local temporary file that is uploaded at the end of the block.
    """
    if is_s3(uri):
        import tempfile

        bucket, key = split_s3_uri(uri)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, basename(uri))
            yield path
            with describe_os_errors(uri, "write"):
                s3_client().upload_file(str(path), bucket, key)
        return
    target = Path(uri)
    with describe_os_errors(uri, "write"):
        retry_stale(target.parent.mkdir, parents=True, exist_ok=True)
    temporary = temporary_path(target)
    try:
        yield temporary
        with describe_os_errors(uri, "write"):
            rename_over(temporary, target)
    finally:
        discard(temporary)


def remove(uri: str) -> None:
    """Remove a file if it exists."""
    with describe_os_errors(uri, "remove"):
        if is_s3(uri):
            bucket, key = split_s3_uri(uri)
            s3_client().delete_object(Bucket=bucket, Key=key)
        else:
            retry_stale(Path(uri).unlink, missing_ok=True)


def remove_run_leftovers(uri: str) -> None:
    """Remove what killed processes left of temporary files in the folders of a run. On S3 there are none."""
    if is_s3(uri):
        return
    folders = [Path(uri), *(Path(uri, name) for name in RUN_SUBFOLDERS)]
    for folder in (*folders, *(Path(uri, "claims", name) for name in list_folder(join(uri, "claims"))[1])):
        remove_leftovers(folder)
