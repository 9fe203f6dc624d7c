"""Read how long whole runs took, from tables that are separate from the records of their ranks.

total_execution_time.csv                partition, data size, repeat, number of files, MM:SS of the state machine
state_machine_logs.csv                  name of the run, partition, seconds of the state machine and of its map
stepfunctions_world_batch_matrix.csv    a course team's runs by world size and batch size
slurm_array_total_execution_time.csv    H:MM:SS of SLURM arrays
batch_summary_series_2.json             wall-clock times of a series of runs, one per batch size

If the records or statistics of such a run are found too, `merge` adds its duration to them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..tables import RUN_TYPES, LeftOut, MeasuredRun, Row, SourceContents, validate_row
from .settings import SIZES_BY_NAME
from .source import Source
from .values import get_duration, get_integer, get_number, get_text

PUBLISHED_LAMBDA = {
    "origin": "published",
    "kind": "durations",
    "platform": "lambda",
    "device": "cpu",
    "machine": "AWS Lambda",
    "engine": "published",
    "precision": "float32",
}
_SIZE = re.compile(r"([0-9.]+)GB")
_MEGABYTES = re.compile(r"([0-9]+)(?:\.0)?(?:MB)?")
_NAME_OF_NUMBER = {"1000GB": "1TB"}  # where the size is a number, there is one name for it


def matches(source: Source) -> bool:
    """Return whether a file is of this kind, by its columns or keys."""
    return _find_row_reader(source) is not None or is_series(source)


def is_series(source: Source) -> bool:
    """Return whether a file describes a series of runs by batch size."""
    return any(isinstance(entry, dict) and "results_file" in entry for entry in source.values.values())


def read(source: Source) -> SourceContents:
    """Return a run without ranks for each row."""
    measured: list[MeasuredRun] = []
    left_out: list[LeftOut] = []
    rows: list[tuple[str, Any]] = list(source.values.items())
    if read_row := _find_row_reader(source):
        rows = [(f"row {place}", row) for place, row in enumerate(source.rows(), 1)]
    else:
        read_row = read_series_entry
    for what, row in rows:
        try:
            run = {"source": source.uri, **read_row(source, row)}
            validate_row(run, RUN_TYPES)
            measured.append(MeasuredRun(run))
        except ValueError as error:
            left_out.append(LeftOut(source.uri, str(error), what))
    return SourceContents(tuple(measured), tuple(left_out))


def read_execution_row(source: Source, row: dict[str, str]) -> Row:
    """Read a row of total_execution_time.csv, where `num_worlds` counts the files, one per rank."""
    partition, data, repeat = get_number(row, "partition (MB)"), get_number(row, "data (GB)"), get_integer(row, "run")
    return PUBLISHED_LAMBDA | {
        "run": f"{source.stem}/{partition:g}MB/{data:g}GB/{repeat}",
        "study": "data size",
        "partition_mb": partition,
        "data_gb": data,
        "repeat": repeat,
        "asked_ranks": get_integer(row, "num_worlds"),
        "world_size": get_integer(row, "num_worlds"),
        "wall_seconds": get_duration(row, "duration"),
    }


def read_state_machine_row(source: Source, row: dict[str, str]) -> Row:
    """Read a row of state_machine_logs.csv; an older one states sizes as numbers, without units.

    A row with the size of one of SIZES_BY_NAME under another name is a second run of that size. Its records are not
    published, and it belongs to no study. The `num_worlds` of the older table is computed from the name of the size, as
    10,066 for the 983 files of 983GB, and is not used.
    """
    name, partition, repeat = get_text(row, "data (GB)"), get_text(row, "partition (MB)"), get_integer(row, "run")
    if name.replace(".", "", 1).isdecimal():
        name = f"{float(name):g}GB"
        name = _NAME_OF_NUMBER.get(name, name)
    data = SIZES_BY_NAME.get(name) or _parse_size(name)
    if row.get("batch_varying", "False") != "False":
        raise ValueError(f"its `batch_varying` is {row['batch_varying']}; expected False, since no batch size is known")
    if (megabytes := _MEGABYTES.fullmatch(partition)) is None:
        raise ValueError(f"its `partition (MB)` is {partition!r}; expected a size such as 100MB")
    return PUBLISHED_LAMBDA | {
        "run": f"{source.stem}/{megabytes[1]}MB/{name}/{repeat}",
        "study": "single" if name not in SIZES_BY_NAME and data in SIZES_BY_NAME.values() else "data size",
        "partition_mb": float(megabytes[1]),
        "data_gb": data,
        "batch_size": get_integer(row, "batch_size"),
        "repeat": repeat,
        "wall_seconds": get_number(row, "total_duration (s)"),
        "working_seconds": get_number(row, "inference_duration (s)"),
    }


def _parse_size(name: str) -> float:
    """Return the GB of a size such as 256GB. Raises ValueError for any other text."""
    if (size := _SIZE.fullmatch(name)) is None:
        raise ValueError(
            f"its `data (GB)` is {name!r}; expected a size such as 256GB, or one of {', '.join(SIZES_BY_NAME)}"
        )
    return float(size[1])


def read_matrix_row(source: Source, row: dict[str, str]) -> Row:
    """Read a row of a course team's matrix, which does not state what its runs computed."""
    if get_text(row, "status") != "SUCCEEDED":
        raise ValueError(f"its `status` is {row['status']}; expected SUCCEEDED")
    world_size, batch_size = get_integer(row, "world_size"), get_integer(row, "batch_size")
    return PUBLISHED_LAMBDA | {
        "run": f"{source.stem}/world-{world_size}/batch-{batch_size}",
        "study": "world size",
        "world_size": world_size,
        "batch_size": batch_size,
        "memory_mb": get_number(row, "memory_mb"),
        "wall_seconds": get_number(row, "duration_seconds"),
        "dollars": get_number(row, "cost_usd"),
    }


