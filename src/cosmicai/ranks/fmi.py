"""Communicate through a rendezvous server (package fmi), wherever the ranks were started."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmi import SECRET_VARIABLE, collectives
from fmi.control import Endpoint
from fmi.errors import FMIError
from fmi.group import Group, connect
from fmi.messages import MAX_NAME

from ..errors import InputError
from .communicator import Operation
from .environment import RENDEZVOUS, Environment, Rank

JOIN_TIMEOUT = 600.0  # seconds until all ranks have joined
COLLECTIVE_TIMEOUT = 86400.0  # seconds that a finished rank waits for the slowest; a lost rank is noticed at once
RENDEZVOUS_JOB = "COSMICAI_RENDEZVOUS_JOB"


class Disconnected(InputError):
    """The ranks could not be connected, or one of them was lost."""


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of a job find each other: the server, the name of the job, and the secret that they share."""

    endpoint: Endpoint
    job: str
    secret: bytes


def rendezvous_at(endpoint: str, job: str, secret: bytes) -> Rendezvous:
    """Return the rendezvous of a job at HOST:PORT. Raises InputError if the address or the job's name is invalid."""
    if len(job.encode()) > MAX_NAME:
        raise InputError(f"the job's name {job[:40]}... is too long; expected at most {MAX_NAME} bytes")
    try:
        return Rendezvous(Endpoint.parse(endpoint), job, secret)
    except ValueError as error:
        raise InputError(str(error)) from None


def rendezvous_from_environment(rank: Rank, environment: Environment) -> Rendezvous:
    """Return the rendezvous of this launch. Raises InputError if neither the environment nor the rank names the job."""
    job = environment.get(RENDEZVOUS_JOB) or rank.submission
    if not job:
        raise InputError(
            f"{RENDEZVOUS} is set and {RENDEZVOUS_JOB} is not; set it to one name that is the same for all ranks of "
            "this run"
        )
    return rendezvous_at(environment[RENDEZVOUS], job, environment.get(SECRET_VARIABLE, "").encode())


@contextmanager
def connect_fmi(
    rank: int,
    world_size: int,
    rendezvous: Rendezvous,
    join_timeout: float = JOIN_TIMEOUT,
    collective_timeout: Callable[[], float] = lambda: COLLECTIVE_TIMEOUT,
) -> Iterator[FMICommunicator]:
    """Join the job and yield its communicator. An exception in the block ends the job for the other ranks too.

    `collective_timeout` returns for how many seconds a collective operation may wait for the slowest rank. Raises
    Disconnected if not all ranks join within `join_timeout` seconds, if one is lost, or after that timeout.
    """
    endpoint = rendezvous.endpoint
    try:
        with connect(
            endpoint, rendezvous.job, rank, world_size, rendezvous.secret, join_timeout=join_timeout,
            timeout=COLLECTIVE_TIMEOUT,
        ) as group:  # fmt: skip
            yield FMICommunicator(group, collective_timeout)
    except FMIError as error:
        raise Disconnected(f"rank {rank} of {world_size} with rendezvous server {endpoint}: {error}") from None


class FMICommunicator:
    """The communicator of a group of ranks; the rendezvous server keeps the counter."""

    def __init__(self, group: Group, timeout: Callable[[], float]) -> None:
        self._group, self._timeout = group, timeout
        self.rank, self.size = group.rank, group.size

    @property
    def routes(self) -> dict[str, int]:
        """Number of connected ranks by route: private (address), punched (NAT traversal) or relay (by the server)."""
        return dict(sorted(Counter(self._group.routes.values()).items()))

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        collectives.barrier(self._group, self._timeout())

    def allreduce(self, values: NDArray[np.float64], operation: Operation = "sum") -> NDArray[np.float64]:
        """Return the element-wise sum, minimum or maximum over all ranks of arrays of one shape, on every rank."""
        return collectives.allreduce(self._group, values, operation, self._timeout())

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all ranks, by rank, on rank 0, and None on the others."""
        gathered = collectives.gather(self._group, json.dumps(value), timeout=self._timeout())
        return gathered and [json.loads(text) for text in gathered]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        own = json.dumps(value) if self.rank == 0 else None
        return json.loads(collectives.broadcast(self._group, own, timeout=self._timeout()))

    def next_item(self) -> int:
        """Return the next number of a counter that all ranks share: 0, 1, 2, ..., each exactly once."""
        return self._group.next_item()
