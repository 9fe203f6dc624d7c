"""The settings of a published run that names state: those of files and folders, and the paths in its own records.

partition-100MB/12GB/3/combined_data.json               a repeat of a data size; `total` is 12.6 GB
partition-100MB/1GB/Batches/256/run 2/combined_data.json    a repeat of a batch size
course_runs/10MB-4GB-256.json                           partition, data size and batch size in the file name
course_runs/100MB-1file-64.json                         the same for a single file
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..tables import TOTAL_GB
from .source import Source

# Published tables, folders and paths give other names to some data sizes. The `result_path` of the records of total,
# total100GB and total1000GB ends in timing/1, 983GB/1 and 1TB/1, so those are the runs of these sizes in GB.
SIZES_BY_NAME = {"timing": TOTAL_GB, "983GB": 100.0, "1TB": 1000.0}
# Folders of records of ranks on SLURM, which have the keys of those on Lambda; the last is the published repository's.
SLURM_FOLDERS = {"rivanna", "hpc", "slurm", "anomaly detection"}
_PARTITION = re.compile(r"(?:.*-)?partition-([0-9.]+)MB")
_DATA = re.compile(r"(?:total)?([0-9.]+)GB")
_FILES = re.compile(r"([0-9.]+)MB")  # a folder of files of this size, in the paths of records
_COURSE = re.compile(r"(?:.*_)?([0-9.]+)MB[-_](?:([0-9.]+)GB|1file)[-_](?:batch)?[0-9]+\.json", re.IGNORECASE)

Settings = dict[str, Any]


def find_settings(source: Source, result_path: str | None, item: str | None) -> Settings:
    """Return study, partition, data size and repeat of a file with records.

    The names of the file and of its folders come first. What they do not state is that of the records: `result_path`
    and `item`, the file that one of them read.
    """
    if course := _COURSE.fullmatch(source.file):
        data = {"data_gb": float(course[2])} if course[2] else {}
        return {"study": "data size" if data else "batch size", "partition_mb": float(course[1])} | data
    named = parse_folder_settings(source.uri.split("/")[:-1])
    stated = parse_record_settings(result_path or "", item or "")
    found = stated | named
    if stated and "data_gb" not in named:
        found["study"] = stated["study"]
    return found or {"study": "single"}


def parse_folder_settings(folders: Sequence[str]) -> Settings:
    """Return study, partition, data size and repeat from the folder that names a partition and those below it.

    Without such a folder the result is empty.
    """
    for place, folder in enumerate(folders):
        if partition := _PARTITION.fullmatch(folder):
            below = parse_folder_settings(folders[place + 1 :])
            return below or {"partition_mb": float(partition[1])} | _parse_sizes(folders[place + 1 :])
    return {}


def parse_record_settings(result_path: str, item: str) -> Settings:
    """Return the settings that the paths of a record state; empty if they name no size of partitions or data."""
    folders = [name for name in result_path.split("/") if name]
    if found := parse_folder_settings(folders):
        return found
    sizes = [float(match[1]) for name in [*folders, *item.split("/")[:-1]] if (match := _FILES.fullmatch(name))]
    partition = {"partition_mb": sizes[-1]} if sizes else {}
    found = _parse_sizes(folders)
    if "data_gb" in found or found["study"] == "batch size":
        return partition | found
    return partition and partition | {"study": "single"}


def _parse_sizes(folders: Sequence[str]) -> Settings:
    """Return study, data size and repeat from the folders below that of a partition."""
    found: Settings = {"study": "data size"}
    for folder in folders:
        if folder == "total":
            found["data_gb"] = TOTAL_GB
        elif folder in SIZES_BY_NAME:
            found["data_gb"] = SIZES_BY_NAME[folder]
        elif data := _DATA.fullmatch(folder):
            found["data_gb"] = float(data[1])
        elif folder == "Batches":
            found["study"] = "batch size"
    if folders and (last := folders[-1].removeprefix("run ")).isdecimal():
        found["repeat"] = int(last)
    return found


def is_of_slurm(source: Source) -> bool:
    """Return whether the folders of a file say that its ranks ran on SLURM."""
    folders = [*source.name.split("/")[:-1], source.parent]
    return any(folder.lower() in SLURM_FOLDERS for folder in folders)
