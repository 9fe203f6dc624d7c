"""Fit intervals to galaxies with spectroscopic redshifts: split conformal prediction in bins (Mondrian categories).

The score of a galaxy is s = (z_spec - z_phot) / (1 + z_phot). In each bin of photometric redshift and r magnitude the
quantiles of the scores of n calibration galaxies, at the positions (n + 1) p, hold the score of another galaxy of the
bin with probability p, whatever the distribution is and however bad the network (Vovk, Gammerman & Shafer 2005; Lei et
al. 2018). Two quantiles bound an interval, as in Romano, Patterson & Candes 2019.

Between two scores the position is interpolated, so that the coverage is p on average and not at least p; both differ
by less than 1 / (n + 1). A second variant divides the scores by the output of a small model (`scale`). The variant with
the lower mean interval score (Winkler 1972) on galaxies that did not calibrate is kept:

    width + 2/alpha (bound - z_spec, if z_spec is beyond a bound), each over 1 + z_phot; the mean for 68% and 95%.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from ..errors import InputError
from .intervals import find_scores, predict_scores
from .records import (
    INTERVAL_LEVELS,
    LEVELS,
    Calibration,
    MagnitudeBin,
    MeasuredCoverage,
    Origin,
    RedshiftSlice,
    ScaleModel,
)
from .scale import fit_scale, predict_scale
from .split import FOLDS, find_fold, is_for_calibration

LEAST = 200  # galaxies in a bin
_MOST_SLICES = 12  # of the redshift, and bins of a slice
_LEAST_TO_CHOOSE = 100  # galaxies that both variants are compared on, else there is no model of the scale
_R = 2  # index of the r magnitude


@dataclass(frozen=True)
class SpectroscopicSample:
    """Galaxies with magnitude (N, 5) float64, redshift_phot (N,) and redshift_spec (N,) float64, all usable."""

    magnitude: NDArray[np.float64]
    redshift_phot: NDArray[np.float64]
    redshift_spec: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.redshift_phot)

    def select(self, rows: NDArray[np.bool_]) -> SpectroscopicSample:
        """Return the galaxies of a mask (N,)."""
        return SpectroscopicSample(self.magnitude[rows], self.redshift_phot[rows], self.redshift_spec[rows])


def fit_calibration(sample: SpectroscopicSample, origin: Origin) -> Calibration:
    """Fit one half of a sample (see `split`), and measure coverage and interval scores on the other.

    Raises InputError if the half has fewer than LEAST galaxies.
    """
    own = is_for_calibration(sample.magnitude)
    fitted, others = sample.select(own), sample.select(~own)
    if len(fitted) < LEAST:
        raise InputError(
            f"{origin.survey}: {len(sample)} galaxies have a spectroscopic redshift and a photometric one without "
            f"flags but 8, and {len(fitted)} of them, about one half, are those that calibrate; expected at least "
            f"{LEAST} of these, give a survey with more spectroscopic redshifts"
        )
    score = find_scores(fitted.redshift_phot, fitted.redshift_spec)
    binned = Calibration(origin, len(fitted), _fit_slices(fitted, score), None, None, {})
    if len(others) < _LEAST_TO_CHOOSE:
        return binned
    model, scaled = _scale_scores(fitted, score)
    normalised = structs.replace(binned, slices=_fit_slices(fitted, scaled), scale=model)
    variants = {"binned": binned, "normalised": normalised}
    measured = {name: _measure(variant, others) for name, variant in variants.items()}
    scores = {name: found for name, (_, found) in measured.items()}
    best = min(scores, key=scores.__getitem__)
    return structs.replace(variants[best], coverage=measured[best][0], interval_scores=scores)


def _scale_scores(sample: SpectroscopicSample, score: NDArray[np.float64]) -> tuple[ScaleModel, NDArray[np.float64]]:
    """Return a model of the scale of scores (N,), and these divided by it.

    A score is divided by the scale of a model that was fitted without its fold, so that the quotient is as large as
    that of a galaxy which no fit has seen; the model that is returned was fitted to all (cross-conformal prediction,
    Vovk 2015).
    """
    fold, scaled = find_fold(sample.magnitude), np.empty(len(score))
    for own in (fold == number for number in range(FOLDS)):
        model = fit_scale(sample.magnitude[~own], sample.redshift_phot[~own], score[~own])
        scaled[own] = score[own] / predict_scale(model, sample.magnitude[own], sample.redshift_phot[own])
    return fit_scale(sample.magnitude, sample.redshift_phot, score), scaled


def _fit_slices(sample: SpectroscopicSample, score: NDArray[np.float64]) -> tuple[RedshiftSlice, ...]:
    return tuple(
        RedshiftSlice(bounds, tuple(_fit_bins(sample.magnitude[rows, _R], score[rows])))
        for bounds, rows in cut_evenly(sample.redshift_phot, _slices(len(sample)))
    )


def _fit_bins(magnitude: NDArray[np.float64], score: NDArray[np.float64]) -> list[MagnitudeBin]:
    return [
        MagnitudeBin(bounds, len(rows), tuple(conformal_quantiles(score[rows], LEVELS).tolist()))
        for bounds, rows in cut_evenly(magnitude, min(len(score) // LEAST, _MOST_SLICES))
    ]


def _slices(galaxies: int) -> int:
    """Return into how many slices galaxies are cut, so that each has about as many bins as there are slices."""
    return int(min(max(1, np.sqrt(galaxies / LEAST)), _MOST_SLICES))


def cut_evenly(values: NDArray[np.float64], pieces: int) -> list[tuple[tuple[float, float], NDArray[np.int64]]]:
    """Cut values (N,) at quantiles into at most this many pieces of LEAST or more, and return bounds and rows of each.

    The lower bound of a piece belongs to it, and is the upper one of the piece before; equal values stay together.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.unique(np.searchsorted(ordered, ordered[[len(values) * piece // pieces for piece in range(pieces)]]))
    kept = [0]
    for start in starts[1:].tolist():  # pieces that equal values made too small are merged with those before them
        if start - kept[-1] >= LEAST:
            kept.append(start)
    if len(kept) > 1 and len(values) - kept[-1] < LEAST:
        kept.pop()
    edges = [*(float(ordered[start]) for start in kept), float(ordered[-1])]
    ends = [*kept[1:], len(values)]
    return [
        ((edges[number], edges[number + 1]), order[start:end])
        for number, (start, end) in enumerate(zip(kept, ends, strict=True))
    ]


def conformal_quantiles(score: NDArray[np.float64], levels: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the quantiles of n scores at the positions (n + 1) p, interpolated; all n at least 1 / smallest level."""
    return np.asarray(np.quantile(score, levels, method="weibull"))


def _measure(calibration: Calibration, sample: SpectroscopicSample) -> tuple[MeasuredCoverage, float]:
    """Return coverage and mean interval score of a calibration on galaxies, those in its bins."""
    quantiles, inside = predict_scores(calibration, sample.magnitude, sample.redshift_phot)
    score = find_scores(sample.redshift_phot, sample.redshift_spec)[inside]
    fractions, widths, winkler = [], [], []
    for low, high in INTERVAL_LEVELS.values():
        lower, upper = (quantiles[inside, LEVELS.index(level)] for level in (low, high))
        below, above = np.maximum(lower - score, 0), np.maximum(score - upper, 0)
        fractions.append(float(np.mean((below == 0) & (above == 0))))
        widths.append(float(np.mean(upper - lower)))
        winkler.append(float(np.mean(upper - lower + 2 / (1 - (high - low)) * (below + above))))
    found = MeasuredCoverage(len(score), (fractions[0], fractions[1]), (widths[0], widths[1]))
    return found, float(np.mean(winkler))
