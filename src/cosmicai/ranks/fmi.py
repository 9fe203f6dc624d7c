"""Ranks that find each other through a rendezvous server (package fmi), wherever they were started."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmi import SECRET, collectives
from fmi.control import Endpoint
from fmi.errors import FMIError
from fmi.group import Group, joined
from fmi.messages import MAX_NAME

from ..errors import InputError
from .communicator import Operation
from .environment import RENDEZVOUS, Environment, Rank

MEETING = 600.0  # seconds for all ranks to come
WAITING = 86400.0  # seconds of a rank that is done for the slowest; one that died is noticed at once
JOB = "COSMICAI_RENDEZVOUS_JOB"


class Disconnected(InputError):
    """The ranks have not found each other, or one of them is lost."""


@dataclass(frozen=True)
class Meeting:
    """Where a job's ranks meet, under which name, and what all of them know."""

    endpoint: Endpoint
    job: str
    secret: bytes


def meeting_at(endpoint: str, job: str, secret: bytes) -> Meeting:
    """A meeting at HOST:PORT. Raises InputError if that is none, or if the job's name is too long."""
    if len(job.encode()) > MAX_NAME:
        raise InputError(f"the job's name {job[:40]}... is too long; expected at most {MAX_NAME} bytes")
    try:
        return Meeting(Endpoint.parse(endpoint), job, secret)
    except ValueError as error:
        raise InputError(str(error)) from None


def meeting_of(rank: Rank, environment: Environment) -> Meeting:
    """The meeting that the environment names. Raises InputError if it names no job and the launcher gave none."""
    job = environment.get(JOB) or rank.submission
    if not job:
        raise InputError(f"{RENDEZVOUS} is set and {JOB} is not; give all ranks of this run the same name there")
    return meeting_at(environment[RENDEZVOUS], job, environment.get(SECRET, "").encode())


@contextmanager
def connected_by_fmi(
    rank: int,
    world_size: int,
    meeting: Meeting,
    patience: float = MEETING,
    waiting: Callable[[], float] = lambda: WAITING,
) -> Iterator[FMICommunicator]:
    """Joins the job. An exception in the block ends it for the other ranks too.

    `waiting` says for how many seconds a rank that is done may wait for the slowest. Raises Disconnected if the ranks
    do not all come within `patience` seconds, if one is lost, or if that waiting is over.
    """
    try:
        with joined(
            meeting.endpoint, meeting.job, rank, world_size, meeting.secret, join_timeout=patience, timeout=WAITING
        ) as group:
            yield FMICommunicator(group, waiting)
    except FMIError as error:
        raise Disconnected(f"rank {rank} of {world_size} ranks that meet at {meeting.endpoint}: {error}") from None


class FMICommunicator:
    """A group of ranks, of which the server keeps the counter."""

    def __init__(self, group: Group, waiting: Callable[[], float]) -> None:
        self._group, self._waiting = group, waiting
        self.rank, self.size = group.rank, group.size

    @property
    def routes(self) -> dict[str, int]:
        """How many of the other ranks this one talks to, by the way to them: private, punched or relay."""
        return dict(sorted(Counter(self._group.routes.values()).items()))

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        collectives.barrier(self._group, self._waiting())

    def allreduce(self, values: NDArray[np.float64], operation: Operation = "sum") -> NDArray[np.float64]:
        """The element-wise sum, minimum or maximum over all ranks of arrays of one shape, the same on every rank."""
        return collectives.allreduce(self._group, values, operation, self._waiting())

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks in their order on rank 0, None elsewhere."""
        everyone = collectives.gather(self._group, json.dumps(value), timeout=self._waiting())
        return everyone and [json.loads(text) for text in everyone]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        own = json.dumps(value) if self.rank == 0 else None
        return json.loads(collectives.broadcast(self._group, own, timeout=self._waiting()))

    def next_item(self) -> int:
        """The next number of a counter that all ranks share: 0, 1, 2, ... each given once."""
        return self._group.next_item()
