"""A log of CloudWatch: what Lambda billed for each invocation, and for which run it was.

Between the START of an invocation and its REPORT the published function prints what it `received:`, which names the
run (RESULT_PATH) and the rank. What Lambda says of itself is read by `cosmicai.runs.lambda_report`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from cosmicai.runs.lambda_report import Report, parse_reports

from ..tables import Found, LeftOut, Measured, Row
from .combined import settings_of_path
from .durations import LAMBDA
from .source import Source
from .values import text, whole

_START = re.compile(r"(?:(\d{4}-\d\d-\d\d[T ]\S+)\s.*)?START RequestId: (\S+)")
_RECEIVED = re.compile(r"received:\s+(\{.*\})\s*$")


def matches(source: Source) -> bool:
    """Whether a file is of this kind, by its text."""
    return source.name.endswith((".txt", ".log")) and "REPORT RequestId:" in source.text


def read(source: Source) -> Found:
    """A run for each RESULT_PATH, a rank for each invocation. Raises InputError if a report is cut off."""
    lines = source.text.splitlines()
    told = payloads(lines)
    runs: dict[str, tuple[Row, list[Row]]] = {}
    left_out: list[LeftOut] = []
    for report in parse_reports(lines):
        try:
            if report.request_id not in told:
                raise ValueError("the log does not say clearly for which run it was")
            started, payload = told[report.request_id]
            path, row = text(payload, "RESULT_PATH"), rank_row(report, started, payload)
            run, ranks = runs.setdefault(path, (run_row(source, path, payload), []))
            if run["world_size"] != (asked := whole(payload, "WORLD_SIZE")):
                raise ValueError(f"it is of another run: of {asked} ranks, the first of {path} of {run['world_size']}")
            ranks.append(row)
        except ValueError as error:
            left_out.append(LeftOut(source.uri, str(error), f"invocation {report.request_id}"))
    return Found(tuple(Measured(run, tuple(ranks)) for run, ranks in runs.values()), tuple(left_out))


def payloads(lines: Iterable[str]) -> dict[str, tuple[str | None, dict[str, Any]]]:
    """When invocations started and what they received, by request; not of those whose lines are mixed with others'."""
    found: dict[str, tuple[str | None, dict[str, Any]]] = {}
    under_way: dict[str, str | None] = {}
    for line in lines:
        if start := _START.match(line):
            under_way[start[2]] = start[1]
        elif (received := _RECEIVED.search(line)) and len(under_way) == 1:
            ((request, started),) = under_way.items()
            with suppress(SyntaxError, ValueError):
                found[request] = started, ast.literal_eval(received[1])
        elif "REPORT RequestId:" in line:
            under_way.pop(line.partition("REPORT RequestId:")[2].split()[0], None)
    return found


def run_row(source: Source, path: str, payload: dict[str, Any]) -> Row:
    """The run that wrote to a RESULT_PATH."""
    return LAMBDA | settings_of_path(path.split("/")) | {
        "run": f"{source.stem}/{path}",
        "source": source.uri,
        "kind": "log",
        "world_size": whole(payload, "WORLD_SIZE"),
        "asked_ranks": whole(payload, "WORLD_SIZE"),
    }  # fmt: skip


def rank_row(report: Report, started: str | None, payload: dict[str, Any]) -> Row:
    """An invocation: what it worked on, and what Lambda says of it."""
    return {
        "rank": whole(payload, "RANK"),
        "item": text(payload, "DATA_PATH"),
        "state": report.status or "finished",
        "started_at": started,
        "ended_at": report.at,
        "batch_size": whole(payload, "BATCH_SIZE"),
        "start_seconds": None if report.init_ms is None else report.init_ms / 1000,
        "peak_rss_mb": report.max_memory_mb,
        "memory_mb": report.memory_mb,
        "billed_seconds": report.billed_ms / 1000,
    }
