"""Model how long runs take: a small model for each place where runs were measured, with its error.

Runs of this project record the phases of their ranks. The model uses their medians:

    seconds = start + (read + compute) x galaxies of a rank

Published runs state how long the whole run took. The terms are fitted to that by least squares of the relative error;
a term that becomes negative is dropped, and the others are fitted again:

    Lambda                          start + dispatch x sqrt(ranks at once) + work x galaxies of a rank
    SLURM arrays                    tasks x tasks at once + work x galaxies of a task
    a node, a GPU, one machine      start + batches x batches

Lambda's map starts ranks faster the more there are. On the published runs, with each configuration predicted from the
others, the median and the largest error are 9% and 42% with the square root; 12% and 99% with a constant rate, 14% and
62% with the logarithm, 19% and 77% without such a term. Without `start` they are 8% and 44%; it is kept for runs of a
few ranks. For arrays they are 4% and 55%, and 17% and 399% with `start` instead of `tasks`; with both terms `start`
becomes negative.
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
from .tables import ONE_MACHINE, VIEWS, Collection
from .workload import ARRAY, GPU, LAMBDA, NODE, add_workload

Terms = Mapping[str, float]

# The factor of each coefficient, from a table of `add_workload`.
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
    ONE_MACHINE: ("start", "batches"),
}


@dataclass(frozen=True)
class RankWork:
    """The work of one rank of a run: `share` galaxies in `batches` batches, while `slots` ranks work at once."""

    share: float
    slots: int = 1
    batches: float = 0.0


@dataclass(frozen=True)
class Withheld:
    """A configuration that was left out of the fit: the median time of its runs and the predicted one, in seconds."""

    configuration: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative error of the prediction, without its sign."""
        return abs(self.predicted / self.measured - 1)


@dataclass(frozen=True)
class TimeModel:
    """A place, the software that ran there, and the fitted terms in seconds.

    `threads` are those of a rank, `memory_mb` is the memory of a function on Lambda. `peaks` are pairs of a partition
    size and the largest memory of a rank measured with it, both in MB (2^20 bytes). `withheld` is empty if there are
    too few configurations to leave one out.
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
    threads: int | None = None

    def predict(self, work: RankWork) -> float:
        """Return the predicted time of a run in seconds."""
        return float(predict_seconds(self.terms, pd.DataFrame([vars(work)]))[0])

    def peak_mb(self, partition_mb: float | None) -> float | None:
        """Return the measured memory of a rank in MB, or None if it was not measured.

        It is the largest one of the next partition of at least this size, or of any partition without a size.
        """
        fitting = [pair for pair in self.peaks if partition_mb is None or pair[0] >= partition_mb]
        if partition_mb is None:
            return max((peak for _, peak in fitting), default=None)
        return min(fitting)[1] if fitting else None

    @property
    def error(self) -> float | None:
        """Median relative error of the withheld configurations; None if it is not known."""
        return median(one.error for one in self.withheld) if self.withheld else None

    @property
    def largest_error(self) -> float | None:
        """Largest relative error of the withheld configurations; None if it is not known."""
        return max((one.error for one in self.withheld), default=None)


def fit_models(collection: Collection, audit: Audit) -> list[TimeModel]:
    """Return a model for each place, origin, machine and other settings that change the time, from usable runs.

    Incomplete runs are not used, nor are runs with several views, which take several times as long, nor runs without a
    time, galaxies or, on Lambda and in arrays, partitions.
    """
    usable = audit.usable(collection.runs)
    runs = add_workload(usable[~usable["study"].eq(VIEWS)])
    models = []
    settings = ["origin", "device", "machine", "threads", "engine", "precision", "weights", "variant"]
    for _, group in runs.dropna(subset="place").groupby(["place", *settings], dropna=False, sort=False):
        first = group.iloc[0]
        ranks = collection.ranks[collection.ranks["run"].isin(group["run"])]
        if first["origin"] == "ours":
            if (table := add_phases(group, ranks)).empty:
                continue
            terms, withheld = take_phase_medians(table), leave_one_out(table, take_phase_medians)
        else:
            table = group.dropna(subset=["seconds", _required_column(first["place"])])
            table = table[table["seconds"] > 0]
            if table.empty:
                continue
            terms, withheld = fit_terms(table), leave_one_out(table, fit_terms)
        models.append(
            TimeModel(
                first["place"], first["origin"], first["device"], _to_python(first["machine"]),
                _to_python(first["engine"]), _to_python(first["precision"]), _to_python(table["batch_size"].max()),
                _to_python(first["memory_mb"]), tuple(sorted(set(table["slots"].astype(int)))), terms,
                tuple(table["run"]), withheld, _find_peaks(group), _to_python(first["weights"]),
                _to_python(first["threads"]),
            )
        )  # fmt: skip
    return models


def predict_seconds(terms: Terms, work: pd.DataFrame) -> NDArray[np.float64]:
    """Return the predicted seconds (N,) of N rows of workload, with the columns of `add_workload`."""
    return sum((value * FACTORS[name](work).to_numpy() for name, value in terms.items()), np.zeros(len(work)))


def fit_terms(table: pd.DataFrame) -> Terms:
    """Return the terms of the place's form, fitted to `seconds`; no more terms than there are configurations."""
    names = list(FORMS[table["place"].iloc[0]])[-len(_split_configurations(table)) :]
    seconds = table["seconds"].to_numpy()
    while True:
        factors = np.stack([FACTORS[name](table).to_numpy() for name in names], axis=1)
        values, *_ = np.linalg.lstsq(factors / seconds[:, None], np.ones(len(seconds)), rcond=None)
        if (values >= 0).all():
            return dict(zip(names, map(float, values), strict=True))
        # At least one value is not negative, since all factors are not.
        names = [name for name, value in zip(names, values, strict=True) if value >= 0]


