"""Which galaxies cannot be given a redshift, and why: the bit mask `flag` of parts and catalogue.

    1  NONFINITE_PIXEL       the cutout holds NaN or infinite pixels
    2  MISSING_MAGNITUDE     a magnitude is -9999 (SDSS: not measured), NaN or infinite
    4  NONFINITE_PREDICTION  the input is usable, yet the network's prediction is NaN or infinite

A galaxy with any bit set has redshift_phot = NaN.
"""

from __future__ import annotations

from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

SDSS_MISSING = -9999.0


class Flag(IntFlag):
    """The bits of the column `flag`."""

    NONFINITE_PIXEL = 1
    MISSING_MAGNITUDE = 2
    NONFINITE_PREDICTION = 4


def flag_inputs(image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the flags (N,) uint8 of cutouts (N, 5, 32, 32) and magnitudes (N, 5)."""
    pixel = ~np.isfinite(image).all(axis=(1, 2, 3))
    missing = (~np.isfinite(magnitude) | (magnitude == SDSS_MISSING)).any(axis=1)
    flags: NDArray[np.uint8] = (pixel * Flag.NONFINITE_PIXEL | missing * Flag.MISSING_MAGNITUDE).astype(np.uint8)
    return flags
