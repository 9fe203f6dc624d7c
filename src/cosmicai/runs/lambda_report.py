"""Parse what AWS Lambda reports of its invocations: the REPORT lines of its logs, in text or JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from ..errors import InputError
from ..records import convert, decode_json

# Lines of a downloaded log may begin with a time stamp, which a dash or the name of a log stream may follow.
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
_REMEDY = (
    "expected a complete report of AWS Lambda with RequestId, Duration, Billed Duration, Memory Size and Max Memory "
    "Used, get the log again"
)

Milliseconds = Annotated[float, Meta(ge=0)]
Megabytes = Annotated[int, Meta(ge=0)]


class InvocationReport(msgspec.Struct, frozen=True):
    """One invocation as Lambda measured it, a row of `invocations.json`.

    `duration_ms` is the time of the handler, `billed_ms` the time that is paid for, `init_ms` the start of a new
    runtime before it (None if the runtime was running already), all in ms; memory is in MB (2^20 bytes), and an
    emulator reports `memory_mb` for both. `status` is "" without a fault, "timeout", or "error" if the runtime died,
    for instance without memory; an exception in the handler is not reported in a text log. `at` is the end of the
    invocation in UTC.
    """

    request_id: str
    duration_ms: Milliseconds
    billed_ms: Milliseconds
    memory_mb: Megabytes
    max_memory_mb: Megabytes
    init_ms: Milliseconds | None
    status: str
    at: str | None  # ISO 8601
    function: str | None  # its full name, which is known from the name of the log and not from its lines


def parse_reports(lines: Iterable[str]) -> list[InvocationReport]:
    """Return the reports among the lines of a text or JSON log, in their order; all other lines are ignored.

    A line that reports a time-out or the death of the runtime may come before or after the report of the request.
    Raises InputError if a report is cut off or has an invalid number.
    """
    reports: list[InvocationReport] = []
    faults: dict[str, str] = {}
    for line in lines:
        if timed_out := _TIMED_OUT.search(line):
            faults[timed_out[1]] = "timeout"
        elif died := _DIED.search(line):
            faults.setdefault(died[1], "error")
        elif report := _parse_line(line):
            reports.append(report)
    return [
        msgspec.structs.replace(report, status=report.status or faults.get(report.request_id, "")) for report in reports
    ]


class _Metrics(msgspec.Struct, frozen=True, rename="camel"):
    duration_ms: Milliseconds
    billed_duration_ms: Milliseconds
    memory_size_mb: Megabytes = field(name="memorySizeMB")
    max_memory_used_mb: Megabytes = field(name="maxMemoryUsedMB")
    init_duration_ms: Milliseconds | UnsetType = UNSET


class _Record(msgspec.Struct, frozen=True, rename="camel"):
    request_id: str
    metrics: _Metrics
    status: str = ""


class _Event(msgspec.Struct, frozen=True):
    """A `platform.report` of a log in JSON; a report in text is turned into the same form."""

    record: _Record
    time: str | None = None


def _parse_line(line: str) -> InvocationReport | None:
    """Return the report of a line, None if the line is not a report. Raises InputError if the report is damaged."""
    if (found := _LINE.match(line)) is None:
        return None
    at, text, where = found[1], found[2].rstrip(), f"the log's line {line.strip()!r}"
    if text.startswith("{"):
        if '"platform.report"' not in text:
            return None
        content = decode_json(text, dict[str, Any], where=where, remedy=_REMEDY)
        if content.get("type") != "platform.report":
            return None
    elif text.startswith(_HEAD) or _HEAD.startswith(text):
        content = {"record": _record_of_text(text, where)}
    else:
        return None
    event = convert(content, _Event, where=where, remedy=_REMEDY)
    record, metrics = event.record, event.record.metrics
    return InvocationReport(
        request_id=record.request_id,
        duration_ms=metrics.duration_ms,
        billed_ms=metrics.billed_duration_ms,
        memory_mb=metrics.memory_size_mb,
        max_memory_mb=metrics.max_memory_used_mb,
        init_ms=None if metrics.init_duration_ms is UNSET else metrics.init_duration_ms,
        status="" if record.status == "success" else record.status,
        at=_to_utc(at or event.time, where),
        function=None,
    )


def _record_of_text(text: str, where: str) -> dict[str, Any]:
    """Return a report in text as the `record` of a log in JSON. Raises InputError if a part of it is unknown."""
    fields = _FIELD.findall(text := text.removeprefix("REPORT"))
    rest = _FIELD.sub("", text).strip()
    wrong = [name for name, _, unit in fields if unit != _UNITS.get(name.split()[-1], unit)]
    if rest or wrong:
        problem = f"{rest!r} is unknown" if rest else f"the unit of {wrong[0]} is missing or unknown"
        raise InputError(f"{where} cannot be used: {problem}; {_REMEDY}")
    values = {name: value for name, value, _ in fields}
    names = {"RequestId": "requestId", "Status": "status"}
    return {key: values[name] for name, key in names.items() if name in values} | {
        "metrics": {_METRICS[name]: _to_number(value) for name, value in values.items() if name in _METRICS}
    }


def _to_number(text: str) -> float | int | str:
    """Return the number that a text holds, the text itself if it is not a number."""
    if _NUMBER.fullmatch(text) is None:
        return text
    return float(text) if "." in text else int(text)


def _to_utc(text: str | None, where: str) -> str | None:
    """Return a time in ISO 8601 with milliseconds, as in logs; a time without an offset is UTC, as CloudWatch's are."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"{where} cannot be used: {error}; {_REMEDY}") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="milliseconds")
