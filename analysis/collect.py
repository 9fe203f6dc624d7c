"""From addresses to tables: has what tells of runs read by the reader of its kind, and puts it together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import pandas as pd

from cosmicai.errors import InputError

from .discovery import sources
from .outliers import inlying
from .readers import combined, durations, endless_loader, ignored, log, results, run_folder, statistics
from .readers.merge import join
from .readers.source import Source
from .readers.sweeps import with_studies
from .tables import RANK_COLUMNS, RUN_COLUMNS, Collection, Found, LeftOut, Measured, Row, frame

_CHUNK = 20_000  # rows of ranks that are made a table at a time: as rows they take several times the memory


class Reader(Protocol):
    """A module of `readers`."""

    def matches(self, source: Source) -> bool:
        """Whether a source is of this kind."""

    def read(self, source: Source) -> Found:
        """What it tells. Raises InputError or ValueError if it is damaged."""


READERS: tuple[Reader, ...] = (run_folder, combined, endless_loader, results, durations, statistics, log, ignored)


def collect(addresses: Iterable[str]) -> Collection:
    """All runs below these folders and files, local or on S3.

    What cannot be used is left out and named; nothing is guessed. Raises InputError if an address does not exist, or if
    nothing below it is of a kind that tells of runs.
    """
    measured: list[Measured] = []
    left_out: list[LeftOut] = []
    ranks = _Ranks()
    names: set[str] = set()
    seen: dict[str, bool] = {}  # whether a source is of a known kind; addresses may overlap
    for address, files in sources(addresses):
        for source in files:
            if source.uri in seen:
                continue
            seen[source.uri], found = read(source)
            left_out += found.left_out
            for one in found.measured:
                if one.run["kind"] != "durations":  # which are yet to be joined, by their names too
                    one = _renamed(one, names)
                ranks.add(one)
                measured.append(Measured(one.run))
        if not any(seen[source.uri] for source in files):
            raise InputError(
                f"{address} holds nothing that tells of runs; expected a run folder, which has a plan.json, or "
                "published results such as combined_data.json"
            )
    joined, repeated = join(results.with_galaxies(measured))
    alone = (_renamed(one, names) if one.run["kind"] == "durations" else one for one in with_studies(joined))
    table = ranks.table()
    return Collection(with_sums(frame((one.run for one in alone), RUN_COLUMNS), table), table, (*left_out, *repeated))


def read(source: Source) -> tuple[bool, Found]:
    """Whether a source is of a known kind, and what it tells; one that is damaged or of no known kind is left out."""
    try:
        for reader in READERS:
            if reader.matches(source):
                return True, reader.read(source)
        if source.name.endswith(".json"):
            source.json  # noqa: B018  raises if it is damaged
    except (InputError, ValueError) as error:
        return True, Found(left_out=(LeftOut(source.uri, str(error)),))
    except (KeyError, TypeError, AttributeError) as error:
        return True, Found(left_out=(LeftOut(source.uri, f"it is damaged ({type(error).__name__}: {error})"),))
    return False, Found(left_out=(LeftOut(source.uri, "it is of no kind that is known"),))


class _Ranks:
    """Gathers the rows of ranks, and makes tables of them on the way."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._tables: list[pd.DataFrame] = []

    def add(self, one: Measured) -> None:
        """Takes the ranks of a run."""
        self._rows += [{"run": one.run["run"], **rank} for rank in one.ranks]
        if len(self._rows) >= _CHUNK:
            self._flush()

    def table(self) -> pd.DataFrame:
        """All ranks so far."""
        self._flush()
        return pd.concat(self._tables, ignore_index=True)

    def _flush(self) -> None:
        self._tables.append(frame(self._rows, RANK_COLUMNS))
        self._rows = []


def _renamed(one: Measured, names: set[str]) -> Measured:
    """The run, by a name that is not among these, to which it is added."""
    name, number = one.run["run"], 1
    while name in names:
        number += 1
        name = f"{one.run['run']} #{number}"
    names.add(name)
    return Measured({**one.run, "run": name}, one.ranks)


def with_sums(runs: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """The runs with what their ranks tell, where the runs themselves do not say it."""
    by_run = ranks.groupby("run", sort=False)
    batch_size = by_run["batch_size"].agg(["min", "max"])
    told = pd.DataFrame(
        {
            "ranks": by_run.size(),
            "galaxies": by_run["galaxies"].sum(min_count=1),
            "batch_size": batch_size["min"].where(batch_size["min"] == batch_size["max"]),
            "rank_seconds": by_run["seconds"].mean(),
            "median_rank_seconds": by_run["seconds"].median(),
            "slowest_seconds": by_run["seconds"].max(),
            "cpu_seconds": by_run["cpu_seconds"].sum(min_count=1),
            "mean_cpu_seconds": ranks["cpu_seconds"]
            .where(inlying(ranks, "run", "cpu_seconds"))
            .groupby(ranks["run"])
            .mean(),
            "median_cpu_seconds": by_run["cpu_seconds"].median(),
            "summed_galaxies_per_second": by_run["galaxies_per_second"].sum(min_count=1),
            "allocated_mb": by_run["allocated_mb"].sum(min_count=1),
            "peak_rss_mb": by_run["peak_rss_mb"].max(),
            "peak_gpu_mb": by_run["peak_gpu_mb"].max(),
            "billed_seconds": by_run["billed_seconds"].sum(min_count=1),
            "memory_mb": by_run["memory_mb"].max(),
            "started_at": by_run["started_at"].min(),
        }
    ).reindex(runs["run"])
    told.index = runs.index
    full = runs.assign(**{name: runs[name].fillna(column.astype(runs[name].dtype)) for name, column in told.items()})
    clock = full["working_seconds"].fillna(full["wall_seconds"])
    return full.assign(
        galaxies_per_second=full["galaxies_per_second"].fillna(full["galaxies"].astype("float64") / clock)
    )
