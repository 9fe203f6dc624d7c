"""How long runs take: a small model for each place where some were measured, and how far it is off.

Runs of ours tell the phases of their ranks, of which the model takes medians:

    seconds = start + (read + compute) x galaxies of a rank

Published runs tell how long the whole took, and the terms are fitted to that, with the least squares of the relative
error; a term that comes out below 0 is dropped, and the others are fitted again:

    Lambda                          start + dispatch x sqrt(ranks at once) + work x galaxies of a rank
    SLURM arrays                    tasks x tasks at once + work x galaxies of a task
    a node, a GPU, a laptop         start + batches x batches

Lambda's map begins ranks the faster the more there are. Tried on the published runs, each configuration predicted from
the others, the median and the largest error are 9% and 42% with the square root; 12% and 99% with a constant rate, 14%
and 62% with the logarithm, 19% and 77% without such a term. Without `start` they are 8% and 44%; it is kept for runs of
a few ranks. For arrays they are 4% and 55%, and 17% and 399% if a `start` takes the place of `tasks`; if both are there
`start` comes out below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .audit import Audit
from .tables import Collection
from .workload import ARRAY, GPU, LAMBDA, LAPTOP, NODE, geometry

Terms = Mapping[str, float]

# What each coefficient is multiplied by, of a table of `geometry`.
FACTORS: Mapping[str, Callable[[pd.DataFrame], pd.Series]] = {
    "start": lambda work: pd.Series(1.0, work.index),
    "dispatch": lambda work: work["slots"] ** 0.5,
    "tasks": lambda work: work["slots"],
    "work": lambda work: work["share"],
    "batches": lambda work: work["batches"],
    "read": lambda work: work["share"],
    "compute": lambda work: work["share"],
}
FORMS: Mapping[str, tuple[str, ...]] = {
    LAMBDA: ("start", "dispatch", "work"),
    ARRAY: ("tasks", "work"),
    NODE: ("start", "batches"),
    GPU: ("start", "batches"),
    LAPTOP: ("start", "batches"),
}


@dataclass(frozen=True)
class Work:
    """What one rank does in a run: `share` galaxies in `batches` batches, while `slots` ranks work at once."""

    share: float
    slots: int = 1
    batches: float = 0.0


@dataclass(frozen=True)
class Withheld:
    """A configuration that the model was fitted without: the median of its runs in seconds, and what it predicts."""

    configuration: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative to what was measured, without its sign."""
        return abs(self.predicted / self.measured - 1)


@dataclass(frozen=True)
class Model:
    """A place, what ran there, and the terms in seconds.

    `memory_mb` is that of a function on Lambda. `peaks` are pairs of a partition's size and the largest memory of a
    rank that was measured with it, both in MB (2^20 bytes). `withheld` is empty where there were too few configurations
    to leave one out.
    """

    place: str
    origin: str
    device: str
    machine: str | None
    engine: str | None
    precision: str | None
    batch_size: int | None
    memory_mb: float | None
    slots: tuple[int, ...]
    terms: Terms
    runs: tuple[str, ...]
    withheld: tuple[Withheld, ...]
    peaks: tuple[tuple[float, float], ...]
    weights: str | None = None

    def seconds(self, work: Work) -> float:
        """How long a run takes."""
        return float(predicted(self.terms, pd.DataFrame([vars(work)]))[0])

    def peak_mb(self, partition_mb: float | None) -> float | None:
        """Memory of a rank in MB: the largest one measured with the next partition of at least this size, or with any
        if no size is given; None where nothing was measured."""
        fitting = [pair for pair in self.peaks if partition_mb is None or pair[0] >= partition_mb]
        if partition_mb is None:
            return max((peak for _, peak in fitting), default=None)
        return min(fitting)[1] if fitting else None

    @property
    def error(self) -> float | None:
        """Median relative error of the configurations left out; None if it is not known."""
        return median(one.error for one in self.withheld) if self.withheld else None

    @property
    def largest_error(self) -> float | None:
        """The largest one."""
        return max((one.error for one in self.withheld), default=None)


def fit_models(collection: Collection, audit: Audit) -> list[Model]:
    """A model for each place, origin, machine, and what else makes runs differ, of runs that are not incomplete.

    Runs of which time, galaxies or, on Lambda and in arrays, partitions are not known are not fitted to.
    """
    runs = geometry(audit.usable(collection.runs))
    models = []
    for _, group in runs.groupby(
        ["place", "origin", "device", "machine", "weights", "apart"], dropna=False, sort=False
    ):
        first = group.iloc[0]
        ranks = collection.ranks[collection.ranks["run"].isin(group["run"])]
        if first["origin"] == "ours":
            if (table := with_phases(group, ranks)).empty:
                continue
            terms, withheld = phases(table), leave_one_out(table, phases)
        else:
            table = group.dropna(subset=["seconds", _needed(first["place"])])
            if table.empty:
                continue
            terms, withheld = fitted(table), leave_one_out(table, fitted)
        models.append(
            Model(
                first["place"], first["origin"], first["device"], _known(first["machine"]),
                _known(first["engine"]), _known(first["precision"]), _known(table["batch_size"].max()),
                _known(first["memory_mb"]), tuple(sorted(set(table["slots"].astype(int)))), terms,
                tuple(table["run"]), withheld, _peaks(group), _known(first["weights"]),
            )
        )  # fmt: skip
    return models


