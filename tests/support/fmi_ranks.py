"""Ranks of a job with a real server: threads of this process, or processes that can be killed.

`python fmi_ranks.py ENDPOINT JOB RANK SIZE TIMING ROUTES` is such a process. It prints a line after a barrier of all
ranks, then reads the names of ACTIONS from its standard input, and prints one line of JSON for each. It ends after an
error.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmi import collectives
from fmi.control import Endpoint
from fmi.errors import FMIError
from fmi.group import Group, Timing, connect
from fmi.messages import ROUTES

SECRET = b"a secret of the tests"  # as in rendezvous.py, which a process of this file cannot import
TIMEOUT = 20.0  # seconds, more than anything here takes
MAX_DELAY = 4.0  # seconds within which failures are detected that can be detected at once
USUAL = Timing()
QUICK = Timing(heartbeat_interval=0.1, silence_timeout=1.0, punching_timeout=1.0, relay_timeout=5.0)

ACTIONS: dict[str, Callable[[Group], Any]] = {
    "barrier": collectives.barrier,
    "item": Group.next_item,
    "routes": lambda group: group.routes,
    "sum": lambda group: float(collectives.allreduce(group, np.array([2.0**group.rank]))[0]),
    "wait": lambda _: time.sleep(1000),
}


@dataclass
class Outcome:
    """The result of a rank: a value or an error, and its time (of time.monotonic())."""

    at: float
    value: Any = None
    error: BaseException | None = None


def new_job() -> str:
    """Return a unique name of a job."""
    return f"job-{secrets.token_hex(8)}"


def run_ranks(
    endpoint: Endpoint,
    functions: Sequence[Callable[[Group], Any]],
    *,
    job: str | None = None,
    hosts: Sequence[Callable[[], AbstractContextManager[None]]] | None = None,
    secret: bytes = SECRET,
    **options: Any,
) -> list[Outcome]:
    """Run one function for each rank in threads, after joining; `hosts` are contexts of other hosts (Host.enter)."""
    name, outcomes = job or new_job(), [Outcome(0.0) for _ in functions]
    options = {"join_timeout": TIMEOUT, "timeout": TIMEOUT} | options

    def run(rank: int) -> None:
        try:
            with connect(endpoint, name, rank, len(functions), secret, **options) as group:
                outcomes[rank].value = functions[rank](group)
        except BaseException as error:
            outcomes[rank].error = error
        outcomes[rank].at = time.monotonic()

    threads = []
    for rank in range(len(functions)):
        thread = threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True)
        with hosts[rank]() if hosts else nullcontext():
            thread.start()
        threads.append(thread)
    deadline = time.monotonic() + 3 * TIMEOUT
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), [thread.name for thread in threads if thread.is_alive()]
    return outcomes


def run_all(endpoint: Endpoint, size: int, function: Callable[[Group], Any], **options: Any) -> list[Any]:
    """Run the same function for all ranks and return its values, or raise the first error."""
    outcomes = run_ranks(endpoint, [function] * size, **options)
    for outcome in outcomes:
        if outcome.error:
            raise outcome.error
    return [outcome.value for outcome in outcomes]


def deadline() -> float:
    """Return a deadline for an operation."""
    return time.monotonic() + TIMEOUT


class Process:
    """A rank that can be killed."""

    def __init__(
        self,
        endpoint: Endpoint,
        job: str,
        rank: int,
        size: int,
        timing: Timing,
        routes: Sequence[str],
        popen: Callable[..., subprocess.Popen[str]] = subprocess.Popen,
    ) -> None:
        arguments = [endpoint, job, rank, size, json.dumps(astuple(timing)), json.dumps(routes)]
        command = [sys.executable, str(Path(__file__)), *map(str, arguments)]
        environment = os.environ | {"FMI_SECRET": SECRET.decode()}
        self.rank = rank
        self.process = popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )

    def start(self, action: str) -> None:
        """Start an action."""
        assert self.process.stdin
        self.process.stdin.write(f"{action}\n")

    def receive_answer(self) -> dict[str, Any]:
        """Return its next line as a dict with `at` (seconds) and `value`, or `error`, `text` and `rank`."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"rank {self.rank} has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def rank_processes(
    endpoint: Endpoint,
    size: int,
    timing: Timing = USUAL,
    routes: Sequence[str] = ROUTES,
    popens: Sequence[Callable[..., subprocess.Popen[str]]] | None = None,
) -> Iterator[list[Process]]:
    """Start the ranks of a new job, and yield them after a barrier."""
    job, ranks = new_job(), list[Process]()
    try:
        for rank in range(size):
            popen = popens[rank] if popens else subprocess.Popen
            ranks.append(Process(endpoint, job, rank, size, timing, routes, popen))
        for one in ranks:
            assert one.receive_answer()["value"] == "ready"
        yield ranks
    finally:
        for one in ranks:
            one.process.kill()
        for one in ranks:
            one.process.communicate()


def main(endpoint: str, job: str, rank: str, size: str, timing: str, routes: str) -> None:
    secret = os.environ["FMI_SECRET"].encode()
    options: dict[str, Any] = {"timing": Timing(*json.loads(timing)), "routes": json.loads(routes)}
    options |= {"join_timeout": 3 * TIMEOUT, "timeout": 3 * TIMEOUT}
    with connect(Endpoint.parse(endpoint), job, int(rank), int(size), secret, **options) as group:
        collectives.barrier(group)
        _print_answer(value="ready")
        for line in sys.stdin:
            try:
                _print_answer(value=ACTIONS[line.strip()](group))
            except FMIError as error:
                _print_answer(error=type(error).__name__, text=str(error), rank=getattr(error, "rank", None))
                sys.exit(1)


def _print_answer(**answer: Any) -> None:
    print(json.dumps({"at": time.monotonic(), **answer}), flush=True)


def error_text(outcome: Outcome, kind: type[FMIError]) -> str:
    """Return the message of a rank's error, and check that it is of this kind."""
    with pytest.raises(kind) as caught:
        if outcome.error:
            raise outcome.error
    return str(caught.value)


if __name__ == "__main__":
    main(*sys.argv[1:])
