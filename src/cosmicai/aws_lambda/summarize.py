"""The function that writes the catalogue of a run and decides whether the run is complete."""

from __future__ import annotations

from typing import Any

import msgspec

from ..runs.store import RunFolder
from ..runs.summarize import summarize as summarize_run
from ..runs.summary import Coverage, count_coverage
from .events import SummaryRequest, read_summary_request
from .invocation_log import note_invocation
from .published_results import combine, count_results, read_other_results, read_results


class RunIncomplete(Exception):
    """More galaxies are missing than is tolerated."""


def summarize(event: Any, context: Any) -> dict[str, Any]:
    """Write catalogue, summary and published outputs of a run from what is done, and return its coverage.

    The event is {"plan": the result of initialize, "execution": {...}} from this program's state machine, the published
    payload, or the answer of the published initializer. Without a plan the published records are counted and combined;
    so are those of ranks that the published worker inferred, for which there are no redshifts. Raises RunIncomplete, by
    which the execution fails, if more is missing than is tolerated. An execution that is started again after that (a
    redrive) continues here, where it failed: `again` then sends it back to infer, once per redrive.
    """
    request = read_summary_request(event)
    run, execution = request.location.run, request.execution
    with note_invocation("summarize", run, context):
        if not run.has_plan():
            return _combine_results(request.location.results)
        redrives = execution.redrive_count
        if redrives and not run.complete_summary() and run.claim_redrive(execution.name, redrives):
            plan = event.get("plan", event)
            return {key: value for key, value in plan.items() if key != "failure"} | {"again": True}
        answer, missing = _summarize_planned(request)
    if missing:
        raise RunIncomplete(missing)
    return answer


def _summarize_planned(request: SummaryRequest) -> tuple[dict[str, Any], str]:
    """Write what can be written of a run that has a plan; return its coverage, and what is missing if that is too much.

    What the published worker has done is not missing, although there are no redshifts for it.
    """
    run, results = request.location.run, request.location.results
    plan, parts = run.plan(), run.parts()
    coverage = count_coverage(plan, parts)
    others = read_other_results(results, run) if coverage.missing else {}
    records, galaxies = count_results(others)
    written: dict[str, Any] = {}
    is_complete, reasons = False, list[str]()
    if parts or not others:
        summary = summarize_run(run, results, others)
        coverage, is_complete = summary.coverage, summary.complete
        reasons = [f"{failed.item}: {failed.reason}" for failed in summary.failures[:3]]
        written = {"summary": run.summary_path, "catalogue": run.catalogue_path}
    else:
        combine(results, others)
    if others:
        notice = (
            f"{records} published records of ranks that another program inferred hold {galaxies} galaxies, for which "
            "there are no redshifts for a catalogue"
        )
        reasons.append(notice)
        written |= {"results": records, "galaxies": galaxies, "combined": results.combined_path, "notices": [notice]}
    if request.failure:
        reasons.append(f"the map ended with {request.failure.error}")
    counts = {name: count for name, count in msgspec.to_builtins(coverage).items() if name != "missing_items"}
    answer = {"again": False, "complete": is_complete, "run": run.uri, "coverage": counts, **written}
    tolerated = coverage.planned * request.tolerated_percentage / 100
    if is_complete or coverage.missing - galaxies <= tolerated:
        return answer, ""
    return answer, "; ".join([_describe_missing(run, coverage), *reasons])


def _combine_results(results: RunFolder) -> dict[str, Any]:
    """Combine the published records of ranks that another initializer planned, and return their numbers."""
    found = read_results(results)
    combine(results, found)
    records, galaxies = count_results(found)
    notice = (
        f"counted {records} published records in {results.uri}/; there is no plan, so that it is not known how many "
        "there should be"
    )
    return {
        "statusCode": 200,
        "results": records,
        "galaxies": galaxies,
        "combined": results.combined_path,
        "notices": [notice],
    }


def _describe_missing(run: RunFolder, coverage: Coverage) -> str:
    items = ", ".join(coverage.missing_items)
    return f"{run.uri}: {coverage.missing} of {coverage.planned} galaxies are missing, in the items {items}"
