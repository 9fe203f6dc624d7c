"""Published records of a run's ranks, in one list: combined_data.json, and the course teams' files.

partition-100MB/12GB/3/combined_data.json               a repeat of a data size; `total` is 12.6 GB
partition-100MB/1GB/Batches/256/run 2/combined_data.json    a repeat of a batch size
course_runs/10MB-4GB-256.json                           partition, data size and batch size in the file's own name
course_runs/100MB-1file-64.json                         the same of a single file
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..tables import TOTAL_GB, Found, LeftOut, Measured, Row
from .source import Source
from .values import number, rate, text, whole

_KEY = "execution_time (seconds/batch)"
_PARTITION = re.compile(r"(?:.*-)?partition-([0-9.]+)MB")
_DATA = re.compile(r"(?:total)?([0-9.]+)GB")
_COURSE = re.compile(r"(?:.*_)?([0-9.]+)MB[-_](?:([0-9.]+)GB|1file)[-_](?:batch)?[0-9]+\.json", re.IGNORECASE)


def matches(source: Source) -> bool:
    """Whether a file is of this kind, by its name or its keys."""
    return source.file == "combined_data.json" or any(
        isinstance(record, dict) and _KEY in record for record in source.records
    )


def read(source: Source) -> Found:
    """The run and its ranks. Raises ValueError if no record can be used, or if records are of several runs alike."""
    records = source.json
    if not isinstance(records, list) or not records:
        raise ValueError("it is no list of records; expected the records of a run's ranks")
    own = own_result_path(records)
    ranks: list[Row] = []
    left_out: list[LeftOut] = []
    for place, record in enumerate(records):
        try:
            if (path := record.get("result_path") if isinstance(record, dict) else own) != own:
                raise ValueError(f"it is of another run: its `result_path` is {path!r}, that of most is {own!r}")
            ranks.append(rank_row(place, record))
        except ValueError as error:
            left_out.append(LeftOut(source.uri, str(error), f"record {place}"))
    if not ranks:
        raise ValueError(f"none of its {len(records)} records can be used; of the first, {left_out[0].reason}")
    of_rivanna = source.parent == "rivanna"
    devices = {str(record["device"]) for record in records if isinstance(record, dict) and "device" in record}
    run = settings(source) | {
        "run": source.folder if source.file == "combined_data.json" else source.stem,
        "source": source.uri,
        "origin": "published",
        "kind": "combined",
        "platform": "slurm" if of_rivanna else "lambda",
        "device": devices.pop() if len(devices) == 1 else None,
        "machine": "Rivanna" if of_rivanna else "AWS Lambda",
        "engine": "published",
        "precision": "float32",
        "world_size": len(records),
        "galaxies": sum(rank["galaxies"] for rank in ranks),
    }
    if len(batch_sizes := {rank["batch_size"] for rank in ranks}) == 1:
        run["batch_size"] = batch_sizes.pop()
    return Found((Measured(run, tuple(ranks)),), tuple(left_out))


def own_result_path(records: Sequence[Any]) -> Any:
    """Where most records say that their run wrote. Raises ValueError if two runs have as many."""
    counted = Counter(record.get("result_path") for record in records if isinstance(record, dict)).most_common(2)
    if len(counted) == 2 and counted[0][1] == counted[1][1]:
        (one, count), (other, _) = counted
        raise ValueError(f"it holds two runs, with {count} records each: {one!r} and {other!r}; keep them apart")
    return counted[0][0] if counted else None


def rank_row(place: int, record: dict[str, Any]) -> Row:
    """A rank's row. Raises ValueError, naming the key, if a published key is missing or no number."""
    row: dict[str, Any] = {
        "rank": place,
        "item": text(record, "data_path"),
        "batches": whole(record, "num_batches"),
        "batch_size": whole(record, "batch_size"),
        "cpu_seconds": number(record, "total_cpu_time (seconds)"),
        "galaxies_per_second": rate(record, "sample_persec", "throughput_bps"),
        "allocated_mb": number(record, "total_cpu_memory (MB)"),
    }
    # It is CPU time too, so that nothing is read from it; but where it has another unit, so may all others.
    number(record, _KEY)
    # The rate is galaxies over CPU time, which gives back their number exactly.
    row["galaxies"] = round(row["galaxies_per_second"] * row["cpu_seconds"])
    if "total_process_memory (MB)" in record:
        row["peak_rss_mb"] = number(record, "total_process_memory (MB)")
    if "s3_num_requests" in record:
        row |= {"s3_requests": whole(record, "s3_num_requests"), "s3_seconds": number(record, "s3_total_time")}
    return row


def settings(source: Source) -> dict[str, Any]:
    """What the names of a file and its folders tell: study, partition, data size, repeat."""
    if course := _COURSE.fullmatch(source.file):
        data = {"data_gb": float(course[2])} if course[2] else {}
        return {"study": "data size" if data else "batch size", "partition_mb": float(course[1])} | data
    return settings_of_path(source.uri.split("/")[:-1])


def settings_of_path(folders: Sequence[str]) -> dict[str, Any]:
    """What folders below one that names a partition tell: study, partition, data size, repeat."""
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
