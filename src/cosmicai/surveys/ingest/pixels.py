"""From the pixels of a source to cutouts of 32 x 32 pixels in nanomaggies, bands in the order u, g, r, i, z.

The galaxy is at pixel n // 2 (from 0) of a side of n pixels, and at pixel 16 of a cutout. Where n is even this is the
same as to keep the centre of the image, between two pixels; where it is odd the middle pixel becomes pixel 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..shard import BANDS, IMAGE_SHAPE
from ..units import SDSS_PIXEL_SCALE


@dataclass(frozen=True)
class PixelConversion:
    """What is done with every cutout of a source.

    `order` is the position of u, g, r, i, z in the source; pixels are multiplied by `factor`; `resample_from` is the
    pixel scale in arcsec that is brought to that of SDSS, None to leave the pixels as they are.
    """

    order: tuple[int, ...] = (0, 1, 2, 3, 4)
    factor: float = 1.0
    resample_from: float | None = None


def bands_first(image: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return cutouts (N, 5, H, W) from (N, 5, H, W) or (N, H, W, 5)."""
    return image if image.shape[1] == len(BANDS) else np.moveaxis(image, -1, 1)


def to_cutouts(image: NDArray[np.generic], conversion: PixelConversion) -> NDArray[np.float32]:
    """Return cutouts (N, 5, 32, 32) float32 of images (N, 5, H, W): converted, resampled, cropped to their centre."""
    size, pixels = IMAGE_SHAPE[-1], image.shape[-1]
    margin, weights = pixels // 2 - size // 2, None
    inside = slice(margin, margin + size)
    if conversion.resample_from is not None:
        weights = overlap_weights(pixels, size, SDSS_PIXEL_SCALE / conversion.resample_from)
        touched = np.flatnonzero(weights.any(axis=0))
        inside = slice(touched[0], touched[-1] + 1)
    cutout = image[..., inside, inside]  # first of all: the rest would only fill the memory
    if conversion.order != (0, 1, 2, 3, 4):
        cutout = cutout[:, list(conversion.order)]
    if weights is not None:
        cutout = _resample(cutout.astype(np.float64), weights[:, inside])
    if conversion.factor != 1:
        cutout = cutout.astype(np.float64) * conversion.factor
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is flagged
        return np.ascontiguousarray(cutout, dtype=np.float32)


def _resample(image: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return images (..., pixels, pixels) on the grid of `weights`, NaN where an old pixel that is not finite lies."""
    finite = np.isfinite(image)
    whole = bool(finite.all())
    resampled = weights @ (image if whole else np.where(finite, image, 0)) @ weights.T
    if not whole:
        resampled[weights @ (~finite).astype(np.float64) @ weights.T > 0] = np.nan
    return np.asarray(resampled)


def smallest_side(resample_from: float | None, is_odd: bool = False) -> float:
    """Return the number of pixels that a side of an image must have at least for a whole cutout.

    A cutout begins 16 of its pixels and a half before the middle of pixel 16, so that odd sides must be one longer.
    """
    size = IMAGE_SHAPE[-1] + is_odd
    return size if resample_from is None else size * SDSS_PIXEL_SCALE / resample_from


@lru_cache(maxsize=8)
def overlap_weights(pixels: int, size: int, ratio: float) -> NDArray[np.float64]:
    """Return (size, pixels): how much of each old pixel lies in each new one, along one axis around the same centre.

    The centre is that of the sides where `pixels` is even. Where it is odd, the middle of the middle pixel falls on the
    middle of pixel `size // 2`, as in the crop of images that are not resampled, which is the case of ratio 1.
    `ratio` is the side of a new pixel in old ones. Grids are parallel, so that the area that two pixels share is the
    product of what they share along both axes: new = weights @ old @ weights.T keeps all flux exactly, as drizzling
    with full pixels does (Fruchter & Hook 2002).
    """
    middle = 0.5 * (pixels % 2)  # from the lower edge of pixel n // 2
    edges = pixels // 2 + middle + ratio * (np.arange(size + 1) - size // 2 - middle)
    old = np.arange(pixels)
    shared = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return np.asarray(np.maximum(shared, 0))
