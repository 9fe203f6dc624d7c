"""What a run used on AWS, and what that costs: plain sums, times the list prices of prices.toml.

Left out: free tier, discounts, tax, data that leaves the region, and CloudWatch's logs.
"""

from __future__ import annotations

import math
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import InputError

PRICES = Path(__file__).with_name("prices.toml")
REGION, ARCHITECTURE = "us-east-1", "x86_64"  # of what does not say where it runs
ARCHITECTURES = ("x86_64", "arm64")
FREE_EPHEMERAL_MB = 512
_TRANSITIONS = {"infer": 2, "initialize": 6, "summarize": 0}  # that go with one invocation, see `cost_of_run`
_UNKNOWN: Mapping[str, Any] = {"region": "unknown", "architecture": "unknown", "ephemeral_mb": FREE_EPHEMERAL_MB}
_S3_WRITES = ("Put", "Copy", "Post", "List", "Create", "Upload", "Complete")  # how the names of such requests begin
_S3_FREE = ("Delete", "Abort")
_PUBLISHED = (  # partition in MB, requests, seconds, memory in GB, dollars
    (25, 517, 6.55, 2.8, 0.16),
    (50, 259, 11.8, 4.0, 0.20),
    (75, 173, 17.6, 5.9, 0.30),
    (100, 130, 25.0, 7.0, 0.38),
)


@dataclass(frozen=True)
class Usage:
    """What was used of AWS; the prices have the same names. A GB is 2^30 bytes.

    Lambda: requests, memory, storage above 512 MB. Step Functions: transitions of a standard workflow. S3: PUT, COPY,
    POST and LIST requests, then GET, HEAD and all other ones, then what it keeps. ECR: what it keeps. Fargate:
    processors, memory.
    """

    invocations: float = 0
    gb_seconds: float = 0
    ephemeral_gb_seconds: float = 0
    transitions: float = 0
    s3_writes: float = 0
    s3_reads: float = 0
    s3_gb_months: float = 0
    ecr_gb_months: float = 0
    fargate_vcpu_hours: float = 0
    fargate_gb_hours: float = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __rmul__(self, times: float) -> Usage:
        return Usage(*(times * amount for amount in astuple(self)))


@dataclass(frozen=True)
class Prices:
    """US dollars for one unit of each usage, by its name, where a source is known; `as_of` is ISO 8601."""

    region: str
    architecture: str
    as_of: str
    each: Mapping[str, float]


def load_prices(region: str = REGION, architecture: str = ARCHITECTURE) -> Prices:
    """The list prices of a region for a processor. Raises InputError, with those that are known, for an unknown one."""
    table = _price_table()
    regions = [name for name in table if name != "as_of"]
    if region not in regions:
        known = ", ".join(regions)
        raise InputError(f"there are no prices for the region {region}; choose one of {known} with --region")
    if architecture not in ARCHITECTURES:
        raise InputError(f"there are no prices for {architecture}; choose one of {', '.join(ARCHITECTURES)}")
    each: dict[str, float] = {}
    for service in table[region].values():
        prices = service | service.get(architecture, {})
        each |= {part.name: prices[part.name] for part in fields(Usage) if part.name in prices}
    return Prices(region, architecture, table["as_of"].isoformat(), each)


@cache
def _price_table() -> dict[str, Any]:
    return tomllib.loads(PRICES.read_text())


def dollars(usage: Usage, prices: Prices) -> dict[str, float]:
    """US dollars for each part of the usage, by its name, and their `total`.

    Raises InputError if something was used that has no price.
    """
    parts: dict[str, float] = {}
    for name, amount in asdict(usage).items():
        if amount and name not in prices.each:
            raise InputError(f"there is no price for {name} in {prices.region}; add it, with its source, to {PRICES}")
        parts[name] = amount * prices.each.get(name, 0.0)
    return parts | {"total": sum(parts.values())}


def billed_seconds(seconds: float) -> float:
    """What Lambda bills for a duration: whole milliseconds, rounded up."""
    return math.ceil(round(seconds * 1000, 6)) / 1000  # first rounded: 2.007 * 1000 is a little more than 2007


def invocation_gb_seconds(seconds: float, memory_mb: float) -> float:
    """What Lambda bills for the memory of one invocation, in GB-seconds."""
    return billed_seconds(seconds) * memory_mb / 1024


def invocation_usage(seconds: float, memory_mb: float, ephemeral_mb: float = FREE_EPHEMERAL_MB) -> Usage:
    """What one invocation of a function on Lambda uses, by itself."""
    above = max(0.0, ephemeral_mb - FREE_EPHEMERAL_MB)
    return Usage(1, invocation_gb_seconds(seconds, memory_mb), invocation_gb_seconds(seconds, above))


