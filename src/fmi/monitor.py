"""What a server tells of itself: one line of JSON for each event, figures for Prometheus, and whether it is well."""

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
LONGEST_REQUEST = 4096  # bytes
PATIENCE = 5.0  # seconds for a whole request
AT_ONCE = 64  # requests


class JsonLines(logging.Formatter):
    """`{"time": ..., "level": ..., "event": ..., and what belongs to it}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat()
        own = getattr(record, "fields", {})
        line = {"time": at, "level": record.levelname.lower(), "event": record.getMessage(), **own}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def note(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Logs an event."""
    LOG.log(level, event, extra={"fields": fields})


class Figures:
    """What Prometheus reads; each server has its own. `state` is what /health says."""

    def __init__(self, state: Callable[[], dict[str, Any]]) -> None:
        self._registry = own = CollectorRegistry()
        for name, meaning in (
            ("connections", "Open connections"),
            ("jobs", "Jobs that wait for ranks or are complete"),
            ("ranks", "Ranks that are there"),
        ):
            Gauge(f"fmi_{name}", meaning, registry=own).set_function(partial(_figure, state, name))
        self.relays = Gauge("fmi_relays", "Pairs that are being relayed", registry=own)
        self.joins = Counter("fmi_joins", "Ranks that came", registry=own)
        self.refused = Counter("fmi_refused", "Clients that were refused", ["code"], registry=own)
        self.lost = Counter("fmi_lost", "Ranks that went without leave", registry=own)
        self.pairs = Counter("fmi_pairs", "Pairs that talk", ["how"], registry=own)
        self.items = Counter("fmi_items", "Numbers given out", registry=own)
        self.relayed_bytes = Counter("fmi_relayed_bytes", "Bytes relayed", registry=own)

    def text(self) -> bytes:
        """All figures, as Prometheus wants them."""
        return generate_latest(self._registry)


def _figure(state: Callable[[], dict[str, Any]], name: str) -> float:
    return float(state()[name])


async def answer_http(host: str, port: int, figures: Figures, state: Callable[[], dict[str, Any]]) -> asyncio.Server:
    """Answers GET /health (JSON), /metrics (Prometheus) and /address (the caller's, as it is seen here)."""
    busy = asyncio.Semaphore(AT_ONCE)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            if not busy.locked():
                async with busy, asyncio.timeout(PATIENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_answer(head, writer.get_extra_info("peername"), figures, state))
                    await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, host, port, limit=LONGEST_REQUEST)


def _answer(head: bytes, caller: Any, figures: Figures, state: Callable[[], dict[str, Any]]) -> bytes:
    method, path, *_ = (*head.split(b"\r\n", 1)[0].decode("latin-1").split(), "", "")
    kind, status, body = "application/json", HTTPStatus.OK, b""
    if method != "GET":
        status = HTTPStatus.METHOD_NOT_ALLOWED
    elif path == "/health":
        body = json.dumps(state()).encode()
    elif path == "/metrics":
        kind, body = CONTENT_TYPE_LATEST, figures.text()
    elif path == "/address" and caller:
        body = json.dumps(caller[:2]).encode()
    else:
        status = HTTPStatus.NOT_FOUND
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "Allow: GET", "Connection: close", "", ""]).encode() + body
