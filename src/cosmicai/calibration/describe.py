"""Calibrations and training domains in words."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ..surveys.bands import BANDS
from .records import INTERVAL_LEVELS, Calibration, TrainingDomain

COLOURS = tuple(f"{blue}-{red}" for blue, red in pairwise(BANDS))


def describe_calibration(calibration: Calibration) -> str:
    """Return in one line which galaxies calibrated intervals, when and how."""
    bins = sum(len(one.bins) for one in calibration.slices)
    origin = calibration.origin
    views = f", {origin.views} views" if origin.views > 1 else ""
    return (
        f"{calibration.galaxies:,} galaxies of {origin.survey}, {origin.date}, {bins} bins of redshift and r, "
        f"{'scores divided by their expected size' if calibration.scale else 'plain scores'}{views}"
    )


def describe_fit(calibration: Calibration) -> Iterator[str]:
    """Yield lines on a calibration: its galaxies, the interval scores of the variants, and the coverage found."""
    yield f"calibrated on {describe_calibration(calibration)}"
    if calibration.interval_scores:
        scores = ", ".join(f"{name} {score:.5f}" for name, score in calibration.interval_scores.items())
        yield f"interval score (Winkler; lower is better): {scores}"
    if found := calibration.coverage:
        for percent, fraction, width in zip(INTERVAL_LEVELS, found.fractions, found.widths, strict=True):
            error = (percent / 100 * (1 - percent / 100) / found.galaxies) ** 0.5
            yield (
                f"{percent}% interval: holds {fraction:.1%} +- {error:.1%} of {found.galaxies:,} other galaxies, mean "
                f"width {width:.4f} (1 + z)"
            )
    else:
        yield "coverage: too few other galaxies to measure it"


def describe_domain(domain: TrainingDomain) -> Iterator[str]:
    """Yield lines on a training domain."""
    known = "trained on" if domain.purpose == "training" else "training galaxies unknown; calibrated with"
    yield f"{known} {domain.galaxies:,} galaxies of {domain.survey}, all but 0.1% at either end of these ranges:"
    low, high = domain.redshift
    yield f"redshift {low:.3f} to {high:.3f}"
    named = [
        *((f"magnitude {band}", bounds) for band, bounds in zip(BANDS, domain.magnitudes, strict=True)),
        *((f"colour {name}", bounds) for name, bounds in zip(COLOURS, domain.colours, strict=True)),
    ]
    for name, (low, high) in named:
        yield f"{name} {low:.2f} to {high:.2f}"
    for band, (low, high) in zip(BANDS, domain.noise, strict=True):
        yield f"noise {band} {low:.4g} to {high:.4g} {domain.flux_unit} per pixel"
    yield f"pixels of {domain.pixel_scale:g} arcsec, magnitudes {domain.magnitude_kind}"
