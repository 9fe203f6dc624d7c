"""How good the redshifts of a run are: density, dz against redshift, histogram of dz, metrics by magnitude."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray

from cosmicai.runs.metrics import OUTLIER_DZ, Metrics

from ..accuracy import FEWEST, Accuracy
from ..accuracy import by_magnitude as magnitude_bins
from ..accuracy import by_redshift as redshift_bins
from .style import LABEL, PALETTE, TICK, Drawing, begin, empty, finish, label, legend, logarithmic, plain

CELLS = 140  # across a density
SHOWN = (
    0.0005,
    0.9995,
)  # quantiles between which the frame of a density lies: catastrophic outliers must not shrink it
REDSHIFT_BIN = 0.02  # of the running median
DZ = "dz = (z_phot − z_spec) / (1 + z_spec)"
NEITHER = "no galaxy of this run has both a photometric and a spectroscopic redshift"
_DENSITY = ListedColormap(colormaps["viridis"](np.linspace(0, 0.95, 256)))  # few are dark: they must be seen on white
_PALE = ListedColormap(colormaps["Greys"](np.linspace(0.2, 0.6, 256)))  # under lines
_HALO = [withStroke(linewidth=2.6, foreground="white")]


def density(accuracy: Accuracy, name: str = "density") -> Drawing:
    """Photometric against spectroscopic redshift: galaxies per cell, the 1:1 line, and the limits of outliers."""
    title, figure = f"Photometric against spectroscopic redshift: {accuracy.run}", begin(4.7)
    axes = figure.add_subplot()
    label(axes, "spectroscopic redshift", "photometric redshift")
    if not (metrics := accuracy.metrics):
        return _nothing(axes, name, title)
    low, high = _range(np.concatenate([accuracy.phot, accuracy.spec]))
    beyond = _cells(axes, accuracy.spec, accuracy.phot, (low, high), (low, high), _DENSITY)
    line = np.array([low, high])
    axes.plot(line, line, color="black", linewidth=1.2, label="1:1", path_effects=_HALO)
    for sign in (-1, 1):
        limit = line + sign * OUTLIER_DZ * (1 + line)
        said = f"±{OUTLIER_DZ:g} (1 + z): outliers beyond" if sign > 0 else None
        axes.plot(line, limit, "--", color="black", linewidth=1.0, label=said, path_effects=_HALO)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    text = (
        f"{metrics.galaxies:,} galaxies\nR² {metrics.r2:.4f}\nMAE {metrics.mae:.5f}\nbias {metrics.bias:+.5f}\n"
        f"NMAD {metrics.precision:.5f}\noutliers {metrics.outliers:.2%}"
    )
    _told(axes, text)
    legend(axes)
    return finish(figure, name, title, _sentence(metrics), [*_counts(accuracy), _beyond(beyond)])


def dz_against_z(accuracy: Accuracy, name: str = "dz_against_z") -> Drawing:
    """dz against spectroscopic redshift: galaxies per cell, the running median, and the band of the NMAD around it."""
    title, figure = f"dz against redshift: {accuracy.run}", begin()
    axes = figure.add_subplot()
    label(axes, "spectroscopic redshift", "dz")
    if not (metrics := accuracy.metrics):
        return _nothing(axes, name, title)
    reach = max(1.3 * OUTLIER_DZ, 5 * metrics.precision)
    beyond = _cells(axes, accuracy.spec, accuracy.dz, _range(accuracy.spec), (-reach, reach), _PALE)
    bins = redshift_bins(accuracy, REDSHIFT_BIN)
    axes.plot(
        bins["middle"], bins["median_dz"], color="black", marker="o", markersize=4, linewidth=1.4, label="median",
        path_effects=_HALO,
    )  # fmt: skip
    for sign in (-1, 1):
        edge = bins["median_dz"] + sign * bins["nmad"]
        axes.plot(
            bins["middle"], edge, "--", color=PALETTE[2], linewidth=1.6, label="median ± NMAD" if sign > 0 else None,
            path_effects=_HALO,
        )  # fmt: skip
        said = f"±{OUTLIER_DZ:g}: outliers beyond" if sign > 0 else None
        axes.axhline(sign * OUTLIER_DZ, color=PALETTE[4], linewidth=1.2, linestyle=":", label=said)
    axes.set_ylim(-reach, reach)
    legend(axes)
    binned = f"Medians in bins of {REDSHIFT_BIN} in redshift with at least {FEWEST} galaxies."
    notes = [f"{DZ}. {binned}", *_counts(accuracy), _beyond(beyond)]
    caption = f"{_sentence(metrics)} The median by redshift lies between {_between(bins['median_dz'])}."
    return finish(figure, name, title, caption if len(bins) else _sentence(metrics), notes)


def dz_histogram(accuracy: Accuracy, name: str = "dz_histogram") -> Drawing:
    """How dz is distributed, beside a Gaussian with the median of dz as its middle and the NMAD as its sigma."""
    title, figure = f"Distribution of dz: {accuracy.run}", begin()
    axes = figure.add_subplot()
    label(axes, DZ, "galaxies")
    if not (metrics := accuracy.metrics):
        return _nothing(axes, name, title)
    dz, sigma = accuracy.dz, metrics.precision
    reach = max(1.3 * OUTLIER_DZ, 5 * sigma)
    counts, edges = np.histogram(dz, bins=100, range=(-reach, reach))
    axes.stairs(counts, edges, fill=True, color="#d9d9d9")
    axes.stairs(counts, edges, color="black", linewidth=0.9, label="galaxies")
    if sigma:
        x = np.linspace(-reach, reach, 400)
        gaussian = np.exp(-0.5 * ((x - np.median(dz)) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        expected = gaussian * len(dz) * (edges[1] - edges[0])
        axes.plot(x, expected, "--", color=PALETTE[2], label="Gaussian with σ = NMAD")
    axes.axvline(metrics.bias, color=PALETTE[4], linewidth=1.4, linestyle="-.", label="bias (mean)")
    for sign in (-1, 1):
        said = f"±{OUTLIER_DZ:g}: outliers beyond" if sign > 0 else None
        axes.axvline(sign * OUTLIER_DZ, color="black", linewidth=1.1, linestyle=":", label=said)
    axes.set_xlim(-reach, reach)
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    text = f"bias {metrics.bias:+.5f}\nNMAD {sigma:.5f}\noutliers {metrics.outliers:.2%}"
    _told(axes, text)
    legend(axes)
    beyond = int(len(dz) - counts.sum())
    return finish(figure, name, title, _sentence(metrics), [*_counts(accuracy), _beyond(beyond)])


def by_magnitude(accuracy: Accuracy, name: str = "by_magnitude") -> Drawing:
    """Median dz, NMAD and outliers by r magnitude, with errors, and the number of galaxies of each bin."""
    title, figure = f"Accuracy by magnitude: {accuracy.run}", begin(6.2)
    bins = magnitude_bins(accuracy)
    if bins.empty:
        reason = f"there are no r magnitudes: {accuracy.no_magnitude}" if accuracy.no_magnitude else ""
        reason = reason or f"no bin of r magnitude holds {FEWEST} galaxies"
        return _nothing(figure.add_subplot(), name, title, reason)
    panels = list(figure.subplots(4, sharex=True))
    spread = {"median_dz": "median dz", "nmad": "NMAD"}
    for axes, (column, text) in zip(panels, spread.items(), strict=False):
        label(axes, "", text)
        axes.errorbar(bins["middle"], bins[column], bins[f"{column}_error"], color="black", marker="o", capsize=3)
    panels[1].set_ylim(bottom=0)
    panels[0].axhline(0, color="#707070", linewidth=0.8, linestyle="--")
    label(panels[2], "", "outliers")
    low, high = bins["outliers"] - bins["outliers_low"], bins["outliers_high"] - bins["outliers"]
    panels[2].errorbar(bins["middle"], bins["outliers"], [low, high], color="black", marker="o", capsize=3)
    panels[2].yaxis.set_major_formatter(PercentFormatter(1, None))
    label(panels[3], "r magnitude", "galaxies")
    edges = np.append(bins["low"], bins["high"].iloc[-1])
    panels[3].bar(bins["low"], bins["galaxies"], bins["high"] - bins["low"], align="edge", color="#d9d9d9", ec="black")
    panels[3].set_xlim(edges[0], edges[-1])
    logarithmic(panels[3], "y")
    figure.align_ylabels(panels)
    first, last = bins.iloc[0], bins.iloc[-1]
    caption = (
        f"From magnitude {first['low']:g} to {last['high']:g}, the NMAD goes from {first['nmad']:.4f} to "
        f"{last['nmad']:.4f} and the outliers from {first['outliers']:.2%} to {last['outliers']:.2%}; "
        f"{bins['galaxies'].sum():,} galaxies in {len(bins)} bins."
    )
    notes = [
        f"Points at the median magnitude of bins with at least {FEWEST} galaxies. Bars: one standard deviation from "
        "the number of galaxies n, 1.25 NMAD/√n of the median, 1.17 NMAD/√n of the NMAD, Wilson's interval of the "
        "outliers.",
        *_counts(accuracy),
    ]
    return finish(figure, name, title, caption, notes)


def _nothing(axes: Axes, name: str, title: str, reason: str = NEITHER) -> Drawing:
    """A drawing that says why there is nothing to draw."""
    empty(axes, reason)
    assert axes.figure is not None
    return finish(axes.figure, name, title, f"Nothing is drawn: {reason}.")  # type: ignore[arg-type]


def _told(axes: Axes, text: str) -> None:
    """Numbers in the upper left corner, over the data if there are any."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2}
    axes.text(0.02, 0.98, text, va="top", transform=axes.transAxes, fontsize=TICK, bbox=box)


