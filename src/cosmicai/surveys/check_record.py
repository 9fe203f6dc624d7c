"""The result of the check of a survey, and the sentences that a user reads of it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ..errors import InputError
from .survey import Count, Survey

MIN_GALAXIES = 20  # usable ones; medians of fewer say little
COLOURS = ("u-g", "g-r", "r-i", "i-z")


class BandCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What one band of the sample looks like.

    `offset` and `scatter` (1.48 median absolute deviation) are those of the magnitude of the summed pixels minus the
    magnitude, over the `galaxies` of which both exist; `faint` is the offset of the fainter quarter of them relative to
    the brighter half, where noise allows to tell. `negative` and `missing` are the shares of negative sums of pixels
    and of missing magnitudes.
    """

    band: str
    galaxies: Count
    offset: float | None
    scatter: float | None
    faint: float | None
    negative: float
    missing: float


class SurveyCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What a sample of a survey's galaxies looks like.

    Of `galaxies` in the sample, `usable` have whole cutouts and at least three magnitudes. `nonfinite`, `incomplete`
    and `unknown_redshifts` are shares of the sample. `offset` and `slope` compare the brightness of a galaxy in its
    pixels with that in its magnitudes, both as the median of its bands. The colours are medians of u-g, g-r, r-i, i-z.
    `pixel_order` is the order of bands in which the pixels agree best with the magnitudes, `magnitude_order` that in
    which the magnitudes agree best with the pixels. What is None could not be measured. Each contradiction is part
    of a sentence on what the survey looks like.
    """

    galaxies: Count
    usable: Count
    nonfinite: float
    incomplete: float
    unknown_redshifts: float
    unreadable_shards: Count = 0
    bands: tuple[BandCheck, ...] = ()
    offset: float | None = None
    slope: float | None = None
    magnitude_colours: tuple[float | None, ...] = ()
    pixel_colours: tuple[float | None, ...] = ()
    pixel_order: str | None = None
    magnitude_order: str | None = None
    contradictions: tuple[str, ...] = ()

    @property
    def could_be_checked(self) -> bool:
        """Whether there were enough usable galaxies to compare."""
        return self.usable >= MIN_GALAXIES


def warnings(check: SurveyCheck, survey: str) -> list[str]:
    """Return the sentences for the user of a survey at this address; none if everything looks right."""
    lines = [f"WARNING: {survey}: {contradiction}" for contradiction in check.contradictions]
    if lines:
        lines.append(
            f"the redshifts of such galaxies would mean nothing; look at `cosmicai survey check {survey}`, and correct "
            "the survey unless you know better"
        )
    if check.unreadable_shards:
        lines.append(f"{survey}: shards of the sample that cannot be read: {check.unreadable_shards}")
    return lines if check.could_be_checked else [*lines, f"{survey} could not be checked: {_too_few(check)}"]


def require_consistent(check: SurveyCheck, survey: str) -> None:
    """Raise InputError, one sentence with all contradictions of a survey at this address, if there are any."""
    if check.contradictions:
        raise InputError(f"{survey}: {'; '.join(check.contradictions)}; correct the survey, or leave --strict out")


def describe_check(check: SurveyCheck) -> str:
    """Return what a check found, on one line."""
    if check.contradictions:
        return "; ".join(check.contradictions)
    return "looks right" if check.could_be_checked else f"could not be checked: {_too_few(check)}"


def _too_few(check: SurveyCheck) -> str:
    return f"{check.usable} of {check.galaxies} galaxies are usable, {MIN_GALAXIES} are needed"


def describe_table(check: SurveyCheck, survey: Survey) -> Iterator[str]:
    """Yield lines with everything that a check of a survey measured."""
    yield f"survey      {survey.uri}"
    yield f"sample      {check.galaxies} of {survey.galaxies} galaxies, {check.usable} of them usable"
    yield (
        f"shares      {check.incomplete:.1%} with incomplete or constant cutouts, {check.nonfinite:.1%} with pixels "
        f"that are not numbers, {check.unknown_redshifts:.1%} without a spectroscopic redshift"
    )
    yield "band  pixels - magnitude  scatter  if faint  negative sums  missing magnitudes"
    for one in check.bands:
        yield (
            f"{one.band:<4}  {_number(one.offset):>18}  {_number(one.scatter):>7}  {_number(one.faint):>8}  "
            f"{one.negative:>13.1%}  {one.missing:>18.1%}"
        )
    for name, colours in (("magnitudes", check.magnitude_colours), ("pixels", check.pixel_colours)):
        if colours:
            yield f"{name:<12}{', '.join(map('{} {}'.format, COLOURS, map(_number, colours)))}"
    if check.pixel_order:
        yield f"agree best  with pixels of {check.pixel_order}, or with magnitudes of {check.magnitude_order}"
    yield f"result      {describe_check(check)}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
