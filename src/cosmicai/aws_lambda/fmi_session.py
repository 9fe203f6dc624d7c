"""Let the ranks of one map share the work through FMI: a counter gives each item to the rank that is free first.

Every rank still has the share that it would have without a connection, and ends only when that share is done. Whether
the ranks find each other, and whether one of them dies, therefore affects nothing but the time that a run takes.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import structs

from fmi import SECRET_VARIABLE
from fmi.errors import FMIError

from ..errors import InputError, describe_os_errors
from ..ranks.environment import RENDEZVOUS
from ..ranks.invocation import Invocation
from ..runs.plan import WorkItem
from ..runs.record import Record
from ..runs.store import RunFolder
from ..storage.s3 import make_client
from ..worker.sources import CounterSource, WorkSource, find_missing
from .events import FMISession, RankEvent
from .payload import Payload

if TYPE_CHECKING:
    from ..ranks.fmi import FMICommunicator

SECRET_ARN = "FMI_SECRET_ARN"
NAME_LENGTH = 50  # characters of the run folder in the name of an FMI job, for readers of the server's log
CHECK_TIMEOUT = 20.0  # seconds in which the server must answer before a run is planned
JOIN_TIMEOUT, JOIN_SHARE = 60.0, 0.25  # seconds that ranks wait for each other, at most this share of their time
RESERVE = 5.0  # seconds before the time limit from which on a rank that is done does not wait for others


def find_endpoint(payload: Payload) -> str | None:
    """Return the rendezvous server of a run once it has answered; None if the ranks are not to be connected.

    Raises InputError if no server is given, or if ranks cannot be connected through it.
    """
    if not payload.fmi_enabled:
        return None
    endpoint = payload.rendezvous_endpoint or os.environ.get(RENDEZVOUS)
    if not endpoint:
        raise InputError(
            "fmi_enabled is true and there is no rendezvous server: name one in rendezvous_endpoint, or give the stack "
            "one with `python aws/deploy.py up --rendezvous-vpc`"
        )
    from ..ranks.fmi import connect_fmi, rendezvous_at  # only where ranks are connected: it imports all of FMI

    with connect_fmi(0, 1, rendezvous_at(endpoint, f"check-{uuid.uuid4()}", read_secret()), CHECK_TIMEOUT):
        return endpoint


def add_session(events: Sequence[RankEvent], endpoint: str, run: RunFolder) -> list[RankEvent]:
    """Return the events of ranks that share their work in one FMI job; a single rank needs no job."""
    if len(events) == 1:
        return list(events)
    job, parts = f"{run.uri[-NAME_LENGTH:]} {uuid.uuid4()}", len(run.parts())
    return [
        structs.replace(event, fmi=FMISession(endpoint, job, rank, len(events), parts))
        for rank, event in enumerate(events)
    ]


def run_session(
    session: FMISession, run: RunFolder, invocation: Invocation, work: Callable[[WorkSource], Record]
) -> tuple[Record | None, str | None]:
    """Do everything that is missing of the run together with the other ranks, by `work`, which returns the record.

    Returns the record, None if the ranks were never connected, and why the connection ended early, if it did.
    Raises InputError if the secret cannot be read, and what `work` raises.
    """
    from ..ranks.fmi import Disconnected, connect_fmi, rendezvous_at

    record: Record | None = None
    if len(run.parts()) > session.parts:
        return record, "the ranks had begun to share the work before this invocation"
    join_timeout = min(JOIN_TIMEOUT, JOIN_SHARE * invocation.seconds_left())

    def collective_timeout() -> float:
        return invocation.seconds_left() - RESERVE

    def amend(record: Record, outcome: dict[str, Any]) -> Record:
        return run.amend_record(record, fmi=outcome, invocation=invocation.record())

    try:
        rendezvous = rendezvous_at(session.endpoint, session.job, read_secret())
        with connect_fmi(session.rank, session.size, rendezvous, join_timeout, collective_timeout) as communicator:
            record = work(_CounterUntilLost(find_missing(run, communicator), communicator))
            record = amend(record, _describe_session(session, communicator, record))
    except Disconnected as error:
        return record and amend(record, {"ended": str(error)}), str(error)
    return record, None


class _CounterUntilLost(CounterSource):
    """Items of the shared counter; they end early if a rank or the server is lost, as the next collective reports."""

    def __iter__(self) -> Iterator[WorkItem]:
        with suppress(FMIError):
            yield from super().__iter__()


def _describe_session(session: FMISession, communicator: FMICommunicator, record: Record) -> dict[str, Any]:
    """Return what the record of a rank holds of the session; waits until all ranks are done."""
    galaxies = communicator.allreduce(np.array([record.galaxies], np.float64))
    return {
        "endpoint": session.endpoint,
        "rank": communicator.rank,
        "size": communicator.size,
        "routes": communicator.routes,
        "galaxies_of_all": int(galaxies[0]),
    }


@cache
def read_secret() -> bytes:
    """Return the secret shared by all ranks and the server, from Secrets Manager or the environment.

    Raises InputError if AWS refuses it.
    """
    arn = os.environ.get(SECRET_ARN)
    if not arn:
        return os.environ.get(SECRET_VARIABLE, "").encode()
    with describe_os_errors(arn, "read the secret"):
        response = make_client("secretsmanager").get_secret_value(SecretId=arn)
    return str(response["SecretString"]).encode()
