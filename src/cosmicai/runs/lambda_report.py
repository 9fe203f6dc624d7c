"""What AWS Lambda reports of its invocations: the REPORT lines of its logs, in all shapes that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ..errors import InputError

# A time stamp, as logs that were downloaded have it, may come first, and after it a dash or the name of a log stream.
_LINE = re.compile(
    r"\s*(?:(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*)\s+(?:(?:-|\d{4}/\d\d/\d\d/\S+)\s+)?)?(REPORT.*|\{.*)", re.DOTALL
)
_HEAD = "REPORT RequestId:"
_FIELD = re.compile(
    r"([A-Z][A-Za-z ]*): (\S+)(?: ([A-Za-z]{1,2})(?!\S))?"
)  # "Max Memory Used: 47 MB", "Status: timeout"
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_UNITS = {"Duration": "ms", "Size": "MB", "Used": "MB"}  # by the last word of a field's name
_METRICS = {
    "Duration": "durationMs",
    "Billed Duration": "billedDurationMs",
    "Memory Size": "memorySizeMB",
    "Max Memory Used": "maxMemoryUsedMB",
    "Init Duration": "initDurationMs",
}
_TIMED_OUT = re.compile(r"(?<!\S)(\S+) (?:Error: )?Task timed out after [0-9]")
_DIED = re.compile(r"RequestId: (\S+) (?:Error: Runtime exited|Process exited)")


@dataclass(frozen=True)
class Report:
    """One invocation, as Lambda saw it.

    `duration_ms` is the time of the handler, `billed_ms` what is paid for, `init_ms` the start of a new runtime before
    it (None in one that ran already), all in ms; memory is in MB (2^20 bytes), and an emulator gives `memory_mb` for
    both. `status` is "" where Lambda says of no fault, else "timeout", or "error" where the runtime died, as it does
    without memory; of an exception in the handler a text log says nothing here. `at` is when it ended, in UTC.
    """

    request_id: str
    duration_ms: float
    billed_ms: float
    memory_mb: int
    max_memory_mb: int
    init_ms: float | None
    status: str
    at: str | None  # ISO 8601
    function: str | None  # its whole name, which a log has in its own name alone: who reads the log adds it


def parse_reports(lines: Iterable[str]) -> list[Report]:
    """The reports among the lines of a log, text or JSON, in their order; of all other lines nothing is kept.

    A line that says of a request that it timed out or that its runtime died may come before or after its report.
    Raises InputError if a report is cut off or has a broken number.
    """
    reports: list[Report] = []
    faults: dict[str, str] = {}
    for line in lines:
        if late := _TIMED_OUT.search(line):
            faults[late[1]] = "timeout"
        elif dead := _DIED.search(line):
            faults.setdefault(dead[1], "error")
        elif report := _parse(line):
            reports.append(report)
    return [replace(report, status=report.status or faults.get(report.request_id, "")) for report in reports]


def _parse(line: str) -> Report | None:
    """The report of a line, None if it is none."""
    if (found := _LINE.match(line)) is None:
        return None
    at, text = found[1], found[2].rstrip()
    try:
        if text.startswith("{"):
            if '"platform.report"' not in text or (event := json.loads(text)).get("type") != "platform.report":
                return None
            return _report(event["record"], at or event.get("time"))
        return _report(_record(text), at) if text.startswith(_HEAD) or _HEAD.startswith(text) else None
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"the log's line {line.strip()!r} is no whole report of AWS Lambda; expected one with RequestId, Duration, "
            "Billed Duration, Memory Size and Max Memory Used, get the log again"
        ) from None


def _record(text: str) -> dict[str, Any]:
    """A report in text as the record that a log in JSON has of it. Raises ValueError if something is left over."""
    fields = _FIELD.findall(text := text.removeprefix("REPORT"))
    if _FIELD.sub("", text).strip() or any(unit != _UNITS.get(name.split()[-1], unit) for name, _, unit in fields):
        raise ValueError
    values = {name: value for name, value, _ in fields}
    return {
        "requestId": values["RequestId"],
        "status": values.get("Status", ""),
        "metrics": {_METRICS[name]: value for name, value in values.items() if name in _METRICS},
    }


def _report(record: dict[str, Any], at: str | None) -> Report:
    """Raises KeyError, TypeError or ValueError if something is missing or no number."""
    metrics = record["metrics"]
    status = record.get("status", "")
    return Report(
        request_id=record["requestId"],
        duration_ms=float(_digits(metrics["durationMs"])),
        billed_ms=float(_digits(metrics["billedDurationMs"])),
        memory_mb=int(_digits(metrics["memorySizeMB"])),
        max_memory_mb=int(_digits(metrics["maxMemoryUsedMB"])),
        init_ms=float(_digits(metrics["initDurationMs"])) if "initDurationMs" in metrics else None,
        status="" if status == "success" else status,
        at=None if at is None else _utc(at),
        function=None,
    )


def _digits(value: object) -> str:
    if _NUMBER.fullmatch(str(value)) is None:
        raise ValueError
    return str(value)


def _utc(text: str) -> str:
    """A time in ISO 8601 with milliseconds, which logs have; one without an offset is in UTC, as CloudWatch's are."""
    time = datetime.fromisoformat(text)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="milliseconds")
