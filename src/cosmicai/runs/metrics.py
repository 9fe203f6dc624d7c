"""The accuracy of redshifts: the published metrics of AstroMAE and the field's outlier fraction.

With dz = (z_phot - z_spec) / (1 + z_spec):

    MAE        mean |z_phot - z_spec|
    MSE        mean (z_phot - z_spec)^2
    bias       mean dz
    precision  1.48 median |dz - median dz|   (the NMAD; Fathkouhi & Fox 2024, after Ilbert et al. 2006)
    R2         1 - sum (z_phot - z_spec)^2 / sum (z_spec - mean z_spec)^2
    outliers   fraction with |dz| > 0.05      (Pasquet et al. 2019)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..surveys.quality import is_usable_redshift

OUTLIER_DZ = 0.05


@dataclass(frozen=True)
class Metrics:
    """The metrics of `galaxies` galaxies, dimensionless; R2 is NaN if all spectroscopic redshifts are the same."""

    galaxies: int
    mae: float
    mse: float
    bias: float
    precision: float
    r2: float
    outliers: float


def compute_metrics(redshift_phot: NDArray[np.float32], redshift_spec: NDArray[np.float64]) -> Metrics | None:
    """Return the metrics of the galaxies (N,) that have both redshifts, None if fewer than two have.

    Spectroscopic redshifts that are not usable (`surveys.quality`) count as unknown.
    """
    running = RunningMetrics()
    running.add(redshift_phot, redshift_spec)
    return running.result()


class RunningMetrics:
    """The metrics of galaxies that come in pieces; they are exact, and 8 bytes per galaxy are kept for the medians."""

    def __init__(self) -> None:
        self._dz: list[NDArray[np.float64]] = []
        self._absolute = self._squared = self._spec = self._spread = 0.0
        self._galaxies = 0

    def add(self, redshift_phot: NDArray[np.float32], redshift_spec: NDArray[np.float64]) -> None:
        """Add the galaxies (N,) of the next piece; those without both redshifts do not count."""
        known = np.isfinite(redshift_phot) & is_usable_redshift(redshift_spec)
        phot, spec = redshift_phot[known].astype(np.float64), redshift_spec[known]
        if not len(spec):
            return
        error = phot - spec
        self._dz.append(error / (1 + spec))
        self._absolute += float(np.abs(error).sum())
        self._squared += float((error**2).sum())
        # Means and sums of squared deviations of two samples join to those of both (Chan, Golub & LeVeque 1983).
        mean, before = float(spec.mean()), self._galaxies
        self._galaxies += len(spec)
        shift = mean - self._spec
        self._spec += shift * len(spec) / self._galaxies
        self._spread += float(((spec - mean) ** 2).sum()) + shift**2 * before * len(spec) / self._galaxies

    def result(self) -> Metrics | None:
        """Return the metrics of all galaxies that were added, None of fewer than two; call it once, at the end."""
        if self._galaxies < 2:
            return None
        dz = np.concatenate(self._dz)
        self._dz = []
        bias, outliers = float(dz.mean()), float(np.mean(np.abs(dz) > OUTLIER_DZ))
        dz -= np.median(dz, overwrite_input=True)
        np.abs(dz, out=dz)
        return Metrics(
            galaxies=self._galaxies,
            mae=self._absolute / self._galaxies,
            mse=self._squared / self._galaxies,
            bias=bias,
            precision=float(1.48 * np.median(dz, overwrite_input=True)),
            r2=1 - self._squared / self._spread if self._spread else float("nan"),
            outliers=outliers,
        )
