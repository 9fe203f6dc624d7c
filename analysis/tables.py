"""The two tables that all of the analysis reads: one row per run, and one row per rank of a run.

Every column is declared here with its type, its unit and its meaning; readers fill rows by these names and leave out
what their source does not tell. A missing value is pandas' own (NA, NaN or NaT), never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from cosmicai.runs.record import BITS_PER_GALAXY

Row = Mapping[str, Any]

GALAXY_BYTES = BITS_PER_GALAXY // 8  # of cutout and magnitudes, as published data sizes count
GB = 2**30  # the published 12.6 GB are 659,857 galaxies, so a GB there is 2^30 bytes
TOTAL_GB = 12.6  # what the published total data set is called by
TEXT, COUNT, REAL, TRUTH, TIME = "str", "Int64", "float64", "boolean", "datetime64[us, UTC]"


@dataclass(frozen=True)
class Column:
    """A column: its pandas type, the unit of its values, and what they are."""

    name: str
    dtype: str
    unit: str
    meaning: str


RUN_COLUMNS = (
    Column("run", TEXT, "", "name of the run, by which its ranks are found; no two runs have the same"),
    Column("source", TEXT, "", "file or folder that tells of it"),
    Column("origin", TEXT, "", "`ours` or `published`"),
    Column("kind", TEXT, "", "what it was read from: see analysis.readers"),
    Column("study", TEXT, "", "`data size`, `batch size`, `world size`, or `single`: what was varied; runs of two "
           "studies are never averaged together"),
    Column("platform", TEXT, "", "`laptop` (any single machine), `slurm` or `lambda`"),
    Column("device", TEXT, "", "`cpu` or `cuda`"),
    Column("machine", TEXT, "", "where it was measured, as far as the source tells"),
    Column("engine", TEXT, "", "what computed: `openvino`, `reference`, `cuda`, or `published` for the published code"),
    Column("precision", TEXT, "", "`float32`, `bfloat16`, `int8`"),
    Column("weights", TEXT, "", "what the network's weights are: `demo`, or the first 16 digits of their SHA-256"),
    Column("partition_mb", REAL, "MB (2^20 bytes)", "target size of the partitions"),
    Column("data_gb", REAL, "GB (2^30 bytes)", "data size that the run claims; `total` is 12.6"),
    Column("batch_size", COUNT, "galaxies", "NA where ranks differ"),
    Column("world_size", COUNT, "ranks", "ranks that the run had, as far as it says; at once or not"),
    Column("concurrency", COUNT, "ranks", "most ranks at once, where that is known to be less than world_size"),
    Column("repeat", COUNT, "", "number among runs of the same settings, from 1"),
    Column("asked_ranks", COUNT, "ranks", "ranks, which are files on Lambda, that there should be"),
    Column("asked_galaxies", COUNT, "galaxies", "galaxies that there should be, where that is known exactly"),
    Column("ranks", COUNT, "ranks", "ranks that the source tells of"),
    Column("galaxies", COUNT, "galaxies", "galaxies that were predicted, over all ranks"),
    Column("duplicate", COUNT, "galaxies", "galaxies that are there more than once"),
    Column("complete", TRUTH, "", "what the run says of itself; NA if it says nothing"),
    Column("wall_seconds", REAL, "s", "from the start of the whole run to its end, by a clock; for Lambda the state "
           "machine's duration, for SLURM the array's"),
    Column("working_seconds", REAL, "s", "of these, those in which ranks worked; for Lambda the duration of the map"),
    Column("rank_seconds", REAL, "s", "mean over ranks of the seconds that each worked"),
    Column("median_rank_seconds", REAL, "s", "median over ranks of the same"),
    Column("slowest_seconds", REAL, "s", "the same of the slowest rank"),
    Column("cpu_seconds", REAL, "s", "CPU time of all ranks together"),
    Column("mean_cpu_seconds", REAL, "s", "mean over ranks of their CPU time, outliers left out: the published "
           "`total_cpu_time` of a run"),
    Column("median_cpu_seconds", REAL, "s", "median over ranks of their CPU time"),
    Column("galaxies_per_second", REAL, "galaxies/s", "galaxies over working_seconds, else over wall_seconds"),
    Column("summed_galaxies_per_second", REAL, "galaxies/s", "sum of the ranks' own rates: what published tables call "
           "throughput, and no rate that the run had unless all ranks ran at once"),
    Column("allocated_mb", REAL, "MB (10^6 bytes)", "all that torch's profiler saw allocated, over all ranks: the "
           "published `total_cpu_memory`, and no memory that was ever in use at once"),
    Column("peak_rss_mb", REAL, "MB (2^20 bytes)", "largest resident memory of any rank"),
    Column("peak_gpu_mb", REAL, "MB (2^20 bytes)", "largest memory of any rank's GPU"),
    Column("memory_mb", REAL, "MB (2^20 bytes)", "memory of the function on Lambda"),
    Column("billed_seconds", REAL, "s", "what Lambda billed, over all calls"),
    Column("dollars", REAL, "US dollars", "what AWS charges at list prices, where the run tells enough"),
    Column("mae", REAL, "", "mean |z_phot - z_spec|"),
    Column("mse", REAL, "", "mean (z_phot - z_spec)^2"),
    Column("bias", REAL, "", "mean dz"),
    Column("nmad", REAL, "", "1.48 median |dz - median dz|: the published precision"),
    Column("r2", REAL, "", "coefficient of determination"),
    Column("outliers", REAL, "", "fraction with |dz| > 0.05"),
    Column("started_at", TIME, "UTC", "when the first rank began"),
    Column("catalogue", TEXT, "", "address of the catalogue"),
    Column("git_commit", TEXT, "", "commit of the code that ran"),
    Column("image_digest", TEXT, "", "manifest digest of the image that ran"),
)  # fmt: skip

RANK_COLUMNS = (
    Column("run", TEXT, "", "name of the run"),
    Column("rank", COUNT, "", "number of the rank, from 0; published records are numbered in their order"),
    Column("attempt", COUNT, "", "which attempt of this rank, from 1"),
    Column("item", TEXT, "", "the file that it read; for ours the survey"),
    Column("host", TEXT, "", "name of the machine"),
    Column("state", TEXT, "", "`finished`, `running`, `failed` and the like, where the record tells"),
    Column("started_at", TIME, "UTC", "when it began"),
    Column("ended_at", TIME, "UTC", "when it last wrote"),
    Column("galaxies", COUNT, "galaxies", "galaxies that it predicted"),
    Column("batches", COUNT, "batches", "batches that it predicted"),
    Column("batch_size", COUNT, "galaxies", "most galaxies in a batch"),
    Column("seconds", REAL, "s", "wall time of its work: reading, predicting, writing; records of the published code "
           "have none: their seconds per batch are CPU time over galaxies, times the batch size"),
    Column("cpu_seconds", REAL, "s", "CPU time of its work"),
    Column("start_seconds", REAL, "s", "from the start of its process to its code; on Lambda the start of the runtime"),
    Column("load_seconds", REAL, "s", "loading the network"),
    Column("read_seconds", REAL, "s", "waiting for galaxies"),
    Column("predict_seconds", REAL, "s", "predicting"),
    Column("write_seconds", REAL, "s", "waiting for results to be written"),
    Column("galaxies_per_second", REAL, "galaxies/s", "as the record says"),
    Column("allocated_mb", REAL, "MB (10^6 bytes)", "what torch's profiler saw allocated"),
    Column("peak_rss_mb", REAL, "MB (2^20 bytes)", "largest resident memory"),
    Column("peak_gpu_mb", REAL, "MB (2^20 bytes)", "largest memory of the GPU"),
    Column("s3_requests", COUNT, "requests", "requests to S3"),
    Column("s3_seconds", REAL, "s", "time of these requests, added up"),
    Column("memory_mb", REAL, "MB (2^20 bytes)", "memory of the function on Lambda"),
    Column("billed_seconds", REAL, "s", "what Lambda billed"),
)  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """Something that was found and not taken: its source, what of it (`record 3`, or the whole), and why."""

    source: str
    reason: str
    what: str = ""


@dataclass(frozen=True)
class Measured:
    """What a source tells of one run: a row of RUN_COLUMNS, and rows of RANK_COLUMNS without the run's name.

    What the ranks tell of their run (see `collect.with_sums`) need not be in its row.
    """

    run: Row
    ranks: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a reader found in one source."""

    measured: tuple[Measured, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Collection:
    """Everything that was found: `runs` with RUN_COLUMNS, `ranks` with RANK_COLUMNS, and what was left out."""

    runs: pd.DataFrame
    ranks: pd.DataFrame
    left_out: tuple[LeftOut, ...] = field(default=())


def frame(rows: Iterable[Row], columns: tuple[Column, ...]) -> pd.DataFrame:
    """The rows as a table with exactly these columns and types. Raises KeyError for a name that is no column."""
    everything = list(rows)
    names = {column.name for column in columns}
    if unknown := {name for row in everything for name in row} - names:
        raise KeyError(f"no such columns: {', '.join(sorted(unknown))}")
    table = {
        column.name: pd.array([row.get(column.name) for row in everything], dtype=column.dtype) for column in columns
    }
    return pd.DataFrame(table)
