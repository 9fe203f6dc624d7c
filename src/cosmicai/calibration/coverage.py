"""The coverage of intervals, measured on galaxies with spectroscopic redshifts that did not calibrate them."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ..surveys.quality import Flag, is_usable_redshift
from .intervals import predict_quantiles
from .records import INTERVAL_LEVELS, LEVELS, Calibration
from .split import is_for_calibration

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]

# Edges of the cells that galaxies are counted in, of photometric redshift and of r magnitude.
REDSHIFT_EDGES = np.concatenate([np.arange(-0.05, 1.0, 0.05), np.arange(1.0, 10.1, 0.5)])
MAGNITUDE_EDGES = np.arange(5.0, 40.1, 0.5)
LEAST_SHOWN = 50  # galaxies in a cell that is reported
_WARNINGS = Flag.INCOMPLETE_CUTOUT | Flag.IMPLAUSIBLE_REDSHIFT
_R = 2  # index of the r magnitude


class CoverageCell(msgspec.Struct, frozen=True):
    """Galaxies in a range, the fractions of them in their 68% and 95% intervals, and the standard errors of these.

    `widths` are means of those of the intervals. The errors are binomial, sqrt(f (1 - f) / galaxies), with the fraction
    that is expected as f.
    """

    galaxies: Count
    fractions: tuple[float, float]
    errors: tuple[float, float]
    widths: tuple[float, float]
    low: float | None = None
    high: float | None = None


class CoverageReport(msgspec.Struct, frozen=True):
    """Coverage of all reported galaxies, and of those in cells of redshift_phot and of r magnitude.

    Reported are galaxies with both redshifts and an interval that are not among those that calibrate (see `split`),
    and whose cutout is complete and redshift plausible; `outside_domain` are those of them outside of the training
    domain. `pit` holds the numbers of
    galaxies between consecutive quantiles, below the first and beyond the last included.
    """

    all: CoverageCell
    by_redshift: tuple[CoverageCell, ...]
    by_magnitude: tuple[CoverageCell, ...]
    outside_domain: CoverageCell | None
    levels: tuple[float, ...]
    pit: tuple[Count, ...]


class RunningCoverage:
    """The coverage of galaxies that come in pieces."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration
        self._all, self._outside = np.zeros(5), np.zeros(5)
        self._redshift, self._magnitude = (np.zeros((len(edges) - 1, 5)) for edges in (REDSHIFT_EDGES, MAGNITUDE_EDGES))
        self._pit = np.zeros(len(LEVELS) + 1, np.int64)

    def add(
        self,
        magnitude: NDArray[np.float64],
        redshift_phot: NDArray[np.float32],
        redshift_spec: NDArray[np.float64],
        flag: NDArray[np.uint8],
    ) -> None:
        """Add galaxies with magnitudes (N, 5), redshifts (N,) and flags (N,), those that are reported."""
        rows = np.flatnonzero(np.isfinite(redshift_phot) & is_usable_redshift(redshift_spec))
        rows = rows[~is_for_calibration(magnitude[rows])]
        magnitude, flag, spec = magnitude[rows], flag[rows], redshift_spec[rows]
        redshift = redshift_phot[rows].astype(np.float64)
        quantiles = predict_quantiles(self._calibration, magnitude, redshift)
        has_interval = np.isfinite(quantiles[:, 0])
        shown = has_interval & (flag & _WARNINGS == 0)
        outside = shown & (flag & Flag.OUTSIDE_DOMAIN != 0)
        found = _describe(quantiles, spec)
        self._outside += found[outside].sum(axis=0)
        self._all += found[shown].sum(axis=0)
        for totals, edges, values in (
            (self._redshift, REDSHIFT_EDGES, redshift),
            (self._magnitude, MAGNITUDE_EDGES, magnitude[:, _R]),
        ):
            cell = np.searchsorted(edges, values[shown], "right") - 1
            inside = (cell >= 0) & (cell < len(totals))
            np.add.at(totals, cell[inside], found[shown][inside])
        place = (quantiles[shown] < spec[shown, None]).sum(axis=1)
        self._pit += np.bincount(place, minlength=len(self._pit))

    def result(self) -> CoverageReport | None:
        """Return the coverage of all galaxies that were added, None if none is reported."""
        if not self._all[0]:
            return None
        return CoverageReport(
            _cell(self._all),
            _cells(self._redshift, REDSHIFT_EDGES),
            _cells(self._magnitude, MAGNITUDE_EDGES),
            _cell(self._outside) if self._outside[0] else None,
            LEVELS,
            tuple(self._pit.tolist()),
        )


def _describe(quantiles: NDArray[np.float32], spec: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1, whether the redshift is in the intervals of 68% and 95%, and their widths (N, 5)."""
    columns = [np.ones(len(spec))]
    bounds = [
        (quantiles[:, LEVELS.index(low)], quantiles[:, LEVELS.index(high)]) for low, high in INTERVAL_LEVELS.values()
    ]
    columns += [((spec >= low) & (spec <= high)).astype(float) for low, high in bounds]
    columns += [(high - low).astype(np.float64) for low, high in bounds]
    return np.column_stack(columns)


def _cell(totals: NDArray[np.float64], low: float | None = None, high: float | None = None) -> CoverageCell:
    galaxies, *rest = totals.tolist()
    expected = [percent / 100 for percent in INTERVAL_LEVELS]
    first, second, width, wide = (value / galaxies for value in rest)
    errors = [float(np.sqrt(fraction * (1 - fraction) / galaxies)) for fraction in expected]
    return CoverageCell(int(galaxies), (first, second), (errors[0], errors[1]), (width, wide), low, high)


def _cells(totals: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[CoverageCell, ...]:
    return tuple(
        _cell(own, round(float(low), 3), round(float(high), 3))
        for own, low, high in zip(totals, edges[:-1], edges[1:], strict=True)
        if own[0] >= LEAST_SHOWN
    )
