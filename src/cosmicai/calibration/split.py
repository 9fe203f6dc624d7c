"""Which galaxies calibrate intervals, and which ones measure their coverage: never both.

It is decided by the magnitudes of a galaxy alone, so that it stays the same in every survey that holds this galaxy,
however that was cut, sorted or ingested again, and without a list of the galaxies that were used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FOLDS = 4


def is_for_calibration(magnitude: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which galaxies (N,) belong to the half that calibrates, by their magnitudes (N, 5)."""
    return np.asarray(_hash(magnitude) & np.uint64(1) == 0)


def find_fold(magnitude: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return in which of FOLDS groups (N,) galaxies are, whichever half they belong to (see `fit`)."""
    return np.asarray((_hash(magnitude) >> np.uint64(1)) % np.uint64(FOLDS), np.int64)


def _hash(magnitude: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return a number for each galaxy that depends on every bit of its magnitudes, rounded to float32.

    The bits are multiplied and shifted as in SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom
    number generators"). Rounded, since tables of text may hold fewer digits.
    """
    bits = np.ascontiguousarray(magnitude, np.float32).view(np.uint32).astype(np.uint64)
    mixed = np.zeros(len(bits), np.uint64)
    with np.errstate(over="ignore"):
        for column in bits.T:
            mixed = (mixed ^ column) + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(31)
    return mixed
