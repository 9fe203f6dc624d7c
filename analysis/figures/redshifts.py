"""Draw the accuracy of a run: density, dz by redshift, histogram of dz, metrics by magnitude."""

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

from ..accuracy import MIN_GALAXIES, Accuracy
from ..accuracy import bin_by_magnitude as magnitude_bins
from ..accuracy import bin_by_redshift as redshift_bins
from ..formatting import format_fraction, format_statistic
from .style import (
    LABEL,
    PALETTE,
    TICK,
    Drawing,
    add_legend,
    create_figure,
    finish_drawing,
    format_number,
    label_axes,
    mark_empty,
    set_logarithmic,
)

CELLS = 140  # per side of a density
SHOWN = (0.0005, 0.9995)  # quantiles at the edges of a density, so that catastrophic outliers do not shrink it
REDSHIFT_BIN = 0.02  # bin width of the running median
DZ = "dz = (z_phot − z_spec) / (1 + z_spec)"
NEITHER = "no galaxy of this run has both a photometric and a spectroscopic redshift"
SPREAD = ("bias", "NMAD", "outliers")  # metrics that a histogram shows
_DENSITY = ListedColormap(
    colormaps["viridis"](np.linspace(0, 0.95, 256))
)  # dark for few galaxies, to be visible on white
_PALE = ListedColormap(colormaps["Greys"](np.linspace(0.2, 0.6, 256)))  # below lines
_HALO = [withStroke(linewidth=2.6, foreground="white")]


def draw_density(accuracy: Accuracy, runs: pd.DataFrame, name: str = "density") -> Drawing:
    """Draw photometric against spectroscopic redshift: galaxies per cell, the 1:1 line, and the limits of outliers."""
    title, figure = f"Photometric against spectroscopic redshift: {accuracy.run}", create_figure(4.7)
    axes = figure.add_subplot()
    label_axes(axes, "spectroscopic redshift", "photometric redshift")
    if not (metrics := accuracy.metrics):
        return _draw_nothing(axes, name, title, runs)
    rows = runs[runs["run"].eq(accuracy.run)]
    low, high = _choose_range(np.concatenate([accuracy.phot, accuracy.spec]))
    beyond = _draw_cells(axes, accuracy.spec, accuracy.phot, (low, high), (low, high), _DENSITY)
    line = np.array([low, high])
    axes.plot(line, line, color="black", linewidth=1.2, label="1:1", path_effects=_HALO)
    for sign in (-1, 1):
        limit = line + sign * OUTLIER_DZ * (1 + line)
        limit_label = f"±{OUTLIER_DZ:g} (1 + z): outliers beyond" if sign > 0 else None
        axes.plot(line, limit, "--", color="black", linewidth=1.0, label=limit_label, path_effects=_HALO)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    texts = _format_metrics(metrics)
    lines = [f"{metrics.galaxies:,} galaxies", *(f"{name} {texts[name]}" for name in ("R²", "MAE", *SPREAD))]
    _write_numbers(axes, "\n".join(lines))
    add_legend(axes)
    return finish_drawing(
        figure, name, title, _describe_metrics(metrics), rows,
        [*_describe_missing(accuracy), _describe_beyond(beyond), *_describe_weights(rows)],
    )  # fmt: skip


def draw_dz_by_redshift(accuracy: Accuracy, runs: pd.DataFrame, name: str = "dz_against_z") -> Drawing:
    """Draw dz against spectroscopic redshift: galaxies per cell, the running median, and the NMAD around it."""
    title, figure = f"dz against redshift: {accuracy.run}", create_figure()
    axes = figure.add_subplot()
    label_axes(axes, "spectroscopic redshift", "dz")
    if not (metrics := accuracy.metrics):
        return _draw_nothing(axes, name, title, runs)
    rows = runs[runs["run"].eq(accuracy.run)]
    reach = max(1.3 * OUTLIER_DZ, 5 * metrics.precision)
    beyond = _draw_cells(axes, accuracy.spec, accuracy.dz, _choose_range(accuracy.spec), (-reach, reach), _PALE)
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
        limit_label = f"±{OUTLIER_DZ:g}: outliers beyond" if sign > 0 else None
        axes.axhline(sign * OUTLIER_DZ, color=PALETTE[4], linewidth=1.2, linestyle=":", label=limit_label)
    axes.set_ylim(-reach, reach)
    add_legend(axes)
    binned = f"Medians in bins of {REDSHIFT_BIN} in redshift with at least {MIN_GALAXIES} galaxies."
    notes = [f"{DZ}. {binned}", *_describe_missing(accuracy), _describe_beyond(beyond), *_describe_weights(rows)]
    caption = _describe_metrics(metrics)
    if len(bins):
        caption += f" The median by redshift lies between {_describe_range(bins)}."
    return finish_drawing(figure, name, title, caption, rows, notes)


