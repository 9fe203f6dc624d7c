"""What CloudWatch's logs say of a run's invocations: how long each took and was billed for, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ...errors import InputError
from ...runs.lambda_report import parse_reports
from ...runs.store import RunFolder
from .clients import Account, explained_aws
from .stack import Stack

FUNCTIONS = ("initialize", "infer", "summarize")
# Before the first and after the last that the run wrote: functions that died before they wrote, and their repetitions.
MARGIN = timedelta(hours=1)
PAGE = 10_000  # events in one answer, the most that CloudWatch gives
# Lines with any of these: the functions' first one, reports in text or JSON, what is said of one that died.
WANTED = '?"cosmicai" ?"REPORT" ?"platform.report" ?"Task timed out" ?"Runtime exited" ?"Process exited"'


def collect(account: Account, stack: Stack, run: RunFolder) -> int:
    """Writes what the logs of a stack's functions report of a run's invocations to invocations.json; returns how many.

    They are sorted by time and stay when the logs expire: an earlier collection is kept and added to. An invocation is
    the run's if the line that it began with names the run's address. One that has not ended has no report.
    Raises InputError if there is none, if a report is damaged or if CloudWatch cannot be asked.
    """
    begin, end = _span(run)
    found = {(one["request_id"], one["at"]): one for one in run.invocations()}
    begun, groups = 0, {f"{stack.name}-{name}": f"/aws/lambda/{stack.name}-{name}" for name in FUNCTIONS}
    for function, group in groups.items():
        ours: set[str] = set()
        # All of them before `ours` is asked: lines of one millisecond have no order.
        for report in parse_reports(_lines(_messages(account, group, begin, end), run, ours)):
            if report.request_id in ours:
                found[report.request_id, report.at] = asdict(replace(report, function=function))
        begun += len(ours)
    if not found:
        raise InputError(
            f"CloudWatch's log groups {', '.join(groups.values())} hold no report of {run.uri} from {begin:%F %T} to "
            f"{end:%F %T} UTC ({begun} of its invocations have begun there); a report comes some seconds after an "
            "invocation's end, try again then, with the stack and the region that the run had"
        )
    rows = sorted(found.values(), key=lambda one: (one["at"], one["request_id"]))
    run.write_json(run.invocations_path, rows)
    return len(rows)


def _span(run: RunFolder) -> tuple[datetime, datetime]:
    """From when to when the run's invocations were, with a margin, in UTC. Raises InputError if none wrote anything."""
    notes = [note for note in (*run.records().values(), *run.functions()) if note.get("lambda")]
    known = (note[name] for note in notes for name in ("started_at", "updated_at") if name in note)
    times = [datetime.fromisoformat(text).astimezone(UTC) for text in known]
    if not times:
        raise InputError(f"{run.uri} has no record of a rank on AWS Lambda; expected a run that the cloud has begun")
    return min(times) - MARGIN, max(times) + MARGIN


def _messages(account: Account, group: str, begin: datetime, end: datetime) -> Iterator[tuple[str, str]]:
    """Time and text of a log group's wanted events, one page after the other; none if there is no such group."""
    client = account.client("logs")
    pages = client.get_paginator("filter_log_events").paginate(
        logGroupName=group, filterPattern=WANTED, startTime=_milliseconds(begin), endTime=_milliseconds(end),
        PaginationConfig={"PageSize": PAGE},
    )  # fmt: skip
    with explained_aws(f"read the log group {group}"):
        try:
            for page in pages:
                for event in page.get("events", []):
                    at = datetime.fromtimestamp(event["timestamp"] / 1000, UTC)
                    yield at.isoformat(timespec="milliseconds"), event["message"]
        except client.exceptions.ResourceNotFoundException:
            return  # it expired with the stack, or the function was never called


def _lines(messages: Iterator[tuple[str, str]], run: RunFolder, ours: set[str]) -> Iterator[str]:
    """The messages as lines with their time; the requests whose first line names the run are added to `ours`."""
    for at, message in messages:
        for line in message.splitlines():
            start = _start(line)
            if str(start.get("run")).rstrip("/") == run.uri.rstrip("/"):
                ours.add(str(start.get("request_id")))
            yield f"{at} - {line}"


def _start(line: str) -> dict[str, Any]:
    """What a function's first line says, nothing if the line is another."""
    try:
        told = json.loads(line) if line.startswith('{"cosmicai"') else {}
    except ValueError:
        return {}
    return dict(told)


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)
