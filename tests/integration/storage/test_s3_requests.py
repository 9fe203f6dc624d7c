"""Requests to S3: every request is counted, and a response that breaks off is requested again.

The server is a tiny one of this module's own, which can be told to misbehave; moto's where all is well.
"""

from __future__ import annotations

import gc
import io
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from botocore import exceptions
from botocore.awsrequest import AWSResponse

from cosmicai import storage
from cosmicai.errors import StorageError
from cosmicai.runs.published import OWN_KEY, merge_attempts
from cosmicai.runs.record import PUBLISHED_KEYS, PUBLISHED_S3_KEYS
from cosmicai.storage import ranges, s3
from cosmicai.storage.ranges import READS, open_ranges
from cosmicai.storage.s3 import BUSY_ATTEMPTS, MAX_REQUESTS, RequestStatistics, reader_threads, s3_client, time_read
from support.helpers import make_record
from support.s3 import bucket_fixture, use_endpoint  # noqa: F401

CONTENT = bytes(range(256)) * 4096  # 1 MiB
URI = "s3://bucket/a.pt"


class RawResponse(io.BytesIO):
    """The body of a response that boto3 reads."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


class Object(BaseHTTPRequestHandler):
    """The responses of a server with one object, as its `Server` prescribes."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._begin(200, len(CONTENT))

    def do_PUT(self) -> None:
        """Create the object unless it exists; the first responses may be lost or be errors."""
        server, content = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        server.requested.append(self.headers["If-None-Match"])
        status = 500 if len(server.requested) <= server.errors else 200 if server.created is None else 412
        if status == 200:
            server.created = content
        if status != 500 and len(server.requested) <= server.losses:
            self.close_connection = True
            return
        self._begin(status, 0)

    def do_GET(self) -> None:
        server, asked = self.server, self.headers["Range"]
        server.requested.append(asked)
        if server.hangs_up:
            self.close_connection = True
            return
        if len(server.requested) <= server.errors:
            body = b"<Error><Code>InternalError</Code><Message>again</Message></Error>"
            self._begin(500, len(body))
            self.wfile.write(body)
            return
        is_whole = asked is None or server.knows_no_ranges
        content = CONTENT if server.created is None else server.created
        first, last = (0, len(content) - 1) if is_whole else map(int, asked[6:].split("-"))
        body = content[first : last + 1]
        self._begin(200 if is_whole else 206, len(body))
        if len(server.requested) > server.errors + server.breaks:
            self.wfile.write(body)
            return
        self.wfile.write(bytes(min(server.breaks_after, len(body) - 1)))  # not even what is in the object
        self.wfile.flush()
        if server.resets:  # a close without lingering sends RST instead of FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _begin(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"one"')
        self.end_headers()


