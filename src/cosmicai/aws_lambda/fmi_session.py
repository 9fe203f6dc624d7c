"""Ranks of one map that talk to each other: a counter says who does what, whenever a rank is free for more.

Every rank still has a share of its own, as without talking, and ends only when that is done. So it decides nothing but
the time whether the ranks find each other, and whether one of them dies.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fmi import SECRET
from fmi.errors import FMIError

from ..errors import InputError, explained
from ..ranks.environment import RENDEZVOUS
from ..ranks.invocation import Invocation
from ..runs.plan import WorkItem
from ..runs.schedule import agree_on_missing, counted, largest_first
from ..runs.store import RunFolder
from ..storage.s3 import client_config
from .payload import Payload

if TYPE_CHECKING:
    from ..ranks.fmi import FMICommunicator

SECRET_ARN = "FMI_SECRET_ARN"
NAMED = 50  # characters of a run folder that are in the name of a job, for those who read the server's log
CHECKING = 20.0  # seconds that a server has to answer before a run is planned
JOINING, JOINING_SHARE = 60.0, 0.25  # seconds that ranks wait for each other, and no more of the time than this share
RESERVE = 5.0  # seconds before the time limit from which on a rank that is done waits for nobody

Record = dict[str, Any]


@dataclass(frozen=True)
class Together:
    """What one rank's event says of talking: where, in which job, as which of how many, and how many parts of the run
    there were before. Once there are more, the dealing has begun, and whoever comes now comes too late for it."""

    endpoint: str
    job: str
    rank: int
    size: int
    parts: int


def endpoint_of(payload: Payload) -> str | None:
    """Where ranks shall meet; None if they are not to talk. Raises InputError if nobody says where, or no ranks can
    meet there."""
    if not payload.fmi_enabled:
        return None
    endpoint = payload.rendezvous_endpoint or os.environ.get(RENDEZVOUS)
    if not endpoint:
        raise InputError(
            "fmi_enabled is true and there is no rendezvous server: name one in rendezvous_endpoint, or give the stack "
            "one with `python aws/deploy.py up --rendezvous-vpc`"
        )
    from ..ranks.fmi import connected_by_fmi, meeting_at

    with connected_by_fmi(0, 1, meeting_at(endpoint, f"check-{uuid.uuid4()}", shared_secret()), CHECKING):
        return endpoint


def talking_events(calls: Iterable[Mapping[str, Any]], endpoint: str, run: RunFolder) -> list[Record]:
    """The events of ranks that shall talk: all of these, and no others. One alone has nobody to talk to."""
    calls, job = list(calls), f"{run.uri[-NAMED:]} {uuid.uuid4()}"
    if len(calls) == 1:
        return [dict(calls[0])]
    parts = len(run.parts())
    return [
        {**call, "FMI": asdict(Together(endpoint, job, rank, len(calls), parts))} for rank, call in enumerate(calls)
    ]


def together_of(event: Mapping[str, Any]) -> Together | None:
    """What an event says of talking, if anything. Raises InputError if that is none."""
    told = event.get("FMI")
    try:
        return Together(**told) if told else None
    except TypeError:
        raise InputError(f"the event's FMI is {told!r}; expected it as initialize writes it") from None


def do_together(
    together: Together, run: RunFolder, invocation: Invocation, do: Callable[[Iterable[WorkItem]], Record]
) -> tuple[Record | None, str | None]:
    """The record of what a rank `did` of all that is missing of the run, and why the ranks do not talk any more.

    There is no record if they never did. Raises what `do` raises, and InputError if the secret cannot be read.
    """
    from ..ranks.fmi import Disconnected, connected_by_fmi, meeting_at

    record: Record | None = None
    if len(run.parts()) > together.parts:
        return record, "the dealing had begun before this call"
    patience = min(JOINING, JOINING_SHARE * invocation.seconds_left())

    def waiting() -> float:
        return invocation.seconds_left() - RESERVE

    def noted(record: Record, what: Record) -> Record:
        return run.amend_record(record, **{"fmi": what, "lambda": invocation.record()})

    try:
        meeting = meeting_at(together.endpoint, together.job, shared_secret())
        with connected_by_fmi(together.rank, together.size, meeting, patience, waiting) as talking:
            done = run.parts() if talking.rank == 0 else set()
            missing = agree_on_missing(run.plan().items, done, talking)
            record = do(_until_broken(counted(largest_first(missing), talking)))
            record = noted(record, _account(together, talking, record))
    except Disconnected as error:
        return record and noted(record, {"ended": str(error)}), str(error)
    return record, None


def _until_broken(items: Iterator[WorkItem]) -> Iterator[WorkItem]:
    """Ends early if a rank or the server is lost, which whoever talks next is told."""
    try:
        yield from items
    except FMIError:
        return


def _account(together: Together, talking: FMICommunicator, record: Record) -> Record:
    """What a record says of talking; waits for all ranks to be done."""
    galaxies = talking.allreduce(np.array([record["galaxies"]], np.float64))
    return {
        "endpoint": together.endpoint,
        "rank": talking.rank,
        "size": talking.size,
        "routes": talking.routes,
        "galaxies_of_all": int(galaxies[0]),
    }


@cache
def shared_secret() -> bytes:
    """What all ranks and the server know, from Secrets Manager or the environment. Raises InputError if AWS refuses."""
    arn = os.environ.get(SECRET_ARN)
    if not arn:
        return os.environ.get(SECRET, "").encode()
    import boto3

    with explained(arn, "read the secret"):
        told = boto3.client("secretsmanager", config=client_config()).get_secret_value(SecretId=arn)
    return str(told["SecretString"]).encode()
