"""The domain that a network was trained on, and which galaxies lie outside of it.

A redshift of such a galaxy is an extrapolation: it is kept and flagged. Magnitudes and colours tell galaxies of another
kind or another photometry, the noise of the pixels tells images of another depth, which colours alone do not show.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..surveys.quality import flag_inputs, is_usable_redshift
from ..surveys.shard import Galaxies
from .records import Origin, Range, TrainingDomain

PROBABILITIES = (0.001, 0.999)
GALAXIES = 50_000  # of a sample that the ranges are measured on; 50 of them lie beyond each end
EDGE = 4  # rows of pixels at either side of a cutout that show its noise
_GAUSSIAN = np.sqrt(np.pi) / 2  # deviation of Gaussian noise over the mean |difference| of two pixels


def edge_noise(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the noise (N, bands) of cutouts (N, bands, H, W) in their units, from the first and the last EDGE rows.

    It is the mean absolute difference of neighbouring pixels, times sqrt(pi) / 2: the standard deviation if the noise
    is Gaussian and independent. The slope of a galaxy's outskirts hardly changes it.
    """
    found = np.zeros(image.shape[:2], np.float32)
    for edge in (image[:, :, :EDGE], image[:, :, -EDGE:]):
        difference = edge[..., 1:] - edge[..., :-1]
        found += np.abs(difference, out=difference).mean(axis=(2, 3))
    return found * np.float32(_GAUSSIAN / 2)


def measure_domain(
    source: Origin, purpose: Literal["training", "calibration"], batches: Iterable[Galaxies]
) -> TrainingDomain | None:
    """Return the domain of the usable galaxies of a survey, which come in batches; None if there are none."""
    magnitudes, noises, redshifts = [], [], []
    for galaxies in batches:
        usable = is_usable_redshift(galaxies.redshift) & (flag_inputs(galaxies.image, galaxies.magnitude) == 0)
        magnitudes.append(galaxies.magnitude[usable])
        noises.append(edge_noise(galaxies.image)[usable])
        redshifts.append(galaxies.redshift[usable])
    if not sum(map(len, redshifts)):
        return None
    magnitude, noise, redshift = map(np.concatenate, (magnitudes, noises, redshifts))
    return TrainingDomain(
        survey=source.survey,
        survey_digest=source.survey_digest,
        purpose=purpose,
        galaxies=len(redshift),
        magnitudes=_ranges(magnitude),
        colours=_ranges(_colours(magnitude)),
        noise=_ranges(noise),
        redshift=_ranges(redshift[:, None])[0],
    )


def is_outside(
    domain: TrainingDomain, image: NDArray[np.float32], magnitude: NDArray[np.float64], redshift: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Return which galaxies (N,) lie outside of a domain, by cutouts (N, 5, 32, 32), magnitudes and z_phot (N,)."""
    return np.asarray(
        _beyond(magnitude, domain.magnitudes)
        | _beyond(_colours(magnitude), domain.colours)
        | _beyond(edge_noise(image), domain.noise)
        | _beyond(redshift[:, None], (domain.redshift,))
    )


def _colours(magnitude: NDArray[np.float64]) -> NDArray[np.float64]:
    return magnitude[:, :-1] - magnitude[:, 1:]


def _ranges(values: NDArray[Any]) -> tuple[Range, ...]:
    low, high = np.quantile(values.astype(np.float64), PROBABILITIES, axis=0)
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def _beyond(values: NDArray[Any], ranges: tuple[Range, ...]) -> NDArray[np.bool_]:
    low, high = np.array(ranges, np.float64).T
    return np.asarray(~((values >= low) & (values <= high)).all(axis=1))
