"""A proxy in front of an S3 server that injects the faults of a real S3.

    with faulty_s3() as faults, pipeline(tmp_path, extra_environment={"AWS_ENDPOINT_URL_S3": faults.url}) as cloud:
        faults.upstream = cloud.endpoint
        faults.add("slow down", "GET", "surveys/", times=3)

Faults of a request: "slow down" (503 SlowDown), "deny" (403 AccessDenied), "drop" (the connection is closed at once),
"lose" (the server executes the request, and the connection is closed without a response), "cut" (the connection is
closed in the middle of the body).
"""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REFUSALS = {
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "deny": (403, "AccessDenied", "Access Denied"),
}
HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}


@dataclass
class Fault:
    """A fault of the next `times` requests (None: all) of a method for matching keys."""

    what: str
    method: str
    key: str
    times: int | None


class Faults:
    """The pending faults, and those that have occurred, as (what, method, key)."""

    def __init__(self, url: str) -> None:
        self.url, self.upstream = url, ""
        self.done: list[tuple[str, str, str]] = []
        self._pending: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, what: str, method: str, key: str, times: int | None = 1) -> None:
        """Add a fault of the next requests of a method whose key, without its bucket, matches this expression."""
        with self._lock:
            self._pending.append(Fault(what, method, key, times))

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._pending, self.done = [], []

    def take(self, method: str, key: str) -> str | None:
        """Return the fault of this request, if any."""
        with self._lock:
            for fault in self._pending:
                if fault.method == method and fault.times != 0 and re.search(fault.key, key):
                    fault.times = fault.times and fault.times - 1
                    self.done.append((fault.what, method, key))
                    return fault.what
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise a body would wait 40 ms for the acknowledgement of its headers
    faults: Faults

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length) if length else None
        key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]
        what = self.faults.take(self.command, key)
        if what in REFUSALS:
            self._refuse(*REFUSALS[what])
            return
        self.close_connection = self.close_connection or what is not None
        if what == "drop":
            return
        status, headers, body = self._forward(sent)
        if what == "lose":
            return
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if what == "cut" else body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815

    def _forward(self, sent: bytes | None) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the response of the server itself."""
        connection = http.client.HTTPConnection(urlsplit(self.faults.upstream).netloc)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            connection.request(self.command, self.path, sent, headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in HOP | {"content-length"}]
        length = response.headers.get("Content-Length") if self.command == "HEAD" else str(len(body))
        return (
            response.status,
            [*kept, *([("Content-Length", length)] if length and response.status != 204 else [])],
            body,
        )

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = b"" if self.command == "HEAD" else (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
            "<RequestId>0</RequestId></Error>"
        ).encode()  # fmt: skip
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def faulty_s3() -> Iterator[Faults]:
    """Run a proxy on a free port until the end of the block, and yield its faults."""
    handler: type[_Handler] = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.faults = faults = Faults(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield faults
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
