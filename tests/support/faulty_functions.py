"""The image's functions with the faults that a test injects (fault_orders.py) in the folder COSMICAI_TEST_ORDERS."""

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

# Seconds that are left after the first request: too few to start another item, and too few to complete one.
LEFT = {"hurry": 3.0, "run late": 0.0}


WRITE_PART = RunFolder.write_part


class ShortenedContext:
    """A context that reports so many seconds left from the second request on."""

    def __init__(self, context: Any, seconds: float) -> None:
        self._context, self._seconds, self._was_requested = context, seconds, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def get_remaining_time_in_millis(self) -> float:
        """Return the true time at the first request, and the shortened one afterwards."""
        self._was_requested, first = True, not self._was_requested
        return float(self._context.get_remaining_time_in_millis() if first else self._seconds * 1000)


def initialize(event: dict[str, Any], context: Any) -> Any:
    """Run the image's function with the injected fault, if any."""
    return _run_with_fault("initialize", event, context)


def infer(event: dict[str, Any], context: Any) -> Any:
    """Run the image's function with the injected fault, if any."""
    return _run_with_fault("infer", event, context)


def summarize(event: dict[str, Any], context: Any) -> Any:
    """Run the image's function with the injected fault, if any."""
    return _run_with_fault("summarize", event, context)


def _write_part_and_die(run: RunFolder, plan: Plan, item: WorkItem, part: Part) -> bool:
    WRITE_PART(run, plan, item, part)
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def _run_with_fault(function: str, event: dict[str, Any], context: Any) -> Any:
    fault, _, detail = (
        take_fault(Path(os.environ["COSMICAI_TEST_ORDERS"]), function, event, FUNCTION_FAULTS) or ""
    ).partition(": ")
    if fault == "raise":
        raise RuntimeError("this fault was injected")
    if fault == "sleep":
        time.sleep(3600)  # until its time limit
    if fault == "kill":  # as Lambda does when a function exceeds its memory
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "kill midway":
        RunFolder.write_part = _write_part_and_die  # type: ignore[assignment, method-assign]
    if fault == "also":  # the share of another rank
        event = event | {"DATA_PATH": [event["DATA_PATH"], detail]}
    if fault in ("delete first", "truncate first"):
        path = f"s3://{event['DATA_BUCKET']}/{event['DATA_PATH']}"
        data = storage.read_bytes(path)
        storage.remove(path)
        if fault == "truncate first":
            storage.write_bytes(path, data[: len(data) // 2])
    result = getattr(handlers, function)(event, ShortenedContext(context, LEFT[fault]) if fault in LEFT else context)
    if fault == "forget the items":
        storage.remove(f"s3://{result['items']['bucket']}/{result['items']['key']}")
    if fault == "kill after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result
