"""The summary of a run: coverage against the plan, metrics, totals of all ranks, and cost."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict
from datetime import datetime
from math import isfinite
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType, field

from ..calibration.coverage import CoverageReport
from ..surveys.check_record import SurveyCheck
from ..surveys.survey import Count
from .cost import RunCost
from .metrics import Metrics
from .plan import Plan, WorkItem
from .record import BITS_PER_GALAXY, Failure, Record

LISTED = 20  # missing items named in a summary


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """Galaxies planned, completed, missing, and in the catalogue more than once; and galaxies by flag.

    `missing_items` names the first LISTED items that are missing; `unplanned_parts` counts parts of unknown items, and
    `duplicate_objid` the ids that several rows of the catalogue have.
    """

    planned: Count = field(name="asked")
    completed: Count = field(name="done")
    missing: Count
    duplicate: Count
    missing_items: tuple[str, ...]
    unplanned_parts: Count
    flagged: dict[str, Count] | UnsetType = UNSET
    duplicate_objid: Count | UnsetType = UNSET

    @property
    def complete(self) -> bool:
        """Whether every galaxy of the plan is in the catalogue exactly once."""
        return self.completed == self.planned and not self.duplicate


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Times and memory of all ranks and attempts; memory is in MB (2^20 bytes), that of the largest rank.

    Wall time is that in which any rank was running, working time that in which any rank was between its first read and
    its last write; pauses between attempts count for neither. The rate is galaxies over working time.
    """

    attempts: Count
    ranks: Count
    galaxies: Count
    repeated: Count
    batches: Count
    wall_seconds: float
    working_seconds: float
    cpu_seconds: float
    galaxies_per_second: float
    throughput_bps: float
    peak_rss_mb: float
    peak_gpu_mb: float


class SummaryMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of `galaxies` galaxies (see `runs.metrics`); JSON has no NaN, so what is undefined is None."""

    galaxies: Count
    mae: float | None
    mse: float | None
    bias: float | None
    precision: float | None
    r2: float | None
    outliers: float | None

    @staticmethod
    def from_metrics(metrics: Metrics) -> SummaryMetrics:
        """Return metrics as a summary holds them."""
        values: dict[str, Any] = {name: value if isfinite(value) else None for name, value in asdict(metrics).items()}
        return SummaryMetrics(**values)


class Intervals(msgspec.Struct, frozen=True, kw_only=True):
    """What calibrated the intervals, in words, and their coverage, None without spectroscopic redshifts."""

    calibrated_on: str
    survey: str
    survey_digest: str
    galaxies: Count
    coverage: CoverageReport | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `summary.json`.

    `weights` is what people call the weights, with the word "synthetic" for those of the demo. `left_out` names damaged
    files that the totals do not include, and `unchecked_parts` counts parts of the first version, which could not be
    compared with a digest. `catalogue_sha256` is that of all values of the catalogue (see `CatalogueFacts`). Without a
    calibration there are no intervals. Summaries of earlier versions have no weights.
    """

    complete: bool
    coverage: Coverage
    metrics: SummaryMetrics | None
    totals: Totals
    cost: RunCost | None
    machines: tuple[str, ...]
    failures: tuple[Failure, ...]
    plan_sha256: str
    catalogue_sha256: str
    catalogue: str
    plot: str
    weights: str | UnsetType = UNSET
    weights_sha256: str | UnsetType = UNSET
    left_out: tuple[str, ...] | UnsetType = UNSET
    unchecked_parts: Count | UnsetType = UNSET
    slurm: dict[str, Any] | UnsetType = UNSET
    survey_check: SurveyCheck | UnsetType = UNSET
    intervals: Intervals | UnsetType = UNSET


def count_coverage(plan: Plan, parts: Collection[WorkItem]) -> Coverage:
    """Return how many galaxies of the plan these parts hold, without flags."""
    missing = [item for item in plan.items if item not in parts]
    done = sorted(item for item in plan.items if item in parts)
    duplicate, last = 0, (-1, 0)  # shard and row up to which parts reach
    for item in done:
        if item.shard == last[0]:
            duplicate += max(0, min(last[1], item.stop) - item.start)
        last = max(last, (item.shard, item.stop))
    return Coverage(
        planned=plan.galaxies,
        completed=sum(item.galaxies for item in done) - duplicate,
        missing=sum(item.galaxies for item in missing),
        duplicate=duplicate,
        missing_items=tuple(item.name for item in missing[:LISTED]),
        unplanned_parts=len(parts) - len(done),
    )


def add_up(records: Collection[Record]) -> Totals:
    """Return the totals of these records."""
    galaxies = sum(record.galaxies for record in records)
    working = covered_seconds((record.working_at, record.updated_at) for record in records)
    per_second = galaxies / working if working else 0.0
    return Totals(
        attempts=max((record.attempt for record in records), default=0),
        ranks=max((record.world_size for record in records), default=0),
        galaxies=galaxies,
        repeated=sum(record.repeated for record in records),
        batches=sum(record.batches for record in records),
        wall_seconds=covered_seconds((record.started_at, record.updated_at) for record in records),
        working_seconds=working,
        cpu_seconds=sum(record.cpu_seconds for record in records),
        galaxies_per_second=per_second,
        throughput_bps=per_second * BITS_PER_GALAXY,
        peak_rss_mb=max((record.peak_rss_mb for record in records), default=0.0),
        peak_gpu_mb=max((record.peak_gpu_mb for record in records), default=0.0),
    )


def covered_seconds(spans: Iterable[tuple[str, str]]) -> float:
    """Return the seconds that lie in at least one of these spans, each from one ISO 8601 time to another."""
    total, last = 0.0, None
    for begin, end in sorted((datetime.fromisoformat(begin), datetime.fromisoformat(end)) for begin, end in spans):
        begin = begin if last is None else max(begin, last)
        if end > begin:
            total, last = total + (end - begin).total_seconds(), end
    return total
