"""inference.png and inference.pdf: what one looks at first in a catalogue."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..engines.openvino.compiled_cache import cache_folder
from ..ranks.container_image import image_variant
from ..surveys.quality import is_usable_redshift
from .catalogue.facts import CatalogueFacts, number_column, read_groups
from .metrics import OUTLIER_DZ, Metrics
from .summary_text import describe_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE_WIDTH = 90  # characters in a line above the plot
TRIMMED = 0.0005  # share of the values beyond each end of the axes
BINS = 150  # along each side of the plane
DZ_BINS = 50  # of the residual panel, a third as high
NUMBERS = 60  # about so many bins of n(z)
LARGEST_DZ = 4 * OUTLIER_DZ  # at the ends of the residual panel
# Values for the limits of the axes are counted in cells of this width, and found to within it.
_RANGE, _WIDTH = (-0.2, 10.2), 1e-3

BOX: dict[str, Any] = {"bbox": {"facecolor": "white", "edgecolor": "0.8", "alpha": 0.9, "boxstyle": "round"}}

Reals = NDArray[np.float64]


def draw_redshifts(catalogue: Path, facts: CatalogueFacts, provenance: Mapping[str, str]) -> Figure:
    """Return the figure of a catalogue in a local file, which is read in pieces.

    With spectroscopic redshifts: the density of galaxies in the plane of both redshifts, and of their dz below it, with
    the lines of outliers. Without: the numbers of galaxies by photometric redshift, and the share of each flag.
    """
    prepare_matplotlib()
    from matplotlib.figure import Figure

    # Margins by hand, since to find them takes as long as to draw.
    figure = Figure(figsize=(6, 7) if facts.metrics else (6, 4.5))
    if facts.metrics:
        margins = {"left": 0.12, "right": 0.82, "bottom": 0.08, "top": 0.94, "hspace": 0.07}
        plane, residuals = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1), gridspec_kw=margins)
        _draw_plane(figure, plane, residuals, catalogue, facts.metrics)
    else:
        plane = figure.subplots(gridspec_kw={"left": 0.13, "right": 0.97, "bottom": 0.12, "top": 0.9})
        _draw_numbers(plane, catalogue, facts)
    weights = describe_weights(provenance["weights"], provenance["weights_sha256"])
    title = f"{weights}; survey {provenance['survey']}"
    plane.set_title(textwrap.fill(title, TITLE_WIDTH), fontsize=7, loc="left", parse_math=False)
    return figure


def prepare_matplotlib() -> None:
    """Let matplotlib, which is imported after this call, write its caches where this program has its own."""
    if image_variant():
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # by default it would be in the home


def save_figure(figure: Figure, path: Path, kind: str) -> None:
    """Write a figure as "png" or "pdf"; the same figure gives the same bytes."""
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}}[kind]
    figure.savefig(path, format=kind, dpi=150, metadata=metadata)


def _read_redshifts(catalogue: Path) -> Iterator[tuple[NDArray[np.float32], Reals]]:
    """Yield photometric and spectroscopic redshifts of the galaxies that have a photometric one."""
    with pq.ParquetFile(catalogue) as file:
        for table in read_groups(file, ["redshift_phot", "redshift_spec"]):
            phot, spec = (number_column(table, name) for name in ("redshift_phot", "redshift_spec"))
            predicted = np.isfinite(phot)
            yield phot[predicted], spec[predicted]


def _read_pairs(catalogue: Path) -> Iterator[tuple[Reals, Reals]]:
    """Yield both redshifts of the galaxies that have both."""
    for phot, spec in _read_redshifts(catalogue):
        known = is_usable_redshift(spec)
        yield phot[known].astype(np.float64), spec[known]


def _draw_plane(figure: Figure, plane: Axes, residuals: Axes, catalogue: Path, metrics: Metrics) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import StrMethodFormatter

    low, high = _axis_limits(np.concatenate(pair) for pair in _read_pairs(catalogue))
    edges, dz_edges = np.linspace(low, high, BINS + 1), np.linspace(-LARGEST_DZ, LARGEST_DZ, DZ_BINS + 1)
    density, dz_density = np.zeros((BINS, BINS)), np.zeros((DZ_BINS, BINS))
    for phot, spec in _read_pairs(catalogue):
        column = _cells(spec, edges)
        density += _count(_cells(phot, edges), column, BINS)
        dz_density += _count(_cells((phot - spec) / (1 + spec), dz_edges), column, DZ_BINS)
    style: dict[str, Any] = {"cmap": "viridis", "rasterized": True}
    image = plane.pcolormesh(
        edges, edges, np.ma.masked_equal(density, 0), norm=LogNorm(1, max(10, density.max())), **style
    )
    norm = LogNorm(1, max(10, dz_density.max()))
    residuals.pcolormesh(edges, dz_edges, np.ma.masked_equal(dz_density, 0), norm=norm, **style)
    box = plane.get_position()
    bar = figure.add_axes((0.85, box.y0, 0.03, box.height))
    figure.colorbar(image, cax=bar, label="galaxies per cell", format=StrMethodFormatter("{x:,.0f}"))
    redshift = np.array([low, high])
    plane.plot(redshift, redshift, color="crimson", linewidth=1, label="1:1")
    for sign in (-1, 1):  # of |dz| = OUTLIER_DZ
        label = f"outliers: |dz| > {OUTLIER_DZ}" if sign > 0 else None
        line: dict[str, Any] = {"linestyle": "--", "color": "0.4", "linewidth": 0.8}
        plane.plot(redshift, redshift + sign * OUTLIER_DZ * (1 + redshift), label=label, **line)
        residuals.axhline(sign * OUTLIER_DZ, **line)
    residuals.axhline(0, color="crimson", linewidth=1)
    text = (
        f"{metrics.galaxies:,} galaxies\n$R^2$ = {metrics.r2:.4g}\nMAE = {metrics.mae:.4g}\n"
        f"bias = {metrics.bias:+.4g}\nNMAD = {metrics.precision:.4g}\noutliers = {metrics.outliers:.2%}"
    )
    plane.text(0.03, 0.97, text, va="top", transform=plane.transAxes, fontsize=9, **BOX)
    plane.legend(loc="lower right", fontsize=8)
    plane.set(ylabel="photometric redshift", xlim=(low, high), ylim=(low, high))
    residuals.set(xlabel="spectroscopic redshift", ylabel=r"$\Delta z\,/\,(1+z)$", ylim=(-LARGEST_DZ, LARGEST_DZ))


def _cells(values: Reals, edges: Reals) -> NDArray[np.int64]:
    """Return the number of the cell that each value (N,) lies in; `edges` (n + 1,) are equidistant, n is outside."""
    low, high, number = edges[0], edges[-1], len(edges) - 1
    inside = (values >= low) & (values <= high)
    cells = (np.where(inside, values - low, 0) * (number / (high - low))).astype(np.int64)
    return np.where(inside, np.minimum(cells, number - 1), number)


def _count(row: NDArray[np.int64], column: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Return the numbers (rows, BINS) of galaxies by their cells."""
    counts = np.bincount(row * (BINS + 1) + column, minlength=(rows + 1) * (BINS + 1))
    return np.asarray(counts.reshape(rows + 1, BINS + 1)[:rows, :BINS])