def cost_of_run(
    records: Iterable[Mapping[str, Any]],
    functions: Iterable[Mapping[str, Any]],
    invocations: Iterable[Mapping[str, Any]],
    region: str | None = None,
    architecture: str | None = None,
) -> dict[str, Any] | None:
    """What a run used on AWS and costs, from the records of its ranks, the notes of the functions that planned and
    summarized it, and what CloudWatch's REPORT lines say (`reports.Report` as dicts); None if nothing ran on Lambda.

    A duration is the billed one of the REPORT line with the same request, else what the function itself noted, which is
    less: it ends with the last note. REPORT lines of requests that noted nothing, since they died before, count too.
    `region` and `architecture` price the run as if it had run there. `dollars` is None if there are no prices for it;
    `unpriced` then says why.

    Transitions are an estimate, since nothing counts them: 6 with every invocation of initialize (the start of the
    execution, Initialize, Infer, Summarize, the question whether the run is complete, the end), at least once, and 2
    with every invocation of infer (the start of its child and its task). Of S3's requests only those from Lambda count.
    """
    notes = [("infer", record) for record in records if record.get("lambda")]
    notes += [(note["function"], note) for note in functions]
    reports = {report["request_id"]: report for report in invocations}
    if not notes and not reports:
        return None
    calls = [*_noted(notes, reports), *_not_noted(notes, reports)]
    if "initialize" not in (call.role for call in calls):
        calls.append(_Call("initialize", calls[0].place, Usage()))
    used: defaultdict[tuple[str, str], Usage] = defaultdict(Usage)
    for call in calls:
        place = str(region or call.place["region"]), str(architecture or call.place["architecture"])
        used[place] += call.usage + Usage(transitions=_TRANSITIONS[call.role])
    priced, unpriced = _priced(used)
    return {
        "region": ", ".join(sorted({name for name, _ in used})),
        "architecture": ", ".join(sorted({name for _, name in used})),
        "prices_as_of": _price_table()["as_of"].isoformat(),
        "dollars": priced,
        "unpriced": unpriced,
        "usage": asdict(sum(used.values(), Usage())),
        "billed_from_reports": len(reports),
        "billed_from_records": sum(note["lambda"]["request_id"] not in reports for _, note in notes),
    }


@dataclass(frozen=True)
class _Call:
    """One invocation: initialize, infer or summarize, where and how big the function is, and what it used."""

    role: str
    place: Mapping[str, Any]
    usage: Usage


_Notes = Sequence[tuple[str, Mapping[str, Any]]]  # what a function does, and what it noted
_Reports = Mapping[str, Mapping[str, Any]]  # by request


def _noted(notes: _Notes, reports: _Reports) -> Iterator[_Call]:
    """The invocations that noted something."""
    for role, note in notes:
        place = note["lambda"]
        report = reports.get(place["request_id"])
        seconds = place["seconds"] if report is None else report["billed_ms"] / 1000
        usage = invocation_usage(seconds, place["memory_mb"], place["ephemeral_mb"])
        yield _Call(role, place, usage + _s3_usage(note["s3_requests"]))


def _not_noted(notes: _Notes, reports: _Reports) -> Iterator[_Call]:
    """The invocations that only CloudWatch knows, taken for ones of the same function that did note something."""
    places = [note["lambda"] for _, note in notes]
    known, of_function = ({place[key]: place for place in places} for key in ("request_id", "function"))
    for request, report in reports.items():
        if request in known:
            continue
        place = of_function.get(report["function"]) or (places[0] if places else _UNKNOWN)
        usage = invocation_usage(report["billed_ms"] / 1000, report["memory_mb"], place["ephemeral_mb"])
        yield _Call(_role(report["function"]), place, usage)


def _priced(used: Mapping[tuple[str, str], Usage]) -> tuple[dict[str, float] | None, str | None]:
    """The dollars of all places together, or why there are none."""
    total: defaultdict[str, float] = defaultdict(float)
    try:
        for place, usage in used.items():
            for name, value in dollars(usage, load_prices(*place)).items():
                total[name] += value
    except InputError as error:
        return None, str(error)
    return dict(total), None


def _role(function: str | None) -> str:
    """What a function of a stack does, of which the name says it at its end; infer, the most frequent, if unknown."""
    role = str(function).rpartition("-")[2]
    return role if role in _TRANSITIONS else "infer"


def _s3_usage(requests: Mapping[str, int]) -> Usage:
    """Requests to S3 by their names; those that delete or abort are free."""
    paid = {name: count for name, count in requests.items() if not name.startswith(_S3_FREE)}
    writes = sum(count for name, count in paid.items() if name.startswith(_S3_WRITES))
    return Usage(s3_writes=writes, s3_reads=sum(paid.values()) - writes)


def published_table(region: str = REGION, architecture: str = ARCHITECTURE) -> list[dict[str, float]]:
    """The published "Estimated AWS computation cost summary for inference on the total dataset" (the README of
    UVA-MLSys/AI-for-Astronomy), a row per size of the partitions: what we compute beside what was published.

    Published is requests x seconds x GB x 0.00001667; ours has the price of the requests too.
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
