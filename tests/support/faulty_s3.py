"""A proxy before an S3 server that now and then answers as S3 does on a bad day.

    with faulty_s3() as faults, pipeline(tmp_path, extra_environment={"AWS_ENDPOINT_URL_S3": faults.url}) as cloud:
        faults.upstream = cloud.endpoint
        faults.add("slow down", "GET", "surveys/", times=3)

What it does to a request: "slow down" (503 SlowDown), "deny" (403 AccessDenied), "drop" (closes the connection at
once), "lose" (lets the server do it, and closes the connection without an answer), "cut" (closes it in mid-body).
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
    """What happens to the next `times` requests of a method for keys that match (None: to all of them)."""

    what: str
    method: str
    key: str
    times: int | None


class Faults:
    """The faults that are still to come, and those that have come, as (what, method, key)."""

    def __init__(self, url: str) -> None:
        self.url, self.upstream = url, ""
        self.done: list[tuple[str, str, str]] = []
        self._coming: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, what: str, method: str, key: str, times: int | None = 1) -> None:
        """Does `what` to the next requests of a method whose key, without its bucket, this expression finds."""
        with self._lock:
            self._coming.append(Fault(what, method, key, times))

    def clear(self) -> None:
        """No more faults."""
        with self._lock:
            self._coming, self.done = [], []

    def take(self, method: str, key: str) -> str | None:
        """What happens to this request, if anything."""
        with self._lock:
            for fault in self._coming:
                if fault.method == method and fault.times != 0 and re.search(fault.key, key):
                    fault.times = fault.times and fault.times - 1
                    self.done.append((fault.what, method, key))
                    return fault.what
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body would else wait 40 ms for the word that its headers have arrived
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
        status, headers, body = self._asked(sent)
        if what == "lose":
            return
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if what == "cut" else body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815

    def _asked(self, sent: bytes | None) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the server itself answers."""
        connection = http.client.HTTPConnection(urlsplit(self.faults.upstream).netloc)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            connection.request(self.command, self.path, sent, headers)
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP | {"content-length"}]
        length = answer.headers.get("Content-Length") if self.command == "HEAD" else str(len(body))
        return answer.status, [*kept, *([("Content-Length", length)] if length and answer.status != 204 else [])], body

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
    """A proxy on a free port, which is gone with the block."""
    handler = type("Handler", (_Handler,), {})
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
