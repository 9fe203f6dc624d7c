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
    known = np.isfinite(redshift_phot) & is_usable_redshift(redshift_spec)
    phot, spec = redshift_phot[known].astype(np.float64), redshift_spec[known]
    if len(spec) < 2:
        return None
    error = phot - spec
    dz = error / (1 + spec)
    spread = float(np.sum((spec - spec.mean()) ** 2))
    return Metrics(
        galaxies=len(spec),
        mae=float(np.mean(np.abs(error))),
        mse=float(np.mean(error**2)),
        bias=float(np.mean(dz)),
        precision=float(1.48 * np.median(np.abs(dz - np.median(dz)))),
        r2=1 - float(np.sum(error**2)) / spread if spread else float("nan"),
        outliers=float(np.mean(np.abs(dz) > OUTLIER_DZ)),
    )
