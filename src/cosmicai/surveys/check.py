"""Does a survey look right? Compare the pixels of a sample of its galaxies with their magnitudes, and both with nature.

Pixels are in nanomaggies and magnitudes are AB, so that 22.5 - 2.5 log10(sum of a cutout's pixels) is the magnitude
within tenths: a cutout misses the outskirts of large galaxies and shows neighbours of others. Bands in another order,
other units, and pixels that were scaled for display all break this, and medians over a sample show it. The colours of
galaxies are the only evidence where pixels and magnitudes are wrong alike.

`check_survey` reads a sample, `check_galaxies` turns galaxies into a `SurveyCheck`, and `warnings` turns that into
sentences. The thresholds are measured by `cosmicai bench survey-check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from .check_record import MIN_GALAXIES, BandCheck, SurveyCheck, require_consistent, warnings
from .check_sample import Sample, read_sample
from .comparison import ALMOST_ALL, Comparison, describe_magnitudes, describe_pixels
from .quality import USABLE_MAGNITUDE, is_usable_magnitude
from .shard import BANDS, Galaxies
from .survey import Survey

__all__ = ["SurveyCheck", "check_galaxies", "check_sample", "check_survey", "inspect_survey", "warnings"]


def inspect_survey(survey: Survey, strict: bool, notify: Callable[[str], None]) -> SurveyCheck:
    """Check a survey and report through `notify` what does not look right, and what of it is not used.

    Raises InputError, one sentence with all contradictions, if there are any and the check is strict.
    """
    check = check_survey(survey)
    if strict:
        require_consistent(check, survey.uri)
    for line in (*survey.notices, *warnings(check, survey.uri)):
        notify(line)
    return check


def check_survey(survey: Survey) -> SurveyCheck:
    """Check up to 2,048 galaxies spread over a survey, from at most 32 shards.

    Shards that cannot be read are left out and counted: a run reports them where it needs them.
    """
    sample, unreadable = read_sample(survey)
    if sample is None:
        return SurveyCheck(
            galaxies=0, usable=0, nonfinite=0.0, incomplete=0.0, unknown_redshifts=0.0, unreadable_shards=unreadable
        )
    return replace(check_sample(sample), unreadable_shards=unreadable)


def check_galaxies(galaxies: Galaxies) -> SurveyCheck:
    """Check these galaxies, in nanomaggies and AB magnitudes of ugriz as all surveys are."""
    return check_sample(Sample.measure(galaxies.image, galaxies.magnitude, galaxies.redshift))


def check_sample(sample: Sample) -> SurveyCheck:
    count, measured = len(sample), is_usable_magnitude(sample.magnitude)
    usable = sample.complete & (measured.sum(axis=1) >= 3)
    check = SurveyCheck(
        galaxies=count,
        usable=int(usable.sum()),
        nonfinite=_share(~sample.finite),
        incomplete=_share(sample.finite & ~sample.complete),
        unknown_redshifts=_share(~sample.known),
        bands=tuple(
            BandCheck(
                band=band, galaxies=0, offset=None, scatter=None, faint=None,
                negative=_share(sample.total[sample.finite, index] <= 0), missing=_share(~measured[:, index]),
            )
            for index, band in enumerate(BANDS)
        ),
    )  # fmt: skip
    found = list(_find_missing(check)) if count >= MIN_GALAXIES else []
    appearance = describe_magnitudes(sample.rows(sample.complete)) or describe_pixels(sample.rows(usable))
    if check.could_be_checked:
        comparison = Comparison.measure(sample.rows(usable))
        check = comparison.complete(check)
        # Where pixels or magnitudes are something else altogether, no order and no unit would make sense of them.
        found += [appearance] if appearance else comparison.find_contradictions()
    elif appearance:
        found.append(appearance)
    return replace(check, contradictions=tuple(found))


def _share(selected: NDArray[np.bool_]) -> float:
    return round(float(selected.mean()), 4) if len(selected) else 0.0


def _find_missing(check: SurveyCheck) -> Iterator[str]:
    """Yield what is missing of almost all galaxies."""
    low, high = USABLE_MAGNITUDE
    if bands := [one.band for one in check.bands if one.missing > ALMOST_ALL]:
        share = min(one.missing for one in check.bands if one.band in bands)
        yield f"{share:.0%} of the magnitudes in {_join(bands)} are missing (outside {low:g} to {high:g})"
    if check.nonfinite > ALMOST_ALL:
        yield f"{check.nonfinite:.0%} of the cutouts have pixels that are not numbers"
    if check.incomplete > ALMOST_ALL:
        yield f"{check.incomplete:.0%} of the cutouts are constant in a band or along an edge, as if not observed there"


def _join(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
