"""Read averages over a run's records that the published project made, one row per run.

result_stats.csv                        Lambda, by partition and data size; older ones without times of S3
batch_varying_results.csv               Lambda, by batch size
slurm_mpi_style_result_stats.csv        one SLURM job per data size

`merge` leaves out a row if all records of its run are found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from cosmicai.runs.record import BITS_PER_GALAXY

from ..tables import GALAXY_BYTES, GB, RUN_TYPES, LeftOut, MeasuredRun, Row, SourceContents, validate_row
from .averages import Cell, average_cells, describe_disagreements, parse_cell
from .durations import PUBLISHED_LAMBDA
from .source import Source
from .values import count_galaxies, get_integer, get_number, get_rate


def matches(source: Source) -> bool:
    """Return whether a file is of this kind, by its columns."""
    return _find_row_reader(source) is not None


def read(source: Source) -> SourceContents:
    """Return a run without ranks for each row, except the averages over runs."""
    measured: list[MeasuredRun] = []
    left_out: list[LeftOut] = []
    read_row, rows = _find_row_reader(source), source.rows()
    assert read_row is not None
    if means := sum(row["run"] == "mean" for row in rows):
        left_out.append(LeftOut(source.uri, "they are averages over runs, not runs", f"{means} rows `mean`"))
    contradictions = _check_means(source.file, rows)
    for place, row in enumerate(rows, 1):
        if row["run"] != "mean":
            try:
                run = {"source": source.uri, **read_row(source, row)}
                validate_row(run, RUN_TYPES)
                measured.append(MeasuredRun(run, contradictions=contradictions.pop(_get_settings(row), ())))
            except ValueError as error:
                left_out.append(LeftOut(source.uri, str(error), f"row {place}"))
    return SourceContents(tuple(measured), tuple(left_out))


def _get_settings(row: dict[str, str]) -> tuple[str | None, ...]:
    """Return the settings of a row, in which rows and their mean agree."""
    return tuple(map(row.get, ("partition (MB)", "data (GB)", "batch_size")))


def _check_means(file: str, rows: Sequence[dict[str, str]]) -> dict[tuple[str | None, ...], tuple[str, ...]]:
    """Return sentences on the rows `mean` that are not the mean of their rows, by settings."""
    groups: defaultdict[tuple[str | None, ...], dict[bool, list[dict[str, Cell]]]] = defaultdict(
        lambda: {True: [], False: []}
    )
    for row in rows:
        with suppress(ValueError):  # a row that cannot be read is left out anyway
            cells = {name: parse_cell(name, text) for name, text in row.items() if name != "run"}
            known = {name: cell for name, cell in cells.items() if cell}
            groups[_get_settings(row)][row["run"] == "mean"].append(known)
    found = {}
    for settings, group in groups.items():
        names = {name for row in group[False] for name in row}
        averages = {name: average_cells([row[name] for row in group[False] if name in row]) for name in names}
        texts = [f"in {file}, {text}" for mean in group[True] for text in describe_disagreements(mean, averages)]
        found[settings] = tuple(texts)
    return found


def read_size_row(source: Source, row: dict[str, str]) -> Row:
    """Read a row of result_stats.csv."""
    partition, data, repeat = get_number(row, "partition (MB)"), get_number(row, "data (GB)"), get_integer(row, "run")
    return _read_lambda_row(row) | {
        "run": f"{source.stem}/{partition:g}MB/{data:g}GB/{repeat}",
        "study": "data size",
        "partition_mb": partition,
        "data_gb": data,
    }


def read_batch_row(source: Source, row: dict[str, str]) -> Row:
    """Read a row of batch_varying_results.csv, which states neither partition nor data size."""
    batch_size, repeat = get_integer(row, "batch_size"), get_integer(row, "run")
    run = f"{source.stem}/{batch_size}/{repeat}"
    return _read_lambda_row(row) | {"run": run, "study": "batch size", "batch_size": batch_size}


def _read_lambda_row(row: dict[str, str]) -> dict[str, Any]:
    return PUBLISHED_LAMBDA | {
        "kind": "statistics",
        "repeat": get_integer(row, "run"),
        "mean_cpu_seconds": get_number(row, "total_cpu_time (seconds)"),
        "allocated_mb": get_number(row, "total_cpu_memory (MB)"),
        "summed_galaxies_per_second": get_number(row, "throughput_bps") / BITS_PER_GALAXY,
        "galaxies": count_galaxies(get_number(row, "total_bits") / BITS_PER_GALAXY),
        # A table with these columns has a total of 0 for runs whose records have no times of requests.
        **({name: get_number(row, key) for name, key in _S3.items()} if row.get("s3_avg_time") else {}),
    }


def read_job_row(source: Source, row: dict[str, str]) -> Row:
    """Read a row of slurm_mpi_style_result_stats.csv: its time is a mean over ranks, its memory and rate are sums.

    It does not state the number of ranks. In an older version of the table memory and rate are means too; they are
    told apart by the galaxies in that time, which are those of a partition and not of the whole data size, and are not
    used.
    """
    data, repeat, seconds = (
        get_number(row, "data (GB)"),
        get_integer(row, "run"),
        get_number(row, "total_execution_time (seconds)"),
    )
    rate = get_rate(row, "sample_persec", "throughput_bps")
    is_sum = rate * seconds * GALAXY_BYTES > data * GB / 2
    return {
        "run": f"{source.stem}/{data:g}GB/{repeat}",
        "origin": "published",
        "kind": "statistics",
        "study": "data size",
        "platform": "slurm",
        "device": "cpu",  # such rates need many CPU cores: one GPU of Rivanna reaches 23,000 galaxies per second
        "machine": "Rivanna",
        "engine": "published",
        "precision": "float32",
        "data_gb": data,
        "repeat": repeat,
        "rank_seconds": seconds,
        "summed_galaxies_per_second": rate if is_sum else None,
    }


RowReader = Callable[[Source, dict[str, str]], Row]

_SUMS = ("total_cpu_time (seconds)", "total_cpu_memory (MB)", "throughput_bps", "total_bits")
_S3 = {
    "s3_seconds": "s3_total_time", "s3_mean_seconds": "s3_avg_time", "s3_min_seconds": "s3_min_time",
    "s3_max_seconds": "s3_max_time",
}  # fmt: skip
_TABLES: tuple[tuple[tuple[str, ...], RowReader], ...] = (
    (("partition (MB)", "data (GB)", "run", *_SUMS), read_size_row),
    (("batch_size", "run", *_SUMS), read_batch_row),
    (
        ("data (GB)", "run", "total_execution_time (seconds)", "total_process_memory (MB)", "throughput_bps",
         "sample_persec"),
        read_job_row,
    ),
)  # fmt: skip


def _find_row_reader(source: Source) -> RowReader | None:
    """Return the function that reads a row of a table with the columns of a file, or None."""
    return next((read_row for columns, read_row in _TABLES if source.has_columns(columns, _S3.values())), None)