def add_phases(runs: pd.DataFrame, ranks: pd.DataFrame) -> pd.DataFrame:
    """Return runs of this project with medians over their ranks: `start` in s, `read` and `compute` in s per galaxy.

    Their `seconds` begin with the start of a rank's process, before its first time stamp. Ranks without galaxies do
    not count; runs without ranks or without a time are left out.
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


def take_phase_medians(table: pd.DataFrame) -> Terms:
    """Return the medians over runs of the columns that `add_phases` adds."""
    return {name: float(table[name].median()) for name in ("start", "read", "compute")}


def leave_one_out(table: pd.DataFrame, fit: Callable[[pd.DataFrame], Terms]) -> tuple[Withheld, ...]:
    """Return every configuration, with all its repeats, as predicted by a fit to the others.

    The result is empty unless there are more configurations than terms.
    """
    configurations = _split_configurations(table)
    if len(configurations) <= len(fit(table)):
        return ()
    found = []
    for group in configurations:
        terms = fit(table.drop(group.index))
        measured, predicted = float(group["seconds"].median()), float(np.median(predict_seconds(terms, group)))
        found.append(Withheld(_describe_configuration(group), measured, predicted))
    return tuple(found)


def _split_configurations(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the runs of each configuration."""
    keys = ["partition_mb", "data_gb", "limit"]
    if _required_column(table["place"].iloc[0]) == "batches":
        keys.append("batch_size")
    return [group for _, group in table.groupby(keys, dropna=False, sort=False)]


def _required_column(place: str) -> str:
    """Return the workload column that a run of this place needs for a fit."""
    return "share" if "work" in FORMS[place] else "batches"


def _describe_configuration(group: pd.DataFrame) -> str:
    run = group.iloc[0]
    parts = [f"{run['data_gb']:.4g} GB"]
    parts += [f"partitions of {run['partition_mb']:g} MB"] if pd.notna(run["partition_mb"]) else []
    parts += [f"{run['limit']:,.0f} at once"] if pd.notna(run["limit"]) else []
    parts += [f"batches of {run['batch_size']}"] if pd.notna(run["batch_size"]) else []
    return ", ".join(parts)


def _find_peaks(runs: pd.DataFrame) -> tuple[tuple[float, float], ...]:
    """Return pairs of a partition size, infinite where it is unknown, and the largest memory with it."""
    known = runs.dropna(subset="peak_rss_mb")
    largest = known["peak_rss_mb"].groupby(known["partition_mb"].fillna(np.inf)).max()
    return tuple((float(size), float(peak)) for size, peak in largest.items())


def _to_python(value: Any) -> Any:
    """Return a table's cell as a plain Python value, None if it is missing."""
    return None if pd.isna(value) else getattr(value, "item", lambda: value)()
