"""Files on their way to S3 and back: what is there already stays, and nothing arrives in part."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ... import storage
from ...console import notify
from ...console.progress import progress
from ...errors import InputError, StorageError, explained
from ...ranks.cores import available_cores
from ...runs.store import RunFolder
from ...storage.parallel import in_order
from ...storage.ranges import PIECE, again_if_broken
from ...storage.s3 import REQUESTS, s3_client, s3_parts
from ...surveys.survey import FORMAT, Survey
from .clients import explained_aws

FILES = 4  # that are uploaded at once, each in several pieces if it is large
LAST = "summary.json"  # of a run folder: a copy that has it is whole


@dataclass(frozen=True)
class Upload:
    """A local file and the address on S3 that it shall have."""

    path: str
    uri: str
    bytes: int
    sha256: str


def with_checksums(survey: Survey) -> Survey:
    """A local survey with the SHA-256 of every shard; those that survey.json names are believed until they are sent."""
    unknown = [shard for shard in survey.shards if not shard.sha256]
    if not unknown:
        return survey
    notify(f"computing the checksums of {len(unknown):,} files of {survey.uri}")
    found = {}
    with _megabytes(sum(shard.bytes for shard in unknown)) as advance:
        digests = in_order(storage.sha256, map(survey.shard_uri, unknown), available_cores())
        for shard, digest in zip(unknown, digests, strict=True):
            found[shard.name] = digest
            advance(shard.bytes)
    shards = (replace(shard, sha256=shard.sha256 or found[shard.name]) for shard in survey.shards)
    return Survey(survey.uri, tuple(shards))


def survey_id(survey: Survey) -> str:
    """What a survey is called on S3: the same for the same shards, wherever they come from."""
    named = [(shard.name, shard.bytes, shard.sha256) for shard in survey.shards]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def shards_of(survey: Survey, uri: str) -> list[Upload]:
    """The shards of a survey with checksums on their way to a folder on S3."""
    return [
        Upload(survey.shard_uri(shard), storage.join(uri, shard.name), shard.bytes, shard.sha256)
        for shard in survey.shards
    ]


def missing(uploads: Iterable[Upload]) -> list[Upload]:
    """Those that S3 does not have with their size and their checksum. Raises InputError if it cannot be asked."""
    uploads = list(uploads)
    there = in_order(_is_there, uploads, REQUESTS)
    return [upload for upload, known in zip(uploads, there, strict=True) if not known]


def send(uploads: Iterable[Upload]) -> None:
    """Uploads files, several at once. Raises InputError if one is not what its checksum says, or S3 refuses it."""
    if not (uploads := list(uploads)):
        return
    notify(f"uploading {len(uploads):,} files to s3://{s3_parts(uploads[0].uri)[0]}")
    with _megabytes(sum(upload.bytes for upload in uploads)) as advance:
        for _ in in_order(partial(_send, advance=advance), uploads, FILES):
            pass


def describe(survey: Survey, uri: str) -> None:
    """Writes survey.json beside the shards on S3, after them: a survey that has one there is whole."""
    text = {"format": FORMAT, "galaxies": survey.galaxies, "shards": [asdict(shard) for shard in survey.shards]}
    storage.write_bytes(storage.join(uri, "survey.json"), (json.dumps(text, indent=1) + "\n").encode())


def fetch(run: RunFolder, copy: RunFolder) -> None:
    """Downloads a run folder from S3 into a local one, each file whole or not at all; those of the same size and time
    are there already. Raises InputError if one cannot be had as S3 lists it.
    """
    found = [item for item in _objects(run.uri) if not _is_copied(copy, item)]
    notify(f"fetching {len(found):,} files to {copy.uri}")
    with _megabytes(sum(item.bytes for item in found)) as advance:
        for part in ([item for item in found if item.name != LAST], [item for item in found if item.name == LAST]):
            for item in in_order(partial(_fetch, run, copy), part, REQUESTS):
                advance(item.bytes)


@dataclass(frozen=True)
class _Object:
    """A file of a run folder on S3; `time` of its last change in seconds since 1970, of which S3 knows no fractions."""

    name: str
    bytes: int
    etag: str
    time: int


def _objects(uri: str) -> Iterator[_Object]:
    """All files under an address. Raises InputError if the name of one would lead out of a local folder."""
    bucket, key = s3_parts(uri)
    folder = f"{key.rstrip('/')}/"
    pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder)
    with explained(uri, "list"):
        for page in pages:
            for item in page.get("Contents", []):
                name = item["Key"][len(folder) :]
                if name.endswith("/") or not name:
                    continue  # what some programs put there so that a folder can be seen
                if {"", ".", ".."}.intersection(name.split("/")):
                    raise InputError(f"{uri} holds {name!r}, which is no name of a file; remove it there")
                yield _Object(name, item["Size"], item["ETag"], int(item["LastModified"].timestamp()))


def _is_copied(copy: RunFolder, item: _Object) -> bool:
    path = Path(copy.path(item.name))
    with explained(str(path), "look at"):
        if not path.exists():
            return False
        state = path.stat()
    return (state.st_size, int(state.st_mtime)) == (item.bytes, item.time)


def _fetch(run: RunFolder, copy: RunFolder, item: _Object) -> _Object:
    uri = run.path(item.name)
    with storage.replacing(copy.path(item.name)) as beside, explained(uri, "fetch"):
        size = again_if_broken(_stream, uri, item.etag, beside)
        if size != item.bytes:
            raise StorageError(f"{uri} came with {size} bytes where {item.bytes} were listed; fetch it again")
        os.utime(beside, (item.time, item.time))
    return item


def _stream(uri: str, etag: str, path: Path) -> int:
    """Writes an object to a file; returns its bytes."""
    bucket, key = s3_parts(uri)
    answer = s3_client().get_object(Bucket=bucket, Key=key, IfMatch=etag)
    with path.open("wb") as file:
        for piece in answer["Body"].iter_chunks(PIECE):
            file.write(piece)
        return file.tell()


def _is_there(upload: Upload) -> bool:
    bucket, key = s3_parts(upload.uri)
    client = s3_client()
    with explained_aws(f"look at {upload.uri}"):
        try:
            head = client.head_object(Bucket=bucket, Key=key)
        except client.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise
    return (head["ContentLength"], head["Metadata"].get("sha256")) == (upload.bytes, upload.sha256)


def _send(upload: Upload, advance: Callable[[int], None]) -> None:
    from boto3.exceptions import S3UploadFailedError
    from boto3.s3.transfer import TransferConfig

    if (digest := storage.sha256(upload.path)) != upload.sha256:
        raise InputError(
            f"{upload.path} has the SHA-256 {digest} where {upload.sha256} was expected; it is damaged or was changed, "
            "copy it again or write the survey anew"
        )
    bucket, key = s3_parts(upload.uri)
    more: dict[str, Any] = {"Metadata": {"sha256": upload.sha256}, "ChecksumAlgorithm": "SHA256"}
    config = TransferConfig(max_concurrency=REQUESTS // FILES)
    with explained(upload.path, "read"), explained_aws(f"write {upload.uri}"):
        try:
            s3_client().upload_file(upload.path, bucket, key, ExtraArgs=more, Callback=advance, Config=config)
        except S3UploadFailedError as error:  # in whose text S3's own is hidden
            raise error.__context__ or error from None


@contextmanager
def _megabytes(total: int) -> Iterator[Callable[[int], None]]:
    """As `progress`, in MB (2^20 bytes), of a function that any thread may tell how many more bytes are done."""
    lock, done = threading.Lock(), 0
    with progress(total >> 20, unit="MB") as show:

        def advance(count: int) -> None:
            nonlocal done
            with lock:
                before, done = done, done + count
                if more := (done >> 20) - (before >> 20):
                    show(more)

        yield advance