def read_array_row(source: Source, row: dict[str, str]) -> Row:
    """Read a row of the SLURM arrays' table: with fewer tasks than files, each task processed several files.

    The number of files is the `num_worlds` of runs with one task per file: 103 for 10 GB, 1024 for 100 GB.
    """
    partition, data = get_number(row, "partition (MB)"), get_number(row, "data (GB)")
    tasks, repeat = get_integer(row, "num_worlds"), get_integer(row, "run")
    if not partition:
        raise ValueError("its `partition (MB)` is 0; expected a size above 0")
    files = -(-data * 1024 // partition)
    return {
        "run": f"{source.stem}/{partition:g}MB/{data:g}GB/world-{tasks}/{repeat}",
        "origin": "published",
        "kind": "array",
        "study": "data size",
        "platform": "slurm",
        "device": "cpu",  # all arrays of the published project ran on CPUs
        "machine": "Rivanna",
        "engine": "published",
        "precision": "float32",
        "partition_mb": partition,
        "data_gb": data,
        "world_size": tasks,
        "concurrency": tasks if tasks < files else None,
        "repeat": repeat,
        "wall_seconds": get_duration(row, "duration"),
    }


def read_series_entry(source: Source, entry: dict[str, Any]) -> Row:
    """Read an entry of a series; the run is named after its results file, which lies in the same folder."""
    results, stderr = get_text(entry, "results_file"), str(entry.get("stderr", ""))
    if get_text(entry, "status") != "success":
        raise ValueError(f"its `status` is {entry['status']!r}; expected success")
    name = results.rpartition("/")[2].removesuffix(".json")
    return {
        "run": source.stem.rpartition("/")[0] + "/" * ("/" in source.stem) + name,
        "origin": "published",
        "kind": "durations",
        "study": "batch size",
        "platform": "laptop",
        "device": "cpu" if "CUDA is not available" in stderr else None,
        # Its paths are those of a notebook on SageMaker; the kind of machine is not stated.
        "machine": "Amazon SageMaker" if "/home/sagemaker-user/" in stderr else None,
        "engine": "published",
        "wall_seconds": get_number(entry, "execution_time"),
    }


RowReader = Callable[[Source, dict[str, str]], Row]

_EXECUTION = ("partition (MB)", "data (GB)", "run", "num_worlds", "duration")
_TABLES: tuple[tuple[tuple[str, ...], tuple[str, ...], RowReader], ...] = (  # required columns, optional ones
    (_EXECUTION, (), read_execution_row),
    ((*_EXECUTION, "job_id"), (), read_array_row),
    (
        ("data (GB)", "batch_size", "run", "partition (MB)", "total_duration (s)", "inference_duration (s)"),
        ("batch_varying", "num_worlds"),
        read_state_machine_row,
    ),
    (
        ("test_number", "world_size", "batch_size", "duration_seconds", "memory_mb", "cost_usd", "status",
         "execution_name", "throughput_rps"),
        (),
        read_matrix_row,
    ),
)  # fmt: skip


def _find_row_reader(source: Source) -> RowReader | None:
    """Return the function that reads a row of a table with the columns of a file, or None."""
    return next((read_row for columns, more, read_row in _TABLES if source.has_columns(columns, more)), None)
