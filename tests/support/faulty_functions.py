"""The image's functions, which go wrong where a test has ordered it (orders.py); COSMICAI_TEST_ORDERS is the folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import handlers

from cosmicai import storage
from cosmicai.runs.part import Part
from cosmicai.runs.plan import Plan, WorkItem
from cosmicai.runs.store import RunFolder
from support.fault_orders import FUNCTION_FAULTS, take_fault

# Seconds that are left after the first question: too few to begin another item, and too few to end one.
LEFT = {"hurry": 3.0, "run late": 0.0}


WRITE_PART = RunFolder.write_part


class Hurried:
    """A context that after the first question says that so many seconds are left."""

    def __init__(self, context: Any, seconds: float) -> None:
        self._context, self._seconds, self._asked = context, seconds, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def get_remaining_time_in_millis(self) -> float:
        """As Lambda's, of which the first answer is the true one."""
        self._asked, first = True, not self._asked
        return float(self._context.get_remaining_time_in_millis() if first else self._seconds * 1000)


def initialize(event: dict[str, Any], context: Any) -> Any:
    """The image's, if it is not to go wrong."""
    return _obeying("initialize", event, context)


def infer(event: dict[str, Any], context: Any) -> Any:
    """The image's, if it is not to go wrong."""
    return _obeying("infer", event, context)


def summarize(event: dict[str, Any], context: Any) -> Any:
    """The image's, if it is not to go wrong."""
    return _obeying("summarize", event, context)


def _write_part_and_die(run: RunFolder, plan: Plan, item: WorkItem, part: Part) -> bool:
    WRITE_PART(run, plan, item, part)
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def _obeying(function: str, event: dict[str, Any], context: Any) -> Any:
    what, _, more = (take_fault(Path(os.environ["COSMICAI_TEST_ORDERS"]), function, event, FUNCTION_FAULTS) or "").partition(
        ": "
    )
    if what == "raise":
        raise RuntimeError("this was ordered")
    if what == "sleep":
        time.sleep(3600)  # its time limit ends it
    if what == "kill":  # as Lambda does when a function takes more memory than it has
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "kill midway":
        RunFolder.write_part = _write_part_and_die  # type: ignore[method-assign]
    if what == "also":  # what another rank has to do
        event = event | {"DATA_PATH": [event["DATA_PATH"], more]}
    if what in ("delete first", "truncate first"):
        path = f"s3://{event['DATA_BUCKET']}/{event['DATA_PATH']}"
        data = storage.read_bytes(path)
        storage.remove(path)
        if what == "truncate first":
            storage.write_bytes(path, data[: len(data) // 2])
    answer = getattr(handlers, function)(event, Hurried(context, LEFT[what]) if what in LEFT else context)
    if what == "forget the items":
        storage.remove(f"s3://{answer['items']['bucket']}/{answer['items']['key']}")
    if what == "kill after":
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
