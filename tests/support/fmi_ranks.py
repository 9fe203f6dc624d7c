"""Ranks of a job with a real server: threads of this process, or processes that can be killed.

`python ranks.py ENDPOINT JOB RANK SIZE TIMING ROUTES` is such a process: when all have met in a barrier it says so, and
then does what the lines that it reads say (see ACTIONS), each of which it answers by one line of JSON. An error is the
last.
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
from fmi.group import Group, Timing, joined
from fmi.messages import ROUTES

SECRET = b"a secret of the tests"  # that of rendezvous.py, which a process of this file does not find
SOON = 20.0  # seconds that nothing here takes
LATE = 4.0  # seconds in which this machine certainly has noticed what there is to notice at once
USUAL = Timing()
QUICK = Timing(beat=0.1, patience=1.0, punching=1.0, relaying=5.0)

ACTIONS: dict[str, Callable[[Group], Any]] = {
    "barrier": collectives.barrier,
    "item": Group.next_item,
    "routes": lambda group: group.routes,
    "sum": lambda group: float(collectives.allreduce(group, np.array([2.0**group.rank]))[0]),
    "wait": lambda _: time.sleep(1000),
}


@dataclass
class Outcome:
    """What a rank has got: a value or an error, and when (time.monotonic() of this machine)."""

    at: float
    value: Any = None
    error: BaseException | None = None


def new_job() -> str:
    """A name that no other job has."""
    return f"job-{secrets.token_hex(8)}"


def outcomes(
    endpoint: Endpoint,
    whats: Sequence[Callable[[Group], Any]],
    *,
    job: str | None = None,
    places: Sequence[Callable[[], AbstractContextManager[None]]] | None = None,
    secret: bytes = SECRET,
    **options: Any,
) -> list[Outcome]:
    """Each rank, in a thread, joins and does its part; `places` are where (Host.inside)."""
    name, found = job or new_job(), [Outcome(0.0) for _ in whats]
    options = {"join_timeout": SOON, "timeout": SOON} | options

    def run(rank: int) -> None:
        try:
            with joined(endpoint, name, rank, len(whats), secret, **options) as group:
                found[rank].value = whats[rank](group)
        except BaseException as error:
            found[rank].error = error
        found[rank].at = time.monotonic()

    threads = []
    for rank in range(len(whats)):
        thread = threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True)
        with places[rank]() if places else nullcontext():
            thread.start()
        threads.append(thread)
    deadline = time.monotonic() + 3 * SOON
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), [thread.name for thread in threads if thread.is_alive()]
    return found


def together(endpoint: Endpoint, size: int, what: Callable[[Group], Any], **options: Any) -> list[Any]:
    """What all ranks, which do the same, return; the first error is raised."""
    found = outcomes(endpoint, [what] * size, **options)
    for outcome in found:
        if outcome.error:
            raise outcome.error
    return [outcome.value for outcome in found]


def deadline() -> float:
    """That of an operation that must not take longer."""
    return time.monotonic() + SOON


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
        words = [endpoint, job, rank, size, json.dumps(astuple(timing)), json.dumps(routes)]
        command = [sys.executable, str(Path(__file__)), *map(str, words)]
        environment = os.environ | {"FMI_SECRET": SECRET.decode()}
        self.rank = rank
        self.process = popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
        )

    def tell(self, action: str) -> None:
        """Tells it to do something."""
        assert self.process.stdin
        self.process.stdin.write(f"{action}\n")

    def answer(self) -> dict[str, Any]:
        """What it says next: {"at": seconds, "value": ...} or {"at": ..., "error": name, "text": ..., "rank": ...}."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"rank {self.rank} has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def processes(
    endpoint: Endpoint,
    size: int,
    timing: Timing = USUAL,
    routes: Sequence[str] = ROUTES,
    popens: Sequence[Callable[..., subprocess.Popen[str]]] | None = None,
) -> Iterator[list[Process]]:
    """The ranks of a new job, all of which have met."""
    job, ranks = new_job(), list[Process]()
    try:
        for rank in range(size):
            popen = popens[rank] if popens else subprocess.Popen
            ranks.append(Process(endpoint, job, rank, size, timing, routes, popen))
        for one in ranks:
            assert one.answer()["value"] == "met"
        yield ranks
    finally:
        for one in ranks:
            one.process.kill()
        for one in ranks:
            one.process.communicate()


def main(endpoint: str, job: str, rank: str, size: str, timing: str, routes: str) -> None:
    secret = os.environ["FMI_SECRET"].encode()
    options: dict[str, Any] = {"timing": Timing(*json.loads(timing)), "routes": json.loads(routes)}
    options |= {"join_timeout": 3 * SOON, "timeout": 3 * SOON}
    with joined(Endpoint.parse(endpoint), job, int(rank), int(size), secret, **options) as group:
        collectives.barrier(group)
        _say(value="met")
        for line in sys.stdin:
            try:
                _say(value=ACTIONS[line.strip()](group))
            except FMIError as error:
                _say(error=type(error).__name__, text=str(error), rank=getattr(error, "rank", None))
                sys.exit(1)


def _say(**answer: Any) -> None:
    print(json.dumps({"at": time.monotonic(), **answer}), flush=True)


def raised(outcome: Outcome, kind: type[FMIError]) -> str:
    """The sentence of the error that a rank has got, which is of this kind."""
    with pytest.raises(kind) as caught:
        if outcome.error:
            raise outcome.error
    return str(caught.value)


if __name__ == "__main__":
    main(*sys.argv[1:])
