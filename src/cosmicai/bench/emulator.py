"""AWS Lambda's own emulator (the Runtime Interface Emulator) around a function, one invocation at a time."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError, explained

INVOCATIONS = "2015-03-31/functions/function/invocations"
Function = Callable[[Any], Any]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


@contextmanager
def emulated(emulator: Path, command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[Function]:
    """A function that the command serves, which the emulator starts at the first event.

    Called with an event it gives what the function answers; if that fails, a dictionary with `errorType` and
    `errorMessage`. What both print goes to `log`. Raises InputError if the emulator does not start.
    """
    outside, inside = free_ports(2)
    addresses = ["--runtime-interface-emulator-address", f"127.0.0.1:{outside}"]
    addresses += ["--runtime-api-address", f"127.0.0.1:{inside}"]
    with log.open("wb") as printed, explained(str(emulator), "start"):
        process = subprocess.Popen([emulator, *addresses, *command], env=environment, stdout=printed, stderr=printed)
    try:
        await_listener(process, outside, log)
        yield lambda event: _invoke(f"http://127.0.0.1:{outside}/{INVOCATIONS}", event)
    finally:
        process.terminate()
        process.wait()


def await_listener(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Returns when somebody listens at a port of loopback. Raises InputError if the process ends instead."""
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
