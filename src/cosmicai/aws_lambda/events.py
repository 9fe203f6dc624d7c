"""The events with which the functions are invoked.

The keys of a rank's event are those of UVA-MLSys/AI-for-Astronomy, followed by MEMORY and FMI of this program.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, field

from ..errors import InputError
from ..records import convert
from .run_location import RunLocation, locate_folder, locate_run, normalize_result_path

Text = Annotated[str, Meta(min_length=1)]
Number = int | Annotated[str, Meta(pattern=r"^-?[0-9]+$")]  # published events hold some numbers as text

PUBLISHED_KEYS = (
    "S3_BUCKET", "RESULT_PATH", "RANK", "WORLD_SIZE", "DATA_BUCKET", "DATA_PREFIX", "DATA_PATH", "BATCH_SIZE",
)  # fmt: skip


class FMISession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The FMI job in which a rank shares the work with the other ranks of its map.

    `endpoint` is the rendezvous server, `size` the number of ranks, `parts` the number of parts that the run had when
    the events were made: once there are more, the work is being shared already, and a rank that starts is too late.
    """

    endpoint: str
    job: str
    rank: int
    size: int
    parts: int


class RankEvent(msgspec.Struct, frozen=True, kw_only=True, rename="upper", omit_defaults=True):
    """The published event of one rank; `data_path` is one path or several, `memory` in MB is what the rank may use."""

    s3_bucket: Text
    s3_object_name: str | None = None
    script: str | None = None
    s3_object_type: str | None = None
    world_size: Number
    rank: Number
    data_bucket: Text
    data_prefix: Text
    data_path: Text | Annotated[list[Text], Meta(min_length=1)]
    result_path: Text
    batch_size: Number
    memory: int | None = None
    fmi: FMISession | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as Step Functions passes it on."""
        return dict(msgspec.to_builtins(self))


class PlannedRankEvent(msgspec.Struct, frozen=True):
    """The event of one rank of any run folder that holds a plan."""

    run: str
    rank: Annotated[int, Meta(ge=0)]
    world_size: Annotated[int, Meta(ge=1)]
    memory: int | None = field(name="MEMORY", default=None)
    fmi: FMISession | None = field(name="FMI", default=None)


class Execution(msgspec.Struct, frozen=True, rename="pascal"):
    """The execution that invokes a function; `redrive_count` says how often it was started again."""

    name: str = ""
    redrive_count: int = 0


class MapFailure(msgspec.Struct, frozen=True, rename="pascal"):
    """Why the map over the ranks ended early."""

    error: str | None = None


class SummaryRequest(msgspec.Struct, frozen=True):
    """A run to summarize, the percentage of its galaxies that may be missing, and how its execution went."""

    location: RunLocation
    tolerated_percentage: float = 0.0
    failure: MapFailure | None = None
    execution: Execution = Execution()


def read_rank_event(event: Any) -> RankEvent | PlannedRankEvent:
    """Return the event of a rank. Raises InputError naming the key that is missing or has an unusable value."""
    if "run" not in event:
        remedy = f"expected the keys {', '.join(PUBLISHED_KEYS)}"
        return convert(event, RankEvent, where="the event", remedy=remedy)
    where = f"the event {event}"
    remedy = 'expected one rank of a run, such as {"run": "s3://BUCKET/RUN", "rank": 0, "world_size": 8}'
    planned = convert(event, PlannedRankEvent, where=where, remedy=remedy)
    if planned.rank >= planned.world_size:
        raise InputError(f"{where} cannot be used: field rank: expected `int` < {planned.world_size}; {remedy}")
    return planned


class _PlannedRun(msgspec.Struct, frozen=True):
    run: str
    tolerated_failure_percentage: float | None = None
    failure: MapFailure | None = None


class _PublishedRun(msgspec.Struct, frozen=True):
    bucket: Text
    result_path: Text
    tolerated_failure_percentage: float | None = None
    failure: MapFailure | None = None


class _RankAddress(msgspec.Struct, frozen=True, rename="upper"):
    s3_bucket: Text
    result_path: Text


class _InitializeAnswer(msgspec.Struct, frozen=True):
    body: Annotated[list[_RankAddress], Meta(min_length=1)]
    tolerated_failure_percentage: float | None = None
    failure: MapFailure | None = None


def read_summary_request(event: Any) -> SummaryRequest:
    """Return what to summarize.

    The event is that of this program's state machine, the published payload, or the answer of the published initializer
    with the events of the ranks, the first of which says where the results are. Raises InputError naming the key that
    is missing or has an unusable value.
    """
    if not isinstance(event, dict) or not isinstance(plan := event.get("plan", event), dict):
        raise InputError(f"the event is {event!r}; expected bucket and result_path, or the answer of initialize")
    found: _PlannedRun | _PublishedRun | _InitializeAnswer
    if "run" in plan:
        found = convert(plan, _PlannedRun, where="the event", remedy="expected the answer of initialize")
        location = locate_folder(found.run)
    elif "body" in plan or "statusCode" in plan:
        found = _read_answer(plan)
        location = _locate(found.body[0].s3_bucket, found.body[0].result_path, "the event's RESULT_PATH")
    else:
        found = convert(plan, _PublishedRun, where="the event", remedy="expected bucket and result_path")
        location = _locate(found.bucket, found.result_path, "the event's result_path")
    execution = convert(
        event.get("execution", {}), Execution, where="the event's execution", remedy="expected Name and RedriveCount"
    )
    return SummaryRequest(location, found.tolerated_failure_percentage or 0.0, found.failure, execution)


def _read_answer(answer: dict[str, Any]) -> _InitializeAnswer:
    """Return the answer of the published initializer. Raises InputError if it is none, or says that it failed."""
    remedy = 'expected the answer of initialize, {"statusCode": 200, "body": [EVENT, ...]} with at least one event'
    if str(answer.get("statusCode", 200)) != "200":
        raise InputError(f"the event's statusCode is {answer['statusCode']!r}; {remedy}")
    return convert(answer, _InitializeAnswer, where="the event", remedy=remedy)


def _locate(bucket: str, result_path: str, where: str) -> RunLocation:
    return locate_run(bucket, normalize_result_path(result_path, where))
