"""Addresses on S3, the client of this process, and statistics of its requests."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakSet

from ..errors import StorageError

MAX_REQUESTS = 16  # that one process makes at the same time


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


def client_config() -> Any:
    """Return the configuration of all AWS clients: adaptive retries, 8 unless AWS_MAX_ATTEMPTS sets another number."""
    from botocore.config import Config

    retries = {"mode": "adaptive"} | ({} if "AWS_MAX_ATTEMPTS" in os.environ else {"max_attempts": 8})
    return Config(retries=retries, max_pool_connections=MAX_REQUESTS)


@cache
def s3_client() -> Any:
    """Return the S3 client of this process."""
    import boto3

    client = boto3.client("s3", config=client_config())
    client.meta.events.register("before-send.s3", _count_request)
    return client


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of an s3:// address. Raises StorageError if it names no bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{uri} names no bucket; expected s3://BUCKET/PREFIX")
    return bucket, key
