"""How time changes with the number of ranks, and where the time of a run's ranks goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cosmicai.errors import InputError

FEWEST = 3  # different numbers of ranks: two points lie on a curve of two parameters whatever they are
PHASES = ("start", "load", "read", "predict", "write")


@dataclass(frozen=True)
class Amdahl:
    """T(n) = T(1) (f + (1 - f) / n), after Amdahl 1967: `serial_fraction` is f, `one_rank_seconds` T(1).

    `sigma` is the standard error of f; `residual` the root of the mean squared residual in seconds, with the degrees of
    freedom that are left; `points` and `numbers` how many times were fitted, of how many different numbers of ranks. f
    is as fitted: less than 0 where the speed-up is more than the number of ranks, more than 1 where ranks slow it down.
    """

    serial_fraction: float
    one_rank_seconds: float
    sigma: float
    residual: float
    points: int
    numbers: int

    def seconds(self, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
        """The fitted time with so many ranks, s."""
        return self.one_rank_seconds * (self.serial_fraction + (1 - self.serial_fraction) / ranks)

    @property
    def largest_speed_up(self) -> float:
        """How many times faster any number of ranks can be: 1 / f, infinite if f is 0 or less."""
        return 1 / self.serial_fraction if self.serial_fraction > 0 else float("inf")


def fit_amdahl(ranks: Sequence[float], seconds: Sequence[float]) -> Amdahl:
    """The law through these times, a time for each number of ranks: T(n) = a + b / n by linear least squares, so that
    T(1) = a + b and f = a / (a + b).

    Times that are missing are passed over. Raises InputError for times of fewer than FEWEST different numbers, and if
    T(1) would not be above 0.
    """
    n, t = np.asarray(ranks, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    known = np.isfinite(n) & np.isfinite(t)
    n, t = n[known], t[known]
    numbers = len(np.unique(n))
    if numbers < FEWEST:
        told = f"a fit of Amdahl's law needs times of {FEWEST} different numbers of ranks, and there are {numbers}"
        raise InputError(f"{told}; measure more of them")
    terms = np.stack([np.ones_like(n), 1 / n], axis=1)
    (a, b), *_ = np.linalg.lstsq(terms, t, rcond=None)
    if a + b <= 0:
        raise InputError("these times grow so fast with the ranks that Amdahl's law gives one rank no time; fit others")
    variance = float(np.sum((t - terms @ (a, b)) ** 2)) / (len(t) - 2)
    covariance = variance * np.linalg.inv(terms.T @ terms)
    slope = np.array([b, -a]) / (a + b) ** 2  # of f, by a and by b
    return Amdahl(
        serial_fraction=float(a / (a + b)),
        one_rank_seconds=float(a + b),
        sigma=float(np.sqrt(slope @ covariance @ slope)),
        residual=float(np.sqrt(variance)),
        points=len(t),
        numbers=numbers,
    )


def speed_up(ranks: Sequence[float], seconds: Sequence[float]) -> pd.DataFrame:
    """A row per number of ranks, in order: ranks, seconds (the median of its times), speed_up and efficiency.

    Both are against the fewest ranks there are, n0: T(n0) / T(n), and that times n0 / n.
    """
    n, t = np.asarray(ranks, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    times = pd.DataFrame({"ranks": n, "seconds": t}).dropna()
    table = times.groupby("ranks", as_index=False)["seconds"].median()
    faster = table["seconds"].iloc[:1].sum() / table["seconds"]
    return table.assign(speed_up=faster, efficiency=faster * table["ranks"].iloc[:1].sum() / table["ranks"])


@dataclass(frozen=True)
class Stragglers:
    """Seconds of a run's ranks in ascending order; slowest over median; and what share of rank-seconds is idle.

    `idle` is 1 - mean / greatest: what ranks wait for the slowest, if all start at once and end together. `column` is
    what the seconds are: `seconds`, or `cpu_seconds` where no rank says more.
    """

    seconds: NDArray[np.float64]
    slowest_to_median: float
    idle: float
    column: str


def stragglers(ranks: pd.DataFrame) -> Stragglers:
    """How far the ranks of a run lie apart; the times of a rank's attempts add up.

    Raises InputError if the rows are of several runs, or no rank says how long it worked.
    """
    if (names := ranks["run"].unique()).size > 1:
        raise InputError(f"ranks of {len(names)} runs were given, {names[0]} and others; give those of one run")
    column = "seconds" if ranks["seconds"].notna().any() else "cpu_seconds"
    seconds = np.sort(ranks.groupby("rank", dropna=False)[column].sum(min_count=1).dropna().to_numpy(np.float64))
    if not len(seconds) or not np.median(seconds):
        told = f"the ranks of {names[0]} do not say" if len(names) else "there are no ranks that say"
        raise InputError(f"{told} how long they worked; expected ranks with seconds above 0")
    return Stragglers(
        seconds=seconds,
        slowest_to_median=float(seconds[-1] / np.median(seconds)),
        idle=float(1 - seconds.mean() / seconds[-1]),
        column=column,
    )


def phases(ranks: pd.DataFrame) -> pd.DataFrame:
    """A row per run, in their order: `run`, and the median over its ranks' attempts of the seconds in each of PHASES.

    A phase of which no rank tells is NaN; a run of which no rank tells of any is left out.
    """
    columns = {f"{name}_seconds": name for name in PHASES}
    table = ranks.groupby("run", sort=False)[[*columns]].median().rename(columns=columns)
    return table.dropna(how="all").reset_index()


def critical_path(ranks: pd.DataFrame) -> pd.DataFrame:
    """A row per run, in their order: the phases of the rank that took longest, which no other rank could shorten.

    Columns: `run`, `rank` (the one with the most seconds over all phases), `seconds` (their sum), and each of PHASES.
    Runs of which no rank tells of its phases are left out. Attempts of a rank add up.
    """
    columns = {f"{name}_seconds": name for name in PHASES}
    told = ranks.dropna(subset=[*columns], how="all")
    totals = told.groupby(["run", "rank"], sort=False)[[*columns]].sum(min_count=1).rename(columns=columns)
    totals.insert(0, "seconds", totals.sum(axis=1))
    longest = totals.groupby("run", sort=False)["seconds"].idxmax()
    return totals.loc[[*longest]].reset_index()
