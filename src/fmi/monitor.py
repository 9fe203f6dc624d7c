"""Monitoring of a rendezvous server: a log of JSON lines, Prometheus metrics, and a health check over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from .clients import BACKLOG, create_listener, open_file_limit

LOG = logging.getLogger("fmi")
MAX_REQUEST_BYTES = 4096
REQUEST_TIMEOUT = 5.0  # seconds for the head of a request, however it arrives, and again for reading the answer
MAX_REQUESTS = 600  # that are open at a time; a further one displaces another
MAX_REQUESTS_PER_ADDRESS = 300
ACCEPTED_AT_ONCE = 16  # far fewer than the limits, so that no connection is displaced before its request could be read


class JsonFormatter(logging.Formatter):
    """Formats log records as `{"time": ..., "level": ..., "event": ..., and the fields of the event}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat()
        fields = getattr(record, "fields", {})
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage(), **fields}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_event(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with its fields."""
    LOG.log(level, event, extra={"fields": fields})


class ServerMetrics:
    """The Prometheus metrics of one server; `state` returns the content of /health."""

    def __init__(self, state: Callable[[], dict[str, Any]]) -> None:
        self._registry = registry = CollectorRegistry()
        for name, description in (
            ("connections", "Open connections"),
            ("jobs", "Jobs that are running or waiting for ranks"),
            ("ranks", "Connected ranks"),
        ):
            Gauge(f"fmi_{name}", description, registry=registry).set_function(partial(_state_value, state, name))
        self.relays = Gauge("fmi_relays", "Active relays", registry=registry)
        self.joins = Counter("fmi_joins", "Ranks that joined", registry=registry)
        self.refused = Counter("fmi_refused", "Clients that were refused", ["code"], registry=registry)
        self.lost = Counter("fmi_lost", "Ranks that disconnected without LEAVE", registry=registry)
        self.pairs = Counter("fmi_pairs", "Pairs that were connected", ["how"], registry=registry)
        self.items = Counter("fmi_items", "Numbers returned by the counters", registry=registry)
        self.relayed_bytes = Counter("fmi_relayed_bytes", "Bytes relayed", registry=registry)

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


def _state_value(state: Callable[[], dict[str, Any]], name: str) -> float:
    return float(state()[name])


class _OpenRequests:
    """The connections whose requests are not answered yet, the oldest of each address first.

    A new one is never refused, so that clients that hang do not keep others out: beyond the limit of its address the
    oldest one of that address is closed, and beyond the limit of all the oldest one of the address that has the most.
    Where this process may open few files, a quarter of them is the limit, since the ranks need the others.
    """

    def __init__(self) -> None:
        self._by_address: dict[str, dict[asyncio.WriteTransport, None]] = {}
        self._limit = min(MAX_REQUESTS, open_file_limit() // 4)
        self._limit_per_address = min(MAX_REQUESTS_PER_ADDRESS, self._limit // 2)

    def add(self, address: str, connection: asyncio.WriteTransport) -> None:
        """Add a connection, and close another one if there are too many."""
        own = self._by_address.setdefault(address, {})
        own[connection] = None
        if len(own) > self._limit_per_address:
            crowded = address
        elif sum(map(len, self._by_address.values())) > self._limit:
            crowded = max(self._by_address, key=lambda one: len(self._by_address[one]))
        else:
            return
        oldest = next(iter(self._by_address[crowded]))
        oldest.abort()
        self.remove(crowded, oldest)

    def remove(self, address: str, connection: asyncio.WriteTransport) -> None:
        """Remove a connection unless it was closed for another one."""
        own = self._by_address.get(address, {})
        own.pop(connection, None)
        if not own:
            self._by_address.pop(address, None)


async def serve_http(
    host: str, port: int, metrics: ServerMetrics, state: Callable[[], dict[str, Any]]
) -> asyncio.Server:
    """Serve GET /health (JSON), /metrics (Prometheus) and /address (JSON: the client's address as seen here)."""
    requests = _OpenRequests()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = writer.get_extra_info("peername")
        address = client[0] if client else ""  # it has disconnected already
        requests.add(address, writer.transport)
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(head, client, metrics, state))
                writer.close()
                async with asyncio.timeout(REQUEST_TIMEOUT):
                    await writer.wait_closed()
        finally:
            writer.transport.abort()  # of a client that reads nothing the rest would be kept for ever
            requests.remove(address, writer.transport)

    listener = create_listener(host, port, has_secret=True)  # at the address of the server, which was checked
    server = await asyncio.start_server(answer, sock=listener, limit=MAX_REQUEST_BYTES, backlog=ACCEPTED_AT_ONCE)
    listener.listen(BACKLOG)  # asyncio's backlog is both: how many it accepts at once, and how many the kernel keeps
    return server


def _response(head: bytes, client: Any, metrics: ServerMetrics, state: Callable[[], dict[str, Any]]) -> bytes:
    method, path, *_ = (*head.split(b"\r\n", 1)[0].decode("latin-1").split(), "", "")
    kind, status, body = "application/json", HTTPStatus.OK, b""
    if method != "GET":
        status = HTTPStatus.METHOD_NOT_ALLOWED
    elif path == "/health":
        body = json.dumps(state()).encode()
    elif path == "/metrics":
        kind, body = CONTENT_TYPE_LATEST, metrics.render()
    elif path == "/address" and client:
        body = json.dumps(client[:2]).encode()
    else:
        status = HTTPStatus.NOT_FOUND
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "Allow: GET", "Connection: close", "", ""]).encode() + body
