"""intervals.png and intervals.pdf: how often the intervals of a catalogue hold the spectroscopic redshift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.coverage import LEAST_SHOWN, CoverageCell, CoverageReport
from ..calibration.records import INTERVAL_LEVELS
from .figures import BOX, create_figure, describe_origin, set_title
from .summary_text import describe_levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("steelblue", "darkorange")  # of the intervals in their order
_LOWEST = 0.55  # end of the axis of coverage, unless a bin is below
_LEGEND = 0.35  # share of the axis that the legend takes below it


def draw_intervals(report: CoverageReport, calibrated_on: str, provenance: Mapping[str, str]) -> Figure:
    """Return the figure of a coverage report; `calibrated_on` says in words what calibrated the intervals.

    Above: the coverage of both intervals with its standard errors, in bins of photometric redshift and of r magnitude,
    and lines where it is expected. Below: the density of the spectroscopic redshifts between the quantiles of their
    distributions (PIT), which is 1 if these are right.
    """
    figure = create_figure(figsize=(8, 6.5))
    margins = {"left": 0.09, "right": 0.98, "bottom": 0.08, "top": 0.91, "hspace": 0.3, "wspace": 0.06}
    (by_redshift, by_magnitude), (pit, unused) = figure.subplots(2, 2, sharey="row", gridspec_kw=margins)
    unused.remove()
    pit.set_position([0.09, 0.08, 0.89, pit.get_position().height])
    for axes, cells in ((by_redshift, report.by_redshift), (by_magnitude, report.by_magnitude)):
        _draw_cells(axes, cells, describe_levels(report.all))
    ends = [min(cell.fractions) - max(cell.errors) for cell in (*report.by_redshift, *report.by_magnitude)]
    lowest = min([_LOWEST, *ends])
    bottom = lowest - _LEGEND * (1 - lowest)
    by_redshift.set(xlabel="photometric redshift", ylabel="fraction in the interval", ylim=(bottom, 1.01))
    by_redshift.legend(loc="lower left", fontsize=7, title=f"{report.all.galaxies:,} galaxies", title_fontsize=7)
    by_magnitude.set_xlabel("r magnitude")
    _draw_pit(pit, report)
    set_title(by_redshift, f"{describe_origin(provenance)}; intervals calibrated on {calibrated_on}")
    return figure


def _draw_cells(axes: Axes, cells: Sequence[CoverageCell], labels: Sequence[str]) -> None:
    """Draw the coverage in bins; `labels` are those of the intervals."""
    ranges = np.array([(cell.low, cell.high) for cell in cells], np.float64).reshape(-1, 2)
    style: dict[str, Any] = {"fmt": "o", "markersize": 3, "linewidth": 1}
    for number, (percent, colour, label) in enumerate(zip(INTERVAL_LEVELS, _COLOURS, labels, strict=True)):
        fractions = [cell.fractions[number] for cell in cells]
        errors = [cell.errors[number] for cell in cells]
        middles, halves = ranges.mean(axis=1), np.diff(ranges, axis=1)[:, 0] / 2
        axes.errorbar(middles, fractions, errors, halves, color=colour, label=label, **style)
        axes.axhline(percent / 100, color=colour, linestyle="--", linewidth=0.8)
    if not cells:
        text = f"fewer than {LEAST_SHOWN} galaxies in every bin"
        axes.text(0.5, 0.6, text, ha="center", fontsize=8, transform=axes.transAxes, **BOX)
        axes.set_xticks([])


def _draw_pit(axes: Axes, report: CoverageReport) -> None:
    """Draw the density of galaxies between quantiles, with the standard error that is expected around 1."""
    edges = np.array([0.0, *report.levels, 1.0])
    expected, counts = np.diff(edges), np.array(report.pit, np.float64)
    error = np.sqrt((1 - expected) / (expected * counts.sum()))
    axes.stairs(1 + error, edges, baseline=1 - error, fill=True, color="0.85", label="1, and its standard error")
    axes.axhline(1, color="0.4", linestyle="--", linewidth=0.8)
    axes.stairs(counts / counts.sum() / expected, edges, color=_COLOURS[0], linewidth=1.2, label="measured")
    axes.set(xlabel="PIT: probability of redshifts below the spectroscopic one", ylabel="density", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower center", ncols=2, fontsize=7)
