"""Monitoring of a server: health check, metrics and log."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import resource
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fmi import messages, monitor
from fmi.monitor import MAX_REQUEST_BYTES, MAX_REQUESTS_PER_ADDRESS, JsonFormatter, ServerMetrics, serve_http
from support.rendezvous import TIMEOUT, Server, rendezvous_server
from support.rendezvous_clients import RawClient, checked_server, joined_ranks, relayed_ends, run_fmi

EMPTY_STATE = {"status": "ok", "jobs": 0, "ranks": 0, "connections": 0}


@pytest.fixture
def server() -> Iterator[Server]:
    with checked_server() as running:
        yield running


def get(server: Server, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    """Return status, content type and body of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.health_port, timeout=TIMEOUT)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.getheader("Connection") == "close"
    assert answer.getheader("Content-Length") == str(len(body))
    connection.close()
    return answer.status, answer.getheader("Content-Type", ""), body


def read_metrics(server: Server) -> dict[str, float]:
    """Return all metrics by their names and labels."""
    status, kind, body = get(server, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


# ---- A real server ----


def test_health_shows_the_state(server: Server) -> None:
    assert get(server, "/health") == (200, "application/json", json.dumps(EMPTY_STATE).encode())
    with joined_ranks(server, "one", 2), RawClient(server) as waiting, RawClient(server):
        waiting.join("two", 0, 9)
        state = json.loads(get(server, "/health")[2])
        assert state == {"status": "ok", "jobs": 2, "ranks": 3, "connections": 4}


def test_metrics_count_what_has_happened(server: Server) -> None:
    assert read_metrics(server) == {
        "fmi_connections": 0, "fmi_jobs": 0, "fmi_ranks": 0, "fmi_relays": 0,
        "fmi_joins_total": 0, "fmi_lost_total": 0, "fmi_items_total": 0, "fmi_relayed_bytes_total": 0,
    }  # fmt: skip
    with joined_ranks(server, "one", 2) as (low, high), RawClient(server) as wrong:
        wrong.send(wrong.join_message("one", 0, 2, b"wrong"))
        wrong.receive_refusal()
        with relayed_ends(server, "one", low, high) as (one, other):
            low.send(messages.Connected(1, "relay"))
            for request in range(3):
                assert low.request(messages.Next(request)) == messages.Number(request, request)
            one.socket.sendall(bytes(1000))
            assert other.receive_bytes(1000) == bytes(1000)
            now = read_metrics(server)
            assert {name: now[name] for name in ("fmi_connections", "fmi_jobs", "fmi_ranks", "fmi_relays")} == {
                "fmi_connections": 4, "fmi_jobs": 1, "fmi_ranks": 2, "fmi_relays": 1,
            }  # fmt: skip
        server.await_event("relayed")
        low.send(messages.Leave())
    server.await_event("left", rank=0)
    server.await_event("lost", rank=1)
    after = {name: value for name, value in read_metrics(server).items() if name != "fmi_connections"}
    assert after == {
        "fmi_jobs": 0, "fmi_ranks": 0, "fmi_relays": 0,
        "fmi_joins_total": 2, "fmi_lost_total": 1, "fmi_items_total": 3, "fmi_relayed_bytes_total": 1000,
        "fmi_refused_total token": 1, "fmi_pairs_total relay": 1,
    }  # fmt: skip


def test_a_client_can_request_its_own_address(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.health_port), timeout=TIMEOUT) as own:
        own.sendall(b"GET /address HTTP/1.1\r\nHost: a\r\n\r\n")
        head, _, body = own.makefile("rb").read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert json.loads(body) == list(own.getsockname())


@pytest.mark.parametrize("path", ["/", "/healthy", "/health/", "/../health", "/health?a=b", "/METRICS"])
def test_other_paths_are_not_found(server: Server, path: str) -> None:
    assert get(server, path) == (404, "application/json", b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "get"])
def test_only_get_is_allowed(server: Server, method: str) -> None:
    assert get(server, "/health", method) == (405, "application/json", b"")


