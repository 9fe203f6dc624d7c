"""Analyse how time changes with the number of ranks, and in which phases ranks spend their time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cosmicai.errors import InputError

MIN_NUMBERS = 3  # of different numbers of ranks: a curve with two parameters fits any two points
PHASES = ("start", "load", "read", "predict", "write")


@dataclass(frozen=True)
class Amdahl:
    """T(n) = T(1) (f + (1 - f) / n), after Amdahl 1967: `serial_fraction` is f, `one_rank_seconds` T(1).

    `sigma` is the standard error of f; `residual` is the root mean square of the residuals in seconds, over the
    degrees of freedom; `points` is the number of times and `numbers` that of different numbers of ranks. f is as
    fitted: below 0 if the speed-up exceeds the number of ranks, above 1 if more ranks are slower.
    """

    serial_fraction: float
    one_rank_seconds: float
    sigma: float
    residual: float
    points: int
    numbers: int

    def seconds(self, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the fitted time in seconds for these numbers of ranks."""
        return self.one_rank_seconds * (self.serial_fraction + (1 - self.serial_fraction) / ranks)

    @property
    def largest_speed_up(self) -> float:
        """Largest possible speed-up with any number of ranks: 1 / f, infinite if f is 0 or less."""
        return 1 / self.serial_fraction if self.serial_fraction > 0 else float("inf")


def fit_amdahl(ranks: Sequence[float], seconds: Sequence[float]) -> Amdahl:
    """Fit Amdahl's law to times, one for each element of `ranks`.

    The fit is T(n) = a + b / n by linear least squares, with T(1) = a + b and f = a / (a + b). Missing times are
    skipped. Raises InputError for fewer than MIN_NUMBERS different numbers of ranks, and if T(1) is not above 0.
    """
    n, t = np.asarray(ranks, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    known = np.isfinite(n) & np.isfinite(t)
    n, t = n[known], t[known]
    numbers = len(np.unique(n))
    if numbers < MIN_NUMBERS:
        needs = (
            f"a fit of Amdahl's law needs times of {MIN_NUMBERS} different numbers of ranks, and there are {numbers}"
        )
        raise InputError(f"{needs}; measure more of them")
    terms = np.stack([np.ones_like(n), 1 / n], axis=1)
    (a, b), *_ = np.linalg.lstsq(terms, t, rcond=None)
    if a + b <= 0:
        raise InputError(
            "the fitted time of one rank is not above 0, since these times grow too fast with the ranks; use others"
        )
    variance = float(np.sum((t - terms @ (a, b)) ** 2)) / (len(t) - 2)
    covariance = variance * np.linalg.inv(terms.T @ terms)
    slope = np.array([b, -a]) / (a + b) ** 2  # derivatives of f by a and by b
    return Amdahl(
        serial_fraction=float(a / (a + b)),
        one_rank_seconds=float(a + b),
        sigma=float(np.sqrt(slope @ covariance @ slope)),
        residual=float(np.sqrt(variance)),
        points=len(t),
        numbers=numbers,
    )


def compute_speed_up(ranks: Sequence[float], seconds: Sequence[float]) -> pd.DataFrame:
    """Return a row per number of ranks, in order: ranks, seconds (the median of its times), speed_up and efficiency.

    Both are relative to the smallest number of ranks n0: T(n0) / T(n), and that times n0 / n.
    """
    n, t = np.asarray(ranks, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    times = pd.DataFrame({"ranks": n, "seconds": t}).dropna()
    table = times.groupby("ranks", as_index=False)["seconds"].median()
    faster = table["seconds"].iloc[:1].sum() / table["seconds"]
    return table.assign(speed_up=faster, efficiency=faster * table["ranks"].iloc[:1].sum() / table["ranks"])


@dataclass(frozen=True)
class Stragglers:
    """Seconds of a run's ranks in ascending order, the ratio of slowest to median, and the idle share of rank-seconds.

    `idle` is 1 - mean / maximum: the share spent waiting for the slowest rank if all start and end together. `column`
    is the column of the seconds: `seconds`, or `cpu_seconds` if no rank states those.
    """

    seconds: NDArray[np.float64]
    slowest_to_median: float
    idle: float
    column: str


def measure_stragglers(ranks: pd.DataFrame) -> Stragglers:
    """Return how much the times of a run's ranks differ; the times of a rank's attempts are added up.

    Raises InputError if the rows are of several runs, or no rank states how long it worked.
    """
    if (names := ranks["run"].unique()).size > 1:
        raise InputError(f"ranks of {len(names)} runs were given, {names[0]} and others; give those of one run")
    column = "seconds" if ranks["seconds"].notna().any() else "cpu_seconds"
    seconds = np.sort(ranks.groupby("rank", dropna=False)[column].sum(min_count=1).dropna().to_numpy(np.float64))
    if not len(seconds) or not np.median(seconds):
        problem = f"the ranks of {names[0]} do not state" if len(names) else "there are no ranks that state"
        raise InputError(f"{problem} how long they worked; expected ranks with seconds above 0")
    return Stragglers(
        seconds=seconds,
        slowest_to_median=float(seconds[-1] / np.median(seconds)),
        idle=float(1 - seconds.mean() / seconds[-1]),
        column=column,
    )


def summarize_phases(ranks: pd.DataFrame) -> pd.DataFrame:
    """Return a row per run, in their order: `run`, and the median seconds in each of PHASES over its ranks' attempts.

    A phase that no rank states is NaN; a run without any phases is left out.
    """
    columns = {f"{name}_seconds": name for name in PHASES}
    table = ranks.groupby("run", sort=False)[[*columns]].median().rename(columns=columns)
    return table.dropna(how="all").reset_index()