def predicted(terms: Terms, work: pd.DataFrame) -> NDArray[np.float64]:
    """Seconds (N,) of so much work, a table of N rows as `geometry` makes it."""
    return sum((value * FACTORS[name](work).to_numpy() for name, value in terms.items()), np.zeros(len(work)))


def fitted(table: pd.DataFrame) -> Terms:
    """The terms of the place's form, fitted to `seconds`; no more terms than there are configurations."""
    names = list(FORMS[table["place"].iloc[0]])[-len(_configurations(table)) :]
    seconds = table["seconds"].to_numpy()
    while True:
        factors = np.stack([FACTORS[name](table).to_numpy() for name in names], axis=1)
        values, *_ = np.linalg.lstsq(factors / seconds[:, None], np.ones(len(seconds)), rcond=None)
        if (values >= 0).all():
            return dict(zip(names, map(float, values), strict=True))
        names = [name for name, value in zip(names, values, strict=True) if value >= 0]  # one is: all factors are


def with_phases(runs: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """The runs of ours with the medians over their ranks: `start` in seconds, `read` and `compute` in seconds per
    galaxy. Their `seconds` begin with the start of a rank's process, before its clock does.

    Ranks without galaxies do not count; runs without ranks or without a time are left out.
    """
    working = ranks[ranks["galaxies"] > 0]
    galaxies = working["galaxies"].astype("float64")
    found = pd.DataFrame(
        {
            "run": working["run"],
            "started": working["start_seconds"],
            "start": working["start_seconds"] + working["load_seconds"],
            "read": working["read_seconds"] / galaxies,
            "compute": (working["predict_seconds"] + working["write_seconds"]) / galaxies,
        }
    )
    table = runs.merge(found.groupby("run").median(), on="run")
    return table.assign(seconds=table["seconds"] + table["started"]).dropna(subset=["seconds", "share", "start"])


def phases(table: pd.DataFrame) -> Terms:
    """The medians over runs of what `with_phases` found."""
    return {name: float(table[name].median()) for name in ("start", "read", "compute")}


def leave_one_out(table: pd.DataFrame, fit: Callable[[pd.DataFrame], Terms]) -> tuple[Withheld, ...]:
    """Every configuration, with all repeats of it, as predicted by a fit to the others.

    Nothing if there are not more configurations than terms.
    """
    configurations = _configurations(table)
    if len(configurations) <= len(fit(table)):
        return ()
    found = []
    for group in configurations:
        terms = fit(table.drop(group.index))
        found.append(
            Withheld(_name(group), float(group["seconds"].median()), float(np.median(predicted(terms, group))))
        )
    return tuple(found)


def _configurations(table: pd.DataFrame) -> list[pd.DataFrame]:
    """All runs of each configuration."""
    keys = ["partition_mb", "data_gb", "limit"]
    if _needed(table["place"].iloc[0]) == "batches":
        keys.append("batch_size")
    return [group for _, group in table.groupby(keys, dropna=False, sort=False)]


def _needed(place: str) -> str:
    """The column of `geometry` without which a run of this place cannot be fitted to."""
    return "share" if "work" in FORMS[place] else "batches"


def _name(group: pd.DataFrame) -> str:
    run = group.iloc[0]
    parts = [f"{run['data_gb']:.4g} GB"]
    parts += [f"partitions of {run['partition_mb']:g} MB"] if pd.notna(run["partition_mb"]) else []
    parts += [f"{run['limit']:,.0f} at once"] if pd.notna(run["limit"]) else []
    parts += [f"batches of {run['batch_size']}"] if pd.notna(run["batch_size"]) else []
    return ", ".join(parts)


def _peaks(runs: pd.DataFrame) -> tuple[tuple[float, float], ...]:
    """Pairs of a partition's size, infinite where no partition is told, and the largest memory with it."""
    known = runs.dropna(subset="peak_rss_mb")
    largest = known["peak_rss_mb"].groupby(known["partition_mb"].fillna(np.inf)).max()
    return tuple((float(size), float(peak)) for size, peak in largest.items())


def _known(value: Any) -> Any:
    """A cell of a table as Python's own value, None where it is missing."""
    return None if pd.isna(value) else getattr(value, "item", lambda: value)()
