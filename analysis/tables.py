"""The two tables that the whole analysis works on: one row per run, and one row per rank of a run.

Every column is declared here with its type, unit and meaning. Readers fill rows by these names and omit what their
source does not state. A missing value is pandas' own (NA, NaN or NaT), never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from cosmicai.runs.record import BITS_PER_GALAXY

Row = Mapping[str, Any]

GALAXY_BYTES = BITS_PER_GALAXY // 8  # cutout and magnitudes, the bytes that published data sizes count
GB = 2**30  # the published 12.6 GB are 659,857 galaxies, so a GB there is 2^30 bytes
TOTAL_GB = 12.6  # name of the published total data set
TEXT, COUNT, REAL, BOOLEAN, TIME = "str", "Int64", "float64", "boolean", "datetime64[us, UTC]"
ONE_MACHINE, SEVERAL_MACHINES = "one machine", "several machines"  # platforms of ranks that know of no cluster
LAPTOP = "laptop"  # platform of published runs whose source says so
VIEWS = "views"  # study of runs that predict each cutout several times
LARGEST_COUNT = 10**15  # sums over thousands of ranks still fit into 64 bits


@dataclass(frozen=True)
class ColumnSpec:
    """Declaration of a table column: its pandas type, the unit of its values, and their meaning."""

    name: str
    dtype: str
    unit: str
    meaning: str


RUN_COLUMNS = (
    ColumnSpec("run", TEXT, "", "unique name of the run; its ranks refer to it"),
    ColumnSpec("source", TEXT, "", "file or folder that describes the run"),
    ColumnSpec("origin", TEXT, "", "`ours` or `published`"),
    ColumnSpec("kind", TEXT, "", "kind of source: see analysis.readers"),
    ColumnSpec("study", TEXT, "", "`data size`, `batch size`, `world size`, or `single`: the setting that was varied; "
               "`views`: each cutout was predicted in several views; runs of two studies are never averaged together"),
    ColumnSpec("platform", TEXT, "", "`one machine`, `several machines`, `slurm` or `lambda`; `laptop` if a published "
               "source says so; NA if ranks differ or their place is not known"),
    ColumnSpec("device", TEXT, "", "`cpu` or `cuda`"),
    ColumnSpec("site", TEXT, "", "name of the site profile with which SLURM jobs were submitted"),
    ColumnSpec("cluster", TEXT, "", "name of the cluster, as SLURM or the platform of the containers states it"),
    ColumnSpec("machine", TEXT, "", "processor and GPU of the measurement, as far as the source states them"),
    ColumnSpec("threads", COUNT, "threads", "threads of a rank; NA where ranks differ"),
    ColumnSpec("engine", TEXT, "", "inference engine: `openvino`, `reference`, `cuda`, or `published` for the "
               "published code"),
    ColumnSpec("precision", TEXT, "", "`float32`, `bfloat16`, `int8`"),
    ColumnSpec("weights", TEXT, "", "weights of the network: `demo`, or the first 16 digits of their SHA-256"),
    ColumnSpec("weights_name", TEXT, "", "name and SHA-256 of the weights, and whether they were trained on synthetic "
               "galaxies"),
    ColumnSpec("partition_mb", REAL, "MB (2^20 bytes)", "target size of the partitions"),
    ColumnSpec("data_gb", REAL, "GB (2^30 bytes)", "data size that the run states; `total` is 12.6"),
    ColumnSpec("batch_size", COUNT, "galaxies", "NA where ranks differ"),
    ColumnSpec("world_size", COUNT, "ranks", "number of ranks that the run states; not all need to run at once"),
    ColumnSpec("concurrency", COUNT, "ranks", "most ranks at once, if known to be less than world_size"),
    ColumnSpec("repeat", COUNT, "", "number among runs of the same settings, from 1"),
    ColumnSpec("asked_ranks", COUNT, "ranks", "planned number of ranks, which are files on Lambda"),
    ColumnSpec("asked_galaxies", COUNT, "galaxies", "planned number of galaxies, if known exactly"),
    ColumnSpec("ranks", COUNT, "ranks", "ranks that the source describes"),
    ColumnSpec("galaxies", COUNT, "galaxies", "galaxies predicted, over all ranks"),
    ColumnSpec("duplicate", COUNT, "galaxies", "galaxies that occur more than once"),
    ColumnSpec("duplicate_objid", COUNT, "ids", "ids that several rows of the catalogue have"),
    ColumnSpec("complete", BOOLEAN, "", "whether the run's own summary reports it as complete; NA without a summary"),
    ColumnSpec("wall_seconds", REAL, "s", "wall-clock time from the start of the whole run to its end; for Lambda the "
               "duration of the state machine, for SLURM that of the array"),
    ColumnSpec("working_seconds", REAL, "s", "part of wall_seconds in which ranks worked; for Lambda the duration of "
               "the map"),
    ColumnSpec("rank_seconds", REAL, "s", "working time of a rank, mean over ranks"),
    ColumnSpec("median_rank_seconds", REAL, "s", "working time of a rank, median over ranks"),
    ColumnSpec("slowest_seconds", REAL, "s", "working time of the slowest rank"),
    ColumnSpec("cpu_seconds", REAL, "s", "CPU time, sum over ranks"),
    ColumnSpec("mean_cpu_seconds", REAL, "s", "CPU time of a rank, mean over ranks without outliers: the published "
               "`total_cpu_time` of a run"),
    ColumnSpec("median_cpu_seconds", REAL, "s", "CPU time of a rank, median over ranks"),
    ColumnSpec("galaxies_per_second", REAL, "galaxies/s", "galaxies over working_seconds, else over wall_seconds"),
    ColumnSpec("summed_galaxies_per_second", REAL, "galaxies/s", "sum of the ranks' own rates: the throughput of "
               "published tables; a rate of the run only if all ranks ran at once"),
    ColumnSpec("allocated_mb", REAL, "MB (10^6 bytes)", "sum of all allocations that torch's profiler recorded, over "
               "all ranks: the published `total_cpu_memory`; never in use at once"),
    ColumnSpec("peak_rss_mb", REAL, "MB (2^20 bytes)", "largest resident memory of any rank"),
    ColumnSpec("peak_gpu_mb", REAL, "MB (2^20 bytes)", "largest GPU memory of any rank"),
    ColumnSpec("memory_mb", REAL, "MB (2^20 bytes)", "configured memory of the function on Lambda"),
    ColumnSpec("billed_seconds", REAL, "s", "time billed by Lambda, over all invocations"),
    ColumnSpec("s3_seconds", REAL, "s", "duration of all requests to S3, sum over ranks"),
    ColumnSpec("s3_mean_seconds", REAL, "s", "a rank's mean duration of a request, mean over ranks"),
    ColumnSpec("s3_min_seconds", REAL, "s", "a rank's shortest request, mean over ranks"),
    ColumnSpec("s3_max_seconds", REAL, "s", "a rank's longest request, mean over ranks"),
    ColumnSpec("dollars", REAL, "US dollars", "charges of AWS at list prices, if the run states enough"),
    ColumnSpec("mae", REAL, "", "mean |z_phot - z_spec|"),
    ColumnSpec("mse", REAL, "", "mean (z_phot - z_spec)^2"),
    ColumnSpec("bias", REAL, "", "mean dz"),
    ColumnSpec("nmad", REAL, "", "1.48 median |dz - median dz|: the published precision"),
    ColumnSpec("r2", REAL, "", "coefficient of determination"),
    ColumnSpec("outliers", REAL, "", "fraction with |dz| > 0.05"),
    ColumnSpec("calibrated_on", TEXT, "", "galaxies that calibrated the intervals, their survey, and when and how"),
    ColumnSpec("interval_galaxies", COUNT, "galaxies", "galaxies that the coverage of the intervals is measured on; "
               "none of them calibrated"),
    ColumnSpec("coverage_68", REAL, "", "fraction of these whose spectroscopic redshift is in the 68% interval"),
    ColumnSpec("coverage_68_error", REAL, "", "standard error of coverage_68 (binomial)"),
    ColumnSpec("width_68", REAL, "", "mean width of their 68% intervals"),
    ColumnSpec("coverage_95", REAL, "", "fraction of these whose spectroscopic redshift is in the 95% interval"),
    ColumnSpec("coverage_95_error", REAL, "", "standard error of coverage_95 (binomial)"),
    ColumnSpec("width_95", REAL, "", "mean width of their 95% intervals"),
    ColumnSpec("outside_galaxies", COUNT, "galaxies", "those of interval_galaxies that are outside of the training "
               "domain"),
    ColumnSpec("outside_coverage_68", REAL, "", "coverage_68 of galaxies outside of the training domain"),
    ColumnSpec("outside_coverage_95", REAL, "", "coverage_95 of galaxies outside of the training domain"),
    ColumnSpec("started_at", TIME, "UTC", "start of the first rank"),
    ColumnSpec("survey_check", TEXT, "", "what the check of the survey found when the run was planned"),
    ColumnSpec("catalogue", TEXT, "", "address of the catalogue"),
    ColumnSpec("git_commit", TEXT, "", "commit of the code that ran"),
    ColumnSpec("image_digest", TEXT, "", "manifest digest of the container image that ran"),
)  # fmt: skip

RANK_COLUMNS = (
    ColumnSpec("run", TEXT, "", "name of the run"),
    ColumnSpec("rank", COUNT, "", "number of the rank, from 0; published records are numbered in their order"),
    ColumnSpec("attempt", COUNT, "", "attempt of this rank, from 1"),
    ColumnSpec("item", TEXT, "", "file that it read; the survey for runs of this project"),
    ColumnSpec("host", TEXT, "", "name of the machine"),
    ColumnSpec("state", TEXT, "", "`finished`, `running`, `failed` and similar, if the record states it"),
    ColumnSpec("started_at", TIME, "UTC", "start of the rank"),
    ColumnSpec("ended_at", TIME, "UTC", "time of its last write"),
    ColumnSpec("galaxies", COUNT, "galaxies", "galaxies that it predicted"),
    ColumnSpec("batches", COUNT, "batches", "batches that it predicted"),
    ColumnSpec("batch_size", COUNT, "galaxies", "most galaxies in a batch"),
    ColumnSpec("seconds", REAL, "s", "wall-clock time of its work: reading, predicting, writing; missing in records of "
               "the published code, whose seconds per batch are CPU time over galaxies, times the batch size"),
    ColumnSpec("cpu_seconds", REAL, "s", "CPU time of its work"),
    ColumnSpec("start_seconds", REAL, "s", "time from the start of its process to its code; on Lambda the start of "
               "the runtime"),
    ColumnSpec("load_seconds", REAL, "s", "time to load the network"),
    ColumnSpec("read_seconds", REAL, "s", "time waiting for galaxies"),
    ColumnSpec("predict_seconds", REAL, "s", "time predicting"),
    ColumnSpec("write_seconds", REAL, "s", "time waiting for results to be written"),
    ColumnSpec("galaxies_per_second", REAL, "galaxies/s", "rate that the record states"),
    ColumnSpec("allocated_mb", REAL, "MB (10^6 bytes)", "allocations that torch's profiler recorded"),
    ColumnSpec("peak_rss_mb", REAL, "MB (2^20 bytes)", "largest resident memory"),
    ColumnSpec("peak_gpu_mb", REAL, "MB (2^20 bytes)", "largest memory of the GPU"),
    ColumnSpec("s3_requests", COUNT, "requests", "requests to S3"),
    ColumnSpec("s3_seconds", REAL, "s", "duration of these requests, added up"),
    ColumnSpec("s3_mean_seconds", REAL, "s", "mean duration of a request"),
    ColumnSpec("s3_min_seconds", REAL, "s", "duration of the shortest request"),
    ColumnSpec("s3_max_seconds", REAL, "s", "duration of the longest request"),
    ColumnSpec("memory_mb", REAL, "MB (2^20 bytes)", "configured memory of the function on Lambda"),
    ColumnSpec("billed_seconds", REAL, "s", "time billed by Lambda"),
)  # fmt: skip


RUN_TYPES, RANK_TYPES = ({column.name: column.dtype for column in columns} for columns in (RUN_COLUMNS, RANK_COLUMNS))


@dataclass(frozen=True)
class LeftOut:
    """Something that was found but not used: its source, the part (`record 3`, or empty for all of it), and why."""

    source: str
    reason: str
    what: str = ""


@dataclass(frozen=True)
class MeasuredRun:
    """One run as a source describes it: a row of RUN_COLUMNS, and rows of RANK_COLUMNS without the run's name.

    Values that follow from the ranks (see `collect.add_rank_totals`) may be missing from the run's row. `digests` are
    those of the records or of the table's row from which it was read: equal ones are a copy. `contradictions` are
    sentences on statements of the source that cannot all be true.
    """

    run: Row
    ranks: tuple[Row, ...] = ()
    digests: frozenset[int] = frozenset()
    contradictions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contradiction:
    """Statements about a run that cannot all be true, as one sentence."""

    run: str
    text: str


@dataclass(frozen=True)
class SourceContents:
    """Everything that a reader found in one source."""

    measured: tuple[MeasuredRun, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Collection:
    """Everything that was collected: `runs` with RUN_COLUMNS, `ranks` with RANK_COLUMNS, and what was left out.

    `contradictions` are statements of the sources that cannot all be true; the audit reports them.
    """

    runs: pd.DataFrame
    ranks: pd.DataFrame
    left_out: tuple[LeftOut, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()


def make_table(rows: Iterable[Row], columns: tuple[ColumnSpec, ...]) -> pd.DataFrame:
    """Return the rows as a table with exactly these columns and types.

    Raises KeyError for a name that is not a column.
    """
    everything = list(rows)
    names = {column.name for column in columns}
    if unknown := {name for row in everything for name in row} - names:
        raise KeyError(f"no such columns: {', '.join(sorted(unknown))}")
    table = {
        column.name: pd.array([row.get(column.name) for row in everything], dtype=column.dtype) for column in columns
    }
    return pd.DataFrame(table)


def validate_row(row: Row, dtypes: Mapping[str, str]) -> None:
    """Raise ValueError, naming the column, if a value of a row does not fit its column; None always fits.

    Readers call this for each row, so that one bad value costs one row and not the whole table.
    """
    for name, value in row.items():
        if value is None:
            continue
        if not _FITS[dtypes[name]](value):
            raise ValueError(f"its {name} is {_quote(value)}; expected {_EXPECTED[dtypes[name]]}")
        if name == "batch_size" and not value:  # the analysis divides by it
            raise ValueError("its batch_size is 0; expected 1 or more")


def is_text(value: object) -> bool:
    """Return whether a value is text that UTF-8 can encode: JSON may hold half of a surrogate pair."""
    if type(value) is not str:
        return False
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_COUNT


def _is_real(value: object) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= LARGEST_COUNT)


def _is_boolean(value: object) -> bool:
    return type(value) is bool


def _is_time(value: object) -> bool:
    return isinstance(value, datetime) and value.tzinfo is not None


def _quote(value: object) -> str:
    text = repr(value) if type(value) is not int or abs(value) <= LARGEST_COUNT else "a number of more than 15 digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


_FITS = {TEXT: is_text, COUNT: _is_count, REAL: _is_real, BOOLEAN: _is_boolean, TIME: _is_time}
_EXPECTED = {
    TEXT: "text in Unicode",
    COUNT: "a whole number from 0 to 10^15",
    REAL: "a finite number",
    BOOLEAN: "true or false",
    TIME: "a time with a time zone",
}
