"""Published results in other layouts: as in a clone of the published repository, and in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

HPC = "code/Anomaly Detection/Inference"
# Where the published repository has what lies in these folders and files; the longest name that fits counts.
CLONE: Mapping[str, str] = {
    "lambda/partition-25MB": "aws/result-partition-25MB",
    "lambda/partition-100MB": "aws/result-partition-100MB",
    "lambda/partition-100MB/total/1": "aws/result-partition-100MB/total100GB/timing/1",
    "lambda": "aws/results",
    "lambda/course_runs": "course/team-3",
    "rivanna": f"{HPC}/rivanna",
    "rivanna/slurm_array_total_execution_time.csv": f"{HPC}/results/total_execution_time.csv",
    "rivanna/slurm_mpi_style_result_stats.csv": f"{HPC}/results2/result_stats.csv",
    "laptop": "code/laptop",
}


def lay_out_as_clone(published: Path, clone: Path) -> Path:
    """Copy published results to a folder as a clone of the repository has them; return the folder."""
    for file in sorted(path for path in published.rglob("*") if path.is_file()):
        name = file.relative_to(published).as_posix()
        old = max((old for old in CLONE if f"{name}/".startswith(f"{old}/")), key=len, default=None)
        target = clone / (name if old is None else CLONE[old] + name.removeprefix(old))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return clone


def flatten(folder: Path, flat: Path) -> Path:
    """Copy all files at and below a folder into one folder under new names, and return it."""
    flat.mkdir()
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        shutil.copyfile(file, flat / f"file-{number:03}{file.suffix}")
    return flat


def split_into_ranks(folder: Path) -> None:
    """Write the records of each combined_data.json as RANK.json next to it, as the ranks write them."""
    for combined in folder.rglob("combined_data.json"):
        for rank, record in enumerate(json.loads(combined.read_text())):
            combined.with_name(f"{rank}.json").write_text(json.dumps(record))
