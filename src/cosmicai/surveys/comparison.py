"""Compare how bright galaxies are in their pixels and in their magnitudes, and their colours with those of nature."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from math import log10

import msgspec
import numpy as np
from numpy.typing import NDArray

from .check_record import COLOURS, MIN_GALAXIES, SurveyCheck
from .check_sample import PIXELS, Sample
from .quality import LARGEST_PIXEL, is_usable_magnitude
from .shard import BANDS

Array = NDArray[np.float64]

MIN_BRIGHT = 50  # galaxies that are compared even if they are more than the brighter half

# Medians of offsets in mag. Cutouts of large galaxies miss up to half of the light; of real surveys nothing else does.
LARGEST_OFFSET = 1.0  # of all bands together
LARGEST_BAND_OFFSET = 1.5  # of one band
LARGEST_FAINT_OFFSET = 0.75  # of the fainter quarter, relative to the brighter half
FAINT_SIGNAL = 10.0  # times the noise of a cutout's sum, above which noise moves no magnitude by that much
# The mean over bands of how far pixels and magnitudes differ in their colours, per galaxy and then as a median: another
# order must be better by this, and by this factor.
ORDER_GAIN, ORDER_FACTOR = 0.04, 0.6
SMALLEST_SLOPE = 0.7  # d(magnitude of the pixels) / d(magnitude): 0.5 for square roots, 0 for normalised cutouts
STRETCHED_SLOPE = 0.9  # below which an offset may have this reason
SLOPE_RANGE = 0.5  # mag between the brighter and fainter thirds, below which a slope is not measured
LARGEST_NEGATIVE = 0.3  # share of negative sums of pixels among the brighter half, in most bands
MOSTLY, ALMOST_ALL = 0.5, 0.9  # shares

# What medians of colours can be: ranges in which nearly all galaxies of SDSS lie, with margins for foreground dust,
# which reddens, and for noise in u. Those of the main sample are in Strateva et al. 2001 (AJ 122, 1861) and Blanton et
# al. 2003 (ApJ 594, 186), those of luminous red galaxies, which reach higher redshifts, in Eisenstein et al. 2001 (AJ
# 122, 2267). To recognise an order takes no more than the signs: the median galaxy is brighter in every redder band.
COLOUR_RANGES = ((0.1, 3.2), (-0.05, 2.2), (-0.1, 1.5), (-0.1, 1.0))

# Size in nanomaggies of units in which images come, and how they are called; a nanomaggie is 3.631 microjansky.
UNITS = (
    (1e9, "maggies"),
    (1e9 / 3631, "Jy"),
    (1e6 / 3631, "mJy"),
    (1e3 / 3631, "uJy"),
    (1 / 3631, "nJy"),
    (10**-1.0, "counts with a zero point of 25"),
    (10**-1.8, "counts with a zero point of 27"),
    (10**-3.0, "counts with a zero point of 30"),
)
UNIT_TOLERANCE = 0.35  # mag; the nearest two units differ by 1.1

_ORDERS = np.array(list(permutations(range(len(BANDS)))))  # (120, 5); the first is the right one
_ROW = np.arange(len(BANDS))


class Comparison(msgspec.Struct, frozen=True):
    """Magnitudes of usable galaxies by their pixels and as they are given, and what comparing them shows."""

    pixels: Array  # (N, 5) 22.5 - 2.5 log10(sum), NaN where the sum is not positive
    magnitudes: Array  # (N, 5), NaN where missing
    difference: Array  # (N,) brightness by the pixels minus that by the magnitudes, NaN where unknown
    bright: NDArray[np.bool_]  # (N,) the brighter half
    negative: Array  # (5,) share of negative sums among them
    noise: Array  # (N, 5) of the sums of pixels
    background: Array  # (N, 5) sums of pixels if all were as those along the edges
    order: NDArray[np.int64]  # (5,) for each magnitude the index of the band of the pixels that agrees best
    cost: tuple[float, float]  # disagreement in the order as it is and in `order`, mag
    slope: float | None

    @staticmethod
    def measure(sample: Sample) -> Comparison:
        """Compare the pixels and magnitudes of at least MIN_GALAXIES usable galaxies."""
        magnitudes = np.where(is_usable_magnitude(sample.magnitude), sample.magnitude, np.nan)
        with np.errstate(all="ignore"):
            pixels = 22.5 - 2.5 * np.log10(np.where(sample.total > 0, sample.total, np.nan))
        given = np.nanmedian(magnitudes, axis=1)
        # Which of the bands are negative does not matter here, only that they are the faintest.
        seen = np.median(np.where(np.isnan(pixels), np.inf, pixels), axis=1)
        seen[np.isinf(seen)] = np.nan
        bright = np.zeros(len(given), np.bool_)
        bright[np.argsort(given, kind="stable")[: max(len(given) // 2, MIN_BRIGHT)]] = True
        known = bright & np.isfinite(seen)
        order, cost = _find_order((pixels - seen[:, None])[known], (magnitudes - given[:, None])[known])
        negative = (sample.total[bright] <= 0).mean(axis=0)
        return Comparison(
            pixels, magnitudes, seen - given, bright, negative, sample.noise * PIXELS**0.5, sample.background * PIXELS,
            order, cost, _measure_slope(given, seen),
        )  # fmt: skip

    def complete(self, check: SurveyCheck) -> SurveyCheck:
        """Return the check with what is measured here."""
        offsets = self.pixels - self.magnitudes
        bands = [
            msgspec.structs.replace(
                one,
                galaxies=int(np.isfinite(offset).sum()),
                offset=_median(offset),
                scatter=round(_scatter(offset[np.isfinite(offset)]), 4) if np.isfinite(offset).any() else None,
                faint=self.faint_offset(index),
            )
            for index, (one, offset) in enumerate(zip(check.bands, offsets.T, strict=True))
        ]
        return msgspec.structs.replace(
            check,
            bands=tuple(bands),
            offset=self.offset,
            slope=self.slope,
            magnitude_colours=self.colours(self.magnitudes),
            pixel_colours=self.colours(self.pixels),
            pixel_order=self.pixel_order,
            magnitude_order=self.magnitude_order,
        )

    @property
    def offset(self) -> float | None:
        """How much fainter the brighter galaxies are by their pixels than by their magnitudes."""
        return _median(self.difference[self.bright])

    @property
    def pixel_order(self) -> str | None:
        """The bands of the pixels, in their order, for which they agree best with the magnitudes."""
        return None if np.isnan(self.cost[0]) else "".join(BANDS[index] for index in np.argsort(self.order))

    @property
    def magnitude_order(self) -> str | None:
        """The bands of the magnitudes, in their order, for which they agree best with the pixels."""
        return None if np.isnan(self.cost[0]) else "".join(BANDS[index] for index in self.order)

    @property
    def is_other_order(self) -> bool:
        """Whether another order of the bands agrees better by far."""
        given, best = self.cost
        return given - best > ORDER_GAIN and best < ORDER_FACTOR * given

    def colours(self, magnitudes: Array) -> tuple[float | None, ...]:
        """Return the medians of u-g, g-r, r-i and i-z of the brighter galaxies."""
        bright = magnitudes[self.bright]
        return tuple(_median(colour, MIN_GALAXIES // 2) for colour in (bright[:, :-1] - bright[:, 1:]).T)

    def faint_offset(self, band: int) -> float | None:
        """Return the offset of the fainter quarter relative to the brighter half, None where noise hides it."""
        magnitude, difference = self.magnitudes[:, band], self.pixels[:, band] - self.magnitudes[:, band]
        offset = _median(difference)
        if offset is None:
            return None
        expected = 10 ** (-0.4 * (magnitude - 22.5 + offset))
        rows = np.flatnonzero(np.isfinite(difference) & (expected > FAINT_SIGNAL * self.noise[:, band]))
        if len(rows) < 2 * MIN_GALAXIES:
            return None
        rows = rows[np.argsort(magnitude[rows], kind="stable")]
        brighter, fainter = rows[: len(rows) // 2], rows[-(len(rows) // 4) :]
        return round(float(np.median(difference[fainter]) - np.median(difference[brighter])), 4)

    def find_contradictions(self) -> list[str]:
        """Return what contradicts what a survey is, in sentences that say what it looks like."""
        if sum(self.negative > LARGEST_NEGATIVE) >= 3:
            share = np.median(self.negative)
            return [
                f"the sums of the pixels are negative for {share:.0%} of the brighter galaxies, as if their light had "
                "been subtracted with the background"
            ]
        if self.slope is not None and self.slope < SMALLEST_SLOPE:
            return [self._describe_slope(self.slope)]
        odd_bands = list(self._find_odd_bands())
        found = [*self._find_wrong_order(bool(odd_bands)), *self._find_unit(), *odd_bands]
        return found or list(self._find_faint())

    def _describe_slope(self, slope: float) -> str:
        total = 10 ** (-0.4 * (self.pixels - 22.5))
        share = np.nanmedian(self.background / total)
        if share > MOSTLY:
            return f"the pixels look as if they included the background, which makes up {share:.0%} of their sums"
        if slope < 0.3:
            return (
                f"the sums of the pixels do not follow the magnitudes (by {slope:.2f} mag per mag), as if each cutout "
                "were normalised, or pixels and magnitudes belonged to different galaxies"
            )
        return (
            f"the sums of the pixels follow the magnitudes by {slope:.2f} mag per mag, as if the pixels were stretched "
            "(square root, logarithm, asinh)"
        )

    def _find_wrong_order(self, has_odd_bands: bool) -> Iterator[str]:
        """Yield which bands are in another order; bands in other units have odd colours, too, and explain those."""
        magnitudes = _find_odd_colours(self.colours(self.magnitudes))
        pixels = _find_odd_colours(self.colours(self.pixels))
        if self.is_other_order:
            given, best = self.cost
            agreement = f"they then agree within {best:.2f} mag, as they are within {given:.2f}"
            if magnitudes and not pixels:
                yield f"the magnitudes look as if their bands were in the order {self.magnitude_order} ({agreement})"
            elif pixels and not magnitudes:
                yield f"the pixels look as if their bands were in the order {self.pixel_order} ({agreement})"
            else:
                yield (
                    f"the pixels look as if their bands were in the order {self.pixel_order}, or the magnitudes as if "
                    f"theirs were in the order {self.magnitude_order} ({agreement})"
                )
        elif magnitudes or (pixels and not has_odd_bands):
            medians = np.nanmedian((self.magnitudes if magnitudes else self.pixels)[self.bright], axis=0)
            # Galaxies are red: they are brightest in z.
            order = "".join(BANDS[index] for index in np.argsort(np.argsort(-medians, kind="stable")))
            one = "the magnitudes" if magnitudes else "the pixels"
            what = "pixels and magnitudes" if pixels and magnitudes else one
            as_if = f", as if the bands of {what} were in the order {order}" if order != BANDS else ""
            yield f"the median colours of {what} are impossible for galaxies ({magnitudes or pixels}){as_if}"

    def _find_unit(self) -> Iterator[str]:
        offset = self.offset
        if offset is not None and abs(offset) > LARGEST_OFFSET:
            than = "fainter" if offset > 0 else "brighter"
            stretched = " or stretched for display" if (self.slope or 1) < STRETCHED_SLOPE else ""
            yield (
                f"the pixels look as if they were in {name_unit(offset)}{stretched}: their sums are {abs(offset):.1f} "
                f"mag {than} than the magnitudes, expected is nanomaggies"
            )

    def _find_odd_bands(self) -> Iterator[str]:
        """Yield the bands that are off by more than the others, in the best order."""
        order = self.order if self.is_other_order else _ROW
        for band in range(len(BANDS)):
            difference = self.pixels[:, order[band]] - self.magnitudes[:, band] - (self.offset or 0)
            offset = _median(difference[self.bright], MIN_GALAXIES // 2)
            if offset is not None and abs(offset) > LARGEST_BAND_OFFSET:
                than = "fainter" if offset > 0 else "brighter"
                yield (
                    f"in the band {BANDS[band]} the sums of the pixels are {abs(offset):.1f} mag {than} than the "
                    f"magnitude, compared with the other bands, as if there they were in {name_unit(offset)}"
                )

    def _find_faint(self) -> Iterator[str]:
        found = [(offset, band) for index, band in enumerate(BANDS) if (offset := self.faint_offset(index)) is not None]
        largest = max(found, key=lambda one: abs(one[0]), default=(0.0, ""))
        if abs(largest[0]) > LARGEST_FAINT_OFFSET:
            yield (
                f"the magnitudes of faint galaxies differ from their pixels by {largest[0]:+.1f} mag in {largest[1]}, "
                "those of bright ones do not: asinh magnitudes of another softening, or a background in the pixels?"
            )


def _find_order(pixels: Array, magnitudes: Array) -> tuple[NDArray[np.int64], tuple[float, float]]:
    """Return the order of bands in which pixels and magnitudes agree best, and their disagreement as they are and then.

    Both are (N, 5) and relative to the galaxy's own brightness, so that units, missing light and neighbours do not
    matter. The disagreement is the mean over bands of the root of squared median and squared scatter, NaN if a band is
    missing.
    """
    difference = pixels[:, :, None] - magnitudes[:, None, :]  # (N, 5, 5)
    known = np.isfinite(difference)
    if known.sum(axis=0).min(initial=len(difference)) < MIN_GALAXIES // 2:
        return _ROW, (np.nan, np.nan)
    offset = np.nanmedian(difference, axis=0)
    scatter = 1.4826 * np.nanmedian(np.abs(difference - offset), axis=0)
    costs = np.hypot(offset, scatter)[_ORDERS, _ROW].mean(axis=1)
    best = int(costs.argmin())
    return _ORDERS[best], (float(costs[0]), float(costs[best]))


def _measure_slope(given: Array, seen: Array) -> float | None:
    """Return the change of the brightness by pixels with that by magnitudes, between the outer thirds of galaxies."""
    known = np.flatnonzero(np.isfinite(seen))
    known = known[np.argsort(given[known], kind="stable")]
    third = len(known) // 3
    if third < MIN_GALAXIES // 4:
        return None
    bright, faint = known[:third], known[-third:]
    interval = float(np.median(given[faint]) - np.median(given[bright]))
    if interval < SLOPE_RANGE:
        return None
    return round(float(np.median(seen[faint]) - np.median(seen[bright])) / interval, 4)


def _find_odd_colours(colours: Sequence[float | None]) -> str:
    """Return the colours that no galaxies have as a median, as in "r-i = -0.73", "" if there are none."""
    return ", ".join(
        f"{name} = {value:.2f}"
        for name, value, (low, high) in zip(COLOURS, colours, COLOUR_RANGES, strict=True)
        if value is not None and not low <= value <= high
    )


def name_unit(offset: float) -> str:
    """Return the unit of pixels whose sums are fainter by `offset` mag than if they were in nanomaggies."""
    names = [name for size, name in UNITS if abs(offset - 2.5 * log10(size)) < UNIT_TOLERANCE]
    power = round(offset / 2.5)
    if abs(offset - 2.5 * power) < UNIT_TOLERANCE and power != 9:
        names.insert(0, f"units of 1e{power} nanomaggies")
    return " or ".join(names) or f"units of {10 ** (0.4 * offset):.2g} nanomaggies"


def describe_magnitudes(sample: Sample) -> str | None:
    """Return what values are that are no magnitudes but rise or fall with the sums of the pixels; None if none do."""
    fluxes, constants = 0, list[float]()
    for raw, total in zip(sample.magnitude.T, sample.total.T, strict=True):
        rows = np.isfinite(raw) & (np.abs(raw) < LARGEST_PIXEL) & (raw != 0) & (total > 0)
        positive = rows & (raw > 0)
        if positive.sum() >= MIN_GALAXIES // 2:
            level = np.log10(raw[positive])
            varies = _scatter(level)
            fluxes += varies > 0.1 and _scatter(level - np.log10(total[positive])) < 0.5 * varies
        if rows.sum() >= MIN_GALAXIES // 2 and is_usable_magnitude(raw[rows]).mean() < MOSTLY:
            constant = raw[rows] - (22.5 - 2.5 * np.log10(total[rows]))
            if _scatter(constant) < 0.5 * _scatter(raw[rows]):
                constants.append(float(np.median(constant)))
    if fluxes >= 3:
        return "the magnitudes look like fluxes: they are proportional to the sums of the pixels"
    if len(constants) >= 3:
        constant = float(np.median(constants))
        return (
            f"the magnitudes look as if they had another zero point: they are {abs(constant):.1f} mag "
            f"{'fainter' if constant > 0 else 'brighter'} than the sums of the pixels"
        )
    return None


def describe_pixels(sample: Sample) -> str | None:
    """Return for which other purpose pixels were scaled; None if there is no sign of it."""
    if len(sample) < MIN_GALAXIES:
        return None
    if sample.whole.mean() > ALMOST_ALL and sample.lowest.min() >= 0 and sample.peak.max() <= 255:
        return "the pixels look like images for display: integers from 0 to 255"
    for peak, lowest in ((sample.peak, sample.lowest), (sample.peak.max(axis=1), sample.lowest.min(axis=1))):
        common = np.median(peak)
        if np.isclose(peak, common, rtol=1e-5, atol=0).mean() > MOSTLY:
            return (
                f"the pixels look normalised: the largest of most cutouts is {common:.4g}, the smallest "
                f"{np.median(lowest):.4g}"
            )
    means, spread = np.abs(sample.total) / PIXELS, sample.spread
    common = np.median(spread)
    has_same_spread = _scatter(spread.ravel()) < 0.01 * common
    if has_same_spread and np.median(means) < 1e-3 * common:
        return f"the pixels look standardised: those of each cutout have a mean of 0 and a scatter of {common:.3g}"
    return None


def _scatter(values: Array) -> float:
    """Return 1.48 times the median absolute deviation."""
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def _median(values: Array, least: int = 1) -> float | None:
    """Return the median of finite values, rounded to 1e-4; None of fewer than `least`."""
    values = values[np.isfinite(values)]
    return round(float(np.median(values)), 4) if len(values) >= least else None
