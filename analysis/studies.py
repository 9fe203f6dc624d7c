"""The published studies as data: what is set against what, for which runs, and the table behind each figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from .compare import KEYS, summarized
from .tables import GALAXY_BYTES, GB

STUDY_COLUMNS = (
    *("x", "series", "value", "low", "high", "median"),
    *("runs", "whole", "doubtful", "incomplete", "unknown", "left_out"),
)


@dataclass(frozen=True)
class Study:
    """A measure against a setting: a point per value of `x`, a line per value of `series` and of what must be the same.

    `x`, `measure`, `series` and `apart` are columns of runs or of `derived`. `rows`: for columns, the values that it
    takes; `apart`: columns in which the runs of a line agree beside those of `compare.KEYS`; `together`: those of KEYS
    in which they need not; x beyond `largest_x` is for a study of its own; lines of fewer points than `fewest_x` are
    left out. `note` is what a reader must know to judge the figure.
    """

    name: str
    title: str
    x: str
    x_label: str
    measure: str
    y_label: str
    series: str | None = None
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    apart: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    largest_x: float | None = None
    fewest_x: int = 1
    log_x: bool = False
    log_y: bool = False
    note: str = ""


DATA, BATCH, PARTITION = "data, GB", "batch size, galaxies", "size of partitions, MB"
TIME = "time of the whole run, s"
CPU_TIME = "mean CPU time of a rank, s"
RATE = "galaxies per second, by the clock"
SUMMED = "sum of the ranks' galaxies per second"
SUMMED_NOTE = "A sum of the ranks' own rates is no rate of the run unless all ranks worked at once."
CPU_NOTE = "The CPU time of a rank is no time of the run: starting, waiting and the slowest rank are not in it."
COST_NOTE = (
    "List prices. Of published runs for the CPU seconds of the ranks and the memory of the published cost table, which "
    "is less than was billed; of ours for all that the run knows it used."
)
LAMBDA: Mapping[str, tuple[str, ...]] = {"platform": ("lambda",), "study": ("data size", "single")}
ANYWHERE: Mapping[str, tuple[str, ...]] = {"study": ("data size", "single")}
BATCHES: Mapping[str, tuple[str, ...]] = {"study": ("batch size", "world size", "single")}
PLATFORMS_APART = ("chosen_ranks", "partition_mb", "batch", "clock")
BATCHES_APART = ("partition_mb", "world_size", "memory_mb")
PUBLISHED_BATCH = 512  # of all records of the published data sizes; their tables of averages and times do not say it
PUBLISHED_GB = 12.6  # the whole of the published survey; all that is larger is its repetition

STUDIES = (
    Study(
        "data-size-time", "Time by data size on Lambda", "data_gb", DATA, "wall_seconds", TIME,
        series="partition_mb", rows=LAMBDA, apart=("batch", "memory_mb"), largest_x=PUBLISHED_GB,
    ),
    Study(
        "data-size-rank-time", "CPU time of a rank by data size on Lambda", "data_gb", DATA, "mean_cpu_seconds",
        CPU_TIME, series="partition_mb", rows=LAMBDA, apart=("batch", "memory_mb"), largest_x=PUBLISHED_GB,
        note=CPU_NOTE,
    ),
    Study(
        "data-size-throughput", "Throughput by data size on Lambda", "data_gb", DATA, "wall_galaxies_per_second", RATE,
        series="partition_mb", rows=LAMBDA, apart=("batch", "memory_mb"), largest_x=PUBLISHED_GB,
    ),
    Study(
        "data-size-summed-throughput", "Summed rates by data size on Lambda", "data_gb", DATA,
        "summed_galaxies_per_second", SUMMED, series="partition_mb", rows=LAMBDA, apart=("batch", "memory_mb"),
        largest_x=PUBLISHED_GB, note=SUMMED_NOTE,
    ),
    Study(
        "batch-size-time", "Time by batch size", "batch_size", BATCH, "wall_seconds", TIME,
        series="where", rows=BATCHES, apart=BATCHES_APART, fewest_x=2, log_x=True, log_y=True,
    ),
    Study(
        "batch-size-rank-time", "CPU time of a rank by batch size", "batch_size", BATCH, "mean_cpu_seconds", CPU_TIME,
        series="where", rows=BATCHES, apart=BATCHES_APART, fewest_x=2, log_x=True, log_y=True,
        note=CPU_NOTE,
    ),
    Study(
        "batch-size-throughput", "Throughput by batch size", "batch_size", BATCH, "wall_galaxies_per_second", RATE,
        series="where", rows=BATCHES, apart=BATCHES_APART, fewest_x=2, log_x=True, log_y=True,
    ),
    Study(
        "batch-size-summed-throughput", "Summed rates by batch size", "batch_size", BATCH,
        "summed_galaxies_per_second", SUMMED, series="where", rows=BATCHES,
        apart=BATCHES_APART, fewest_x=2, log_x=True, log_y=True, note=SUMMED_NOTE,
    ),
    Study(
        "world-size-time", "Time by number of ranks", "chosen_ranks", "ranks", "wall_seconds", TIME, series="where",
        apart=("batch", "partition_mb", "memory_mb"), fewest_x=2, log_x=True, log_y=True,
    ),
    Study(
        "partition-size-time", "Time by size of partitions on Lambda", "partition_mb", PARTITION, "wall_seconds", TIME,
        series="data_gb", rows=LAMBDA, apart=("batch", "memory_mb"), fewest_x=2,
    ),
    Study(
        "partition-size-cost", "Cost by size of partitions on Lambda", "partition_mb", PARTITION, "dollars",
        "cost, US dollars", series="data_gb", rows=LAMBDA, apart=("batch", "memory_mb", "dollars_source"), fewest_x=2,
        note=COST_NOTE,
    ),
    Study(
        "throughput-per-dollar", "Galaxies per dollar by size of partitions on Lambda", "partition_mb", PARTITION,
        "galaxies_per_dollar", "galaxies per US dollar", series="data_gb", rows=LAMBDA,
        apart=("batch", "memory_mb", "dollars_source"), fewest_x=2, note=COST_NOTE,
    ),
    Study(
        "platforms-time", "Time by data size and platform", "data_gb", DATA, "known_seconds", TIME, series="where",
        rows=ANYWHERE, apart=PLATFORMS_APART, largest_x=PUBLISHED_GB, log_y=True,
    ),
    Study(
        "platforms-throughput", "Throughput by data size and platform", "data_gb", DATA, "known_galaxies_per_second",
        RATE, series="where", rows=ANYWHERE, apart=PLATFORMS_APART, log_x=True,
        log_y=True,
    ),
    Study(
        "terabyte-time", "Time up to 1 TB", "data_gb", DATA, "known_seconds", TIME, series="where", rows=ANYWHERE,
        apart=PLATFORMS_APART, log_x=True, log_y=True,
    ),
    Study(
        "job-rank-time", "Time of a rank by data size on SLURM", "data_gb", DATA, "rank_seconds",
        "mean time of a rank, s", series="where", rows={"platform": ("slurm",), "kind": ("statistics", "run")},
        apart=("chosen_ranks", "partition_mb", "batch"), fewest_x=2, log_x=True,
        note="The mean over ranks is no time of the run: the slowest rank's is.",
    ),
    Study(
        "service-units", "Service units by data size on SLURM", "data_gb", DATA, "service_units", "service units",
        series="where", rows={**ANYWHERE, "platform": ("slurm",)},
        apart=("batch", "chosen_ranks", "service_units_source"), log_x=True, log_y=True,
    ),
    Study(
        "memory", "Largest memory of a rank by size of partitions", "partition_mb", PARTITION, "peak_rss_mb",
        "largest resident memory of a rank, MB", series="where", apart=("batch",), together=("study", "data_gb"),
        note="Runs of all data sizes together: a rank's memory is that of one partition.",
    ),
    Study(
        "allocated", "Memory allocated in all by size of partitions", "partition_mb", PARTITION, "allocated_mb",
        "allocated over all ranks, 10^6 B", series="where", rows=ANYWHERE, apart=("batch",), fewest_x=2, log_y=True,
        note="All that was ever allocated, added up; never in use at once.",
    ),
)  # fmt: skip


def study_table(study: Study, runs: pd.DataFrame, verdicts: pd.Series, incomplete: bool = False) -> pd.DataFrame:
    """What the figure of a study shows: STUDY_COLUMNS, a row per point, ordered by line, then x.

    Runs are those of `costs.with_costs`, or there are no points where only it tells the cost. `value` is the mean over
    repeats without outliers (see `compare.summarized`), `low` and `high` the least and the greatest repeat; all four
    are NaN for a point of which all runs are left out. The table is empty if no run tells of both x and the measure.
    """
    known = derived(runs)
    takes = known[study.x].notna() & known[study.measure].notna()
    for column, values in study.rows.items():
        takes &= known[column].isin(values)
    if study.largest_x is not None:
        takes &= known[study.x].le(study.largest_x)
    keys = dict.fromkeys([*filter(None, [study.series]), *KEYS, *study.apart])
    lines = [column for column in keys if column != study.x and column not in study.together]
    table = summarized(known[takes], verdicts, [*lines, study.x], [study.measure], incomplete)
    statistics = {study.measure + suffix: name for suffix, name in _STATISTICS.items()}
    named = table.rename(columns={study.x: "x", **statistics}).assign(series=_series(table, lines))
    points = named.groupby("series")["x"].transform("size")
    return named.loc[points.ge(study.fewest_x), [*STUDY_COLUMNS]].reset_index(drop=True)


def derived(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with columns that studies need beside those of runs.

    where: platform and device, as people call them. chosen_ranks: how many ranks there were where that was chosen; NA
    on Lambda, where each file is a rank, but for studies of it. batch: the batch size, PUBLISHED_BATCH for published
    data sizes on Lambda that do not tell it. data_gb: the galaxies' where none is claimed. wall_galaxies_per_second:
    galaxies over wall_seconds. known_seconds: wall_seconds, else working_seconds, which `clock` then says;
    known_galaxies_per_second: galaxies over those. galaxies_per_dollar: galaxies over dollars.
    """
    galaxies = runs["galaxies"].astype("float64")
    known = runs["wall_seconds"].fillna(runs["working_seconds"])
    alone = runs["wall_seconds"].isna() & runs["working_seconds"].notna()
    absent = {
        name: pd.Series(pd.NA, index=runs.index, dtype=dtype)
        for name, dtype in (("dollars_source", "str"), ("service_units", "Float64"), ("service_units_source", "str"))
        if name not in runs
    }
    platform = runs["platform"].replace({"lambda": "Lambda", "slurm": "SLURM"})
    device = runs["device"].map({"cpu": " CPU", "cuda": " GPU"}).fillna("")
    untold = runs["batch_size"].isna() & runs["ranks"].isna()  # with ranks, they differ in it
    untold &= runs["origin"].eq("published") & runs["study"].eq("data size") & runs["platform"].eq("lambda")
    return runs.assign(
        **absent,
        batch=runs["batch_size"].mask(untold, PUBLISHED_BATCH),
        where=platform + device.where(runs["platform"].ne("lambda"), ""),
        chosen_ranks=runs["world_size"].where(runs["platform"].ne("lambda") | runs["study"].eq("world size")),
        data_gb=runs["data_gb"].fillna(galaxies * GALAXY_BYTES / GB),
        wall_galaxies_per_second=galaxies / runs["wall_seconds"],
        known_seconds=known,
        known_galaxies_per_second=galaxies / known,
        clock=alone.map({True: "working time alone"}).astype("str"),
        galaxies_per_dollar=galaxies / runs["dollars"],
    )


