"""Addresses on S3, the client of this process, and statistics of its requests."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

from ..errors import InputError, StorageError

MAX_REQUESTS = 16  # that one process makes at the same time
# How often S3 gets a request that it is too busy for, in some three minutes in all, and the longest pause in seconds.
BUSY_ATTEMPTS, BUSY_PAUSE = 16, 16.0


class RequestStatistics:
    """Requests of this process to S3 since the statistics were created, and the time that reading objects took.

    `counts` has the number of requests by S3's names of the operations, including retries, since each is billed.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._reads = 0
        self._seconds = self._least = self._most = self._first = self._last = 0.0
        with _lock:
            _active.add(self)

    def read_times(self) -> dict[str, float]:
        """Return the time that reading took, in seconds, with the published keys; empty if nothing was read.

        A read lasts from the request for a range of an object to its last byte. The times of the first request and the
        last response are in seconds since 1970.
        """
        if not self._reads:
            return {}
        return {
            "s3_num_requests": self._reads,
            "s3_total_time": self._seconds,
            "s3_avg_time": self._seconds / self._reads,
            "s3_min_time": self._least,
            "s3_max_time": self._most,
            "s3_first_request_time": self._first,
            "s3_last_response_time": self._last,
        }

    def _add_read(self, begun: float, ended: float) -> None:
        seconds = ended - begun
        self._least = min(self._least, seconds) if self._reads else seconds
        self._first = min(self._first, begun) if self._reads else begun
        self._most, self._last = max(self._most, seconds), max(self._last, ended)
        self._seconds += seconds
        self._reads += 1


_lock = threading.Lock()
_active: WeakSet[RequestStatistics] = WeakSet()


def _count_request(event_name: str, **_: Any) -> None:
    with _lock:
        for statistics in _active:
            statistics.counts[event_name.rpartition(".")[2]] += 1


@contextmanager
def time_read() -> Iterator[None]:
    """Count the block as one read of an object; a block that raises does not count."""
    begun = time.time()
    yield
    ended = time.time()
    with _lock:
        for statistics in _active:
            statistics._add_read(begun, ended)


def is_s3(uri: str) -> bool:
    """Return whether the address is on S3."""
    return uri.startswith("s3://")


def reader_threads(uri: str) -> int:
    """Return how many extra threads should read the files of a folder: some on S3, which responds slowly, else 0."""
    return MAX_REQUESTS if is_s3(uri) else 0


def make_client(
    service: str,
    session: Any = None,
    endpoint_url: str | None = None,
    *,
    timeout: float = 60.0,
    attempts: int | None = None,
) -> Any:
    """Return a boto3 client: all of this program's have adaptive retries, 8 unless AWS_MAX_ATTEMPTS says otherwise.

    `session` is one of boto3, the default one if it is None. AWS may take `timeout` seconds to answer, and requests are
    made `attempts` times at most if that is given. Raises InputError naming the variable of the environment
    that boto3 cannot use, or if there is another such setting.
    """
    import boto3
    from botocore.config import Config

    _require_usable_environment(endpoint_url)
    retries: dict[str, Any] = {"mode": "adaptive"}
    if attempts:
        retries["total_max_attempts"] = attempts
    elif not os.environ.get("AWS_MAX_ATTEMPTS"):
        retries["max_attempts"] = 8
    config = Config(retries=retries, max_pool_connections=MAX_REQUESTS, connect_timeout=timeout, read_timeout=timeout)
    try:
        return (session or boto3).client(service, endpoint_url=endpoint_url, config=config)
    except ValueError as error:
        if type(error) is not ValueError:  # one of botocore, which says what it is about
            raise
        raise InputError(f"the settings of AWS are not usable ({error}); correct them in ~/.aws/config") from None


def _require_usable_environment(endpoint_url: str | None) -> None:
    """Raise InputError for values that end as an error of boto3 which does not name them."""
    attempts = os.environ.get("AWS_MAX_ATTEMPTS")
    if attempts and not (attempts.isascii() and attempts.isdecimal() and int(attempts) > 0):
        raise InputError(f"AWS_MAX_ATTEMPTS={attempts} is not a whole number above 0; correct or unset it")
    addresses = {name: os.environ[name] for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3") if os.environ.get(name)}
    for name, address in ({"": endpoint_url} if endpoint_url else addresses).items():
        parts = urlsplit(address)
        shown = f"{name}={address}" if name else address
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{shown} is not an address; expected one such as https://HOST:PORT")
        if not re.fullmatch(r"[A-Za-z0-9.:-]+", parts.hostname):
            raise InputError(
                f"{shown} has the host {parts.hostname}, and names of hosts have letters, digits, - and . alone; use "
                "another name of that machine, or its number"
            )
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if bundle and not Path(bundle).exists():
        raise InputError(f"AWS_CA_BUNDLE={bundle} does not exist; name a file of certificates, or unset it")


@cache
def s3_client() -> Any:
    """Return the S3 client of this process. Raises InputError as `make_client` does."""
    client = make_client("s3")
    client.meta.events.register("before-send.s3", _count_request)
    if not os.environ.get("AWS_MAX_ATTEMPTS"):
        client.meta.events.register_first("needs-retry.s3", _wait_if_busy)
    return client


def _wait_if_busy(response: Any, attempts: int, **_: Any) -> float | None:
    """Return the seconds after which a request that S3 was too busy for is made again; None leaves that to botocore.

    botocore alone gives up after some 40 s, and S3 can be that busy while it divides a prefix with many new requests.
    """
    code = response[1].get("Error", {}).get("Code") if response else None
    if code not in ("SlowDown", "503") or attempts >= BUSY_ATTEMPTS:
        return None
    return random.uniform(0.5, 1) * min(BUSY_PAUSE, 2.0**attempts)


def head_object(bucket: str, key: str) -> dict[str, Any]:
    """Return what S3 says of an object. Raises botocore's ClientError with the reason of a refusal."""
    client = s3_client()
    return _ask_for_reason(
        lambda: client.head_object(Bucket=bucket, Key=key),
        lambda: client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")["Body"].close(),
    )


def head_bucket(client: Any, bucket: str) -> dict[str, Any]:
    """Return what S3 says of a bucket, by this client. Raises botocore's ClientError with the reason of a refusal."""
    return _ask_for_reason(
        lambda: client.head_bucket(Bucket=bucket), lambda: client.list_objects_v2(Bucket=bucket, MaxKeys=1)
    )


def _ask_for_reason(head: Callable[[], dict[str, Any]], get: Callable[[], object]) -> dict[str, Any]:
    """Return the answer to a HEAD request; if it is refused, which S3 does with a bare number, GET tells the reason."""
    from botocore.exceptions import ClientError

    try:
        return head()
    except ClientError as error:
        if error.response["Error"]["Code"] in ("400", "403"):
            get()
        raise


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of an s3:// address. Raises StorageError if it names no bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{uri} names no bucket; expected s3://BUCKET/PREFIX")
    return bucket, key