@pytest.mark.parametrize("request_", [b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\x00 /health\r\n\r\n", b"FM\x01\x01\r\n\r\n"])
def test_an_invalid_request_is_answered_by_an_error(server: Server, request_: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.health_port), timeout=TIMEOUT) as own:
        own.sendall(request_)
        assert own.recv(1000).split(b" ")[1] in (b"404", b"405")


def open_sockets(stack: ExitStack, port: int, count: int, data: bytes) -> list[socket.socket]:
    """Open connections that send these bytes and then hang until the stack closes them."""
    opened = []
    for _ in range(count):
        one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT))
        one.sendall(data)
        opened.append(one)
    return opened


HANGING = {
    "silent": b"", "half a request": b"GET /health HTTP/1.1\r\nHost: a\r\n", "half a line": b"GET /hea",
    "an unread answer": b"GET /metrics HTTP/1.1\r\n\r\n",
    "half a body": b"GET /health HTTP/1.1\r\nContent-Length: 9\r\n\r\na",
    "too much": b"GET /" + b"x" * 3 * MAX_REQUEST_BYTES,
}  # fmt: skip


@pytest.mark.parametrize("count", [200, 2 * MAX_REQUESTS_PER_ADDRESS])
@pytest.mark.parametrize("data", HANGING.values(), ids=HANGING)
def test_health_answers_while_clients_hang(server: Server, data: bytes, count: int) -> None:
    with ExitStack() as stack:
        with suppress(ConnectionError):  # those that send too much are closed at once
            open_sockets(stack, server.health_port, count, data)
        assert get(server, "/health") == (200, "application/json", json.dumps(EMPTY_STATE).encode())
        with joined_ranks(server, "meanwhile", 2) as (one, _):
            assert one.request(messages.Next(0)) == messages.Number(0, 0)
            assert json.loads(get(server, "/health")[2])["ranks"] == 2


@pytest.mark.parametrize("data", [b"", messages.MAGIC, b"GET /health HTTP/1.1\r\n"])
def test_health_answers_while_200_clients_hang_at_the_other_port(server: Server, data: bytes) -> None:
    with ExitStack() as stack:
        open_sockets(stack, server.endpoint.port, 200, data)
        assert json.loads(get(server, "/health")[2])["status"] == "ok"
        with joined_ranks(server, "meanwhile", 2) as (one, _):  # of the same address
            assert one.request(messages.Next(0)) == messages.Number(0, 0)


def test_health_answers_while_clients_hang_and_come_again(server: Server) -> None:
    stop = threading.Event()

    def hang() -> None:
        with ExitStack() as stack:
            while not stop.is_set():
                with suppress(ConnectionError):
                    open_sockets(stack, server.health_port, 100, HANGING["half a request"])
                stack.close()

    with ThreadPoolExecutor(4) as pool:
        hanging = [pool.submit(hang) for _ in range(4)]
        try:
            assert [get(server, "/health")[0] for _ in range(20)] == [200] * 20
        finally:
            stop.set()
    assert [one.result() for one in hanging] == [None] * 4


@pytest.mark.parametrize("health", [True, False])
def test_health_answers_where_few_files_may_be_open(health: bool) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (256, 256))
    with rendezvous_server(popen=partial(subprocess.Popen, preexec_fn=limit)) as few, ExitStack() as stack:
        if health:
            open_sockets(stack, few.health_port, 300, HANGING["half a request"])
        else:
            open_sockets(stack, few.endpoint.port, 300, messages.MAGIC)
        assert get(few, "/health")[0] == 200
        with joined_ranks(few, "meanwhile", 2) as (one, _):
            assert one.request(messages.Next(0)) == messages.Number(0, 0)
        assert "out of files" not in [line["event"] for line in few.events]


def test_the_health_command(server: Server) -> None:
    done = run_fmi("health", "--port", str(server.health_port))
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, EMPTY_STATE, "")


def test_the_health_command_fails_without_a_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    done = run_fmi("health", "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: no rendezvous server answers on port {port} (")
    assert done.stderr.count("\n") == 1


