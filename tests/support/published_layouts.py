"""Small published results, and published results in other layouts: as in a clone of their repository, in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

BITS = 164160  # of a galaxy, as the published throughputs count
GALAXIES = 1276  # of a file of 25 MB


def make_record(seed: float, result_path: str, item: str, **changes: Any) -> dict[str, Any]:
    """Return the published record of a rank that did 1,276 galaxies in about 5 s; `seed` makes it unlike others."""
    seconds = 5.0 + seed / 7
    return {
        "total_cpu_time (seconds)": seconds, "total_cpu_memory (MB)": 17864.0 + seed,
        "execution_time (seconds/batch)": seconds * 512 / GALAXIES, "num_batches": 3, "batch_size": 512,
        "device": "cpu", "throughput_bps": GALAXIES / seconds * BITS, "sample_persec": GALAXIES / seconds,
        "result_path": result_path, "data_path": item,
    } | changes  # fmt: skip


def make_published(folder: Path) -> Path:
    """Write small results as published to a folder, tables above the records, and return it.

    Three runs of 1 GB in partitions of 25 MB, of which the third lacks two ranks, and three of batches of 64; their
    averages with rows `mean`, and the durations of the first three in both published tables.
    """
    folder = folder / "lambda"
    averages, batches, times, logs = [], [], [], []
    for repeat, ranks in ((1, 41), (2, 41), (3, 39)):
        path = f"result-partition-25MB/1GB/{repeat}"
        rows = [make_record(repeat + rank / 100, path, f"25MB/{rank + 1}.pt") for rank in range(ranks)]
        _write_json(folder / f"partition-25MB/1GB/{repeat}/combined_data.json", rows)
        averages.append(f"25,1.0,{repeat},{_average_records(rows)},0.0,,,")
        times.append(f"25,1.0,{repeat},41.0,00:2{repeat}.5")
        logs.append(f"1GB,512,{repeat},25MB,3{repeat}.5,2{repeat}.25,False")
        path = f"result-partition-25MB/1GB/Batches/64/{repeat}"
        rows = [make_record(9 + repeat + rank / 100, path, f"25MB/{rank + 1}.pt", batch_size=64, num_batches=20)
                for rank in range(41)]  # fmt: skip
        _write_json(folder / f"partition-25MB/1GB/Batches/64/{repeat}/combined_data.json", rows)
        batches.append(f"64,{repeat},{_average_records(rows)}")
    means = [_average_rows(lines, first) for lines, first in ((averages, 3), (batches, 2))]
    sums = "total_cpu_time (seconds),total_cpu_memory (MB),throughput_bps,total_bits"
    s3 = "s3_total_time,s3_avg_time,s3_min_time,s3_max_time"
    tables = {
        "result_stats": [f"partition (MB),data (GB),run,{sums},{s3}", *averages, f"25,1.0,mean,{means[0]},0.0,,,"],
        "batch_varying_results": [f"batch_size,run,{sums}", *batches, f"64,mean,{means[1]}"],
        "total_execution_time": ["partition(MB),data(GB),run,num_worlds,duration", *times],
        "state_machine_logs": [
            "data (GB),batch_size,run,partition (MB),total_duration (s),inference_duration (s),batch_varying", *logs,
        ],
    }  # fmt: skip
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join([*lines, ""]))
    return folder.parent


def _average_records(rows: list[dict[str, Any]]) -> str:
    """Return mean time, and sums of memory, throughput and bits, as the published tables state them."""
    seconds = [row["total_cpu_time (seconds)"] for row in rows]
    memory, rate = (sum(row[key] for row in rows) for key in ("total_cpu_memory (MB)", "throughput_bps"))
    return f"{sum(seconds) / len(seconds):.2f},{memory:.2f},{rate:.2f},{len(rows) * GALAXIES * BITS:.1f}"


def _average_rows(lines: list[str], first: int) -> str:
    """Return the means of four columns from `first` on, rounded as the published ones."""
    columns = zip(*(line.split(",")[first : first + 4] for line in lines), strict=True)
    return ",".join(f"{sum(map(float, column)) / len(column):.2f}" for column in columns)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


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
