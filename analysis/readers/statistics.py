"""Averages that the published project made of a run's records, one row per run.

result_stats.csv                        of Lambda, by partition and data size
batch_varying_results.csv               of Lambda, by batch size
slurm_mpi_style_result_stats.csv        of one SLURM job per data size

A row whose run is there with all its records is left out by `joining`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cosmicai.runs.record import BITS_PER_GALAXY

from ..tables import Found, LeftOut, Measured, Row
from .durations import LAMBDA
from .source import Source
from .values import number, rate, whole


def matches(source: Source) -> bool:
    """Whether a file is of this kind, by its columns."""
    return source.columns in _TABLES


def read(source: Source) -> Found:
    """A run without ranks for each row but for the averages over runs."""
    measured: list[Measured] = []
    left_out: list[LeftOut] = []
    row_of, rows = _TABLES[source.columns], source.rows()
    if means := sum(row["run"] == "mean" for row in rows):
        left_out.append(LeftOut(source.uri, "they are averages over runs, and no runs", f"{means} rows `mean`"))
    for place, row in enumerate(rows, 1):
        if row["run"] != "mean":
            try:
                measured.append(Measured({"source": source.uri, **row_of(source, row)}))
            except ValueError as error:
                left_out.append(LeftOut(source.uri, str(error), f"row {place}"))
    return Found(tuple(measured), tuple(left_out))


def size_row(source: Source, row: dict[str, str]) -> Row:
    """A row of result_stats.csv."""
    partition, data, repeat = number(row, "partition (MB)"), number(row, "data (GB)"), whole(row, "run")
    return _lambda_row(row) | {
        "run": f"{source.stem}/{partition:g}MB/{data:g}GB/{repeat}",
        "study": "data size",
        "partition_mb": partition,
        "data_gb": data,
    }


def batch_row(source: Source, row: dict[str, str]) -> Row:
    """A row of batch_varying_results.csv, which says neither of what partition nor of what data size it is."""
    batch_size, repeat = whole(row, "batch_size"), whole(row, "run")
    run = f"{source.stem}/{batch_size}/{repeat}"
    return _lambda_row(row) | {"run": run, "study": "batch size", "batch_size": batch_size}


def _lambda_row(row: dict[str, str]) -> dict[str, Any]:
    return LAMBDA | {
        "kind": "statistics",
        "repeat": whole(row, "run"),
        "mean_cpu_seconds": number(row, "total_cpu_time (seconds)"),
        "allocated_mb": number(row, "total_cpu_memory (MB)"),
        "summed_galaxies_per_second": number(row, "throughput_bps") / BITS_PER_GALAXY,
        "galaxies": round(number(row, "total_bits") / BITS_PER_GALAXY),
    }


def job_row(source: Source, row: dict[str, str]) -> Row:
    """A row of slurm_mpi_style_result_stats.csv: its time is a mean over ranks, its memory and rate are sums.

    How many ranks there were it does not say.
    """
    data, repeat = number(row, "data (GB)"), whole(row, "run")
    return {
        "run": f"{source.stem}/{data:g}GB/{repeat}",
        "origin": "published",
        "kind": "statistics",
        "study": "data size",
        "platform": "slurm",
        "device": "cpu",  # the rate is that of many processors' cores: a GPU of Rivanna has 23,000 galaxies a second
        "machine": "Rivanna",
        "engine": "published",
        "precision": "float32",
        "data_gb": data,
        "repeat": repeat,
        "rank_seconds": number(row, "total_execution_time (seconds)"),
        "summed_galaxies_per_second": rate(row, "sample_persec", "throughput_bps"),
    }


_SUMS = ("total_cpu_time (seconds)", "total_cpu_memory (MB)", "throughput_bps", "total_bits")
_S3 = ("s3_total_time", "s3_avg_time", "s3_min_time", "s3_max_time")
_TABLES: dict[tuple[str, ...], Callable[[Source, dict[str, str]], Row]] = {
    ("partition (MB)", "data (GB)", "run", *_SUMS, *_S3): size_row,
    ("batch_size", "run", *_SUMS): batch_row,
    (
        "data (GB)", "run", "total_execution_time (seconds)", "total_process_memory (MB)", "throughput_bps",
        "sample_persec",
    ): job_row,
}  # fmt: skip
