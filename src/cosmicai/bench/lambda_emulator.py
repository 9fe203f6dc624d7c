"""AWS Lambda's emulator (the Runtime Interface Emulator) for a function, with one invocation at a time."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InputError, describe_os_errors
from ..records import convert

INVOCATIONS = "2015-03-31/functions/function/invocations"
Function = Callable[[Any], Any]


class FunctionResult(msgspec.Struct, frozen=True):
    """Figures of the record that the function returns, or the message of its error."""

    galaxies: int | None = None
    peak_rss_mb: float = 0.0
    s3_num_requests: int | None = None
    error_message: str | None = msgspec.field(default=None, name="errorMessage")


def find_free_ports(count: int) -> list[int]:
    """Return ports of loopback that are not in use."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


@contextmanager
def run_emulator(emulator: Path, command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[Function]:
    """Run the emulator for the function that the command serves, which starts at the first event.

    Yields a callable that sends an event and returns the function's result, or a dictionary with `errorType` and
    `errorMessage` if it fails. Both print to `log`. Raises InputError if the emulator does not start.
    """
    events_port, runtime_port = find_free_ports(2)
    addresses = ["--runtime-interface-emulator-address", f"127.0.0.1:{events_port}"]
    addresses += ["--runtime-api-address", f"127.0.0.1:{runtime_port}"]
    with log.open("wb") as printed, describe_os_errors(str(emulator), "start"):
        process = subprocess.Popen([emulator, *addresses, *command], env=environment, stdout=printed, stderr=printed)
    try:
        wait_for_listener(process, events_port, log)
        yield lambda event: _invoke(f"http://127.0.0.1:{events_port}/{INVOCATIONS}", event)
    finally:
        process.terminate()
        process.wait()


def require_success(result: object, galaxies: int) -> FunctionResult:
    """Return the figures of a function's result. Raises InputError unless it has computed this number of galaxies."""
    figures = convert(result, FunctionResult, where="the function's result", remedy="check that it is this project's")
    if figures.galaxies != galaxies:
        raise InputError(f"the function failed: {figures.error_message or result}")
    return figures


def wait_for_listener(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the process accepts connections at a port of loopback. Raises InputError if it ends instead."""
    while process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            continue
    raise InputError(f"{process.args!r} ended with {process.returncode}: {log.read_text(errors='replace')[-1000:]}")


def _invoke(url: str, event: Any) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(event).encode())) as answer:
        return json.loads(answer.read())