def draw_dz_histogram(accuracy: Accuracy, runs: pd.DataFrame, name: str = "dz_histogram") -> Drawing:
    """Draw the distribution of dz, and a Gaussian with the median of dz as its centre and the NMAD as its sigma."""
    title, figure = f"Distribution of dz: {accuracy.run}", create_figure()
    axes = figure.add_subplot()
    label_axes(axes, DZ, "galaxies")
    if not (metrics := accuracy.metrics):
        return _draw_nothing(axes, name, title, runs)
    rows = runs[runs["run"].eq(accuracy.run)]
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
        limit_label = f"±{OUTLIER_DZ:g}: outliers beyond" if sign > 0 else None
        axes.axvline(sign * OUTLIER_DZ, color="black", linewidth=1.1, linestyle=":", label=limit_label)
    axes.set_xlim(-reach, reach)
    axes.yaxis.set_major_formatter(FuncFormatter(format_number))
    texts = _format_metrics(metrics)
    _write_numbers(axes, "\n".join(f"{name} {texts[name]}" for name in SPREAD))
    add_legend(axes)
    beyond = int(len(dz) - counts.sum())
    return finish_drawing(
        figure, name, title, _describe_metrics(metrics), rows,
        [*_describe_missing(accuracy), _describe_beyond(beyond), *_describe_weights(rows)],
    )  # fmt: skip


def draw_by_magnitude(accuracy: Accuracy, runs: pd.DataFrame, name: str = "by_magnitude") -> Drawing:
    """Draw median dz, NMAD and outliers by r magnitude, with errors, and the number of galaxies of each bin."""
    title, figure = f"Accuracy by magnitude: {accuracy.run}", create_figure(6.2)
    bins = magnitude_bins(accuracy)
    if bins.empty:
        reason = f"there are no r magnitudes: {accuracy.no_magnitude}" if accuracy.no_magnitude else ""
        reason = reason or f"no bin of r magnitude holds {MIN_GALAXIES} galaxies"
        return _draw_nothing(figure.add_subplot(), name, title, runs, reason)
    rows = runs[runs["run"].eq(accuracy.run)]
    panels = list(figure.subplots(4, sharex=True))
    spread = {"median_dz": "median dz", "nmad": "NMAD"}
    for axes, (column, text) in zip(panels, spread.items(), strict=False):
        label_axes(axes, "", text)
        axes.errorbar(bins["middle"], bins[column], bins[f"{column}_error"], color="black", marker="o", capsize=3)
    panels[1].set_ylim(bottom=0)
    panels[0].axhline(0, color="#707070", linewidth=0.8, linestyle="--")
    label_axes(panels[2], "", "outliers")
    low, high = bins["outliers"] - bins["outliers_low"], bins["outliers_high"] - bins["outliers"]
    panels[2].errorbar(bins["middle"], bins["outliers"], [low, high], color="black", marker="o", capsize=3)
    panels[2].yaxis.set_major_formatter(PercentFormatter(1, None))
    label_axes(panels[3], "r magnitude", "galaxies")
    edges = np.append(bins["low"], bins["high"].iloc[-1])
    panels[3].bar(bins["low"], bins["galaxies"], bins["high"] - bins["low"], align="edge", color="#d9d9d9", ec="black")
    panels[3].set_xlim(edges[0], edges[-1])
    set_logarithmic(panels[3], "y")
    figure.align_ylabels(panels)
    first, last = bins.iloc[0], bins.iloc[-1]
    caption = (
        f"From magnitude {first['low']:g} to {last['high']:g}, the NMAD changes from "
        f"{format_statistic(first['nmad'], first['galaxies'])} to {format_statistic(last['nmad'], last['galaxies'])} "
        f"and the outliers from {format_fraction(first['outliers'], first['galaxies'])} to "
        f"{format_fraction(last['outliers'], last['galaxies'])}; "
        f"{bins['galaxies'].sum():,} galaxies in {len(bins)} bins."
    )
    notes = [
        f"Points: median magnitude of bins of at least {MIN_GALAXIES} galaxies. Bars: one standard deviation for n "
        "galaxies, 1.25 NMAD/√n for the median, 1.17 NMAD/√n for the NMAD, Wilson's interval for the "
        "outliers.",
        *_describe_missing(accuracy),
        *_describe_weights(rows),
    ]
    return finish_drawing(figure, name, title, caption, rows, notes)


