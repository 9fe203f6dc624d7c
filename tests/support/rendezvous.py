"""A real rendezvous server in a process of its own, on this machine or on a host of an emulated Internet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cosmicai.bench.nat_lab.networks import Internet, explain_unsupported
from fmi.control import Endpoint

SECRET = b"a secret of the tests"
TIMEOUT = 20  # seconds, more than anything here takes


class Server:
    """A running server at `endpoint`; `events` are those that it has logged so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.events = process, list[dict[str, Any]]()
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        serving = self.await_event("serving")
        self.endpoint = Endpoint(serving["host"], serving["port"])
        self.health_port: int = serving["health_port"]

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                with self._changed:
                    self.events.append(json.loads(line))
                    self._changed.notify_all()
        with self._changed:
            self.events.append({"event": "ended"})
            self._changed.notify_all()

    def await_event(self, event: str, **fields: Any) -> dict[str, Any]:
        """Wait for the first event of this name with these fields, and return it."""

        def find() -> dict[str, Any] | None:
            expected = {"event": event, **fields}
            return next((one for one in self.events if expected.items() <= one.items()), None)

        with self._changed:
            self._changed.wait_for(lambda: find() or self.events[-1:] == [{"event": "ended"}], TIMEOUT)
            one = find()
        assert one, f"no {event} {fields} in {self.events}"
        return one

    def kill(self) -> None:
        """Kill the process; its kernel still closes the connections."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Stop it, unless it has been killed, and wait for the end of its log."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)


@contextmanager
def rendezvous_server(
    *options: str,
    host: str = "127.0.0.1",
    secret: bytes = SECRET,
    popen: Callable[..., subprocess.Popen[str]] = subprocess.Popen,
) -> Iterator[Server]:
    """Run `python -m fmi serve` on a free port of `host` for the block; `popen` may be that of another host."""
    command = [sys.executable, "-m", "fmi", "serve", "--host", host, "--port", "0", *options]
    environment = os.environ | {"FMI_SECRET": secret.decode()}
    process = popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        server = Server(process)
    except BaseException:
        process.kill()
        process.wait()
        raise
    try:
        yield server
    finally:
        server.end()


@pytest.fixture
def internet() -> Iterator[Internet]:
    """Return an emulated Internet; the test is skipped on machines that do not support it."""
    if why := explain_unsupported():
        pytest.skip(why)
    with Internet() as internet:
        yield internet