def _range(values: NDArray[np.floating]) -> tuple[float, float]:
    low, high = (float(edge) for edge in np.quantile(values, SHOWN))
    return (low, high) if high > low else (low - 0.05, high + 0.05)


def _cells(
    axes: Axes,
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    colors: ListedColormap,
) -> int:
    """Draws galaxies per cell as pixels, so that files stay small; returns how many galaxies lie outside of all."""
    counts, x_edges, y_edges = np.histogram2d(x, y, CELLS, (x_range, y_range))
    most = max(float(counts.max()), 2.0)
    shown = np.ma.masked_equal(counts.T, 0)
    mesh = axes.pcolormesh(x_edges, y_edges, shown, norm=LogNorm(1, most), cmap=colors, rasterized=True)
    bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.85, pad=0.02)
    logarithmic(bar.ax, "y")
    bar.ax.tick_params(labelsize=TICK)
    bar.set_label("galaxies per cell", fontsize=LABEL)
    return len(x) - int(counts.sum())


def _sentence(metrics: Metrics) -> str:
    return (
        f"{metrics.galaxies:,} galaxies: bias {metrics.bias:+.5f}, NMAD {metrics.precision:.5f}, "
        f"MAE {metrics.mae:.5f}, "
        f"R² {metrics.r2:.4f}, {metrics.outliers:.2%} outliers with |dz| > {OUTLIER_DZ:g}."
    )


def _counts(accuracy: Accuracy) -> list[str]:
    lacking = accuracy.galaxies - len(accuracy.spec)
    return [f"{lacking:,} of {accuracy.galaxies:,} galaxies lack one of the redshifts."] if lacking else []


def _beyond(galaxies: int) -> str:
    return f"Outside the frame: {galaxies:,} galaxies." if galaxies else ""


def _between(values: pd.Series) -> str:
    return f"{values.min():+.4f} and {values.max():+.4f}"