def _draw_numbers(axes: Axes, catalogue: Path, facts: CatalogueFacts) -> None:
    low, high = _axis_limits(phot.astype(np.float64) for phot, _ in _read_redshifts(catalogue))
    width = _round_width((high - low) / NUMBERS)
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width) + 0.5)
    numbers = np.zeros(len(edges) - 1, np.int64)
    for phot, _ in _read_redshifts(catalogue):
        numbers += np.bincount(_cells(phot.astype(np.float64), edges), minlength=len(edges))[:-1]
    axes.stairs(numbers, edges, fill=True, color="steelblue")
    axes.set(xlabel="photometric redshift", ylabel=f"galaxies per {width:g} in redshift", xlim=(edges[0], edges[-1]))
    lines = [f"{facts.galaxies:,} galaxies, no spectroscopic redshifts to compare with"]
    flagged = {name: count for name, count in facts.flagged.items() if count}
    lines += [f"{name}: {count:,} ({count / facts.galaxies:.2%})" for name, count in flagged.items()]
    text = "\n".join(lines if flagged else [*lines, "none is flagged"])
    axes.set_ylim(0, max(1.0, float(numbers.max())) * (1.1 + 0.05 * text.count("\n")))  # above which the text stands
    axes.text(0.97, 0.97, text, ha="right", va="top", fontsize=8, transform=axes.transAxes, **BOX)


def _round_width(width: float) -> float:
    """Return the next larger one of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(width))
    return float(next(power * digit for digit in (1, 2, 5, 10) if power * digit >= width))


def _axis_limits(pieces: Iterator[Reals]) -> tuple[float, float]:
    """Return the limits of an axis, without a few catastrophic outliers among many values, which would shrink all."""
    edges = np.arange(_RANGE[0], _RANGE[1] + _WIDTH / 2, _WIDTH)
    counts = np.zeros(len(edges) - 1, np.int64)
    for values in pieces:
        cells = ((values.clip(edges[0], edges[-1]) - edges[0]) / _WIDTH).astype(np.int64)
        counts += np.bincount(cells.clip(max=len(counts) - 1), minlength=len(counts))
    total = int(counts.sum())
    if not total:
        return 0.0, 1.0
    trimmed, up_to = TRIMMED * total if TRIMMED * total >= 1 else 0, np.cumsum(counts)
    first, last = np.searchsorted(up_to, trimmed, "right"), np.searchsorted(up_to, total - trimmed)
    margin = _WIDTH / 10  # for values at an edge, which is rounded
    return float(edges[first] - margin), float(edges[last + 1] + margin)
