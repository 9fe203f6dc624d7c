"""How long whole runs took, in tables apart from the records of their ranks.

total_execution_time.csv                partition, data size, repeat, number of files, MM:SS of the state machine
state_machine_logs.csv                  name of the run, partition, seconds of the state machine and of its map
stepfunctions_world_batch_matrix.csv    a course team's runs by world size and batch size
slurm_array_total_execution_time.csv    H:MM:SS of SLURM arrays
batch_summary_series_2.json             wall times of a series of runs, one per batch size

Where the records or statistics of such a run are there too, `joining` puts its duration into them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..tables import Found, LeftOut, Measured, Row
from .source import Source
from .values import clock, number, text, whole

# The project's tables give sizes in GB to runs of other names. The `result_path` of the records of total, total100GB
# and total1000GB ends in timing/1, 983GB/1 and 1TB/1, so those are the runs of these sizes.
SIZES = {"timing": 12.6, "983GB": 100.0, "1TB": 1000.0}
LAMBDA = {
    "origin": "published",
    "kind": "durations",
    "platform": "lambda",
    "device": "cpu",
    "machine": "AWS Lambda",
    "engine": "published",
    "precision": "float32",
}
_SIZE = re.compile(r"([0-9.]+)GB")


def matches(source: Source) -> bool:
    """Whether a file is of this kind, by its columns or keys."""
    return source.columns in _TABLES or is_series(source)


def is_series(source: Source) -> bool:
    """Whether a file tells of a series of runs by batch size."""
    return any(isinstance(entry, dict) and "results_file" in entry for entry in source.values.values())


def read(source: Source) -> Found:
    """A run without ranks for each row."""
    measured: list[Measured] = []
    left_out: list[LeftOut] = []
    if is_series(source):
        rows: list[tuple[str, Any]] = list(source.values.items())
        row_of: Callable[[Source, Any], Row] = series_row
    else:
        rows, row_of = [(f"row {place}", row) for place, row in enumerate(source.rows(), 1)], _TABLES[source.columns]
    for what, row in rows:
        try:
            measured.append(Measured({"source": source.uri, **row_of(source, row)}))
        except ValueError as error:
            left_out.append(LeftOut(source.uri, str(error), what))
    return Found(tuple(measured), tuple(left_out))


def execution_row(source: Source, row: dict[str, str]) -> Row:
    """A row of total_execution_time.csv: `num_worlds` are the files, each of which is a rank."""
    partition, data, repeat = number(row, "partition(MB)"), number(row, "data(GB)"), whole(row, "run")
    return LAMBDA | {
        "run": f"{source.stem}/{partition:g}MB/{data:g}GB/{repeat}",
        "study": "data size",
        "partition_mb": partition,
        "data_gb": data,
        "repeat": repeat,
        "asked_ranks": whole(row, "num_worlds"),
        "world_size": whole(row, "num_worlds"),
        "wall_seconds": clock(row, "duration"),
    }


def state_machine_row(source: Source, row: dict[str, str]) -> Row:
    """A row of state_machine_logs.csv.

    A size that is that of a named run too is another run, of which no records are published: it is of no study.
    """
    name, partition, repeat = text(row, "data (GB)"), text(row, "partition (MB)"), whole(row, "run")
    data = SIZES.get(name) or _size(name)
    if text(row, "batch_varying") != "False":
        raise ValueError(f"its `batch_varying` is {row['batch_varying']}; expected False, since no batch size is known")
    if not (megabytes := partition.removesuffix("MB")).isdecimal() or megabytes == partition:
        raise ValueError(f"its `partition (MB)` is {partition!r}; expected one such as 100MB")
    return LAMBDA | {
        "run": f"{source.stem}/{partition}/{name}/{repeat}",
        "study": "single" if name not in SIZES and data in SIZES.values() else "data size",
        "partition_mb": float(megabytes),
        "data_gb": data,
        "batch_size": whole(row, "batch_size"),
        "repeat": repeat,
        "wall_seconds": number(row, "total_duration (s)"),
        "working_seconds": number(row, "inference_duration (s)"),
    }


def _size(name: str) -> float:
    if (size := _SIZE.fullmatch(name)) is None:
        raise ValueError(f"its `data (GB)` is {name!r}; expected a size such as 256GB, or one of {', '.join(SIZES)}")
    return float(size[1])


def matrix_row(source: Source, row: dict[str, str]) -> Row:
    """A row of a course team's matrix: what its runs computed it does not say."""
    if text(row, "status") != "SUCCEEDED":
        raise ValueError(f"its `status` is {row['status']}; expected SUCCEEDED")
    world_size, batch_size = whole(row, "world_size"), whole(row, "batch_size")
    return LAMBDA | {
        "run": f"{source.stem}/world-{world_size}/batch-{batch_size}",
        "study": "world size",
        "world_size": world_size,
        "batch_size": batch_size,
        "memory_mb": number(row, "memory_mb"),
        "wall_seconds": number(row, "duration_seconds"),
        "dollars": number(row, "cost_usd"),
    }


def array_row(source: Source, row: dict[str, str]) -> Row:
    """A row of the SLURM arrays' table: with fewer tasks than files, each task did several of them.

    The files are those of `num_worlds` in the runs that had a task for each: of 10 GB 103, of 100 GB 1024.
    """
    partition, data = number(row, "partition(MB)"), number(row, "data (GB)")
    tasks, repeat = whole(row, "num_worlds"), whole(row, "run")
    files = -(-data * 1024 // partition)
    return {
        "run": f"{source.stem}/{partition:g}MB/{data:g}GB/world-{tasks}/{repeat}",
        "origin": "published",
        "kind": "array",
        "study": "data size",
        "platform": "slurm",
        "device": "cpu",  # which all arrays of the published project ran on
        "machine": "Rivanna",
        "engine": "published",
        "precision": "float32",
        "partition_mb": partition,
        "data_gb": data,
        "world_size": tasks,
        "concurrency": tasks if tasks < files else None,
        "repeat": repeat,
        "wall_seconds": clock(row, "duration"),
    }


def series_row(source: Source, entry: dict[str, Any]) -> Row:
    """An entry of a series: it is called as the results that it names, which lie beside it."""
    results, told = text(entry, "results_file"), str(entry.get("stderr", ""))
    if text(entry, "status") != "success":
        raise ValueError(f"its `status` is {entry['status']!r}; expected success")
    name = results.rpartition("/")[2].removesuffix(".json")
    return {
        "run": source.stem.rpartition("/")[0] + "/" * ("/" in source.stem) + name,
        "origin": "published",
        "kind": "durations",
        "study": "batch size",
        "platform": "laptop",
        "device": "cpu" if "CUDA is not available" in told else None,
        # Its paths are those of a notebook there; on what kind of machine, nothing says.
        "machine": "Amazon SageMaker" if "/home/sagemaker-user/" in told else None,
        "engine": "published",
        "wall_seconds": number(entry, "execution_time"),
    }


_TABLES: dict[tuple[str, ...], Callable[[Source, dict[str, str]], Row]] = {
    ("partition(MB)", "data(GB)", "run", "num_worlds", "duration"): execution_row,
    (
        "data (GB)", "batch_size", "run", "partition (MB)", "total_duration (s)", "inference_duration (s)",
        "batch_varying",
    ): state_machine_row,
    (
        "test_number", "world_size", "batch_size", "duration_seconds", "memory_mb", "cost_usd", "status",
        "execution_name", "throughput_rps",
    ): matrix_row,
    ("partition(MB)", "data (GB)", "run", "num_worlds", "duration", "job_id"): array_row,
}  # fmt: skip
