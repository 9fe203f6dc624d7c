"""Collect runs from addresses into tables: each file is read by the reader of its kind, and the results are merged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import pandas as pd

from cosmicai.errors import InputError

from .discovery import find_sources
from .outliers import is_inlier
from .readers import (
    cloudwatch_log,
    combined,
    durations,
    endless_loader,
    ignored,
    platforms,
    results,
    run_folder,
    statistics,
)
from .readers.merge import merge_runs
from .readers.source import Source
from .readers.sweeps import assign_studies
from .tables import (
    RANK_COLUMNS,
    RUN_COLUMNS,
    RUN_TYPES,
    Collection,
    Contradiction,
    LeftOut,
    MeasuredRun,
    Row,
    SourceContents,
    is_text,
    make_table,
    validate_row,
)

_CHUNK = 20_000  # rank rows that are made into a table at once: as rows they take several times the memory


class Reader(Protocol):
    """A module of `readers`."""

    def matches(self, source: Source) -> bool:
        """Return whether a source is of this kind."""

    def read(self, source: Source) -> SourceContents:
        """Return the contents of a source. Raises InputError or ValueError if it is damaged."""


READERS: tuple[Reader, ...] = (
    run_folder,
    combined,
    endless_loader,
    results,
    durations,
    statistics,
    platforms,
    cloudwatch_log,
    ignored,
)


def collect(addresses: Iterable[str]) -> Collection:
    """Return all runs at and below these addresses, local or on S3.

    Files that cannot be used are left out and named; nothing is guessed. Raises InputError if an address does not
    exist, or if it holds no file of a known kind.
    """
    measured: list[MeasuredRun] = []
    left_out: list[LeftOut] = []
    ranks = _RankTableBuilder()
    names: set[str] = set()
    known: dict[str, bool] = {}  # whether a source is of a known kind; addresses may overlap
    for address, found_files in find_sources(addresses):
        files = combined.join_rank_files(found_files)
        for source in files:
            if source.uri in known:
                continue
            known[source.uri], found = read_source(source)
            left_out += map(_make_printable, found.left_out)
            for one in found.measured:
                if one.run["kind"] != "durations":  # these are merged first, by their own names
                    one = _make_name_unique(one, names)
                ranks.add(one)
                measured.append(replace(one, ranks=()))
        if not any(known[source.uri] for source in files):
            raise InputError(
                f"{address} holds no files that describe runs; expected a run folder, which has a plan.json, or "
                "published results such as combined_data.json"
            )
    merged, repeated = merge_runs(results.fill_galaxies(measured))
    runs = [_make_name_unique(one, names) if one.run["kind"] == "durations" else one for one in assign_studies(merged)]
    contradictions = tuple(Contradiction(one.run["run"], text) for one in runs for text in one.contradictions)
    kept = {one.run["run"] for one in runs}
    table = ranks.build()
    table = table[table["run"].isin(kept)].reset_index(drop=True)
    run_table = add_rank_totals(make_table((one.run for one in runs), RUN_COLUMNS), table)
    return Collection(run_table, table, (*left_out, *repeated), contradictions)


def read_source(source: Source) -> tuple[bool, SourceContents]:
    """Return whether a source is of a known kind, and its contents.

    A source that is damaged or of an unknown kind has no contents but the reason for which it is left out, so that
    one bad file among thousands does not affect the others.
    """
    if not is_text(source.uri):
        return True, _leave_out(source.uri, "its name is not UTF-8 text; rename it")
    try:
        for reader in READERS:
            if reader.matches(source):
                found = reader.read(source)
                for one in found.measured:
                    validate_row(one.run, RUN_TYPES)
                return True, found
        if source.name.endswith(".json"):
            source.json  # noqa: B018  raises if it is damaged
    except (InputError, ValueError) as error:
        return True, _leave_out(source.uri, str(error))
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        return True, _leave_out(source.uri, f"it is damaged ({type(error).__name__}: {error})")
    return False, _leave_out(source.uri, "it is not of a known kind")


def _leave_out(source: str, reason: str) -> SourceContents:
    return SourceContents(left_out=(LeftOut(source, reason),))


def _make_printable(one: LeftOut) -> LeftOut:
    """Return the entry with text that UTF-8 cannot encode, such as names of files and keys, written as escapes."""
    return LeftOut(*(text.encode("utf-8", "backslashreplace").decode() for text in (one.source, one.reason, one.what)))


class _RankTableBuilder:
    """Builds the table of ranks from rows, in chunks."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._tables: list[pd.DataFrame] = []

    def add(self, one: MeasuredRun) -> None:
        """Add the ranks of a run."""
        self._rows += [{"run": one.run["run"], **rank} for rank in one.ranks]
        if len(self._rows) >= _CHUNK:
            self._flush()

    def build(self) -> pd.DataFrame:
        """Return the table of all ranks that were added."""
        self._flush()
        return pd.concat(self._tables, ignore_index=True)

    def _flush(self) -> None:
        self._tables.append(make_table(self._rows, RANK_COLUMNS))
        self._rows = []


def _make_name_unique(one: MeasuredRun, names: set[str]) -> MeasuredRun:
    """Return the run under a name that is not among `names`, and add it to them."""
    name, number = one.run["run"], 1
    while name in names:
        number += 1
        name = f"{one.run['run']} #{number}"
    names.add(name)
    return replace(one, run={**one.run, "run": name})


def add_rank_totals(runs: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with sums, means and extremes over their ranks where the runs themselves do not state them."""
    by_run = ranks.groupby("run", sort=False)
    batch_size = by_run["batch_size"].agg(["min", "max"])
    totals = pd.DataFrame(
        {
            "ranks": by_run.size(),
            "galaxies": by_run["galaxies"].sum(min_count=1),
            "batch_size": batch_size["min"].where(batch_size["min"] == batch_size["max"]),
            "rank_seconds": by_run["seconds"].mean(),
            "median_rank_seconds": by_run["seconds"].median(),
            "slowest_seconds": by_run["seconds"].max(),
            "cpu_seconds": by_run["cpu_seconds"].sum(min_count=1),
            "mean_cpu_seconds": ranks["cpu_seconds"]
            .where(is_inlier(ranks, "run", "cpu_seconds"))
            .groupby(ranks["run"])
            .mean(),
            "median_cpu_seconds": by_run["cpu_seconds"].median(),
            "summed_galaxies_per_second": by_run["galaxies_per_second"].sum(min_count=1),
            "allocated_mb": by_run["allocated_mb"].sum(min_count=1),
            "s3_seconds": by_run["s3_seconds"].sum(min_count=1),
            **{name: by_run[name].mean() for name in ("s3_mean_seconds", "s3_min_seconds", "s3_max_seconds")},
            "peak_rss_mb": by_run["peak_rss_mb"].max(),
            "peak_gpu_mb": by_run["peak_gpu_mb"].max(),
            "billed_seconds": by_run["billed_seconds"].sum(min_count=1),
            "memory_mb": by_run["memory_mb"].max(),
            "started_at": by_run["started_at"].min(),
        }
    ).reindex(runs["run"])
    totals.index = runs.index
    full = runs.assign(**{name: runs[name].fillna(column.astype(runs[name].dtype)) for name, column in totals.items()})
    clock = full["working_seconds"].fillna(full["wall_seconds"])
    return full.assign(
        galaxies_per_second=full["galaxies_per_second"].fillna(full["galaxies"].astype("float64") / clock)
    )
