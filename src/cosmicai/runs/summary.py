"""From parts to the product: the catalogue, and an account of it that counts every galaxy against the plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from math import isfinite
from typing import Any

import numpy as np

from ..errors import explained
from ..storage import replacing, sha256
from ..storage.parallel import in_order
from ..storage.s3 import requests_at_once
from ..surveys.quality import Flag
from .catalogue import write_catalogue
from .cost import cost_of_run
from .figures import plot_redshifts
from .metrics import Metrics, measure
from .plan import Plan, WorkItem
from .record import BITS_PER_GALAXY
from .store import RunFolder

LISTED = 20  # missing items named in the summary


def summarize(run: RunFolder) -> dict[str, Any]:
    """Writes catalogue, plot, published outputs and summary.json from whatever is done, and returns the summary.

    `complete` is true only if every galaxy of the plan is in the catalogue exactly once.
    Raises InputError if a part is damaged.
    """
    plan, parts, records = run.plan(), run.parts(), run.records()
    items = [item for item in plan.items if item in parts]
    coverage = count_coverage(plan, parts)
    phot, spec, flag = write_catalogue(run, plan, items)
    coverage["flagged"] = {bit.name: int(np.count_nonzero(flag & bit)) for bit in Flag if bit.name}
    metrics = measure(phot, spec)
    with replacing(run.plot_path) as beside, explained(run.plot_path, "write"):
        plot_redshifts(beside, phot, spec, metrics)
    totals = add_up(records.values())
    summary = {
        "complete": coverage["done"] == coverage["asked"] and not coverage["duplicate"],
        "coverage": coverage,
        "metrics": metrics and {name: _or_null(value) for name, value in asdict(metrics).items()},
        "totals": totals,
        "cost": cost_of_run(records.values(), run.functions(), run.invocations()),
        "machines": sorted({machine_of(record) for record in records.values()}),
        "failures": run.failures(),
        "plan_sha256": plan.digest,
        "catalogue_sha256": sha256(run.catalogue_path),
        "catalogue": run.catalogue_path,
        "plot": run.plot_path,
    }
    # An attempt that was killed at once would be a rank of no speed to whoever reads the published files.
    of_ranks = [record for record in records.values() if record["galaxies"]]
    run.write_json(run.combined_path, list(in_order(run.write_published, of_ranks, requests_at_once(run.uri))))
    run.write_json(run.results_path, published_results(plan, totals, metrics))
    run.write_json(run.summary_path, summary)
    return summary


def count_coverage(plan: Plan, parts: set[WorkItem]) -> dict[str, Any]:
    """Galaxies asked for, done, missing, and in the catalogue more than once; and parts that the plan does not know."""
    missing = [item for item in plan.items if item not in parts]
    done = sorted(item for item in plan.items if item in parts)
    duplicate, reached = 0, (-1, 0)
    for item in done:
        if item.shard == reached[0]:
            duplicate += max(0, min(reached[1], item.stop) - item.start)
        reached = max(reached, (item.shard, item.stop))
    return {
        "asked": plan.galaxies,
        "done": sum(item.galaxies for item in done) - duplicate,
        "missing": sum(item.galaxies for item in missing),
        "duplicate": duplicate,
        "missing_items": [item.name for item in missing[:LISTED]],
        "unplanned_parts": len(parts) - len(done),
    }


def add_up(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Times and memory of all ranks and attempts.

    Wall time is that in which any rank was there, working time that in which any rank was between its first read and
    its last write; pauses between attempts count for neither. The rate is galaxies over working time.
    """
    everyone = list(records)
    galaxies = sum(rank["galaxies"] for rank in everyone)
    working = covered_seconds((rank["working_at"], rank["updated_at"]) for rank in everyone)
    per_second = galaxies / working if working else 0.0
    return {
        "attempts": max((rank["attempt"] for rank in everyone), default=0),
        "ranks": max((rank["world_size"] for rank in everyone), default=0),
        "galaxies": galaxies,
        "repeated": sum(rank["repeated"] for rank in everyone),
        "batches": sum(rank["num_batches"] for rank in everyone),
        "wall_seconds": covered_seconds((rank["started_at"], rank["updated_at"]) for rank in everyone),
        "working_seconds": working,
        "cpu_seconds": sum(rank["total_cpu_time (seconds)"] for rank in everyone),
        "galaxies_per_second": per_second,
        "throughput_bps": per_second * BITS_PER_GALAXY,
        "peak_rss_mb": max((rank["peak_rss_mb"] for rank in everyone), default=0.0),
        "peak_gpu_mb": max((rank["peak_gpu_mb"] for rank in everyone), default=0.0),
    }


def covered_seconds(spans: Iterable[tuple[str, str]]) -> float:
    """Seconds that lie in at least one of these spans, each from one ISO 8601 time to another."""
    total, reached = 0.0, None
    for begun, ended in sorted(tuple(map(datetime.fromisoformat, span)) for span in spans):
        begun = begun if reached is None else max(begun, reached)
        if ended > begun:
            total, reached = total + (ended - begun).total_seconds(), ended
    return total


def published_results(plan: Plan, totals: dict[str, Any], metrics: Metrics | None) -> dict[str, Any]:
    """Results.json with the keys of both published variants of it, so that either reader works."""
    per_batch = totals["working_seconds"] / totals["batches"] if totals["batches"] else 0.0
    on_gpu = plan.device == "cuda"
    return {
        "total execution time": totals["working_seconds"],
        "throughput": totals["throughput_bps"],
        "average execution time (milliseconds) per batch": per_batch * 1000,
        "total cpu time (second)": totals["cpu_seconds"],
        "total gpu time (second)": totals["working_seconds"] if on_gpu else 0.0,
        "execution time per batch (second)": per_batch,
        "cpu memory (MB)": totals["peak_rss_mb"],
        "gpu memory (MB)": totals["peak_gpu_mb"],
        "throughput(bps)": totals["throughput_bps"],
        "batch size": plan.batch_size,
        "number of batches": totals["batches"],
        "device": plan.device,
        "MAE": metrics and metrics.mae,
        "MSE": metrics and metrics.mse,
        "Bias": metrics and metrics.bias,
        "Precision": metrics and metrics.precision,
        "R2": metrics and _or_null(metrics.r2),
    }


def _or_null(value: float) -> float | None:
    """JSON has no NaN: R2 is none where all spectroscopic redshifts are the same."""
    return value if isfinite(value) else None


def machine_of(record: Mapping[str, Any]) -> str:
    """Processor and GPU of a rank, its threads, and what computed in which precision."""
    gpu = f", {record['gpu_model']}" if record["gpu_model"] else ""
    return f"{record['cpu_model']}{gpu}, {record['threads']} threads a rank, {record['engine']} {record['precision']}"
