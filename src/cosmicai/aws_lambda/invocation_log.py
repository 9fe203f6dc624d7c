"""Announce every invocation in the log, and note in the run folder what planning and summarizing it took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import field

from ..errors import InputError
from ..ranks.invocation import Invocation
from ..records import decode_json
from ..runs.provenance import process_age
from ..runs.record import FunctionNote
from ..runs.store import RunFolder
from ..storage.s3 import RequestStatistics


class Announcement(msgspec.Struct, frozen=True):
    """The first line of an invocation in the log, by which its REPORT line is found."""

    function: str = field(name="cosmicai")
    run: str
    rank: int | None
    request_id: str


def announce(function: str, run: RunFolder, context: Any, rank: int | None = None) -> Invocation:
    """Return the invocation that Lambda's context describes, and announce it in one line of the log."""
    invocation = Invocation.from_context(context, process_age())
    line = Announcement(function, run.uri, rank, invocation.request_id)
    print(json.dumps(msgspec.to_builtins(line)), flush=True)
    return invocation


def parse_announcement(line: str) -> Announcement | None:
    """Return the announcement in a line of the log, None if the line is another."""
    if not line.startswith('{"cosmicai"'):
        return None
    try:
        return decode_json(line, Announcement, where="the log's line", remedy="get the log again")
    except InputError:
        return None


@contextmanager
def note_invocation(function: Literal["initialize", "summarize"], run: RunFolder, context: Any) -> Iterator[None]:
    """Announce an invocation that is not one of a rank, and note its cost in the run folder if the block succeeds."""
    started_at, requests = datetime.now(UTC).isoformat(), RequestStatistics()
    invocation = announce(function, run, context)
    yield
    run.write_function(
        FunctionNote(
            function=function, started_at=started_at, invocation=invocation.record(),
            s3_requests=dict(requests.counts),
        )
    )  # fmt: skip
