"""Endless-loader records: one process of SLURM that predicts on and on, and notes after each GB how far it is.

Each record counts from the start of the process, so a record is a run of its data size. One run is made for each size
of which the published figures tell.
"""

from __future__ import annotations

import re
from typing import Any

from cosmicai import storage

from ..tables import Found, LeftOut, Measured
from .source import Source
from .values import number, rate, text, whole

SIZES = (1, 2, 4, 6, 8, 10, 12, 100, 256, 512, 768, 1000, 1024)  # GB
_KEY = "GB_processed"
_MEMORY = re.compile(r"Total memory \(GB\): ([0-9.]+)")  # in the log of the job


def matches(source: Source) -> bool:
    """Whether a file is of this kind, by its keys."""
    return any(isinstance(record, dict) and _KEY in record for record in source.records)


def read(source: Source) -> Found:
    """A run of one rank for each of the sizes; records out of order are left out."""
    measured: list[Measured] = []
    left_out: list[LeftOut] = []
    memory = job_memory_gb(source)
    gigabytes, seconds, between = 0, 0.0, 0
    for place, record in enumerate(source.records):
        try:
            one = measured_of(source, record, memory)
            size, wall = one.run["data_gb"], one.run["wall_seconds"]
            if size <= gigabytes or wall <= seconds:
                raise ValueError(
                    f"it does not go on: {size:g} GB after {wall:g} s come after {gigabytes:g} GB after {seconds:g} s"
                )
        except ValueError as error:
            left_out.append(LeftOut(source.uri, str(error), f"record {place}"))
            continue
        if size > gigabytes + 1:
            told = f"{gigabytes + 1:g} to {size - 1:g} GB" if size > gigabytes + 2 else f"{size - 1:g} GB"
            left_out.append(LeftOut(source.uri, "they are not there", f"records of {told}"))
        gigabytes, seconds = size, wall
        if size in SIZES:
            measured.append(one)
        else:
            between += 1
    if between:
        left_out.append(LeftOut(source.uri, "no published figure tells of their sizes", f"{between} records between"))
    return Found(tuple(measured), tuple(left_out))


def job_memory_gb(source: Source) -> str | None:
    """GB of memory of the machine, as the job's log says whose name begins as that of the records; None if unknown."""
    folder, kind = source.uri.rpartition("/")[0], source.file.partition("_")[0]
    logs = [entry.name for entry in storage.list_files(folder, f"{kind}_") if entry.name.endswith(".out")]
    told = [_MEMORY.search(storage.read_bytes(storage.join(folder, name)).decode(errors="replace")) for name in logs]
    return told[0][1] if len(told) == 1 and told[0] else None


def measured_of(source: Source, record: Any, memory_gb: str | None = None) -> Measured:
    """A record as a run. Raises ValueError, naming the key, if one is missing or no number."""
    size, device = whole(record, _KEY), text(record, "device")
    seconds = number(record, "total_execution_time (seconds)")
    rates = record.get("sample_persec")  # a list of one number, the rate so far
    node = f", node of {memory_gb} GB" if memory_gb else ""
    single = {**record, "sample_persec": rates[0] if isinstance(rates, list) and len(rates) == 1 else rates}
    per_second = rate(single, "sample_persec", "throughput_bps")
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
        "galaxies": round(per_second * seconds),
        "batches": whole(record, "num_batches"),
        "batch_size": whole(record, "batch_size"),
        "seconds": seconds,
        "galaxies_per_second": per_second,
        "peak_rss_mb": number(record, "total_process_memory (MB)"),
    }
    return Measured(run, (rank,))
