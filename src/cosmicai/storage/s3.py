"""The way to S3: addresses, the client, and an account of what was asked of it."""

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

REQUESTS = 16  # that one process has under way


class Requests:
    """The requests of this process to S3 from now on: all that were sent, and how long reading objects took.

    `sent` counts them by S3's names of the operations, repeated ones too, since each is paid for.
    """

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self._reads = 0
        self._seconds = self._least = self._most = self._first = self._last = 0.0
        with _lock:
            _accounts.add(self)

    def times(self) -> dict[str, float]:
        """How long reading took, with the published keys, in seconds; empty if nothing was read.

        From asking for a range of an object to its last byte; the first and last time are seconds since 1970.
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

    def _read(self, begun: float, ended: float) -> None:
        seconds = ended - begun
        self._least = min(self._least, seconds) if self._reads else seconds
        self._first = min(self._first, begun) if self._reads else begun
        self._most, self._last = max(self._most, seconds), max(self._last, ended)
        self._seconds += seconds
        self._reads += 1


_lock = threading.Lock()
_accounts: WeakSet[Requests] = WeakSet()


def _sent(event_name: str, **_: Any) -> None:
    with _lock:
        for account in _accounts:
            account.sent[event_name.rpartition(".")[2]] += 1


@contextmanager
def timed_read() -> Iterator[None]:
    """Counts the block as the reading of an object."""
    begun = time.time()
    yield
    ended = time.time()
    with _lock:
        for account in _accounts:
            account._read(begun, ended)


def is_s3(uri: str) -> bool:
    """Whether the address is one of S3."""
    return uri.startswith("s3://")


def requests_at_once(uri: str) -> int:
    """How many threads read the files of a folder: none beside this one unless it is on S3, which is slow to answer."""
    return REQUESTS if is_s3(uri) else 0


def client_config() -> Any:
    """How our clients of AWS behave: adaptive retries (8 unless AWS_MAX_ATTEMPTS says otherwise)."""
    from botocore.config import Config

    retries = {"mode": "adaptive"} | ({} if "AWS_MAX_ATTEMPTS" in os.environ else {"max_attempts": 8})
    return Config(retries=retries, max_pool_connections=REQUESTS)


@cache
def s3_client() -> Any:
    """One boto3 client for the process."""
    import boto3

    client = boto3.client("s3", config=client_config())
    client.meta.events.register("before-send.s3", _sent)
    return client


def s3_parts(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// address. Raises StorageError if there is no bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{uri} names no bucket; expected s3://BUCKET/PREFIX")
    return bucket, key