class Server(ThreadingHTTPServer):
    """A server that can break off its first responses, or respond with errors at first."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Object)
        self.behave()

    def behave(self) -> None:
        """Respond correctly from now on."""
        self.breaks = self.breaks_after = self.errors = self.losses = 0
        self.created: bytes | None = None
        self.resets = self.knows_no_ranges = self.hangs_up = False
        self.requested: list[str | None] = []  # ranges, or conditions of a PUT

    def handle_error(self, *_: object) -> None:
        """Ignore clients that closed the connection."""

    def shutdown_request(self, request: Any) -> None:
        """Close without the half-close that would send FIN before RST."""
        self.close_request(request)


@pytest.fixture(scope="module")
def started() -> Iterator[Server]:
    """Run a server with the object at URI, and one client for all tests, since its creation takes longer than most."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield server
    s3_client().close()
    s3_client.cache_clear()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(started: Server) -> Server:
    """Return the server, which responds correctly."""
    started.behave()
    return started


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses between attempts, which are recorded instead of made."""
    noted: list[float] = []
    monkeypatch.setattr(time, "sleep", noted.append)
    return noted


def read(offset: int, length: int) -> bytes:
    with open_ranges(URI) as reader:
        return bytes(reader.read(offset, length))


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("after", [0, 1, 2**18 + 1, 599_999])
@pytest.mark.parametrize("breaks", [1, READS - 1])
def test_a_response_that_breaks_off_is_requested_again(server, waits, breaks, after, resets):
    server.breaks, server.breaks_after, server.resets = breaks, after, resets
    requests = RequestStatistics()
    assert read(300_000, 600_000) == CONTENT[300_000:900_000]
    assert server.requested == ["bytes=300000-899999"] * (breaks + 1)
    assert requests.counts == {"HeadObject": 1, "GetObject": breaks + 1}
    assert requests.read_times()["s3_num_requests"] == 1
    assert len(waits) == breaks
    assert all(0 <= pause <= 0.2 * 2**attempt for attempt, pause in enumerate(waits))


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("breaks", [0, 1, READS - 1])
def test_a_whole_object_is_one_request_that_is_retried_too(server, waits, breaks, resets):
    server.breaks, server.breaks_after, server.resets = breaks, 70_000, resets
    requests = RequestStatistics()
    assert storage.read_bytes(URI) == CONTENT
    assert server.requested == [None] * (breaks + 1)
    assert requests.counts == {"GetObject": breaks + 1}
    assert requests.read_times()["s3_num_requests"] == 1
    assert len(waits) == breaks


def refusal(call: Callable[[], object]) -> str:
    """Return the one line of the StorageError that the call raises, without the usual beginning and end."""
    with pytest.raises(StorageError) as caught:
        call()
    text, begin, end = str(caught.value), f"cannot read {URI}: ", "; check the address, your credentials and region"
    assert "\n" not in text and text.startswith(begin) and text.endswith(end)
    return text.removeprefix(begin).removesuffix(end)


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize(
    ("call", "asked", "head"),
    [(lambda: read(0, 1000), "bytes=0-999", {"HeadObject": 1}), (lambda: storage.read_bytes(URI), None, {})],
    ids=["range", "whole"],
)
def test_a_response_that_always_breaks_off_is_one_sentence(server, waits, call, asked, head, resets):
    server.breaks, server.breaks_after, server.resets = 1000, 10, resets
    requests = RequestStatistics()
    assert refusal(call).startswith(
        ("An error occurred while reading from response stream", "10 read, but total bytes")
    )
    assert server.requested == [asked] * READS
    assert requests.counts == head | {"GetObject": READS}
    assert requests.read_times() == {}
    assert len(waits) == READS - 1


@pytest.mark.parametrize(
    "error",
    [
        exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        exceptions.ResponseStreamingError(error="reset"),
        exceptions.ReadTimeoutError(endpoint_url="http://here"),
    ],
)
def test_every_kind_of_broken_response_is_requested_again(waits, error):
    asked: list[int] = []

    def read(offset: int, buffer: memoryview) -> None:
        asked.append(offset)
        if len(asked) < READS:
            raise error

    ranges.retry_broken_reads(read, 7, memoryview(b""))
    assert asked == [7] * READS


@pytest.mark.parametrize("error", [StorageError("no"), exceptions.NoCredentialsError(), ValueError("no")])
def test_another_error_is_not_tried_again(waits, error):
    asked: list[int] = []

    def read(offset: int, buffer: memoryview) -> None:
        asked.append(offset)
        raise error

    with pytest.raises(type(error)) as caught:
        ranges.retry_broken_reads(read, 7, memoryview(b""))
    assert caught.value is error and asked == [7] and waits == []


def test_a_busy_server_is_waited_for_some_minutes_by_every_request(monkeypatch):
    """S3 can answer SlowDown for a minute while it divides a prefix with many new requests."""
    monkeypatch.setattr("random.uniform", lambda least, most: least)
    busy = (None, {"Error": {"Code": "SlowDown"}})
    waits = [s3._wait_if_busy(busy, attempts) or 0.0 for attempts in range(1, BUSY_ATTEMPTS)]
    assert waits[:5] == [1, 2, 4, 8, 8] and min(waits) > 0 and sum(waits) > 90
    assert s3._wait_if_busy(busy, BUSY_ATTEMPTS) is None
    assert s3._wait_if_busy((None, {"Error": {"Code": "InternalError"}}), 1) is None
    assert s3._wait_if_busy(None, 1) is None and s3._wait_if_busy((None, {}), 1) is None


def test_a_listing_that_s3_is_too_busy_for_is_asked_for_again(bucket, monkeypatch):
    storage.write_bytes(f"{bucket}/folder/1.h5", b"x")
    monkeypatch.setattr(s3, "BUSY_PAUSE", 0.01)
    refused: list[int] = []

    def refuse(request: Any, **_: Any) -> AWSResponse | None:
        if len(refused) == BUSY_ATTEMPTS - 1:
            return None
        refused.append(503)
        body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
        return AWSResponse(request.url, 503, {}, RawResponse(body))

    s3_client().meta.events.register("before-send.s3.ListObjectsV2", refuse)
    try:
        assert [entry.name for entry in storage.list_files(f"{bucket}/folder")] == ["1.h5"]
    finally:
        s3_client().meta.events.unregister("before-send.s3.ListObjectsV2", refuse)
    assert len(refused) == BUSY_ATTEMPTS - 1


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (400, "ExpiredToken", "you are no longer signed in to AWS; sign in again"),
        (403, "AccessDenied", "User x may not read this (AccessDenied); ask the administrators of the account"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong"),
    ],
)
def test_the_reason_of_a_refused_head_is_that_of_get(bucket, status, code, sentence):
    storage.write_bytes(f"{bucket}/a", b"x")

    def refuse(request: Any, **_: Any) -> AWSResponse:
        body = f"<Error><Code>{code}</Code><Message>User x may not read this</Message></Error>".encode()
        return AWSResponse(request.url, status, {}, RawResponse(b"" if request.method == "HEAD" else body))

    s3_client().meta.events.register("before-send.s3", refuse)
    try:
        with pytest.raises(StorageError) as caught:
            open_ranges(f"{bucket}/a")
    finally:
        s3_client().meta.events.unregister("before-send.s3", refuse)
    assert str(caught.value).startswith(f"cannot read {bucket}/a: {sentence}")


def test_errors_of_the_server_are_counted_with_the_requests_that_boto3_repeats(server, waits):
    server.errors = 3
    requests = RequestStatistics()
    assert read(5, 10) == CONTENT[5:15]
    assert requests.counts == {"HeadObject": 1, "GetObject": 4}
    assert requests.read_times()["s3_num_requests"] == 1


def test_a_server_that_always_hangs_up_is_one_sentence(server, waits):
    server.hangs_up = True
    requests = RequestStatistics()
    with pytest.raises(StorageError, match="does not answer; check the network"):
        storage.read_bytes(URI)
    assert requests.counts == {"GetObject": 9} and requests.read_times() == {}  # boto3 asks again eight times
    assert len(server.requested) == 9


@pytest.mark.parametrize(("losses", "errors"), [(0, 0), (1, 0), (3, 0), (0, 2)])
def test_creating_an_object_is_reported_although_the_response_was_lost(server, waits, losses, errors):
    server.losses, server.errors = losses, errors
    assert storage.create_bytes(URI, b"mine") is True
    assert server.created == b"mine"
    assert server.requested[: 1 + losses + errors] == ["*"] * (1 + losses + errors)


@pytest.mark.parametrize(("losses", "errors"), [(0, 0), (1, 0), (0, 2)])
def test_failing_to_create_an_existing_object_is_reported(server, waits, losses, errors):
    server.created, server.losses, server.errors = b"another's", losses, errors
    assert storage.create_bytes(URI, b"mine") is False
    assert server.created == b"another's"


def test_a_server_without_ranges_is_refused_at_once(server, waits):
    server.knows_no_ranges = True
    requests = RequestStatistics()
    with pytest.raises(StorageError) as caught:
        read(5, 10)
    assert str(caught.value) == (
        f"{URI} was sent with 1048576 bytes where the 10 from byte 5 on were requested; "
        "use a server that supports ranges"
    )
    assert server.requested == ["bytes=5-14"] and waits == []
    assert requests.counts == {"HeadObject": 1, "GetObject": 1} and requests.read_times() == {}
    assert read(0, len(CONTENT)) == CONTENT  # all of it is all the same


def test_reading_no_bytes_makes_no_request(server):
    requests = RequestStatistics()
    assert read(5, 0) == b""
    assert server.requested == [] and requests.counts == {"HeadObject": 1} and requests.read_times() == {}


def test_every_operation_is_counted_by_its_name(bucket):
    requests = RequestStatistics()
    storage.write_bytes(f"{bucket}/a", b"abc")
    assert requests.counts == {"PutObject": 1}
    assert storage.create_bytes(f"{bucket}/a", b"other") is False
    assert storage.read_bytes(f"{bucket}/a") == b"abc"
    assert storage.read_if_exists(f"{bucket}/none") is None
    assert storage.exists(f"{bucket}/a") and storage.list_files(bucket)
    storage.remove(f"{bucket}/a")
    assert requests.counts == {
        "PutObject": 2, "GetObject": 2, "ListObjectsV2": 3, "DeleteObject": 1,
    }  # fmt: skip


def test_every_page_of_a_list_is_a_request(bucket, monkeypatch):
    for number in range(5):
        storage.write_bytes(f"{bucket}/{number}", b"")
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    requests = RequestStatistics()
    assert len(storage.list_files(bucket)) == 5
    assert requests.counts == {"ListObjectsV2": 3}


def test_statistics_begin_with_their_creation(server):
    first = RequestStatistics()
    read(0, 1)
    second = RequestStatistics()
    read(0, 1)
    assert first.counts == {"HeadObject": 2, "GetObject": 2} and second.counts == {"HeadObject": 1, "GetObject": 1}
    assert (first.read_times()["s3_num_requests"], second.read_times()["s3_num_requests"]) == (2, 1)
    assert RequestStatistics().counts == {} and RequestStatistics().read_times() == {}


def test_unused_statistics_are_garbage_collected():
    account = RequestStatistics()
    gone = weakref.ref(account)
    del account
    gc.collect()
    assert gone() is None
    with time_read():  # without statistics
        pass


def test_times_of_reading_are_the_published_keys(monkeypatch):
    clock = iter([100.0, 103.0, 101.0, 102.0, 110.0, 111.5])  # begun and ended, as they are seen
    monkeypatch.setattr(s3, "time", SimpleNamespace(time=lambda: next(clock)))
    requests = RequestStatistics()
    for _ in range(3):
        with time_read():
            pass
    assert requests.read_times() == {
        "s3_num_requests": 3,
        "s3_total_time": 5.5,
        "s3_avg_time": 5.5 / 3,
        "s3_min_time": 1.0,
        "s3_max_time": 3.0,
        "s3_first_request_time": 100.0,
        "s3_last_response_time": 111.5,
    }
    assert tuple(requests.read_times()) == PUBLISHED_S3_KEYS
    times: Any = requests.read_times()
    for record, keys in ((make_record(), PUBLISHED_KEYS), (make_record(**times), PUBLISHED_KEYS + PUBLISHED_S3_KEYS)):
        [result] = merge_attempts([record])
        assert tuple(result.published("runs/1")) == (*keys, OWN_KEY)


def test_overlapping_reads_keep_the_first_and_the_last_time(monkeypatch):
    clock = iter([100.0, 101.0, 102.0, 105.0])  # the second read lies within the first
    monkeypatch.setattr(s3, "time", SimpleNamespace(time=lambda: next(clock)))
    requests = RequestStatistics()
    with time_read(), time_read():
        pass
    times = requests.read_times()
    assert (times["s3_first_request_time"], times["s3_last_response_time"]) == (100.0, 105.0)
    assert (times["s3_min_time"], times["s3_max_time"], times["s3_total_time"]) == (1.0, 5.0, 6.0)


def test_a_failed_read_is_not_counted():
    requests = RequestStatistics()
    with pytest.raises(ValueError, match="broken"), time_read():
        raise ValueError("broken")
    assert requests.read_times() == {}


def test_requests_of_threads_are_all_counted(server):
    requests = RequestStatistics()
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        found = list(pool.map(lambda number: read(number, 1), range(200)))
    assert found == [CONTENT[number : number + 1] for number in range(200)]
    assert requests.counts == {"HeadObject": 200, "GetObject": 200}
    assert requests.read_times()["s3_num_requests"] == 200


def test_there_is_a_connection_for_every_concurrent_request(server):
    assert reader_threads("s3://bucket/folder") == MAX_REQUESTS == s3_client().meta.config.max_pool_connections
    assert reader_threads("/folder") == 0
