"""Collect the reports of a run's invocations (duration, billed time, outcome) from the logs in CloudWatch."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from msgspec import structs

from ...aws_lambda.invocation_log import parse_announcement
from ...errors import InputError
from ...runs.lambda_report import parse_reports
from ...runs.store import RunFolder, ignore
from .clients import Account, describe_aws_errors
from .stack import Stack

FUNCTIONS = ("initialize", "infer", "summarize")
# Before and after the times in the run folder: invocations that died before they wrote anything, and their retries.
MARGIN = timedelta(hours=1)
PAGE = 10_000  # events in one response, the maximum of CloudWatch
# The first line of each invocation, reports in text or JSON, and lines on invocations that died.
FILTER = '?"cosmicai" ?"REPORT" ?"platform.report" ?"Task timed out" ?"Runtime exited" ?"Process exited"'


def collect_reports(account: Account, stack: Stack, run: RunFolder) -> int:
    """Write the reports of a run's invocations, from the logs of the stack's functions, to invocations.json.

    Returns their number. Reports are sorted by time and outlive the logs: those of an earlier collection are kept. An
    invocation belongs to the run if its first line names the run's address; one that has not ended has no report.
    Raises InputError if there is no report, if one is damaged or if CloudWatch cannot be reached.
    """
    begin, end = _span(run)
    reports = {(report.request_id, report.at): report for report in run.invocations()}
    started, groups = 0, {f"{stack.name}-{name}": f"/aws/lambda/{stack.name}-{name}" for name in FUNCTIONS}
    for function, group in groups.items():
        ours: set[str] = set()
        # The whole log is read before `ours` is used: lines of the same millisecond have no order.
        for report in parse_reports(_lines(_messages(account, group, begin, end), run, ours)):
            if report.request_id in ours:
                reports[report.request_id, report.at] = structs.replace(report, function=function)
        started += len(ours)
    if not reports:
        raise InputError(
            f"CloudWatch's log groups {', '.join(groups.values())} hold no report of {run.uri} from {begin:%F %T} to "
            f"{end:%F %T} UTC ({started} of its invocations have started there); a report appears some seconds after "
            "the end of an invocation, try again then, with the stack and the region of the run"
        )
    rows = sorted(reports.values(), key=lambda report: (report.at or "", report.request_id))
    run.write_json(run.invocations_path, rows)
    return len(rows)


def _span(run: RunFolder) -> tuple[datetime, datetime]:
    """Return the time span of the run's invocations in UTC, with a margin. Raises InputError if none wrote anything."""
    records = [record for record in run.records(ignore).values() if record.invocation]
    known = [time for record in records for time in (record.started_at, record.updated_at)]
    known += [note.started_at for note in run.functions(ignore)]
    times = [datetime.fromisoformat(text).astimezone(UTC) for text in known]
    if not times:
        raise InputError(
            f"{run.uri} has no record of a rank on AWS Lambda; expected a run that was started with --cloud"
        )
    return min(times) - MARGIN, max(times) + MARGIN


def _messages(account: Account, group: str, begin: datetime, end: datetime) -> Iterator[tuple[str, str]]:
    """Yield time and text of the matching events of a log group, page by page; none if the group does not exist."""
    client = account.client("logs")
    pages = client.get_paginator("filter_log_events").paginate(
        logGroupName=group, filterPattern=FILTER, startTime=_milliseconds(begin), endTime=_milliseconds(end),
        PaginationConfig={"PageSize": PAGE},
    )  # fmt: skip
    with describe_aws_errors(f"read the log group {group}"):
        try:
            for page in pages:
                for event in page.get("events", []):
                    at = datetime.fromtimestamp(event["timestamp"] / 1000, UTC)
                    yield at.isoformat(timespec="milliseconds"), event["message"]
        except client.exceptions.ResourceNotFoundException:
            return  # the log expired, or the function was never invoked


def _lines(messages: Iterator[tuple[str, str]], run: RunFolder, ours: set[str]) -> Iterator[str]:
    """Yield the lines of messages with their times, and add the requests whose first line names the run to `ours`."""
    for at, message in messages:
        for line in message.splitlines():
            announcement = parse_announcement(line)
            if announcement and announcement.run.rstrip("/") == run.uri.rstrip("/"):
                ours.add(announcement.request_id)
            yield f"{at} - {line}"


def _milliseconds(time: datetime) -> int:
    return int(time.timestamp() * 1000)