def _draw_nothing(axes: Axes, name: str, title: str, runs: pd.DataFrame, reason: str = NEITHER) -> Drawing:
    """Return a drawing that states why there is nothing to draw."""
    mark_empty(axes, reason)
    assert axes.figure is not None
    return finish_drawing(axes.figure, name, title, f"Nothing is drawn: {reason}.", runs[:0])  # type: ignore[arg-type]


def _write_numbers(axes: Axes, text: str) -> None:
    """Write numbers into the upper left corner, above the data."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2}
    axes.text(0.02, 0.98, text, va="top", transform=axes.transAxes, fontsize=TICK, bbox=box)


def _choose_range(values: NDArray[np.floating]) -> tuple[float, float]:
    low, high = (float(edge) for edge in np.quantile(values, SHOWN))
    return (low, high) if high > low else (low - 0.05, high + 0.05)


def _draw_cells(
    axes: Axes,
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    colors: ListedColormap,
) -> int:
    """Draw galaxies per cell as pixels, so that files stay small; return how many galaxies lie outside."""
    counts, x_edges, y_edges = np.histogram2d(x, y, CELLS, (x_range, y_range))
    most = max(float(counts.max()), 2.0)
    shown = np.ma.masked_equal(counts.T, 0)
    mesh = axes.pcolormesh(x_edges, y_edges, shown, norm=LogNorm(1, most), cmap=colors, rasterized=True)
    bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.85, pad=0.02)
    set_logarithmic(bar.ax, "y")
    bar.ax.tick_params(labelsize=TICK)
    bar.set_label("galaxies per cell", fontsize=LABEL)
    return len(x) - int(counts.sum())


def _format_metrics(metrics: Metrics) -> dict[str, str]:
    """Return the metrics by their names, with the digits that so many galaxies justify."""
    values = {"bias": metrics.bias, "NMAD": metrics.precision, "MAE": metrics.mae, "R²": metrics.r2}
    texts = {name: format_statistic(value, metrics.galaxies, "+" * (name == "bias")) for name, value in values.items()}
    return {**texts, "outliers": format_fraction(metrics.outliers, metrics.galaxies)}


def _describe_metrics(metrics: Metrics) -> str:
    texts = _format_metrics(metrics)
    listed = ", ".join(f"{name} {texts[name]}" for name in ("bias", "NMAD", "MAE", "R²"))
    return f"{metrics.galaxies:,} galaxies: {listed}, {texts['outliers']} outliers with |dz| > {OUTLIER_DZ:g}."


def _describe_weights(rows: pd.DataFrame) -> list[str]:
    """Return which weights predicted, and whether they learned from synthetic galaxies."""
    return [f"Weights: {name}." for name in rows["weights_name"].dropna().unique()]


def _describe_missing(accuracy: Accuracy) -> list[str]:
    lacking = accuracy.galaxies - len(accuracy.spec)
    return [f"{lacking:,} of {accuracy.galaxies:,} galaxies lack one of the redshifts."] if lacking else []


def _describe_beyond(galaxies: int) -> str:
    return f"Outside the frame: {galaxies:,} galaxies." if galaxies else ""


def _describe_range(bins: pd.DataFrame) -> str:
    sample = int(bins["galaxies"].min())
    low, high = (format_statistic(value, sample, "+") for value in (bins["median_dz"].min(), bins["median_dz"].max()))
    return f"{low} and {high}"
