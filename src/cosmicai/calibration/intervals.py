"""Intervals of redshifts by a calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .records import LEVELS, Calibration
from .scale import predict_scale

_R = 2  # index of the r magnitude


def find_scores(redshift_phot: NDArray[np.float64], redshift_spec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores (N,) of galaxies: (z_spec - z_phot) / (1 + z_phot)."""
    return (redshift_spec - redshift_phot) / (1 + redshift_phot)


def predict_quantiles(
    calibration: Calibration,
    magnitude: NDArray[np.float64],
    redshift: NDArray[np.float64],
    levels: Sequence[float] = LEVELS,
) -> NDArray[np.float32]:
    """Return the quantiles (N, levels) of the redshifts of galaxies, NaN of those whose bin is not calibrated.

    `magnitude` is (N, 5), `redshift` the photometric ones (N,), NaN where there is none; `levels` are among LEVELS.
    """
    scores, _ = predict_scores(calibration, magnitude, redshift, levels)
    return np.asarray(redshift[:, None] + (1 + redshift[:, None]) * scores, np.float32)


def predict_scores(
    calibration: Calibration,
    magnitude: NDArray[np.float64],
    redshift: NDArray[np.float64],
    levels: Sequence[float] = LEVELS,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the quantiles (N, levels) of scores, and which galaxies (N,) lie in a bin; the others have NaN."""
    bins = find_bins(calibration, magnitude, redshift)
    columns = [LEVELS.index(level) for level in levels]
    table = np.array([one.quantiles for each in calibration.slices for one in each.bins])[:, columns]
    scores = np.vstack([table, np.full(len(columns), np.nan)])[bins]
    if calibration.scale is not None:
        known = bins >= 0
        scores[known] *= predict_scale(calibration.scale, magnitude[known], redshift[known])[:, None]
    return scores, bins >= 0


def find_bins(
    calibration: Calibration, magnitude: NDArray[np.float64], redshift: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the numbers (N,) of the bins of galaxies, counted through all slices; -1 outside of all bins."""
    slices = calibration.slices
    place = _find_cell([slices[0].redshift[0], *(one.redshift[1] for one in slices)], redshift)
    found = np.full(len(redshift), -1, np.int64)
    first = 0
    for number, one in enumerate(slices):
        rows = np.flatnonzero(place == number)
        cell = _find_cell([one.bins[0].magnitude[0], *(each.magnitude[1] for each in one.bins)], magnitude[rows, _R])
        found[rows] = np.where(cell >= 0, cell + first, -1)
        first += len(one.bins)
    return found


def _find_cell(edges: Sequence[float], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return in which of the cells between increasing edges values (N,) lie, -1 in none; the last edge is in its cell.

    NaN lies in none.
    """
    cells = np.searchsorted(edges, values, "right") - 1
    cells = np.where(values == edges[-1], len(edges) - 2, cells)
    return np.asarray(np.where((values >= edges[0]) & (values <= edges[-1]), cells, -1), np.int64)
