"""The published studies as data: which measure depends on which setting, for which runs, and the table of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from .compare import KEYS, summarize_groups
from .tables import GALAXY_BYTES, GB

STUDY_COLUMNS = (
    *("x", "series", "value", "low", "high", "median"),
    *("runs", "whole", "doubtful", "incomplete", "unknown", "left_out"),
    *("origin", "machine", "threads"),
)


@dataclass(frozen=True)
class Study:
    """A measure as a function of a setting: a point per value of `x`, a line per value of `series` and settings.

    `x`, `measure`, `series` and `split_by` are columns of runs or of `add_study_columns`. `filters` maps columns to the
    values of the runs that belong to the study. The runs of a line agree in `compare.KEYS`, except those in `pooled`,
    and in `split_by`; the values of `follows` may change along a line together with x, unless runs of equal x differ in
    them. Runs with x below `smallest_x` or above `largest_x` belong to another study; lines of fewer points than
    `min_points` are left out. Incomplete runs are used if `of_ranks`, since a rank does not depend on others that are
    missing. `note` is what a reader must know to judge the figure.
    """

    name: str
    title: str
    x: str
    x_label: str
    measure: str
    y_label: str
    series: str | None = None
    filters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split_by: tuple[str, ...] = ()
    pooled: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    smallest_x: float | None = None
    largest_x: float | None = None
    of_ranks: bool = False
    min_points: int = 1
    log_x: bool = False
    log_y: bool = False
    note: str = ""


DATA, BATCH, PARTITION = "data, GB", "batch size, galaxies", "size of partitions, MB"
TIME = "time of the whole run, s"
CPU_TIME = "mean CPU time of a rank, s"
RATE = "galaxies per second, wall-clock"
SUMMED = "sum of the ranks' galaxies per second"
SUMMED_NOTE = "A sum of the ranks' own rates is the rate of the run only if all ranks worked at once."
CPU_NOTE = "The CPU time of a rank is not the time of the run: it excludes starting, waiting and the slowest rank."
ALLOCATED_NOTE = "The sum of all allocations, which are never in use at once."
PROCESSORS_NOTE = "On Lambda, published runs with partitions of 25 MB, as in the published comparison."
COST_NOTE = (
    "List prices. Published runs: CPU seconds of the ranks and memory of the published cost table, which is less than "
    "was billed. Own runs: everything that the run recorded."
)
LAMBDA: Mapping[str, tuple[str, ...]] = {"platform": ("lambda",), "study": ("data size", "single")}
ANYWHERE: Mapping[str, tuple[str, ...]] = {"study": ("data size", "single")}
BATCHES: Mapping[str, tuple[str, ...]] = {"study": ("batch size", "world size", "single")}
SPLIT_PLATFORMS = ("chosen_ranks", "partition_mb", "batch", "clock")
SPLIT_BATCHES = ("partition_mb", "world_size", "memory_mb")
# Of the comparison of processors: runs of one machine, and on Lambda those of one size of partitions.
PROCESSORS: Mapping[str, tuple[str, ...]] = {
    "compared": ("yes",), "kind": ("platforms", "combined", "statistics", "results", "run", "figure"),
}  # fmt: skip
PUBLISHED_BATCH = 512  # of all records of the published data sizes; their tables of averages and times do not state it
COMPARED_MB = 25.0  # partitions of the published comparison of processors on Lambda
PUBLISHED_GB = 12.6  # the whole published survey; larger data sizes repeat it

STUDIES = (
    Study(
        "data-size-time", "Time by data size on Lambda", "data_gb", DATA, "wall_seconds", TIME,
        series="partition_mb", filters=LAMBDA, split_by=("batch", "memory_mb"), largest_x=PUBLISHED_GB,
    ),
    Study(
        "data-size-rank-time", "CPU time of a rank by data size on Lambda", "data_gb", DATA, "mean_cpu_seconds",
        CPU_TIME, series="partition_mb", filters=LAMBDA, split_by=("batch", "memory_mb"), largest_x=PUBLISHED_GB,
        note=CPU_NOTE,
    ),
    Study(
        "data-size-throughput", "Throughput by data size on Lambda", "data_gb", DATA, "wall_galaxies_per_second", RATE,
        series="partition_mb", filters=LAMBDA, split_by=("batch", "memory_mb"), largest_x=PUBLISHED_GB,
    ),
    Study(
        "data-size-summed-throughput", "Sum of the ranks' rates by data size on Lambda", "data_gb", DATA,
        "summed_galaxies_per_second", SUMMED, series="partition_mb", filters=LAMBDA, split_by=("batch", "memory_mb"),
        largest_x=PUBLISHED_GB, note=SUMMED_NOTE,
    ),
    Study(
        "batch-size-time", "Time by batch size", "batch_size", BATCH, "wall_seconds", TIME,
        series="where", filters=BATCHES, split_by=SPLIT_BATCHES, min_points=2, log_x=True, log_y=True,
    ),
    Study(
        "batch-size-rank-time", "CPU time of a rank by batch size", "batch_size", BATCH, "mean_cpu_seconds", CPU_TIME,
        series="where", filters=BATCHES, split_by=SPLIT_BATCHES, min_points=2, log_x=True, log_y=True,
        note=CPU_NOTE,
    ),
    Study(
        "batch-size-throughput", "Throughput by batch size", "batch_size", BATCH, "wall_galaxies_per_second", RATE,
        series="where", filters=BATCHES, split_by=SPLIT_BATCHES, min_points=2, log_x=True, log_y=True,
    ),
    Study(
        "batch-size-summed-throughput", "Sum of the ranks' rates by batch size", "batch_size", BATCH,
        "summed_galaxies_per_second", SUMMED, series="where", filters=BATCHES,
        split_by=SPLIT_BATCHES, min_points=2, log_x=True, log_y=True, note=SUMMED_NOTE,
    ),
    Study(
        "world-size-time", "Time by number of ranks", "chosen_ranks", "ranks", "wall_seconds", TIME, series="where",
        split_by=("batch", "partition_mb", "memory_mb"), follows=("threads",), min_points=2, log_x=True, log_y=True,
    ),
    Study(
        "partition-size-time", "Time by size of partitions on Lambda", "partition_mb", PARTITION, "wall_seconds", TIME,
        series="data_gb", filters=LAMBDA, split_by=("batch", "memory_mb"), min_points=2,
    ),
    Study(
        "partition-size-cost", "Cost by size of partitions on Lambda", "partition_mb", PARTITION, "dollars",
        "cost, US dollars", series="data_gb", filters=LAMBDA, split_by=("batch", "memory_mb", "dollars_source"),
        min_points=2, note=COST_NOTE,
    ),
    Study(
        "throughput-per-dollar", "Galaxies per dollar by size of partitions on Lambda", "partition_mb", PARTITION,
        "galaxies_per_dollar", "galaxies per US dollar", series="data_gb", filters=LAMBDA,
        split_by=("batch", "memory_mb", "dollars_source"), min_points=2, note=COST_NOTE,
    ),
    Study(
        "platforms-time", "Time by data size and platform", "data_gb", DATA, "known_seconds", TIME, series="where",
        filters=ANYWHERE, split_by=SPLIT_PLATFORMS, largest_x=PUBLISHED_GB, log_y=True,
    ),
    Study(
        "platforms-throughput", "Throughput by data size and platform", "data_gb", DATA, "known_galaxies_per_second",
        RATE, series="where", filters=ANYWHERE, split_by=SPLIT_PLATFORMS, log_x=True,
        log_y=True,
    ),
    Study(
        "terabyte-time", "Time up to 1 TB", "data_gb", DATA, "known_seconds", TIME, series="where", filters=ANYWHERE,
        split_by=SPLIT_PLATFORMS, log_x=True, log_y=True,
    ),
    Study(
        "job-rank-time", "Time of a rank by data size on SLURM", "data_gb", DATA, "rank_seconds",
        "mean time of a rank, s", series="where", filters={"platform": ("slurm",), "kind": ("statistics", "run")},
        split_by=("chosen_ranks", "partition_mb", "batch"), min_points=2, log_x=True,
        note="The time of the run is that of the slowest rank, not the mean over ranks.",
    ),
    Study(
        "service-units", "Service units by data size on SLURM", "data_gb", DATA, "service_units", "service units",
        series="where", filters={**ANYWHERE, "platform": ("slurm",)},
        split_by=("batch", "chosen_ranks", "service_units_source"), log_x=True, log_y=True,
    ),
    Study(
        "memory", "Largest memory of a rank by size of partitions", "partition_mb", PARTITION, "peak_rss_mb",
        "largest resident memory of a rank, MB", series="where", split_by=("batch",), pooled=("study", "data_gb"),
        note="Runs of all data sizes are pooled: a rank holds one partition in memory.",
    ),
    Study(
        "allocated", "Total memory allocated by size of partitions", "partition_mb", PARTITION, "allocated_mb",
        "allocated by all ranks, 10^6 B", series="where", filters=ANYWHERE, split_by=("batch",), min_points=2,
        log_y=True, note=ALLOCATED_NOTE,
    ),
    Study(
        "processors-batch-size", "Throughput by batch size and processor", "batch_size", BATCH, "galaxies_per_second",
        "galaxies per second", series="processor", filters={**PROCESSORS, **BATCHES}, split_by=SPLIT_BATCHES,
        min_points=2, log_x=True, log_y=True, note="Galaxies over time where a time is stated, else the stated rate.",
    ),
    Study(
        "processors-data-size", "Time by data size and processor", "data_gb", DATA, "known_seconds",
        "time of the whole run, or of its work, s", series="processor", filters={**PROCESSORS, **ANYWHERE},
        split_by=("chosen_ranks", "partition_mb", "batch", "clock"), largest_x=PUBLISHED_GB, min_points=2, log_x=True,
        log_y=True, note=PROCESSORS_NOTE,
    ),
    Study(
        "processors-memory", "Memory allocated by data size and processor", "data_gb", DATA, "allocated_mb",
        "allocated by all ranks, 10^6 B", series="processor", filters={**PROCESSORS, **ANYWHERE},
        split_by=("partition_mb", "batch"), largest_x=PUBLISHED_GB, min_points=2, log_x=True, log_y=True,
        note=f"{ALLOCATED_NOTE} {PROCESSORS_NOTE}",
    ),
    Study(
        "lambda-slurm-rank-time", "Time of a rank from 100 GB on, Lambda and SLURM", "data_gb", DATA,
        "any_rank_seconds", "mean time of a rank, s", series="where",
        filters={**ANYWHERE, "platform": ("lambda", "slurm"), "kind": ("combined", "statistics", "run")},
        split_by=("partition_mb", "batch"), smallest_x=100.0, of_ranks=True, log_x=True,
        note="Published ranks on Lambda state CPU time alone. Incomplete runs are shown too: it is the time of each.",
    ),
)  # fmt: skip


def build_study_table(study: Study, runs: pd.DataFrame, verdicts: pd.Series, incomplete: bool = False) -> pd.DataFrame:
    """Return the points of a study: STUDY_COLUMNS, a row per point, ordered by line, then x.

    Runs are those of `costs.add_costs`; without it, points whose cost only it knows are missing. `value` is the mean
    over repeats without outliers (see `compare.summarize_groups`), `low` and `high` are the minimum and the maximum;
    with `median`, all four are NaN for a point without usable runs. The table is empty if no run has both x and the
    measure.
    """
    known = add_study_columns(runs)
    belongs = known[study.x].notna() & known[study.measure].notna()
    for column, values in study.filters.items():
        belongs &= known[column].isin(values)
    if study.smallest_x is not None:
        belongs &= known[study.x].ge(study.smallest_x)
    if study.largest_x is not None:
        belongs &= known[study.x].le(study.largest_x)
    keys = dict.fromkeys([*filter(None, [study.series]), *KEYS, *study.split_by])
    lines = [column for column in keys if column != study.x and column not in study.pooled]
    table = summarize_groups(known[belongs], verdicts, [*lines, study.x], [study.measure], incomplete or study.of_ranks)
    statistics = {study.measure + suffix: name for suffix, name in _STATISTICS.items()}
    named = table.rename(columns={study.x: "x", **statistics}).assign(series=_name_lines(table, lines, study))
    line = pd.Series(pd.factorize(named["series"])[0], named.index)
    named = named.assign(line=line).sort_values(["line", "x"], kind="stable")
    points = named.groupby("series")["x"].transform("size")
    return named.loc[points.ge(study.min_points), [*STUDY_COLUMNS]].reset_index(drop=True)


def add_study_columns(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with the additional columns that studies need.

    where: platform and device for readers. chosen_ranks: number of ranks where it was chosen; NA on Lambda, where each
    file is a rank, except in studies of it. batch: batch size, PUBLISHED_BATCH for published data sizes on Lambda that
    do not state it. data_gb: as stated, else from the galaxies. wall_galaxies_per_second: galaxies over wall_seconds.
    known_seconds: wall_seconds, else working_seconds, as `clock` then states; known_galaxies_per_second: galaxies over
    known_seconds. galaxies_per_dollar: galaxies over dollars. processor: the machine, else `where`. compared: `yes` for
    the runs that the comparison of processors shows, which leaves out published ones on Lambda with other partitions
    than those of the published comparison. any_rank_seconds: rank_seconds, else mean_cpu_seconds.
    """
    galaxies = runs["galaxies"].astype("float64")
    known = runs["wall_seconds"].fillna(runs["working_seconds"])
    absent = {
        name: pd.Series(pd.NA, index=runs.index, dtype=dtype)
        for name, dtype in (("dollars_source", "str"), ("service_units", "Float64"), ("service_units_source", "str"))
        if name not in runs
    }
    platform = runs["platform"].replace({"lambda": "Lambda", "slurm": "SLURM"})
    device = runs["device"].map({"cpu": " CPU", "cuda": " GPU"}).fillna("")
    unstated = runs["batch_size"].isna() & runs["ranks"].isna()  # if ranks are known, they differ in it
    unstated &= runs["origin"].eq("published") & runs["study"].eq("data size") & runs["platform"].eq("lambda")
    where = platform + device.where(runs["platform"].ne("lambda"), "")
    other = runs["origin"].eq("published") & runs["platform"].eq("lambda")
    other &= runs["partition_mb"].notna() & runs["partition_mb"].ne(COMPARED_MB)
    return runs.assign(
        **absent,
        batch=runs["batch_size"].mask(unstated, PUBLISHED_BATCH),
        where=where,
        processor=runs["machine"].fillna(where),
        compared=other.map({False: "yes", True: "no"}).astype("str"),
        any_rank_seconds=runs["rank_seconds"].fillna(runs["mean_cpu_seconds"]),
        chosen_ranks=runs["world_size"].where(runs["platform"].ne("lambda") | runs["study"].eq("world size")),
        data_gb=runs["data_gb"].fillna(galaxies * GALAXY_BYTES / GB),
        wall_galaxies_per_second=galaxies / runs["wall_seconds"],
        known_seconds=known,
        known_galaxies_per_second=galaxies / known,
        clock=_name_clock(runs),
        galaxies_per_dollar=galaxies / runs["dollars"],
    )


