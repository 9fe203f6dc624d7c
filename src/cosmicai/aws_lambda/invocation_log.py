"""What all our functions on Lambda do when they are called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from ..ranks.invocation import Invocation
from ..runs.record import process_age
from ..runs.store import RunFolder
from ..storage.s3 import Requests


def announced(name: str, run: RunFolder, context: Any, rank: int | None = None) -> Invocation:
    """The call that Lambda's context describes, announced in the log in one line by which its REPORT is found."""
    invocation = Invocation.of(context, process_age())
    line = {"cosmicai": name, "run": run.uri, "rank": rank, "request_id": invocation.request_id}
    print(json.dumps(line), flush=True)
    return invocation


@contextmanager
def noted(name: str, run: RunFolder, context: Any) -> Iterator[None]:
    """Announces a call of a function that is no rank; once it has ended well the run folder says what it took."""
    begun, requests = datetime.now(UTC).isoformat(), Requests()
    invocation = announced(name, run, context)
    yield
    note = {"function": name, "started_at": begun, "lambda": invocation.record(), "s3_requests": dict(requests.sent)}
    run.write_function(name, note)
