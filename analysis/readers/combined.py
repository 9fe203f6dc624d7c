"""Read published records of all ranks of a run from one list: combined_data.json, and the course teams' files.

partition-100MB/12GB/3/combined_data.json               a repeat of a data size; `total` is 12.6 GB
partition-100MB/1GB/Batches/256/run 2/combined_data.json    a repeat of a batch size
course_runs/10MB-4GB-256.json                           partition, data size and batch size in the file name
course_runs/100MB-1file-64.json                         the same for a single file
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..tables import RANK_TYPES, TOTAL_GB, LeftOut, MeasuredRun, Row, SourceContents, validate_row
from .own_records import describe_rank, describe_run
from .source import Source
from .values import count_galaxies, get_integer, get_number, get_paths, get_rate

_KEY = "execution_time (seconds/batch)"
_PARTITION = re.compile(r"(?:.*-)?partition-([0-9.]+)MB")
_DATA = re.compile(r"(?:total)?([0-9.]+)GB")
_COURSE = re.compile(r"(?:.*_)?([0-9.]+)MB[-_](?:([0-9.]+)GB|1file)[-_](?:batch)?[0-9]+\.json", re.IGNORECASE)


def matches(source: Source) -> bool:
    """Return whether a file is of this kind, by its name or its keys."""
    return source.file == "combined_data.json" or any(
        isinstance(record, dict) and _KEY in record for record in source.records
    )


def read(source: Source) -> SourceContents:
    """Return the run and its ranks.

    Raises ValueError if no record can be used, or if two runs have equally many records.
    """
    records = source.json
    if not isinstance(records, list) or not records:
        raise ValueError("it is not a list of records; expected the records of a run's ranks")
    own = find_result_path(records)
    ranks: list[Row] = []
    left_out: list[LeftOut] = []
    for place, record in enumerate(records):
        try:
            if (path := _result_path(record) if isinstance(record, dict) else own) != own:
                raise ValueError(f"it is of another run: its `result_path` is {path!r}, that of most is {own!r}")
            row = build_rank_row(place, record)
            validate_row(row, RANK_TYPES)
            ranks.append(row)
        except ValueError as error:
            left_out.append(LeftOut(source.uri, str(error), f"record {place}"))
    if not ranks:
        raise ValueError(f"none of its {len(records)} records can be used; of the first, {left_out[0].reason}")
    on_rivanna = source.parent == "rivanna"
    devices = {str(record["device"]) for record in records if isinstance(record, dict) and "device" in record}
    run = parse_settings(source) | {
        "run": source.folder if source.file == "combined_data.json" else source.stem,
        "source": source.uri,
        "origin": "published",
        "kind": "combined",
        "platform": "slurm" if on_rivanna else "lambda",
        "device": devices.pop() if len(devices) == 1 else None,
        "machine": "Rivanna" if on_rivanna else "AWS Lambda",
        "engine": "published",
        "precision": "float32",
        "world_size": len(records),
        "galaxies": sum(rank["galaxies"] for rank in ranks),
        **describe_run(records),
    }
    if len(batch_sizes := {rank["batch_size"] for rank in ranks}) == 1:
        run["batch_size"] = batch_sizes.pop()
    return SourceContents((MeasuredRun(run, tuple(ranks)),), tuple(left_out))


def find_result_path(records: Sequence[Any]) -> str | None:
    """Return the result path that most records state. Raises ValueError if two paths occur equally often."""
    counts = Counter(_result_path(record) for record in records if isinstance(record, dict)).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        (one, count), (other, _) = counts
        raise ValueError(f"it holds two runs, with {count} records each: {one!r} and {other!r}; keep them apart")
    return counts[0][0] if counts else None


def _result_path(record: dict[str, Any]) -> str | None:
    """Return where a record's run wrote; a damaged value of another type as text."""
    path = record.get("result_path")
    return path if path is None or isinstance(path, str) else repr(path)


def build_rank_row(place: int, record: dict[str, Any]) -> Row:
    """Return a rank's row. Raises ValueError, naming the key, if a published key is missing or not a number."""
    row: dict[str, Any] = {
        "rank": place,
        "item": get_paths(record, "data_path"),
        "batches": get_integer(record, "num_batches"),
        "batch_size": get_integer(record, "batch_size"),
        "cpu_seconds": get_number(record, "total_cpu_time (seconds)"),
        "galaxies_per_second": get_rate(record, "sample_persec", "throughput_bps"),
        "allocated_mb": get_number(record, "total_cpu_memory (MB)"),
    }
    # This is CPU time too and is not used; but if it has another unit, the other values may have one as well.
    get_number(record, _KEY)
    # The rate is galaxies over CPU time, so their product is the exact number of galaxies.
    row["galaxies"] = count_galaxies(row["galaxies_per_second"], row["cpu_seconds"])
    if "total_process_memory (MB)" in record:
        row["peak_rss_mb"] = get_number(record, "total_process_memory (MB)")
    if "s3_num_requests" in record:
        row |= {
            "s3_requests": get_integer(record, "s3_num_requests"),
            "s3_seconds": get_number(record, "s3_total_time"),
        }
    return {**row, **describe_rank(record, row)}


def parse_settings(source: Source) -> dict[str, Any]:
    """Return study, partition, data size and repeat, as far as the names of a file and its folders state them."""
    if course := _COURSE.fullmatch(source.file):
        data = {"data_gb": float(course[2])} if course[2] else {}
        return {"study": "data size" if data else "batch size", "partition_mb": float(course[1])} | data
    return parse_folder_settings(source.uri.split("/")[:-1])


def parse_folder_settings(folders: Sequence[str]) -> dict[str, Any]:
    """Return study, partition, data size and repeat from the folder that names a partition and those below it."""
    found: dict[str, Any] = {}
    for folder in folders:
        if partition := _PARTITION.fullmatch(folder):
            found = {"study": "data size", "partition_mb": float(partition[1])}
        elif found and folder == "total":
            found["data_gb"] = TOTAL_GB
        elif found and (data := _DATA.fullmatch(folder)):
            found["data_gb"] = float(data[1])
        elif found and folder == "Batches":
            found["study"] = "batch size"
    if found and (last := folders[-1].removeprefix("run ")).isdecimal():
        found["repeat"] = int(last)
    return found or {"study": "single"}
