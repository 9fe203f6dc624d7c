"""The function that writes the catalogue of a run and decides whether the run is complete."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from .. import storage
from ..runs.store import RunFolder
from ..runs.summarize import summarize as summarize_run
from ..runs.summary import Summary
from ..storage.parallel import map_in_order
from ..storage.s3 import reader_threads
from .events import MapFailure, read_summary_request
from .invocation_log import note_invocation


class RunIncomplete(Exception):
    """More galaxies are missing than is tolerated."""


def summarize(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Write catalogue, summary and published outputs of a run from what is done, and return its coverage.

    The event is {"plan": the result of initialize, "execution": {...}} from this program's state machine, or the
    published payload, whose `bucket` and `result_path` matter. Raises RunIncomplete, by which the execution fails, if
    more is missing than is tolerated. An execution that is started again after that (a redrive) continues here, where
    it failed: `again` then sends it back to infer, once per redrive.
    """
    request = read_summary_request(event)
    run, execution = RunFolder(storage.absolute(request.run)), request.execution
    with note_invocation("summarize", run, context):
        if not run.has_plan():
            return _combine_results(run)
        redrives = execution.redrive_count
        if redrives and not run.complete_summary() and run.claim_redrive(execution.name, redrives):
            plan = event.get("plan", event)
            return {key: value for key, value in plan.items() if key != "failure"} | {"again": True}
        summary = summarize_run(run)
    coverage = summary.coverage
    if not summary.complete and coverage.missing > coverage.planned * request.tolerated_percentage / 100:
        raise RunIncomplete(_describe_missing(run, summary, request.failure))
    return {
        "again": False,
        "complete": summary.complete,
        "run": run.uri,
        "coverage": {name: count for name, count in msgspec.to_builtins(coverage).items() if name != "missing_items"},
        "summary": run.summary_path,
        "catalogue": run.catalogue_path,
    }


def _combine_results(run: RunFolder) -> dict[str, Any]:
    """Combine the results of ranks that another initializer planned in one file; their number is not known."""
    names = [entry.name for entry in storage.list_files(run.uri)]
    results = [name for name in names if re.fullmatch(r"\d+(-\d+)?\.json", name)]
    texts = map_in_order(storage.read_bytes, (run.path(name) for name in results), reader_threads(run.uri))
    run.write_json(run.combined_path, [json.loads(text) for text in texts])
    return {"statusCode": 200, "results": len(results), "combined": run.combined_path}


def _describe_missing(run: RunFolder, summary: Summary, failure: MapFailure | None) -> str:
    coverage = summary.coverage
    items = ", ".join(coverage.missing_items)
    text = f"{run.uri}: {coverage.missing} of {coverage.planned} galaxies are missing, in the items {items}"
    reasons = [f"{failed.item}: {failed.reason}" for failed in summary.failures[:3]]
    if failure:
        reasons.append(f"the map ended with {failure.error}")
    return "; ".join([text, *reasons])
