"""Read endless-loader records: one SLURM process that predicts in an endless loop and records its progress per GB.

Each record counts from the start of the process, so each record is a run of its own data size. Runs are made for the
sizes that published figures show.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cosmicai import storage

from ..tables import RANK_TYPES, LeftOut, MeasuredRun, SourceContents, validate_row
from .source import Source
from .values import count_galaxies, get_integer, get_number, get_rate, get_text

SIZES = (1, 2, 4, 6, 8, 10, 12, 100, 256, 512, 768, 1000, 1024)  # GB
_KEY = "GB_processed"
_MEMORY = re.compile(r"Total memory \(GB\): ([0-9.]+)")  # in the log of the job


def matches(source: Source) -> bool:
    """Return whether a file is of this kind, by its keys."""
    return any(isinstance(record, dict) and _KEY in record for record in source.records)


def read(source: Source) -> SourceContents:
    """Return a run of one rank for each of SIZES; records out of order are left out."""
    measured: list[MeasuredRun] = []
    left_out: list[LeftOut] = []
    memory = read_job_memory_gb(source)
    gigabytes, seconds, between = 0, 0.0, 0
    for place, record in enumerate(source.records):
        try:
            one = build_run(source, record, memory)
            size, wall = one.run["data_gb"], one.run["wall_seconds"]
            if size <= gigabytes or wall <= seconds:
                raise ValueError(
                    f"it is out of order: {size:g} GB after {wall:g} s follow {gigabytes:g} GB after {seconds:g} s"
                )
        except ValueError as error:
            left_out.append(LeftOut(source.uri, str(error), f"record {place}"))
            continue
        if size > gigabytes + 1:
            sizes = f"{gigabytes + 1:g} to {size - 1:g} GB" if size > gigabytes + 2 else f"{size - 1:g} GB"
            left_out.append(LeftOut(source.uri, "they are missing", f"records of {sizes}"))
        gigabytes, seconds = size, wall
        if size in SIZES:
            measured.append(one)
        else:
            between += 1
    if between:
        left_out.append(LeftOut(source.uri, "no published figure shows their sizes", f"{between} records between"))
    return SourceContents(tuple(measured), tuple(left_out))


def read_job_memory_gb(source: Source) -> str | None:
    """Return the GB of memory of the node, from the job's log in the same folder; None if it is unknown.

    The log is the only `.out` file whose name starts like that of the records, up to the first underscore.
    """
    folder, kind = source.uri.rpartition("/")[0], source.file.partition("_")[0]
    logs = [entry.name for entry in storage.list_files(folder, f"{kind}_") if entry.name.endswith(".out")]
    found = [_MEMORY.search(storage.read_bytes(storage.join(folder, name)).decode(errors="replace")) for name in logs]
    return found[0][1] if len(found) == 1 and found[0] else None


def build_run(source: Source, record: Any, memory_gb: str | None = None) -> MeasuredRun:
    """Return a record as a run. Raises ValueError, naming the key, if one is missing or not a number."""
    size, device = get_integer(record, _KEY), get_text(record, "device")
    seconds = get_number(record, "total_execution_time (seconds)")
    rates = record.get("sample_persec")  # a list of one number, the rate so far
    node = f", node of {memory_gb} GB" if memory_gb else ""
    single = {**record, "sample_persec": rates[0] if isinstance(rates, list) and len(rates) == 1 else rates}
    per_second = get_rate(single, "sample_persec", "throughput_bps")
    run = {
        "run": f"{source.stem}@{size}GB",
        "source": source.uri,
        "origin": "published",
        "kind": "endless",
        "study": "data size",
        "platform": "slurm",
        "device": device,
        "machine": ("Rivanna, one GPU" if device == "cuda" else "Rivanna, one CPU node") + node,
        "engine": "published",
        "precision": "float32",
        "data_gb": float(size),
        "world_size": 1,
        "repeat": 1,
        "wall_seconds": seconds,
    }
    rank = {
        "rank": 0,
        "galaxies": count_galaxies(per_second, seconds),
        "batches": get_integer(record, "num_batches"),
        "batch_size": get_integer(record, "batch_size"),
        "seconds": seconds,
        "galaxies_per_second": per_second,
        "peak_rss_mb": get_number(record, "total_process_memory (MB)"),
    }
    validate_row(rank, RANK_TYPES)
    return MeasuredRun(run, (rank,), frozenset({hash(json.dumps(record, sort_keys=True))}))
