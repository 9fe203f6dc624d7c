"""Real Lambda runtimes: each is AWS's own emulator around one function, and serves one invocation at a time."""

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

OUTSIDE, INSIDE = 8080, 9001  # ports, which no connection of others ever gets by chance
TIMEOUT = "AWS_LAMBDA_FUNCTION_TIMEOUT"
TIMED_OUT = re.compile(rb"Task timed out after [0-9.]+ seconds")


@dataclass(frozen=True)
class Function:
    """What serves a function, its environment, and how many invocations it takes at once."""

    name: str
    command: list[str]
    folder: str
    environment: dict[str, str]
    size: int


@dataclass(frozen=True)
class Answer:
    """What an invocation came to, as Lambda tells it: with `failed` the body has `errorType` and `errorMessage`."""

    request_id: str
    body: Any
    failed: bool


class Runtime:
    """One emulator. A program in it that dies or is out of time it replaces at the next invocation."""

    def __init__(self, emulator: str, function: Function, host: str, log: Path) -> None:
        # An address of loopback that is its own: of free ports two that start at once may find the same.
        addresses = ["--runtime-interface-emulator-address", f"{host}:{OUTSIDE}"]
        addresses += ["--runtime-api-address", f"{host}:{INSIDE}"]
        # The time limit is the emulator's to know; on Lambda there is no such variable, so nobody may come to need it.
        command = [emulator, *addresses, "env", f"--unset={TIMEOUT}", *function.command]
        self._log = log
        with log.open("wb") as printed:
            self._process = subprocess.Popen(
                command, cwd=function.folder, env=function.environment, stdout=printed, stderr=printed
            )
        self._host = host
        while not _listens(host):
            if not self.is_there():
                raise RuntimeError(
                    f"{command} ended with {self._process.returncode}: {log.read_text(errors='replace')}"
                )
            time.sleep(0.005)

    def invoke(self, event: bytes) -> Answer:
        """Waits for an invocation."""
        before = self._log.stat().st_size
        connection = http.client.HTTPConnection(self._host, OUTSIDE)
        try:
            connection.request("POST", f"/{INVOCATIONS}", event)
            body = connection.getresponse().read()  # also with status 502, where the function's process died
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
        told = json.loads(body) if body else None
        return Answer(request_id, told, isinstance(told, dict) and "errorType" in told)

    def is_there(self) -> bool:
        """Whether the emulator itself still runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends it, and the function's process with it."""
        self._process.terminate()
        self._process.wait()


class Pool:
    """The runtimes of one function: one more is started when all others are busy, up to the function's size.

    `numbers` gives each runtime of all pools its own, and `network` are the first three numbers of their addresses.
    """

    def __init__(self, emulator: str, function: Function, logs: Path, network: str, numbers: Iterator[int]) -> None:
        self._emulator, self._function, self._logs = emulator, function, logs
        self._network, self._numbers = network, numbers
        # Last in, first out: those that run already are on top.
        self._idle: LifoQueue[Runtime | None] = LifoQueue()
        for _ in range(function.size):
            self._idle.put(None)
        self._all: list[Runtime] = []

    def invoke(self, event: bytes) -> Answer:
        """Waits for a runtime that is idle, and for what it answers."""
        runtime = self._idle.get()
        try:
            if runtime is None or not runtime.is_there():
                number = next(self._numbers)
                log = self._logs / f"{self._function.name}-{number}.log"
                runtime = Runtime(self._emulator, self._function, f"{self._network}.{number}", log)
                self._all.append(runtime)
            return runtime.invoke(event)
        finally:
            self._idle.put(runtime)

    def stop(self) -> None:
        """Ends all of them."""
        for runtime in self._all:
            runtime.stop()


def lambda_environment(name: str, memory_mb: int, timeout_s: int, region: str) -> dict[str, str]:
    """The variables that Lambda sets, and the emulator's time limit. Nothing else of ours reaches a function."""
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
