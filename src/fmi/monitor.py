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

LOG = logging.getLogger("fmi")
MAX_REQUEST_BYTES = 4096
REQUEST_TIMEOUT = 5.0  # seconds for a whole request
MAX_CONCURRENT_REQUESTS = 64


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


async def serve_http(
    host: str, port: int, metrics: ServerMetrics, state: Callable[[], dict[str, Any]]
) -> asyncio.Server:
    """Serve GET /health (JSON), /metrics (Prometheus) and /address (JSON: the client's address as seen here)."""
    slots = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            if not slots.locked():
                async with slots, asyncio.timeout(REQUEST_TIMEOUT):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_response(head, writer.get_extra_info("peername"), metrics, state))
                    await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, host, port, limit=MAX_REQUEST_BYTES)


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
