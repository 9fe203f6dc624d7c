"""What counts as a usable pixel, magnitude and spectroscopic redshift, and the flags of galaxies where it does not.

These definitions are the only ones: ingest, reading in place, training, metrics, plots and the analysis use them. The
bit mask `flag` of parts and catalogue:

      1  NONFINITE_PIXEL       a pixel is NaN, infinite or beyond 1e12, a value that only stands for missing data
      2  MISSING_MAGNITUDE     a magnitude is NaN, infinite or outside 5 to 40
      4  NONFINITE_PREDICTION  the input is usable, yet the network's prediction is NaN or infinite
      8  OUTSIDE_DOMAIN        magnitudes, colours, noise or redshift are not among those that the network learned from
     16  INCOMPLETE_CUTOUT     a band is constant, or an edge of it is: it was not observed, or not entirely
     32  IMPLAUSIBLE_REDSHIFT  the predicted redshift is outside -0.05 to 10
     64  NOT_CALIBRATED        there is no interval: too few galaxies like this one calibrated the weights
    128  NOT_DONE              the run is not complete, and this galaxy is among those that are missing

A galaxy with bit 1, 2, 4 or 128 has redshift_phot = NaN; the others warn and keep the redshift.
"""

from __future__ import annotations

import math
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The brightest galaxies of the sky have magnitude 5 or so (Andromeda: 3.4), single exposures and the deepest stacks end
# at 25 and 31. Values outside stand for missing ones: 99, -99, 99.99, -999, -9999, 0, 1e20.
USABLE_MAGNITUDE = (5.0, 40.0)
# Blueshifted neighbours reach -0.001, the error of a spectroscopic redshift some 0.001 more; the most distant galaxy
# known to SDSS-like surveys is below 10. Values outside stand for missing ones: -1, -9, -99, -9999, 99.
USABLE_REDSHIFT = (-0.01, 10.0)
# Predictions scatter around 0 for the nearest galaxies; a redshift beyond this is an answer about something else.
PLAUSIBLE_REDSHIFT = (-0.05, 10.0)
# Sirius has 1e10 nanomaggies in all its pixels together; 1e20, 1e30 and 3.4e38 stand for bad pixels. Squares of usable
# pixels times the network's gain remain far below the largest float32.
LARGEST_PIXEL = 1e12


class Flag(IntFlag):
    """The bits of the column `flag`."""

    NONFINITE_PIXEL = 1
    MISSING_MAGNITUDE = 2
    NONFINITE_PREDICTION = 4
    OUTSIDE_DOMAIN = 8  # only of weights that know their training domain
    INCOMPLETE_CUTOUT = 16
    IMPLAUSIBLE_REDSHIFT = 32
    NOT_CALIBRATED = 64  # in a catalogue with intervals only
    NOT_DONE = 128  # in a catalogue only: a part holds what is done


FLAG_MEANINGS = {  # for headers of the catalogue, in ASCII as FITS demands
    Flag.NONFINITE_PIXEL: "pixel not finite or beyond 1e12",
    Flag.MISSING_MAGNITUDE: "magnitude missing",
    Flag.NONFINITE_PREDICTION: "prediction not finite",
    Flag.OUTSIDE_DOMAIN: "outside the training domain",
    Flag.INCOMPLETE_CUTOUT: "cutout incomplete",
    Flag.IMPLAUSIBLE_REDSHIFT: "redshift implausible",
    Flag.NOT_CALIBRATED: "no interval",
    Flag.NOT_DONE: "not done yet",
}
NO_REDSHIFT = Flag.NONFINITE_PIXEL | Flag.MISSING_MAGNITUDE | Flag.NONFINITE_PREDICTION  # such galaxies have NaN


def is_usable_magnitude(magnitude: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which magnitudes, of any shape, are measurements; the others stand for missing ones."""
    low, high = USABLE_MAGNITUDE
    return np.asarray((magnitude >= low) & (magnitude <= high))


def is_usable_redshift(redshift: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which spectroscopic redshifts, of any shape, are measurements; the others stand for unknown ones."""
    low, high = USABLE_REDSHIFT
    return np.asarray((redshift > low) & (redshift < high))


def known_redshifts(redshift: NDArray[Any]) -> NDArray[np.float64]:
    """Return spectroscopic redshifts as float64, NaN in place of those that are not usable."""
    return np.where(is_usable_redshift(redshift), redshift, np.nan).astype(np.float64, copy=False)


def flag_inputs(image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the flags (N,) uint8 of cutouts (N, 5, 32, 32) and magnitudes (N, 5)."""
    pixel = has_unusable_pixel(image)
    missing = ~is_usable_magnitude(magnitude).all(axis=1)
    incomplete = has_constant_edge(image) & ~pixel
    flags = pixel * Flag.NONFINITE_PIXEL | missing * Flag.MISSING_MAGNITUDE | incomplete * Flag.INCOMPLETE_CUTOUT
    return np.asarray(flags, np.uint8)


def blank_unusable(image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the flags (N,) uint8 of cutouts and magnitudes, and put zeros in place of those that are not usable.

    They are not left out, so that the other galaxies are predicted together with the same ones.
    """
    flag = flag_inputs(image, magnitude)
    blank = flag & NO_REDSHIFT != 0
    if blank.any():
        image[blank] = 0
        magnitude[blank] = 0
    return flag


def has_unusable_pixel(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which cutouts (N, bands, H, W) have a pixel that is NaN, infinite or beyond LARGEST_PIXEL."""
    pixels = image.reshape(len(image), math.prod(image.shape[1:]))
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", pixels, pixels)
        found = ~(squares <= LARGEST_PIXEL**2)  # whoever passes this fast test has no such pixel
        found[found] = ~(np.abs(pixels[found]) <= LARGEST_PIXEL).all(axis=1)
    return np.asarray(found)


def has_constant_edge(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return in which cutouts (N, bands, H, W) the pixels along an edge of a band all have one value.

    Noise never does that. A band without data is constant everywhere; where a survey or a detector ends, the part
    beyond is constant up to an edge.
    """
    found = np.zeros(len(image), np.bool_)
    for edge in (image[:, :, 0], image[:, :, -1], image[..., 0], image[..., -1]):  # (N, bands, length)
        possible = np.flatnonzero((edge[..., 0] == edge[..., 1]).any(axis=1))  # rarely any
        found[possible] |= (edge[possible] == edge[possible, :, :1]).all(axis=2).any(axis=1)
    return found


def flag_predictions(redshift: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the flags (N,) uint8 of predicted redshifts (N,) of usable galaxies."""
    low, high = PLAUSIBLE_REDSHIFT
    finite = np.isfinite(redshift)
    implausible = finite & ~((redshift >= low) & (redshift <= high))
    return np.asarray(~finite * Flag.NONFINITE_PREDICTION | implausible * Flag.IMPLAUSIBLE_REDSHIFT, np.uint8)