def test_the_health_command_fails_for_another_server(server: Server) -> None:
    port = server.endpoint.port  # sends HELLO, not HTTP
    done = run_fmi("health", "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: no rendezvous server answers on port {port} (")
    assert "Traceback" not in done.stderr


# ---- Within this process ----


def run_client(client: Callable[[int], Awaitable[None]]) -> None:
    """Run a client with the port of an HTTP server."""

    async def run() -> None:
        server = await serve_http("127.0.0.1", 0, ServerMetrics(lambda: EMPTY_STATE), lambda: EMPTY_STATE)
        async with server:
            await client(server.sockets[0].getsockname()[1])

    asyncio.run(run())


def test_a_request_must_be_complete_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "REQUEST_TIMEOUT", 0.1)

    async def client(port: int) -> None:
        silent, partial = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        partial[1].write(b"GET /health HTTP/1.1\r\n")
        for reader, writer in (silent, partial):
            assert await asyncio.wait_for(reader.read(), TIMEOUT) == b""
            writer.close()

    run_client(client)


def test_a_request_that_comes_one_byte_at_a_time_must_be_complete_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "REQUEST_TIMEOUT", 0.2)

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionResetError):
            while not reader.at_eof():
                writer.write(b"G")
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        assert await reader.read() == b""
        writer.close()

    run_client(client)


def test_an_answer_must_be_read_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "REQUEST_TIMEOUT", 0.1)
    size, closed = 2**25, 0  # more than the kernel keeps

    async def run() -> None:
        nonlocal closed
        server = await serve_http("127.0.0.1", 0, ServerMetrics(lambda: EMPTY_STATE), lambda: {"large": "x" * size})
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1)
            writer.write(b"GET /health HTTP/1.1\r\n\r\n")
            await reader.readexactly(1)
            others = asyncio.all_tasks() - {asyncio.current_task()}  # the one that answers
            await asyncio.wait(others, timeout=TIMEOUT)
            with suppress(ConnectionResetError):
                while data := await reader.read(2**20):
                    closed += len(data)
            writer.close()

    asyncio.run(run())
    assert closed < size


def test_the_oldest_request_of_an_address_gives_way_to_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "MAX_REQUESTS_PER_ADDRESS", 2)

    async def client(port: int) -> None:
        oldest, *others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert await is_closed(oldest)
        for one in others:
            assert await answers(one)

    run_client(client)


def test_the_address_with_the_most_requests_gives_way_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "MAX_REQUESTS", 4)

    async def client(port: int) -> None:
        few, *many, last = [
            await asyncio.open_connection("127.0.0.1", port, local_addr=(f"127.0.0.{host}", 0))
            for host in (1, 2, 2, 3, 4)
        ]
        assert await is_closed(many[0])
        for one in (few, *many[1:], last):
            assert await answers(one)

    run_client(client)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def is_closed(connection: Connection) -> bool:
    reader, writer = connection
    with suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), TIMEOUT) == b""
    writer.close()
    return True


async def answers(connection: Connection) -> bool:
    reader, writer = connection
    writer.write(b"GET /health HTTP/1.1\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), TIMEOUT)
    writer.close()
    return answer.startswith(b"HTTP/1.1 200 OK\r\n")


def record(**extra: Any) -> logging.LogRecord:
    created = logging.LogRecord("fmi", logging.WARNING, "a.py", 1, "what %s", ("happened",), None)
    for name, value in extra.items():
        setattr(created, name, value)
    return created


def test_a_line_of_the_log_is_json() -> None:
    line = JsonFormatter().format(record(fields={"job": 'a "b"\n\u2028ü', "rank": 3}, created=1.75e9))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2025-06-15T15:06:40+00:00", "level": "warning", "event": "what happened",
        "job": 'a "b"\n\u2028ü', "rank": 3,
    }  # fmt: skip


def test_an_exception_is_logged_in_one_line() -> None:
    try:
        raise KeyError("a fault")
    except KeyError as error:
        line = JsonFormatter().format(record(exc_info=(KeyError, error, error.__traceback__)))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("KeyError: 'a fault'")
