"""What is stored of a calibration and of a training domain: JSON in the metadata of a weights file, and in a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ..records import decode_json
from ..surveys.units import SDSS_PIXEL_SCALE

FORMAT = "cosmicai-calibration/1"
CALIBRATION, DOMAIN = "calibration", "training_domain"  # names of the notes in a weights file
# Of the distribution of a redshift, in increasing order: the bounds of 68% and 95% and the median are among them.
LEVELS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5,
    0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.84, 0.9, 0.95, 0.975, 0.99, 0.995,
)  # fmt: skip
INTERVAL_LEVELS = {68: (0.16, 0.84), 95: (0.025, 0.975)}  # levels of the bounds by percent of the probability

Finite = Annotated[float, Meta(ge=-1e30, le=1e30)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Quantiles = Annotated[tuple[Finite, ...], Meta(min_length=len(LEVELS), max_length=len(LEVELS))]
Range = tuple[Finite, Finite]


class MagnitudeBin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The galaxies of a slice whose r magnitude is in a range: their number and the quantiles of their scores."""

    magnitude: Range
    galaxies: Count
    quantiles: Quantiles


class RedshiftSlice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The galaxies whose photometric redshift is in a range, in bins of increasing r magnitude."""

    redshift: Range
    bins: Annotated[tuple[MagnitudeBin, ...], Meta(min_length=1)]


class ScaleModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The expected size of a score: exp of a linear function of features, limited to a range (see `scale`)."""

    centre: tuple[Finite, ...]
    spread: tuple[Annotated[float, Meta(gt=0, le=1e30)], ...]
    coefficients: tuple[Finite, ...]
    limits: tuple[Annotated[float, Meta(gt=0, le=1e30)], Annotated[float, Meta(gt=0, le=1e30)]]


class MeasuredCoverage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fractions of galaxies that did not calibrate whose spectroscopic redshift is in the interval.

    `widths` are means of the widths over 1 + z_phot. Both are of 68% and of 95%.
    """

    galaxies: Count
    fractions: tuple[float, float]
    widths: tuple[float, float]


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a calibration comes from: the survey and a digest of its shards, the date (ISO 8601), and the views.

    `views` is the number of views of a cutout whose mean is its redshift: their scatter is another than that of one.
    """

    survey: str
    survey_digest: str
    date: str
    views: Annotated[int, Meta(ge=1)] = 1


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="format", tag=FORMAT):
    """Quantiles of the scores (z_spec - z_phot) / (1 + z_phot), divided by the scale if there is a model of it.

    `galaxies` is the number of those that the quantiles come from.
    `interval_scores` are those of both variants on the galaxies of `coverage` (see `fit`); the better one is stored.
    """

    origin: Origin
    galaxies: Count
    slices: Annotated[tuple[RedshiftSlice, ...], Meta(min_length=1)]
    scale: ScaleModel | None
    coverage: MeasuredCoverage | None
    interval_scores: dict[str, float]


class TrainingDomain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ranges that hold all but 0.1% at either end of the galaxies that a network was trained on (see `domain`).

    For weights whose training galaxies are not known, they are those of the survey that calibrated them (`purpose`).
    Magnitudes and noise are of u, g, r, i, z; the noise is in `flux_unit` per pixel, `pixel_scale` in arcsec.
    """

    survey: str
    survey_digest: str
    purpose: Literal["training", "calibration"]
    galaxies: Count
    magnitudes: Annotated[tuple[Range, ...], Meta(min_length=5, max_length=5)]
    colours: Annotated[tuple[Range, ...], Meta(min_length=4, max_length=4)]  # u-g, g-r, r-i, i-z
    noise: Annotated[tuple[Range, ...], Meta(min_length=5, max_length=5)]
    redshift: Range
    pixel_scale: float = SDSS_PIXEL_SCALE
    flux_unit: str = "nanomaggy"
    magnitude_kind: str = "as SDSS measures it (asinh)"


class Trust(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a plan holds of its weights: their calibration and their training domain, as far as they have them."""

    calibration: Calibration | None
    domain: TrainingDomain | None


def trust_of(notes: Mapping[str, str], where: str) -> Trust:
    """Return the calibration and the domain in the notes of a weights file. Raises InputError if one is damaged."""
    remedy = "write the weights again"
    calibration, domain = notes.get(CALIBRATION), notes.get(DOMAIN)
    return Trust(
        decode_json(calibration, Calibration, where=f"{where}: its calibration", remedy=remedy)
        if calibration
        else None,
        decode_json(domain, TrainingDomain, where=f"{where}: its training domain", remedy=remedy) if domain else None,
    )


def to_note(record: Calibration | TrainingDomain) -> str:
    """Return the JSON of a record; equal records give equal text."""
    return msgspec.json.encode(record).decode()
