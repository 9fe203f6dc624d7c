"""Arrays beside an image that say which of its pixels are sound; the others become NaN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .source import SourceArray

_ZERO_IS_BAD = ("ivar", "invvar", "wht", "weight")
_NONZERO_IS_BAD = ("dq", "badpix", "flags")
_SAMPLE_PIXELS = 2**20


@dataclass(frozen=True)
class Mask:
    """A mask by its name in the source, and whether its zeros (else all other values) mark bad pixels."""

    name: str
    zero_is_bad: bool

    def describe(self) -> str:
        """Return the condition of a bad pixel."""
        return f"{self.name} is {'zero' if self.zero_is_bad else 'not zero'}"


def select_mask(source: str, masks: Mapping[str, SourceArray], requested: str | None) -> Mask | None:
    """Return the mask that `--mask NAME`, NAME=zero or NAME=nonzero requests; None if nothing is requested.

    Inverse variances and weights are bad where zero, data-quality bits where not. Of any other mask both are in use
    (numpy masks mark bad pixels, others sound ones): there the rarer of both is bad. Raises InputError if there is no
    such mask, or if neither is rare.
    """
    if requested is None:
        return None
    name, _, meaning = requested.partition("=")
    matches = [
        known for known in masks if known.lower() == name.lower() or known.rsplit("/", 1)[-1].lower() == name.lower()
    ]
    if len(matches) != 1:
        raise InputError(
            f"{source} has no mask {name} of one value per pixel, for each band or for all; it has "
            f"{', '.join(masks) or 'none'}"
        )
    if meaning not in ("", "zero", "nonzero"):
        raise InputError(f"--mask {requested}: expected NAME, NAME=zero or NAME=nonzero")
    if meaning:
        return Mask(matches[0], meaning == "zero")
    words = matches[0].lower().replace("/", "_").replace("-", "_").split("_")
    if any(word in _ZERO_IS_BAD for word in words):
        return Mask(matches[0], True)
    if any(word in _NONZERO_IS_BAD for word in words):
        return Mask(matches[0], False)
    array = masks[matches[0]]
    row = int(np.prod(array.shape[1:]))
    count = min(array.shape[0], max(1, _SAMPLE_PIXELS // max(1, row)))
    share = np.count_nonzero(array.read_next(count)) / max(1, count * row)
    if 0.4 < share < 0.6:
        raise InputError(
            f"{source}: {matches[0]} is zero for as many pixels as not; say which are bad with --mask {name}=zero or "
            f"--mask {name}=nonzero"
        )
    return Mask(matches[0], bool(share > 0.5))


def apply_mask(image: NDArray[np.generic], values: NDArray[np.generic], mask: Mask) -> NDArray[np.floating]:
    """Return cutouts (N, 5, H, W) in floating point with NaN where the mask's values mark a bad pixel.

    The values are as `fits_image` allows: those without an axis for bands hold for every band.
    """
    floating = image if image.dtype.kind == "f" else image.astype(np.float64)
    if values.ndim == 3:
        values = values[:, None]
    elif values.shape[-2:] != image.shape[-2:]:
        values = np.moveaxis(values, -1, 1)
    sound = (values != 0) & ~np.isnan(values) if mask.zero_is_bad else values == 0
    return np.where(sound, floating, np.nan)
