"""What a server tells of itself."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fmi import messages, monitor
from fmi.monitor import AT_ONCE, LONGEST_REQUEST, Figures, JsonLines, answer_http
from support.rendezvous import SOON, Server
from support.rendezvous_clients import Raw, ranks, relayed, run_fmi, served

NOTHING = {"status": "ok", "jobs": 0, "ranks": 0, "connections": 0}


@pytest.fixture
def server() -> Iterator[Server]:
    with served() as running:
        yield running


def get(server: Server, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    """Status, type and body of what is answered."""
    connection = http.client.HTTPConnection("127.0.0.1", server.health_port, timeout=SOON)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.getheader("Connection") == "close"
    assert answer.getheader("Content-Length") == str(len(body))
    connection.close()
    return answer.status, answer.getheader("Content-Type", ""), body


def figures(server: Server) -> dict[str, float]:
    """All figures, by their names and labels."""
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


def test_health_says_what_there_is(server: Server) -> None:
    assert get(server, "/health") == (200, "application/json", json.dumps(NOTHING).encode())
    with ranks(server, "one", 2), Raw(server) as waiting, Raw(server):
        waiting.join("two", 0, 9)
        state = json.loads(get(server, "/health")[2])
        assert state == {"status": "ok", "jobs": 2, "ranks": 3, "connections": 4}


def test_figures_are_what_has_happened(server: Server) -> None:
    assert figures(server) == {
        "fmi_connections": 0, "fmi_jobs": 0, "fmi_ranks": 0, "fmi_relays": 0,
        "fmi_joins_total": 0, "fmi_lost_total": 0, "fmi_items_total": 0, "fmi_relayed_bytes_total": 0,
    }  # fmt: skip
    with ranks(server, "one", 2) as (low, high), Raw(server) as wrong:
        wrong.say(wrong.joining("one", 0, 2, b"wrong"))
        wrong.refusal()
        with relayed(server, "one", low, high) as (one, other):
            low.say(messages.Connected(1, "relay"))
            for request in range(3):
                assert low.ask(messages.Next(request)) == messages.Number(request, request)
            one.socket.sendall(bytes(1000))
            assert other.exactly(1000) == bytes(1000)
            now = figures(server)
            assert {name: now[name] for name in ("fmi_connections", "fmi_jobs", "fmi_ranks", "fmi_relays")} == {
                "fmi_connections": 4, "fmi_jobs": 1, "fmi_ranks": 2, "fmi_relays": 1,
            }  # fmt: skip
        server.await_event("relayed")
        low.say(messages.Leave())
    server.await_event("left", rank=0)
    server.await_event("lost", rank=1)
    after = {name: value for name, value in figures(server).items() if name != "fmi_connections"}
    assert after == {
        "fmi_jobs": 0, "fmi_ranks": 0, "fmi_relays": 0,
        "fmi_joins_total": 2, "fmi_lost_total": 1, "fmi_items_total": 3, "fmi_relayed_bytes_total": 1000,
        "fmi_refused_total token": 1, "fmi_pairs_total relay": 1,
    }  # fmt: skip


def test_a_caller_learns_its_own_address(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.health_port), timeout=SOON) as own:
        own.sendall(b"GET /address HTTP/1.1\r\nHost: a\r\n\r\n")
        head, _, body = own.makefile("rb").read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert json.loads(body) == list(own.getsockname())


@pytest.mark.parametrize("path", ["/", "/healthy", "/health/", "/../health", "/health?a=b", "/METRICS"])
def test_there_is_nothing_else(server: Server, path: str) -> None:
    assert get(server, path) == (404, "application/json", b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "get"])
def test_nothing_but_get_is_answered(server: Server, method: str) -> None:
    assert get(server, "/health", method) == (405, "application/json", b"")


@pytest.mark.parametrize("request_", [b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\x00 /health\r\n\r\n", b"FM\x01\x01\r\n\r\n"])
def test_what_is_no_request_is_answered_as_one_that_is_not_allowed(server: Server, request_: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.health_port), timeout=SOON) as own:
        own.sendall(request_)
        assert own.recv(1000).split(b" ")[1] in (b"404", b"405")


def test_slow_and_large_requests_do_not_stop_the_others(server: Server) -> None:
    with ExitStack() as stack:
        address = ("127.0.0.1", server.health_port)
        for _ in range(AT_ONCE - 1):
            slow = stack.enter_context(socket.create_connection(address, timeout=SOON))
            slow.sendall(b"GET /health HT")
        large = stack.enter_context(socket.create_connection(address, timeout=SOON))
        large.sendall(b"GET /" + b"x" * 3 * LONGEST_REQUEST)
        with suppress(ConnectionResetError):
            assert large.recv(1000) == b""
        assert get(server, "/health")[0] == 200
        with ranks(server, "meanwhile", 2) as (one, _):
            assert one.ask(messages.Next(0)) == messages.Number(0, 0)


def test_health_on_the_command_line(server: Server) -> None:
    done = run_fmi("health", "--port", str(server.health_port))
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, NOTHING, "")


def test_no_server_is_unwell() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = run_fmi("health", "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: no rendezvous server answers on port {port} (")
    assert done.stderr.count("\n") == 1


def test_another_server_is_unwell(server: Server) -> None:
    port = server.endpoint.port  # which says HELLO, not HTTP
    done = run_fmi("health", "--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: no rendezvous server answers on port {port} (")
    assert "Traceback" not in done.stderr


# ---- Within this process ----


def answered(talk: Callable[[int], Awaitable[None]]) -> None:
    """Runs a talk with the port of one who answers."""

    async def run() -> None:
        server = await answer_http("127.0.0.1", 0, Figures(lambda: NOTHING), lambda: NOTHING)
        async with server:
            await talk(server.sockets[0].getsockname()[1])

    asyncio.run(run())


def test_a_request_must_be_whole_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "PATIENCE", 0.1)

    async def talk(port: int) -> None:
        mute, halting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        halting[1].write(b"GET /health HTTP/1.1\r\n")
        for reader, writer in (mute, halting):
            assert await asyncio.wait_for(reader.read(), SOON) == b""
            writer.close()

    answered(talk)


def test_so_many_are_answered_at_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "AT_ONCE", 2)

    async def talk(port: int) -> None:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), SOON) == b""
        for reader, writer in slow:
            writer.write(b"GET /health HTTP/1.1\r\n\r\n")
            assert (await asyncio.wait_for(reader.read(), SOON)).startswith(b"HTTP/1.1 200 OK\r\n")
            writer.close()

    answered(talk)


def record(**extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("fmi", logging.WARNING, "a.py", 1, "what %s", ("happened",), None)
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def test_a_line_of_the_log_is_one_of_json() -> None:
    line = JsonLines().format(record(fields={"job": 'a "b"\n\u2028ü', "rank": 3}, created=1.75e9))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2025-06-15T15:06:40+00:00", "level": "warning", "event": "what happened",
        "job": 'a "b"\n\u2028ü', "rank": 3,
    }  # fmt: skip


def test_a_fault_is_one_line_too() -> None:
    try:
        raise KeyError("a fault")
    except KeyError as error:
        line = JsonLines().format(record(exc_info=(KeyError, error, error.__traceback__)))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("KeyError: 'a fault'")
