"""Transfer files to S3 and back: what is there already is kept, and no file arrives incomplete."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs

from ... import storage
from ...console import notify
from ...console.progress import show_progress
from ...errors import InputError, StorageError, describe_os_errors
from ...ranks.cores import available_cores
from ...runs.store import RunFolder
from ...storage.parallel import map_in_order
from ...storage.ranges import PIECE, retry_broken_reads
from ...storage.s3 import MAX_REQUESTS, head_object, s3_client, split_s3_uri
from ...surveys.survey import Survey, describe_shards
from .clients import describe_aws_errors

FILES = 4  # that are uploaded at the same time, each in several pieces if it is large
LAST = "summary.json"  # downloaded last: a copy that has it is complete


@dataclass(frozen=True)
class Upload:
    """A local file and its future address on S3."""

    path: str
    uri: str
    bytes: int
    sha256: str


def add_checksums(survey: Survey) -> Survey:
    """Return a local survey with the SHA-256 of every shard; those of survey.json are verified on upload."""
    unknown = [shard for shard in survey.shards if not shard.sha256]
    if not unknown:
        return survey
    notify(f"computing the checksums of {len(unknown):,} files of {survey.uri}")
    found = {}
    with _megabytes(sum(shard.bytes for shard in unknown)) as advance:
        digests = map_in_order(storage.sha256, map(survey.shard_uri, unknown), available_cores())
        for shard, digest in zip(unknown, digests, strict=True):
            found[shard.name] = digest
            advance(shard.bytes)
    shards = (structs.replace(shard, sha256=shard.sha256 or found[shard.name]) for shard in survey.shards)
    return replace(survey, shards=tuple(shards))


def survey_digest(survey: Survey) -> str:
    """Return the name of a survey on S3, which depends only on its shards."""
    named = [(shard.name, shard.bytes, shard.sha256) for shard in survey.shards]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def list_shard_uploads(survey: Survey, uri: str) -> list[Upload]:
    """Return the uploads of the shards of a survey with checksums to a folder on S3."""
    return [
        Upload(survey.shard_uri(shard), storage.join(uri, shard.name), shard.bytes, shard.sha256)
        for shard in survey.shards
    ]


def list_missing(uploads: Iterable[Upload]) -> list[Upload]:
    """Return the uploads that S3 does not hold with this size and checksum. Raises InputError if S3 refuses to say."""
    uploads = list(uploads)
    uploaded = map_in_order(_is_uploaded, uploads, MAX_REQUESTS)
    return [upload for upload, known in zip(uploads, uploaded, strict=True) if not known]


def upload_files(uploads: Iterable[Upload]) -> None:
    """Upload files, several at a time. Raises InputError if one does not match its checksum, or S3 refuses it."""
    if not (uploads := list(uploads)):
        return
    notify(f"uploading {len(uploads):,} files to s3://{split_s3_uri(uploads[0].uri)[0]}")
    with _megabytes(sum(upload.bytes for upload in uploads)) as advance:
        for _ in map_in_order(partial(_upload, advance=advance), uploads, FILES):
            pass


def write_survey_file(survey: Survey, uri: str) -> None:
    """Write survey.json next to the uploaded shards; a survey on S3 that has it is complete."""
    storage.write_bytes(storage.join(uri, "survey.json"), describe_shards(survey.shards))


def download_run(run: RunFolder, copy: RunFolder) -> None:
    """Download a run folder from S3 into a local one, each file atomically.

    Files of the same size and time are kept. Raises InputError if one cannot be downloaded as S3 lists it.
    """
    missing = [item for item in _objects(run.uri) if not _is_copied(copy, item)]
    notify(f"fetching {len(missing):,} files to {copy.uri}")
    with _megabytes(sum(item.bytes for item in missing)) as advance:
        for group in ([item for item in missing if item.name != LAST], [item for item in missing if item.name == LAST]):
            for item in map_in_order(partial(_download, run, copy), group, MAX_REQUESTS):
                advance(item.bytes)


@dataclass(frozen=True)
class _Object:
    """A file of a run folder on S3; `time` is that of its last change, in whole seconds since 1970."""

    name: str
    bytes: int
    etag: str
    time: int


def _objects(uri: str) -> Iterator[_Object]:
    """Yield all files under an address. Raises InputError if a name would lead out of the local folder."""
    bucket, key = split_s3_uri(uri)
    folder = f"{key.rstrip('/')}/"
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder)
    with describe_os_errors(uri, "list"):
        for page in pages:
            for item in page.get("Contents", []):
                name = item["Key"][len(folder) :]
                if name.endswith("/") or not name:
                    continue  # a marker that some programs write for an empty folder
                if {"", ".", ".."}.intersection(name.split("/")):
                    raise InputError(f"{uri} holds {name!r}, which is not a valid file name; remove it there")
                yield _Object(name, item["Size"], item["ETag"], int(item["LastModified"].timestamp()))


def _is_copied(copy: RunFolder, item: _Object) -> bool:
    path = Path(copy.path(item.name))
    with describe_os_errors(str(path), "inspect"):
        if not path.exists():
            return False
        state = path.stat()
    return (state.st_size, int(state.st_mtime)) == (item.bytes, item.time)


def _download(run: RunFolder, copy: RunFolder, item: _Object) -> _Object:
    uri = run.path(item.name)
    with storage.atomic_write(copy.path(item.name)) as temporary, describe_os_errors(uri, "fetch"):
        size = retry_broken_reads(_stream_to_file, uri, item.etag, temporary)
        if size != item.bytes:
            raise StorageError(f"{uri} came with {size} bytes where {item.bytes} were listed; fetch it again")
        os.utime(temporary, (item.time, item.time))
    return item


def _stream_to_file(uri: str, etag: str, path: Path) -> int:
    """Write an object to a file and return its size in bytes."""
    bucket, key = split_s3_uri(uri)
    response = s3_client().get_object(Bucket=bucket, Key=key, IfMatch=etag)
    with path.open("wb") as file:
        for piece in response["Body"].iter_chunks(PIECE):
            file.write(piece)
        return file.tell()


def _is_uploaded(upload: Upload) -> bool:
    bucket, key = split_s3_uri(upload.uri)
    with describe_aws_errors(f"inspect {upload.uri}"):
        try:
            head = head_object(bucket, key)
        except s3_client().exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise
    return (head["ContentLength"], head["Metadata"].get("sha256")) == (upload.bytes, upload.sha256)


def _upload(upload: Upload, advance: Callable[[int], None]) -> None:
    from boto3.s3.transfer import TransferConfig

    if (digest := storage.sha256(upload.path)) != upload.sha256:
        raise InputError(
            f"{upload.path} has the SHA-256 {digest} where {upload.sha256} was expected; it is damaged or was changed, "
            "copy it again or write the survey again"
        )
    bucket, key = split_s3_uri(upload.uri)
    extra: dict[str, Any] = {"Metadata": {"sha256": upload.sha256}, "ChecksumAlgorithm": "SHA256"}
    config = TransferConfig(max_concurrency=MAX_REQUESTS // FILES)
    with describe_os_errors(upload.path, "read"), describe_aws_errors(f"write {upload.uri}"):
        s3_client().upload_file(upload.path, bucket, key, ExtraArgs=extra, Callback=advance, Config=config)


@contextmanager
def _megabytes(total: int) -> Iterator[Callable[[int], None]]:
    """Show progress in MB (2^20 bytes) and yield a function that adds bytes to it, from any thread."""
    lock, done = threading.Lock(), 0
    with show_progress(total >> 20, unit="MB") as show:

        def advance(count: int) -> None:
            nonlocal done
            with lock:
                before, done = done, done + count
                if more := (done >> 20) - (before >> 20):
                    show(more)

        yield advance
