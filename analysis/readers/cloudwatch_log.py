"""Read a CloudWatch log: the time that Lambda billed for each invocation, and the run to which it belongs.

Between the START line of an invocation and its REPORT line the published function prints the payload that it
`received:`, which names the run (RESULT_PATH) and the rank. REPORT lines are parsed by `cosmicai.runs.lambda_report`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from cosmicai.runs.lambda_report import InvocationReport, parse_reports

from ..tables import RANK_TYPES, LeftOut, MeasuredRun, Row, SourceContents, validate_row
from .durations import PUBLISHED_LAMBDA
from .settings import parse_record_settings
from .source import Source
from .values import get_integer, get_text, parse_time

_START = re.compile(r"(?:(\d{4}-\d\d-\d\d[T ]\S+)\s.*)?START RequestId: (\S+)")
_RECEIVED = re.compile(r"received:\s+(\{.*\})\s*$")


def matches(source: Source) -> bool:
    """Return whether a file is of this kind, by its text."""
    return source.name.endswith((".txt", ".log")) and "REPORT RequestId:" in source.text


def read(source: Source) -> SourceContents:
    """Return a run for each RESULT_PATH with a rank for each invocation. Raises InputError if a report is cut off."""
    lines = source.text.splitlines()
    received = read_payloads(lines)
    runs: dict[str, tuple[Row, list[Row], set[int]]] = {}
    left_out: list[LeftOut] = []
    for report in parse_reports(lines):
        try:
            if report.request_id not in received:
                raise ValueError("the log does not state clearly to which run it belongs")
            started, payload = received[report.request_id]
            path, row = get_text(payload, "RESULT_PATH"), build_rank_row(report, started, payload)
            validate_row(row, RANK_TYPES)
            run, ranks, digests = runs.setdefault(path, (build_run_row(source, path, payload), [], set()))
            if run["world_size"] != (size := get_integer(payload, "WORLD_SIZE")):
                raise ValueError(
                    f"it is of another run: its world size is {size}, that of the first of {path} {run['world_size']}"
                )
            ranks.append(row)
            digests.add(hash((report.request_id, path)))
        except ValueError as error:
            left_out.append(LeftOut(source.uri, str(error), f"invocation {report.request_id}"))
    measured = (MeasuredRun(run, tuple(ranks), frozenset(digests)) for run, ranks, digests in runs.values())
    return SourceContents(tuple(measured), tuple(left_out))


def read_payloads(lines: Iterable[str]) -> dict[str, tuple[str | None, dict[str, Any]]]:
    """Return the start time and payload of invocations, by request ID.

    Invocations whose lines are interleaved with those of others are omitted.
    """
    found: dict[str, tuple[str | None, dict[str, Any]]] = {}
    running: dict[str, str | None] = {}
    for line in lines:
        if start := _START.match(line):
            running[start[2]] = start[1]
        elif (received := _RECEIVED.search(line)) and len(running) == 1:
            ((request, started),) = running.items()
            with suppress(SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # of `literal_eval`
                found[request] = started, ast.literal_eval(received[1])
        elif "REPORT RequestId:" in line:
            running.pop(next(iter(line.partition("REPORT RequestId:")[2].split()), ""), None)
    return found


def build_run_row(source: Source, path: str, payload: dict[str, Any]) -> Row:
    """Return the row of the run that wrote to a RESULT_PATH."""
    settings = {"study": "single"} | parse_record_settings(path, get_text(payload, "DATA_PATH"))
    return PUBLISHED_LAMBDA | settings | {
        "run": f"{source.stem}/{path}",
        "source": source.uri,
        "kind": "log",
        "world_size": get_integer(payload, "WORLD_SIZE"),
        "asked_ranks": get_integer(payload, "WORLD_SIZE"),
    }  # fmt: skip


def build_rank_row(report: InvocationReport, started: str | None, payload: dict[str, Any]) -> Row:
    """Return the row of an invocation, from its payload and its REPORT line."""
    return {
        "rank": get_integer(payload, "RANK"),
        "item": get_text(payload, "DATA_PATH"),
        "state": report.status or "finished",
        "started_at": None if started is None else parse_time(started),
        "ended_at": None if report.at is None else parse_time(report.at),
        "batch_size": get_integer(payload, "BATCH_SIZE"),
        "start_seconds": None if report.init_ms is None else report.init_ms / 1000,
        "peak_rss_mb": report.max_memory_mb,
        "memory_mb": report.memory_mb,
        "billed_seconds": report.billed_ms / 1000,
    }
