"""Compute what a run used on AWS and what that costs at the list prices (`runs.prices`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import msgspec

from ..errors import InputError
from ..ranks.invocation import InvocationRecord
from .lambda_report import InvocationReport
from .prices import ARCHITECTURE, FREE_EPHEMERAL_MB, REGION, Usage, dollars, invocation_usage, load_prices, price_table
from .record import FunctionNote, Record

_TRANSITIONS = {"infer": 2, "initialize": 6, "summarize": 0}  # per invocation, see `cost_of_run`
_UNKNOWN = InvocationRecord("", "", 0, FREE_EPHEMERAL_MB, "unknown", "unknown", False, 0.0)
_S3_WRITES = ("Put", "Copy", "Post", "List", "Create", "Upload", "Complete")  # prefixes of the names of such requests
_S3_FREE = ("Delete", "Abort")
_PUBLISHED = (  # partition in MB, requests, seconds, memory in GB, dollars
    (25, 517, 6.55, 2.8, 0.16),
    (50, 259, 11.8, 4.0, 0.20),
    (75, 173, 17.6, 5.9, 0.30),
    (100, 130, 25.0, 7.0, 0.38),
)


class RunCost(msgspec.Struct, frozen=True):
    """The usage and cost of a run, as in `summary.json`; regions and architectures are joined by commas.

    `dollars` has the parts of `usage` and their `total`; it is None if there are no prices, and `unpriced` says why.
    Durations are billed ones of as many invocations as `billed_from_reports` says, and noted ones of the others.
    """

    region: str
    architecture: str
    prices_as_of: str
    dollars: dict[str, float] | None
    unpriced: str | None
    usage: dict[str, float]
    billed_from_reports: int
    billed_from_records: int


@dataclass(frozen=True)
class InvocationNote:
    """One invocation of "initialize", "infer" or "summarize", and its requests to S3 by their names."""

    function: str
    invocation: InvocationRecord
    s3_requests: Mapping[str, int]


def cost_of_run(
    records: Iterable[Record | InvocationNote],
    functions: Iterable[FunctionNote | InvocationNote],
    invocations: Iterable[InvocationReport],
    region: str | None = None,
    architecture: str | None = None,
) -> RunCost | None:
    """Return the usage and cost of a run on AWS; None if nothing ran on Lambda.

    They are computed from the records of the ranks, the notes of the functions that planned and summarized the run, and
    Lambda's reports. A duration is the billed one of the report with the same request, or else the one that the
    function noted, which is shorter since it ends with the last note. Reports of requests that noted nothing, because
    they died before, are included. `region` and `architecture` price the run as if it had run there.

    Transitions are estimated, since nothing counts them: 6 per invocation of initialize (the start of the execution,
    Initialize, Infer, Summarize, the choice whether to redrive, the end), at least once, and 2 per invocation of infer
    (the start of its child execution and its task). Only requests to S3 from Lambda are included.
    """
    notes = [InvocationNote("infer", own.invocation, own.s3_requests) for own in records if own.invocation]
    notes += [InvocationNote(note.function, note.invocation, note.s3_requests) for note in functions]
    reports = {report.request_id: report for report in invocations}
    if not notes and not reports:
        return None
    calls = [*_noted_calls(notes, reports), *_unnoted_calls(notes, reports)]
    if "initialize" not in (call.role for call in calls):
        calls.append(_Call("initialize", calls[0].place, Usage()))
    used: defaultdict[tuple[str, str], Usage] = defaultdict(Usage)
    for call in calls:
        place = str(region or call.place.region), str(architecture or call.place.architecture)
        used[place] += call.usage + Usage(transitions=_TRANSITIONS[call.role])
    priced, unpriced = _price(used)
    return RunCost(
        region=", ".join(sorted({name for name, _ in used})),
        architecture=", ".join(sorted({name for _, name in used})),
        prices_as_of=price_table().as_of,
        dollars=priced,
        unpriced=unpriced,
        usage=asdict(sum(used.values(), Usage())),
        billed_from_reports=len(reports),
        billed_from_records=sum(note.invocation.request_id not in reports for note in notes),
    )


@dataclass(frozen=True)
class _Call:
    """One invocation: its role (initialize, infer or summarize), where it ran with which memory, and what it used."""

    role: str
    place: InvocationRecord
    usage: Usage


_Notes = Sequence[InvocationNote]
_Reports = Mapping[str, InvocationReport]  # by request


def _noted_calls(notes: _Notes, reports: _Reports) -> Iterator[_Call]:
    """Yield the invocations that noted something."""
    for note in notes:
        place = note.invocation
        report = reports.get(place.request_id)
        seconds = place.seconds if report is None else report.billed_ms / 1000
        usage = invocation_usage(seconds, place.memory_mb, place.ephemeral_mb)
        yield _Call(note.function, place, usage + _s3_usage(note.s3_requests))


def _unnoted_calls(notes: _Notes, reports: _Reports) -> Iterator[_Call]:
    """Yield the invocations that only CloudWatch knows, with the place of another invocation of the same function."""
    places = [note.invocation for note in notes]
    known = {place.request_id for place in places}
    of_function = {place.function: place for place in places}
    for request, report in reports.items():
        if request in known:
            continue
        place = of_function.get(str(report.function)) or (places[0] if places else _UNKNOWN)
        usage = invocation_usage(report.billed_ms / 1000, report.memory_mb, place.ephemeral_mb)
        yield _Call(_role(report.function), place, usage)


def _price(used: Mapping[tuple[str, str], Usage]) -> tuple[dict[str, float] | None, str | None]:
    """Return the dollars of all places together, or why there are none."""
    total: defaultdict[str, float] = defaultdict(float)
    try:
        for place, usage in used.items():
            for name, value in dollars(usage, load_prices(*place)).items():
                total[name] += value
    except InputError as error:
        return None, str(error)
    return dict(total), None


def _role(function: str | None) -> str:
    """Return the role of a function by the end of its name; infer, the most frequent role, if it is unknown."""
    role = str(function).rpartition("-")[2]
    return role if role in _TRANSITIONS else "infer"


def _s3_usage(requests: Mapping[str, int]) -> Usage:
    """Return the usage of requests to S3 by their names; those that delete or abort are free."""
    paid = {name: count for name, count in requests.items() if not name.startswith(_S3_FREE)}
    writes = sum(count for name, count in paid.items() if name.startswith(_S3_WRITES))
    return Usage(s3_writes=writes, s3_reads=sum(paid.values()) - writes)


def published_table(region: str = REGION, architecture: str = ARCHITECTURE) -> list[dict[str, float]]:
    """Return the published "Estimated AWS computation cost summary for inference on the total dataset" and our costs.

    The table is from the README of UVA-MLSys/AI-for-Astronomy, with one row per partition size. The published cost is
    requests x seconds x GB x 0.00001667; `dollars` includes the price of the requests.
    """
    prices, rows = load_prices(region, architecture), []
    for partition_mb, requests, seconds, memory_gb, published in _PUBLISHED:
        usage = requests * invocation_usage(seconds, memory_gb * 1024)
        rows.append(
            {
                "partition_mb": partition_mb,
                "requests": requests,
                "seconds": seconds,
                "memory_gb": memory_gb,
                "dollars": dollars(usage, prices)["total"],
                "published_dollars": published,
            }
        )
    return rows
