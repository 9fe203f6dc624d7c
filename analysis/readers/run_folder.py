"""Read a run folder of this project: its plan, parts, records and summary."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
from msgspec import UNSET

from cosmicai.calibration.records import INTERVAL_LEVELS
from cosmicai.errors import InputError
from cosmicai.models.weights import DEMO, SHORT_DIGEST
from cosmicai.ranks.environment import CONTAINER_CLUSTERS
from cosmicai.ranks.invocation import InvocationRecord
from cosmicai.runs.catalogue.reading import read_catalogue_objids
from cosmicai.runs.prices import billed_seconds
from cosmicai.runs.record import PHASES, Record
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summary import Intervals, Summary, count_coverage
from cosmicai.runs.summary_text import describe_weights
from cosmicai.storage.s3 import is_s3
from cosmicai.surveys.check_record import describe_check
from cosmicai.surveys.identity import count_duplicates

from ..tables import (
    GALAXY_BYTES,
    GB,
    ONE_MACHINE,
    RANK_TYPES,
    SEVERAL_MACHINES,
    VIEWS,
    LeftOut,
    MeasuredRun,
    Row,
    SourceContents,
    validate_row,
)
from .source import Source
from .values import parse_time

SLURM = ("slurm", "slurm-array")  # platforms of records
LAUNCHED = ("local", "mpi")  # platforms that may run inside a SLURM job
ALONE = (*LAUNCHED, "torchrun", "alone")  # platforms of ranks that know of no cluster
_METRICS = {"mae": "mae", "mse": "mse", "bias": "bias", "nmad": "precision", "r2": "r2", "outliers": "outliers"}
# Decoding a record has validated the types of all values, but not the size of these.
_COUNTS = ("rank", "attempt", "galaxies", "batches", "batch_size", "s3_requests", "memory_mb")
_JOB = re.compile(r"[0-9]+(_[0-9]+)?")
T = TypeVar("T")


def matches(source: Source) -> bool:
    """Return whether a file is of this kind, by its name."""
    return source.file == "plan.json"


def read(source: Source) -> SourceContents:
    """Return the run to which the plan belongs; damaged records of ranks are left out.

    A run without a summary is still running, or was interrupted: its times are not known. Raises InputError or
    ValueError if the plan, the summary or invocations.json is damaged.
    """
    run = RunFolder(source.uri.removesuffix("/plan.json"))
    plan, summary = run.plan(), run.summary()
    coverage = count_coverage(plan, run.parts())
    left_out: list[LeftOut] = []
    notify = _collect_problems(source, left_out)
    billed = {report.request_id: report.billed_ms / 1000 for report in run.invocations()}
    ranks: list[Row] = []
    records: list[Record] = []
    for name, record in run.records(notify).items():
        try:
            row = build_rank_row(record, billed)
            validate_row({name: row[name] for name in _COUNTS}, RANK_TYPES)
        except ValueError as error:
            left_out.append(LeftOut(source.uri, str(error), f"record {name}"))
            continue
        ranks.append(row)
        records.append(record)
    if summary is None:
        done = f"{coverage.completed:,} of {coverage.planned:,} galaxies are completed"
        left_out.append(
            LeftOut(source.uri, f"the run has no summary yet: {done}, it may still be running", "its times")
        )
    if coverage.unplanned_parts:
        left_out.append(LeftOut(source.uri, "they are not in the plan", f"{coverage.unplanned_parts} parts"))
    row = _read_settings(run, records) | {
        "run": source.folder,
        "machine": "; ".join(sorted({record.machine for record in records})) or None,
        "galaxies": coverage.completed,
        "duplicate": coverage.duplicate,
        "complete": bool(summary and summary.complete) and coverage.completed == coverage.planned,
        "billed_seconds": _sum_billed_seconds(run, records, billed, notify),
        **(_read_summary(run, summary) if summary else {}),
    }
    return SourceContents((MeasuredRun(row, tuple(ranks)),), tuple(left_out))


def build_rank_row(record: Record, billed: Mapping[str, float]) -> Row:
    """Return a rank's row; `billed` are the seconds that CloudWatch reports as billed, by request ID.

    Raises ValueError if a time is out of range.
    """
    call, files = record.invocation, record.data_path
    return {
        "rank": record.rank,
        "attempt": record.attempt,
        "item": files if isinstance(files, str) else ", ".join(files),
        "host": record.host,
        "state": record.state,
        "started_at": parse_time(record.started_at),
        "ended_at": parse_time(record.updated_at),
        "galaxies": record.galaxies,
        "batches": record.batches,
        "batch_size": record.batch_size,
        "seconds": record.seconds.working,
        "cpu_seconds": record.cpu_seconds,
        **{f"{name}_seconds": getattr(record.seconds, name) for name in PHASES},
        "galaxies_per_second": record.galaxies_per_second,
        "peak_rss_mb": record.peak_rss_mb,
        "peak_gpu_mb": record.peak_gpu_mb if record.device == "cuda" else None,
        "s3_requests": sum(record.s3_requests.values()),
        "s3_seconds": None if record.s3_total_time is UNSET else record.s3_total_time,
        "memory_mb": call.memory_mb if call else None,
        "billed_seconds": _count_billed_seconds(call, billed) if call else None,
    }


def _collect_problems(source: Source, left_out: list[LeftOut]) -> Callable[[str], None]:
    """Return a function that adds the message about a damaged file of a run folder to what is left out."""

    def notify(problem: str) -> None:
        path, _, reason = problem.partition(" cannot be used: ")
        if reason:
            kind, name = path.rsplit("/", 2)[-2:]
            left_out.append(LeftOut(source.uri, reason, f"{kind.removesuffix('s')} {name.removesuffix('.json')}"))
        else:
            left_out.append(LeftOut(source.uri, problem))

    return notify


def _read_settings(run: RunFolder, records: Sequence[Record]) -> dict[str, Any]:
    """Return where and how the run was made, from its plan and records; None where records differ."""
    plan = run.plan()
    largest = max((entry.galaxies for entry in plan.shards), default=0)
    return {
        "source": run.uri,
        "origin": "ours",
        "kind": "run",
        "study": VIEWS if plan.views > 1 else "single",
        "platform": _find_platform(records),
        "site": _common_value(record.site for record in records),
        "cluster": _common_value(record.cluster for record in records),
        "threads": _common_value(record.threads for record in records),
        "device": plan.device,
        "engine": plan.engine,
        "precision": plan.precision,
        "weights": DEMO if plan.weights_file.is_demo else plan.weights_sha256[:SHORT_DIGEST],
        "weights_name": describe_weights(plan.weights_file.label, plan.weights_sha256),
        "partition_mb": round(largest * GALAXY_BYTES / 2**20, 1),
        "data_gb": plan.galaxies * GALAXY_BYTES / GB,
        "batch_size": plan.batch_size,
        "world_size": max((record.world_size for record in records), default=None),
        "asked_galaxies": plan.galaxies,
        "survey_check": plan.survey_check and describe_check(plan.survey_check),
        "git_commit": _common_value(record.git_commit for record in records),
        "image_digest": _common_value(record.image_digest for record in records),
    }


def _read_summary(run: RunFolder, summary: Summary) -> dict[str, Any]:
    """Return times, metrics, coverage of intervals and cost from the summary."""
    dollars = summary.cost.dollars if summary.cost else None
    metrics = summary.metrics
    return {
        "wall_seconds": summary.totals.wall_seconds,
        "working_seconds": summary.totals.working_seconds,
        "dollars": dollars["total"] if dollars else None,
        "duplicate_objid": _count_duplicate_ids(run, summary),
        "catalogue": run.catalogue_path,
        **({name: getattr(metrics, key) for name, key in _METRICS.items()} if metrics else {}),
        **({} if summary.intervals is UNSET else _read_intervals(summary.intervals)),
    }


def _read_intervals(intervals: Intervals) -> dict[str, Any]:
    """Return what calibrated the intervals, and their coverage where it was measured."""
    row: dict[str, Any] = {"calibrated_on": intervals.calibrated_on}
    report = intervals.coverage
    if report is None:
        return row
    row["interval_galaxies"] = report.all.galaxies
    for number, percent in enumerate(INTERVAL_LEVELS):
        row[f"coverage_{percent}"] = report.all.fractions[number]
        row[f"coverage_{percent}_error"] = report.all.errors[number]
        row[f"width_{percent}"] = report.all.widths[number]
        if outside := report.outside_domain:
            row |= {"outside_galaxies": outside.galaxies, f"outside_coverage_{percent}": outside.fractions[number]}
    return row


def _count_duplicate_ids(run: RunFolder, summary: Summary) -> int | None:
    """Return how many ids several rows of the catalogue have.

    Summaries of older runs do not state it: there the catalogue is read if it is local. None if it cannot be.
    """
    if summary.coverage.duplicate_objid is not UNSET:
        return summary.coverage.duplicate_objid
    if is_s3(run.uri):
        return None
    try:
        return count_duplicates(partial(read_catalogue_objids, run)).ids
    except (InputError, OSError, pa.ArrowException):
        return None


def _common_value(values: Iterable[T]) -> T | None:
    """Return the value that all have, or None where they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _find_platform(records: Sequence[Record]) -> str | None:
    """Return where all ranks worked; None where they differ, or where nothing says what they ran on."""
    platform = _common_value(map(_find_rank_platform, records))
    several = platform == ONE_MACHINE and len({record.host for record in records}) > 1
    return SEVERAL_MACHINES if several else platform