def _name_clock(runs: pd.DataFrame) -> pd.Series:
    """Return what the known time of each run includes; NA without a time."""
    clock = pd.Series(pd.NA, runs.index, dtype="str")
    clock[runs["working_seconds"].notna()] = "working time only"
    clock[runs["wall_seconds"].notna()] = "from start to end"
    return clock


ALWAYS = ("origin", "clock")  # part of the name wherever they differ, even if it is unique without them
_STATISTICS = {"": "value", "_min": "low", "_max": "high", "_median": "median"}
_TEXTS = {
    "partition_mb": "{:g} MB partitions",
    "data_gb": "{:.4g} GB",
    "batch": "batches of {:,}",
    "world_size": "world size {:,}",
    "chosen_ranks": "world size {:,}",
    "memory_mb": "{:,.0f} MB of memory",
    "study": "study: {}",
    "threads": "threads per rank: {:,}",
}


def _name_lines(table: pd.DataFrame, lines: list[str], study: Study) -> pd.Series:
    """Return the name of each row's line: its first column, ALWAYS, and others that distinguish equal names."""
    named = pd.Series("", index=table.index)
    # Those used only if nothing else distinguishes.
    last = [column for column in ("study", "machine", "threads") if column in lines]
    for column in dict.fromkeys([*(column for column in lines if column not in last), *last]):
        written = _TEXTS.get(column, "{}")
        texts = pd.Series([written.format(one) if pd.notna(one) else "" for one in table[column]], table.index, "str")
        among = pd.Series("", index=table.index) if column in ALWAYS else named
        if column in study.follows:
            at_equal_x = texts.groupby([among, table[study.x]]).transform("nunique").gt(1)
            distinguishes = at_equal_x.groupby(among).transform("any")
        else:
            distinguishes = texts.groupby(among).transform("nunique").gt(1) | named.eq("")
        named = named + texts.where(named.eq("") | texts.eq(""), ", " + texts).where(distinguishes, "")
    return named
