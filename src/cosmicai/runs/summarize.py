"""From parts to the product: the catalogue, and a summary that counts every galaxy against the plan."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from msgspec import UNSET, structs

from ..errors import describe_os_errors
from ..storage import atomic_write, sha256
from ..storage.parallel import map_in_order
from ..storage.s3 import reader_threads
from ..surveys.identity import count_duplicates
from ..surveys.quality import Flag
from .catalogue import read_catalogue_objids, write_catalogue
from .cost import cost_of_run
from .figures import plot_redshifts
from .metrics import compute_metrics
from .part import DamagedPartError
from .plan import Plan, WorkItem
from .store import RunFolder
from .summary import Summary, SummaryMetrics, Totals, add_up, count_coverage
from .summary_text import describe_weights


def summarize(run: RunFolder) -> Summary:
    """Write catalogue, plot, published outputs and summary.json from the parts that exist, and return the summary.

    A record or part that is damaged is left out and named in the summary; such a part is set aside, so that its item is
    done again by --resume. Raises InputError if a part is of another plan.
    """
    left_out: list[str] = []
    plan, parts, records = run.plan(), run.parts(), run.records(left_out.append)
    weights = plan.weights_file
    items = [item for item in plan.items if item in parts]
    try:
        phot, spec, flag = write_catalogue(run, plan, items)
    except DamagedPartError:
        parts -= _set_aside_damaged(run, plan, items, left_out)
        items = [item for item in items if item in parts]
        phot, spec, flag = write_catalogue(run, plan, items)
    flagged = {bit.name: int(np.count_nonzero(flag & bit)) for bit in Flag if bit.name}
    duplicates = count_duplicates(partial(read_catalogue_objids, run))
    coverage = structs.replace(count_coverage(plan, parts), flagged=flagged, duplicate_objid=duplicates.ids)
    metrics = compute_metrics(phot, spec)
    with atomic_write(run.plot_path) as temporary, describe_os_errors(run.plot_path, "write"):
        plot_redshifts(temporary, phot, spec, metrics, describe_weights(weights.label, weights.sha256))
    totals, reported = add_up(records.values()), SummaryMetrics.from_metrics(metrics) if metrics else None
    cost = cost_of_run(records.values(), run.functions(left_out.append), run.invocations())
    summary = Summary(
        complete=coverage.complete,
        coverage=coverage,
        metrics=reported,
        totals=totals,
        cost=cost,
        machines=tuple(sorted({record.machine for record in records.values()})),
        failures=tuple(run.failures(left_out.append)),
        plan_sha256=plan.digest,
        catalogue_sha256=sha256(run.catalogue_path),
        catalogue=run.catalogue_path,
        plot=run.plot_path,
        weights=weights.label,
        weights_sha256=weights.sha256,
        left_out=tuple(left_out) or UNSET,
        survey_check=plan.survey_check or UNSET,
    )
    # The record of an attempt that was killed at once would look like a rank without speed in the published files.
    published = [record for record in records.values() if record.galaxies]
    run.write_json(run.combined_path, list(map_in_order(run.write_published, published, reader_threads(run.uri))))
    run.write_json(run.results_path, published_results(plan, totals, reported))
    run.write_json(run.summary_path, summary)
    return summary


def _set_aside_damaged(run: RunFolder, plan: Plan, items: list[WorkItem], left_out: list[str]) -> set[WorkItem]:
    """Set the damaged parts of these items aside, name each in `left_out`, and return their items."""
    damaged = set()
    for item in items:
        try:
            run.read_part(plan, item)
        except DamagedPartError as error:
            run.set_aside_part(item)
            left_out.append(str(error).partition(";")[0] + "; it was set aside, finish the run with --resume")
            damaged.add(item)
    return damaged


def published_results(plan: Plan, totals: Totals, metrics: SummaryMetrics | None) -> dict[str, Any]:
    """Return Results.json with the keys of both published variants of it, so that the readers of both work."""
    per_batch = totals.working_seconds / totals.batches if totals.batches else 0.0
    on_gpu = plan.device == "cuda"
    return {
        "total execution time": totals.working_seconds,
        "throughput": totals.throughput_bps,
        "average execution time (milliseconds) per batch": per_batch * 1000,
        "total cpu time (second)": totals.cpu_seconds,
        "total gpu time (second)": totals.working_seconds if on_gpu else 0.0,
        "execution time per batch (second)": per_batch,
        "cpu memory (MB)": totals.peak_rss_mb,
        "gpu memory (MB)": totals.peak_gpu_mb,
        "throughput(bps)": totals.throughput_bps,
        "batch size": plan.batch_size,
        "number of batches": totals.batches,
        "device": plan.device,
        "MAE": metrics and metrics.mae,
        "MSE": metrics and metrics.mse,
        "Bias": metrics and metrics.bias,
        "Precision": metrics and metrics.precision,
        "R2": metrics and metrics.r2,
    }
