"""Real Lambda runtimes: each is AWS's emulator with one function, and serves one invocation at a time."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from typing import Any

from cosmicai.bench.lambda_emulator import INVOCATIONS

OUTSIDE, INSIDE = 8080, 9001  # ports outside the ephemeral range
TIMEOUT = "AWS_LAMBDA_FUNCTION_TIMEOUT"
TIMED_OUT = re.compile(rb"Task timed out after [0-9.]+ seconds")


@dataclass(frozen=True)
class Function:
    """The command that serves a function, its environment, and its number of concurrent invocations."""

    name: str
    command: list[str]
    folder: str
    environment: dict[str, str]
    size: int


@dataclass(frozen=True)
class Response:
    """The outcome of an invocation as Lambda returns it; if it `failed`, `body` has `errorType` and `errorMessage`."""

    request_id: str
    body: Any
    failed: bool


class Runtime:
    """One emulator. It replaces a program that died or timed out at the next invocation."""

    def __init__(self, emulator: str, function: Function, host: str, log: Path) -> None:
        # Each has its own loopback address: two runtimes that start at the same time could find the same free port.
        addresses = ["--runtime-interface-emulator-address", f"{host}:{OUTSIDE}"]
        addresses += ["--runtime-api-address", f"{host}:{INSIDE}"]
        # The time limit is for the emulator only: on Lambda there is no such variable, and functions must not see it.
        command = [emulator, *addresses, "env", f"--unset={TIMEOUT}", *function.command]
        self._log = log
        with log.open("wb") as printed:
            self._process = subprocess.Popen(
                command, cwd=function.folder, env=function.environment, stdout=printed, stderr=printed
            )
        self._host = host
        while not _listens(host):
            if not self.is_running():
                raise RuntimeError(
                    f"{command} ended with {self._process.returncode}: {log.read_text(errors='replace')}"
                )
            time.sleep(0.005)

    def invoke(self, event: bytes) -> Response:
        """Invoke the function and wait for its response."""
        before = self._log.stat().st_size
        connection = http.client.HTTPConnection(self._host, OUTSIDE)
        try:
            connection.request("POST", f"/{INVOCATIONS}", event)
            body = connection.getresponse().read()  # also with status 502, if the process of the function died
        except (OSError, http.client.HTTPException) as error:
            body = _error("Runtime.ExitError", f"Error: Runtime exited without providing a reason ({error})")
        finally:
            connection.close()
        with self._log.open("rb") as log:
            log.seek(before)
            started = re.findall(rb"START RequestId: (\S+)", log.read())
        request_id = started[-1].decode() if started else ""
        if TIMED_OUT.fullmatch(body):
            body = _error("Sandbox.Timedout", f"RequestId: {request_id} Error: {body.decode()}")
        content = json.loads(body) if body else None
        return Response(request_id, content, isinstance(content, dict) and "errorType" in content)

    def is_running(self) -> bool:
        """Return whether the emulator is running."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Stop the emulator and the process of the function."""
        self._process.terminate()
        self._process.wait()


class Pool:
    """The runtimes of one function: another is started when all are busy, up to the function's size.

    `numbers` gives each runtime of all pools its own number, and `network` has the first three numbers of their
    addresses.
    """

    def __init__(self, emulator: str, function: Function, logs: Path, network: str, numbers: Iterator[int]) -> None:
        self._emulator, self._function, self._logs = emulator, function, logs
        self._network, self._numbers = network, numbers
        # Last in, first out: runtimes that were started already are on top.
        self._idle: LifoQueue[Runtime | None] = LifoQueue()
        for _ in range(function.size):
            self._idle.put(None)
        self._all: list[Runtime] = []

    def invoke(self, event: bytes) -> Response:
        """Invoke the function in an idle runtime and wait for its response."""
        runtime = self._idle.get()
        try:
            if runtime is None or not runtime.is_running():
                number = next(self._numbers)
                log = self._logs / f"{self._function.name}-{number}.log"
                runtime = Runtime(self._emulator, self._function, f"{self._network}.{number}", log)
                self._all.append(runtime)
            return runtime.invoke(event)
        finally:
            self._idle.put(runtime)

    def stop(self) -> None:
        """Stop all runtimes."""
        for runtime in self._all:
            runtime.stop()


def lambda_environment(name: str, memory_mb: int, timeout_s: int, region: str) -> dict[str, str]:
    """Return the variables that Lambda sets, and the emulator's time limit; functions inherit no others."""
    return {
        "PATH": os.environ["PATH"],
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_LAMBDA_FUNCTION_NAME": name,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory_mb),
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        TIMEOUT: str(timeout_s),
    }


def _error(kind: str, message: str) -> bytes:
    return json.dumps({"errorType": kind, "errorMessage": message}).encode()


def _listens(host: str) -> bool:
    try:
        with socket.create_connection((host, OUTSIDE), timeout=1):
            return True
    except OSError:
        return False
