"""inference.png: photometric against spectroscopic redshift."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engines.openvino.compiled_cache import cache_folder
from ..ranks.container_image import image_variant
from ..surveys.quality import is_usable_redshift
from .metrics import Metrics

TITLE_WIDTH = 90  # characters in a line above the plot
TRIMMED = 0.0005  # share of the values beyond each end of the axes


def plot_redshifts(
    path: Path,
    redshift_phot: NDArray[np.float32],
    redshift_spec: NDArray[np.float64],
    metrics: Metrics | None,
    weights: str,
) -> None:
    """Draw the density of galaxies (N,) in the plane of both redshifts, the 1:1 line and the metrics, as a PNG.

    `weights` is the line above the plot that says which weights predicted the redshifts.
    """
    if image_variant():
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # by default it would be in the home
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel="spectroscopic redshift", ylabel="photometric redshift", aspect="equal")
    axes.set_title(textwrap.fill(weights, TITLE_WIDTH), fontsize=7, loc="left", parse_math=False)
    if metrics is None:
        axes.text(0.5, 0.5, "no spectroscopic redshifts", ha="center", transform=axes.transAxes)
    else:
        known = np.isfinite(redshift_phot) & is_usable_redshift(redshift_spec)
        phot, spec = redshift_phot[known].astype(np.float64), redshift_spec[known]
        low, high = _axis_limits(np.concatenate([phot, spec]))
        *_, image = axes.hist2d(spec, phot, bins=150, range=[[low, high]] * 2, norm=LogNorm(), cmap="viridis")
        figure.colorbar(image, label="galaxies per cell", shrink=0.85)
        axes.plot([low, high], [low, high], color="crimson", linewidth=1, label="1:1")
        text = (
            f"{metrics.galaxies:,} galaxies\n$R^2$ = {metrics.r2:.4f}\nMAE = {metrics.mae:.5f}\n"
            f"bias = {metrics.bias:+.5f}\nNMAD = {metrics.precision:.5f}\noutliers = {metrics.outliers:.2%}"
        )
        axes.text(0.03, 0.97, text, va="top", transform=axes.transAxes, bbox={"facecolor": "white", "alpha": 0.8})
        axes.legend(loc="lower right")
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def _axis_limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the limits of both axes, without a few catastrophic outliers among many values, which would shrink all."""
    trimmed = TRIMMED if len(values) * TRIMMED >= 1 else 0
    low, high = map(float, np.quantile(values, [trimmed, 1 - trimmed]))
    return (low, high) if high > low else (low - 0.05, high + 0.05)
