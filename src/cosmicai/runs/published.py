"""The published result files: the published keys of each rank, all its attempts together, and the totals of a run.

The published reading of the records of a run is the sum of `throughput_bps` times `total_cpu_time (seconds)`, over the
bits of a galaxy. It gives the number of galaxies exactly, also where processes were killed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from msgspec import UNSET

from .plan import Plan
from .record import BITS_PER_GALAXY, PublishedRates, Record, count_batches
from .summary import SummaryMetrics, Totals

OWN_KEY = "cosmicai"  # of what only this program says of a rank; the published worker's records have no such key


@dataclass(frozen=True)
class RankResult:
    """What the attempts of one rank, in their order, did together; `galaxies` are those that count as its work."""

    attempts: tuple[Record, ...]
    galaxies: int

    @property
    def rank(self) -> int:
        """Number of the rank."""
        return self.attempts[0].rank

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all attempts."""
        return sum(record.cpu_seconds for record in self.attempts)

    @property
    def started_at(self) -> str:
        """When the last attempt began."""
        return max(record.started_at for record in self.attempts)

    @property
    def unfinished(self) -> int:
        """Number of attempts that were killed, or are still at work."""
        return sum(record.state != "finished" for record in self.attempts)

    def published(self, result_path: str) -> dict[str, Any]:
        """Return the published keys of the rank, and under OWN_KEY what tells such a record from a published one."""
        last = self.attempts[-1]
        rates = PublishedRates.of(self.galaxies, self.cpu_seconds, last.batch_size)
        working = sum(record.seconds.working for record in self.attempts)
        return {
            "total_cpu_time (seconds)": self.cpu_seconds,
            "total_cpu_memory (MB)": max(record.cpu_memory_mb for record in self.attempts),
            "execution_time (seconds/batch)": rates.cpu_seconds_per_batch,
            "num_batches": count_batches(self.galaxies, last.batch_size),
            "batch_size": last.batch_size,
            "device": last.device,
            "throughput_bps": rates.throughput_bps,
            "sample_persec": rates.galaxies_per_cpu_second,
            "result_path": result_path,
            "data_path": last.data_path,
            **_merge_reads(self.attempts),
            OWN_KEY: {
                "rank": self.rank,
                "world_size": last.world_size,
                "attempts": len(self.attempts),
                "platform": last.platform,
                "cluster": last.cluster,
                "machine": "; ".join(sorted({record.machine for record in self.attempts})),
                "engine": last.engine,
                "precision": last.precision,
                "galaxies": self.galaxies,
                "seconds": working,
                "galaxies_per_second": self.galaxies / working if working else 0.0,
            },
        }


def _merge_reads(attempts: Iterable[Record]) -> dict[str, float]:
    """Return the published keys of reads from S3; empty if no attempt read from it."""
    reads = [record for record in attempts if record.s3_num_requests is not UNSET]
    if not reads:
        return {}
    values: list[Mapping[str, Any]] = [
        {name: getattr(record, name) for name in record.__struct_fields__} for record in reads
    ]
    number, seconds = (sum(own[name] for own in values) for name in ("s3_num_requests", "s3_total_time"))
    return {
        "s3_num_requests": number,
        "s3_total_time": seconds,
        "s3_avg_time": seconds / number if number else 0.0,
        "s3_min_time": min(own["s3_min_time"] for own in values),
        "s3_max_time": max(own["s3_max_time"] for own in values),
        "s3_first_request_time": min(own["s3_first_request_time"] for own in values),
        "s3_last_response_time": max(own["s3_last_response_time"] for own in values),
    }


def merge_attempts(records: Iterable[Record]) -> list[RankResult]:
    """Return the result of each rank, in the order of their numbers, with the galaxies that its records count."""
    by_rank: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_rank[record.rank].append(record)
    return [
        RankResult(
            tuple(sorted(attempts, key=lambda record: record.attempt)), sum(record.galaxies for record in attempts)
        )
        for _, attempts in sorted(by_rank.items())
    ]


def add_uncounted(results: Sequence[RankResult], completed: int, largest_item: int) -> list[RankResult]:
    """Return the results with the galaxies that were completed and that no record counts.

    A process that is killed between a part and its record leaves one item uncounted. It is added to a rank with such an
    attempt, if the CPU time of one is known. More than such attempts can leave is not: then records are missing.
    """
    uncounted = completed - sum(result.galaxies for result in results)
    able = [result for result in results if result.cpu_seconds]
    if not able or not 0 < uncounted <= largest_item * sum(result.unfinished for result in results):
        return list(results)
    chosen = max(able, key=lambda result: (result.unfinished > 0, result.started_at))
    return [replace(own, galaxies=own.galaxies + uncounted) if own is chosen else own for own in results]


def remove_repeated(results: Sequence[RankResult], completed: int) -> list[RankResult]:
    """Return the results without what they count in excess of the galaxies that were completed.

    A part that was lost or damaged is done again and counts twice; it is taken off the ranks that began first.
    """
    excess = sum(result.galaxies for result in results) - completed
    left = {}
    for result in sorted(results, key=lambda result: result.attempts[0].started_at):
        less = min(result.galaxies, max(0, excess))
        excess -= less
        left[result.rank] = replace(result, galaxies=result.galaxies - less)
    return [left[result.rank] for result in results]


def count_galaxies(record: Mapping[str, Any]) -> int:
    """Return the galaxies of a published record by the published reading, 0 if it does not state them."""
    values = [record.get(name) for name in ("throughput_bps", "total_cpu_time (seconds)")]
    numbers = [float(value) for value in values if isinstance(value, int | float) and isfinite(value)]
    return round(numbers[0] * numbers[1] / BITS_PER_GALAXY) if len(numbers) == 2 else 0


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