def _find_rank_platform(record: Record) -> str | None:
    return find_platform(record.platform, record.cluster, record.job)


def find_platform(platform: str, cluster: str | None, job: str | None) -> str | None:
    """Return where a rank worked by what its record says; None if nothing says that.

    Older records have no cluster, but of ranks in a SLURM job the number of that job.
    """
    if platform == "lambda":
        return "lambda"
    if cluster in CONTAINER_CLUSTERS.values():
        return None
    in_job = cluster is not None or (platform in LAUNCHED and _JOB.fullmatch(job or ""))
    if platform in SLURM or in_job:
        return "slurm"
    return ONE_MACHINE if platform in ALONE else None


def _count_billed_seconds(call: InvocationRecord, billed: Mapping[str, float]) -> float:
    """Return the billed seconds of an invocation: from CloudWatch, else by the function's own clock, which is less."""
    return billed.get(call.request_id) or billed_seconds(call.seconds)


def _sum_billed_seconds(
    run: RunFolder, records: Iterable[Record], billed: Mapping[str, float], notify: Callable[[str], None]
) -> float | None:
    """Return the billed seconds of all invocations of a run, with those that planned and summarized it; else None."""
    calls = [record.invocation for record in records if record.invocation]
    if not calls and not billed:
        return None
    calls += [note.invocation for note in run.functions(notify)]
    by_request = {call.request_id: _count_billed_seconds(call, billed) for call in calls}
    return sum({**by_request, **billed}.values())
