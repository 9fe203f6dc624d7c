"""The function that makes the catalogue of a run, and says whether it is all."""

from __future__ import annotations

import json
import re
from typing import Any

from .. import storage
from ..errors import InputError
from ..runs.store import RunFolder
from ..runs.summary import summarize as summarize_run
from ..storage.parallel import in_order
from ..storage.s3 import requests_at_once
from .invocation_log import noted


class RunIncomplete(Exception):
    """More galaxies are missing than were to be tolerated."""


def summarize(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Makes catalogue, summary and published outputs of a run from whatever is done, and returns its coverage.

    The event is {"plan": initialize's answer, "execution": {...}} of our state machine, or the published payload, of
    which `bucket` and `result_path` count. Raises RunIncomplete, by which the execution fails, if more is missing than
    is tolerated. An execution that was started again after that (a redrive) comes here first, since it goes on where
    it failed: it is told to infer `again`, once for each redrive.
    """
    plan = event.get("plan", event)
    uri = plan["run"] if "run" in plan else _published_run(plan)
    run = RunFolder(storage.absolute(uri))
    execution = event.get("execution", {})
    with noted("summarize", run, context):
        if not run.has_plan():
            return _combined(run)
        redrives = execution.get("RedriveCount", 0)
        if redrives and not run.complete_summary() and run.claim_redrive(execution["Name"], redrives):
            return {key: value for key, value in plan.items() if key != "failure"} | {"again": True}
        summary = summarize_run(run)
    coverage = summary["coverage"]
    tolerated = plan.get("tolerated_failure_percentage") or 0.0
    if not summary["complete"] and coverage["missing"] > coverage["asked"] * tolerated / 100:
        raise RunIncomplete(_what_is_missing(run, summary, plan.get("failure")))
    return {
        "again": False,
        "complete": summary["complete"],
        "run": run.uri,
        "coverage": {name: count for name, count in coverage.items() if name != "missing_items"},
        "summary": run.summary_path,
        "catalogue": run.catalogue_path,
    }


def _published_run(event: dict[str, Any]) -> str:
    if missing := [name for name in ("bucket", "result_path") if not event.get(name)]:
        raise InputError(f"the event has no {missing[0]}; expected bucket and result_path")
    return f"s3://{event['bucket']}/{str(event['result_path']).strip('/')}"


def _combined(run: RunFolder) -> dict[str, Any]:
    """The results of ranks that were planned by another initializer, in one file; nothing says how many there are."""
    names = [entry.name for entry in storage.list_files(run.uri)]
    results = [name for name in names if re.fullmatch(r"\d+(-\d+)?\.json", name)]
    read = in_order(storage.read_bytes, (run.path(name) for name in results), requests_at_once(run.uri))
    run.write_json(run.combined_path, [json.loads(data) for data in read])
    return {"statusCode": 200, "results": len(results), "combined": run.combined_path}


def _what_is_missing(run: RunFolder, summary: dict[str, Any], failure: dict[str, Any] | None) -> str:
    coverage = summary["coverage"]
    named = ", ".join(coverage["missing_items"])
    text = f"{run.uri}: {coverage['missing']} of {coverage['asked']} galaxies are missing, in the items {named}"
    reasons = [f"{noted['item']}: {noted['reason']}" for noted in summary["failures"][:3]]
    if failure:
        reasons.append(f"the map ended with {failure.get('Error')}")
    return "; ".join([text, *reasons])