ALWAYS = ("origin", "clock")  # named wherever they differ, whether or not a line has a name of its own without them
_STATISTICS = {"": "value", "_min": "low", "_max": "high", "_median": "median"}
_TEXTS = {
    "partition_mb": "{:g} MB partitions",
    "data_gb": "{:.4g} GB",
    "batch": "batches of {:,}",
    "world_size": "world size {:,}",
    "chosen_ranks": "world size {:,}",
    "memory_mb": "{:,.0f} MB of memory",
    "study": "study: {}",
}


def _series(table: pd.DataFrame, lines: list[str]) -> pd.Series:
    """The name of each row's line: the first column of `lines`, ALWAYS, and of the others those that tell it from
    lines that would have its name."""
    named = pd.Series("", index=table.index)
    last = [column for column in ("study", "machine") if column in lines]  # told only if nothing else does
    for column in dict.fromkeys([*(column for column in lines if column not in last), *last]):
        written = _TEXTS.get(column, "{}")
        texts = pd.Series([written.format(one) if pd.notna(one) else "" for one in table[column]], table.index, "str")
        among = pd.Series("", index=table.index) if column in ALWAYS else named
        told = texts.groupby(among).transform("nunique").gt(1) | named.eq("")
        named = named + texts.where(named.eq("") | texts.eq(""), ", " + texts).where(told, "")
    return named
