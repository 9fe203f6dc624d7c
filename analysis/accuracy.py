"""Measure the accuracy of a run: its catalogue against spectroscopic redshifts, by redshift and by magnitude.

dz = (z_phot - z_spec) / (1 + z_spec), as in cosmicai.runs.metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from cosmicai.errors import InputError
from cosmicai.runs.catalogue.reading import read_catalogue
from cosmicai.runs.metrics import Metrics, compute_metrics
from cosmicai.runs.plan import Plan
from cosmicai.runs.store import RunFolder
from cosmicai.storage.parallel import map_in_order
from cosmicai.storage.s3 import reader_threads
from cosmicai.surveys.quality import Flag, is_usable_magnitude, is_usable_redshift
from cosmicai.surveys.shard import BANDS
from cosmicai.surveys.survey import ShardEntry, Survey

BAND = "r"
REDSHIFT_BIN, MAGNITUDE_BIN = 0.05, 0.5
MIN_GALAXIES = 30  # of a bin; with fewer the NMAD has an error of more than a fifth
BIN_COLUMNS = (
    "low", "high", "middle", "galaxies", "median_dz", "median_dz_error", "nmad", "nmad_error",
    "outliers", "outliers_low", "outliers_high", "bias", "mae", "mse", "r2",
)  # fmt: skip

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Accuracy:
    """The galaxies of a run's catalogue that have both redshifts: `phot` (N,) float32 and `spec` (N,) float64.

    `magnitude` (N,) is float64 in the r band, NaN where it was not measured; without any magnitudes it is None, and
    `no_magnitude` states the reason. `galaxies` counts the rows of the catalogue that are done.
    """

    run: str
    galaxies: int
    phot: NDArray[np.float32]
    spec: Reals
    magnitude: Reals | None = None
    no_magnitude: str = ""

    @cached_property
    def metrics(self) -> Metrics | None:
        """The metrics of all these galaxies; None for fewer than two."""
        return compute_metrics(self.phot, self.spec)

    @cached_property
    def dz(self) -> Reals:
        """The normalized error dz (N,) of these galaxies."""
        return np.asarray((self.phot - self.spec) / (1 + self.spec))


def read_accuracy(folder: str, name: str | None = None, magnitudes: bool = True) -> Accuracy:
    """Return the accuracy of a run folder, local or on S3, under the given name or that of the folder.

    A catalogue holds no magnitudes: they are read from the survey, and if that is missing or has changed,
    `no_magnitude` states it. Raises InputError if there is no catalogue, or if it is damaged.
    """
    run = RunFolder(folder)
    plan = run.plan()
    try:
        parts = [_read_columns(plan, table) for table in read_catalogue(run)]
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).partition(". ")[0]
        raise InputError(
            f"{run.catalogue_path} is damaged ({reason}); write it again with `cosmicai summarize {folder}`"
        ) from None
    phot, spec, shard, row = (np.concatenate(column) for column in zip(_NO_ROWS, *parts, strict=True))
    both = np.isfinite(phot) & is_usable_redshift(spec)
    magnitude, no_magnitude = None, "they were not requested"
    if magnitudes:
        try:
            magnitude, no_magnitude = _read_magnitudes(plan, shard[both], row[both]), ""
        except InputError as error:
            no_magnitude = str(error)
    return Accuracy(name or folder, len(both), phot[both], spec[both], magnitude, no_magnitude)


# Redshifts, number of the shard in the plan, and row in the shard.
_NO_ROWS = (np.empty(0, np.float32), np.empty(0), np.empty(0, np.int32), np.empty(0, np.int64))


def _read_columns(plan: Plan, table: pa.Table) -> tuple[NDArray[Any], ...]:
    """Return the columns of a row group, as in _NO_ROWS. Raises KeyError for a missing column or an unplanned shard."""
    number = {shard.name: index for index, shard in enumerate(plan.shards)}
    table = table.filter(pa.array(table["flag"].to_numpy() & Flag.NOT_DONE == 0))
    coded = table["shard"].combine_chunks().dictionary_encode()
    numbers = np.array([number[name] for name in coded.dictionary.to_pylist()], np.int32)
    phot, spec, row = (table[name].to_numpy() for name in ("redshift_phot", "redshift_spec", "row"))
    return phot, spec, numbers[coded.indices.to_numpy()], row


def _read_magnitudes(plan: Plan, shard: NDArray[np.int32], row: NDArray[np.int64]) -> Reals:
    """Return magnitudes (N,) of rows of shards, NaN where not measured. Raises InputError as `Survey.open`."""
    survey = Survey(plan.survey, plan.shards)
    cuts = [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(shard)]
    wanted = ((plan.shards[shard[start]], row[start:stop]) for start, stop in pairwise(cuts) if stop)
    found = np.concatenate(
        [np.empty(0), *map_in_order(partial(_read_shard, survey), wanted, reader_threads(plan.survey))]
    )
    found[~is_usable_magnitude(found)] = np.nan
    return found


def _read_shard(survey: Survey, wanted: tuple[ShardEntry, NDArray[np.int64]]) -> Reals:
    entry, rows = wanted
    first = int(rows.min())
    with survey.open(entry) as shard:
        magnitude = shard.read_field("magnitude", first, int(rows.max()) + 1)
        return np.asarray(magnitude[rows - first, BANDS.index(BAND)], np.float64)


def bin_by_redshift(accuracy: Accuracy, width: float = REDSHIFT_BIN) -> pd.DataFrame:
    """Return BIN_COLUMNS in bins of spectroscopic redshift of this width, low <= z < high; see `_tabulate_bins`."""
    return _tabulate_bins(accuracy, accuracy.spec, width)


def bin_by_magnitude(accuracy: Accuracy, width: float = MAGNITUDE_BIN) -> pd.DataFrame:
    """Return BIN_COLUMNS in bins of r magnitude of this width; no rows without magnitudes. See `_tabulate_bins`."""
    magnitude = np.full(len(accuracy.spec), np.nan) if accuracy.magnitude is None else accuracy.magnitude
    return _tabulate_bins(accuracy, magnitude, width)


def _tabulate_bins(accuracy: Accuracy, value: Reals, width: float) -> pd.DataFrame:
    """Return the metrics in bins of a value, without bins of fewer than MIN_GALAXIES galaxies.

    `middle` is the median of the value. Errors are one standard deviation for n galaxies, with the NMAD as the sigma of
    a Gaussian core: 1.2533 sigma / sqrt(n) for a median, 1.1664 sigma / sqrt(n) for the NMAD (its efficiency is 37%:
    Rousseeuw & Croux 1993). `outliers_low` and `outliers_high` are Wilson's interval of one standard deviation (Wilson
    1927), which is not empty for a bin without outliers.
    """
    # Rounded first, since 0.15 / 0.05 is less than 3 in floating point.
    number = np.floor(np.round(value / width, 9))
    order = np.argsort(number, kind="stable")[: np.count_nonzero(np.isfinite(number))]  # NaN is sorted last
    cuts = [0, *(np.flatnonzero(np.diff(number[order])) + 1).tolist(), len(order)]
    rows = [
        {"low": round(number[rows[0]] * width, 9), "high": round((number[rows[0]] + 1) * width, 9)}
        | {"middle": float(np.median(value[rows]))}
        | _measure_bin(accuracy, rows)
        for rows in (order[start:stop] for start, stop in pairwise(cuts))
        if len(rows) >= MIN_GALAXIES
    ]
    return pd.DataFrame(rows, columns=list(BIN_COLUMNS)).astype({"galaxies": "Int64"})


def _measure_bin(accuracy: Accuracy, rows: NDArray[np.intp]) -> dict[str, float]:
    metrics = compute_metrics(accuracy.phot[rows], accuracy.spec[rows])
    assert metrics is not None  # there are at least MIN_GALAXIES
    n = metrics.galaxies
    count = metrics.outliers * n
    centre, reach = (count + 0.5) / (n + 1), np.sqrt(count * (1 - metrics.outliers) + 0.25) / (n + 1)
    return {
        "galaxies": n,
        "median_dz": float(np.median(accuracy.dz[rows])),
        "median_dz_error": 1.2533 * metrics.precision / np.sqrt(n),
        "nmad": metrics.precision,
        "nmad_error": 1.1664 * metrics.precision / np.sqrt(n),
        "outliers": metrics.outliers,
        "outliers_low": max(0.0, centre - reach),
        "outliers_high": centre + reach,
        "bias": metrics.bias,
        "mae": metrics.mae,
        "mse": metrics.mse,
        "r2": metrics.r2,
    }
