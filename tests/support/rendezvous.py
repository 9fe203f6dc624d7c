"""A real rendezvous server as a process of its own, on this machine or on a host of the networks' Internet."""

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

from cosmicai.bench.networks import Internet, missing
from fmi.control import Endpoint

SECRET = b"a secret of the tests"
SOON = 20  # seconds that nothing here takes


class Server:
    """A server that runs, at `endpoint`; `events` are those that it has logged so far."""

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
        """The first event of this name and with these fields, once it has come."""

        def found() -> dict[str, Any] | None:
            wanted = {"event": event, **fields}
            return next((one for one in self.events if wanted.items() <= one.items()), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self.events[-1:] == [{"event": "ended"}], SOON)
            one = found()
        assert one, f"no {event} {fields} in {self.events}"
        return one

    def kill(self) -> None:
        """As if its machine had crashed, but that its kernel still closes the connections."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Stops it, unless it has been killed, and waits for the end of what it logs."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        self.process.wait(SOON)
        self._reader.join(SOON)


@contextmanager
def serving(
    *options: str,
    host: str = "127.0.0.1",
    secret: bytes = SECRET,
    popen: Callable[..., subprocess.Popen[str]] = subprocess.Popen,
) -> Iterator[Server]:
    """`python -m fmi serve` on a free port of `host`, by `popen` (as that of a Host), until the block's end."""
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
    """An Internet of the test's own, which is skipped where there can be none."""
    if why := missing():
        pytest.skip(why)
    with Internet() as internet:
        yield internet
