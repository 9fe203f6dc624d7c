"""Predict a cutout in several views: its rotations by right angles and their reflections.

The sky has no preferred direction, but a network learns this only approximately. Its redshifts of the eight views
differ, and their mean is less noisy than any of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Engine


def predict_views(
    engine: Engine, image: NDArray[np.float32], magnitude: NDArray[np.float64], views: int
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Return redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), averaged over `views`, and their spread.

    The spread (B,) is the standard deviation of the redshifts of the views, divided by their number: they are all there
    are, not a sample. Both are computed in float64 and rounded to float32. With one view the redshifts are those of the
    engine, and the spread is None. Cutouts are copied for one view at a time.
    """
    if views == 1:
        return engine.predict(image, magnitude).astype(np.float32, copy=False), None
    redshifts = np.array([engine.predict(make_view(image, view), magnitude) for view in range(views)], dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # a redshift that is not finite makes the mean so
        return redshifts.mean(axis=0).astype(np.float32), redshifts.std(axis=0).astype(np.float32)


def make_view(image: NDArray[np.float32], view: int) -> NDArray[np.float32]:
    """Return view number `view`, from 0 to 7, of cutouts (..., H, H), contiguous; number 0 is the cutouts themselves.

    Views from 4 on are reflected left to right first. Then all are rotated by `view` right angles.
    """
    reflected = np.flip(image, axis=-1) if view >= 4 else image
    return np.ascontiguousarray(np.rot90(reflected, view, axes=(-2, -1)))
