"""A small model of how large the score of a galaxy is, from its photometric redshift and its magnitudes.

Divided by this scale, scores of bright and of faint galaxies follow nearly one distribution (locally weighted conformal
prediction; Lei et al. 2018, section 5.2). What the model gets wrong costs width, not coverage.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .records import ScaleModel

_SMALLEST = 1e-5  # scores below it count as it, since logarithms are fitted
_RIDGE = 1e-3
_LIMITS = (0.001, 0.999)


def fit_scale(magnitude: NDArray[np.float64], redshift: NDArray[np.float64], score: NDArray[np.float64]) -> ScaleModel:
    """Fit the logarithms of |score - median score| (N,) by linear and squared terms of the features, with a ridge."""
    features = _features(magnitude, redshift)
    centre, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread == 0] = 1
    terms = _terms(features, centre, spread)
    size = np.log(np.maximum(np.abs(score - np.median(score)), _SMALLEST))
    penalty = _RIDGE * len(size) * np.eye(terms.shape[1])
    penalty[0, 0] = 0  # not of the constant
    coefficients = np.linalg.solve(terms.T @ terms + penalty, terms.T @ size)
    low, high = np.quantile(np.exp(terms @ coefficients), _LIMITS)
    return ScaleModel(
        centre=tuple(centre.tolist()),
        spread=tuple(spread.tolist()),
        coefficients=tuple(coefficients.tolist()),
        limits=(float(low), float(high)),
    )


def predict_scale(
    model: ScaleModel, magnitude: NDArray[np.float64], redshift: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the scale (N,) of galaxies with these magnitudes (N, 5) and photometric redshifts (N,)."""
    terms = _terms(_features(magnitude, redshift), np.array(model.centre), np.array(model.spread))
    low, high = np.log(model.limits)
    return np.asarray(np.exp(np.clip(terms @ np.array(model.coefficients), low, high)))


def _features(magnitude: NDArray[np.float64], redshift: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return z_phot, r and the colours u-g, g-r, r-i, i-z (N, 6)."""
    return np.column_stack([redshift, magnitude[:, 2], magnitude[:, :-1] - magnitude[:, 1:]])


def _terms(
    features: NDArray[np.float64], centre: NDArray[np.float64], spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    standardised = (features - centre) / spread
    return np.column_stack([np.ones(len(features)), standardised, standardised**2])
