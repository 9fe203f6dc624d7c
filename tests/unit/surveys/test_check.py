"""The check of a survey: what galaxies are that look right, and what is said of those that do not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations

import msgspec
import numpy as np
import pytest

from cosmicai.errors import InputError
from cosmicai.surveys.check import SurveyCheck, check_galaxies, check_survey, inspect_survey, warnings
from cosmicai.surveys.check_record import describe_check, describe_table
from cosmicai.surveys.check_sample import RANGES, SAMPLE, select_rows
from cosmicai.surveys.comparison import name_unit
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.survey import ShardEntry, Survey
from cosmicai.surveys.synthetic import generate_batches
from support.helpers import make_survey

ORDERS = ["".join(order) for order in permutations("ugriz")][1:]
GALAXIES = Galaxies.concatenate(generate_batches(300, seed=77))
FEW = GALAXIES[:60]


def in_order(values, order):
    """Return values (N, 5, ...) of ugriz with their bands in another order."""
    return np.ascontiguousarray(values[:, ["ugriz".index(band) for band in order]])


def said(galaxies: Galaxies) -> str:
    """Return the only contradiction that is found in galaxies."""
    [sentence] = check_galaxies(galaxies).contradictions
    return sentence


def with_flux(factor: float) -> Galaxies:
    """Return the galaxies with other units of their pixels."""
    return replace(GALAXIES, image=GALAXIES.image * np.float32(factor))


@pytest.mark.parametrize("size", [20, 60, 300])
def test_synthetic_galaxies_look_right(size):
    check = check_galaxies(GALAXIES[:size])
    assert check.contradictions == () and warnings(check, "survey") == []
    assert (check.galaxies, check.usable, check.could_be_checked) == (size, size, True)
    assert (check.pixel_order, check.magnitude_order) == ("ugriz", "ugriz")
    assert check.offset == pytest.approx(0, abs=0.05) and check.slope == pytest.approx(1, abs=0.1)
    assert [one.band for one in check.bands] == list("ugriz")
    assert all(one.offset == pytest.approx(0, abs=0.15) and one.missing == 0 for one in check.bands)
    assert check.magnitude_colours == pytest.approx(check.pixel_colours, abs=0.25)
    assert describe_check(check) == "looks right"


def test_the_sums_of_the_pixels_are_compared_with_the_magnitudes():
    check = check_galaxies(GALAXIES)
    total = GALAXIES.image.sum(axis=(2, 3), dtype=np.float64)
    for index, band in enumerate(check.bands):
        rows = total[:, index] > 0
        offset = 22.5 - 2.5 * np.log10(total[rows, index]) - GALAXIES.magnitude[rows, index]
        assert band.offset == pytest.approx(np.median(offset), abs=1e-4)
        assert band.scatter == pytest.approx(1.4826 * np.median(abs(offset - np.median(offset))), abs=1e-4)
        assert (band.galaxies, band.negative) == (rows.sum(), pytest.approx(1 - rows.mean(), abs=1e-4))


def test_every_other_order_of_the_bands_is_named():
    for order in ORDERS:
        image, magnitude = in_order(FEW.image, order), in_order(FEW.magnitude, order)
        assert f"the pixels look as if their bands were in the order {order} (" in said(replace(FEW, image=image))
        swapped = replace(FEW, magnitude=magnitude)
        assert f"the magnitudes look as if their bands were in the order {order} (" in said(swapped)
        both = said(replace(FEW, image=image, magnitude=magnitude))
        assert both.endswith(f", as if the bands of pixels and magnitudes were in the order {order}")


@pytest.mark.parametrize(
    ("factor", "unit"),
    [
        (1e-9, "maggies"), (1e-6, "units of 1e6 nanomaggies"), (1e-3, "units of 1e3 nanomaggies"),
        (0.1, "units of 1e1 nanomaggies"), (10, "units of 1e-1 nanomaggies or counts with a zero point of 25"),
        (1e3, "units of 1e-3 nanomaggies or counts with a zero point of 30"), (1e6, "units of 1e-6 nanomaggies"),
        (1e9, "units of 1e-9 nanomaggies"), (3631, "nJy"), (3.631, "uJy"), (3.631e-3, "mJy"), (3.631e-6, "Jy"),
        (63, "counts with a zero point of 27"), (33, "units of 0.03 nanomaggies"),
    ],
)  # fmt: skip
def test_other_units_are_named(factor, unit):
    assert said(with_flux(factor)).startswith(f"the pixels look as if they were in {unit}: their sums are ")


def test_a_unit_and_an_order_are_found_together():
    galaxies = replace(GALAXIES, image=in_order(GALAXIES.image, "griuz") * np.float32(3631))
    order, unit = check_galaxies(galaxies).contradictions
    assert "the pixels look as if their bands were in the order griuz" in order and "in nJy" in unit


def test_one_band_in_other_units_is_named():
    factors = np.array([1, 1, 1, 1, 1e3], np.float32)[:, None, None]
    found = said(replace(GALAXIES, image=GALAXIES.image * factors))
    assert found.startswith("in the band z the sums of the pixels are 7.5 mag brighter than the magnitude")


@pytest.mark.parametrize(
    "changes",
    [
        {"image": GALAXIES.image * np.float32(0.6)},  # light outside of the cutouts
        {"magnitude": GALAXIES.magnitude - [0.91, -0.08, 0.16, 0.37, 0.54]},  # Vega
        {"magnitude": GALAXIES.magnitude + 0.1 * np.array([5.155, 3.793, 2.751, 2.086, 1.479])},  # dust
        {"magnitude": np.where(np.arange(300)[:, None] % 3 == 0, -9999.0, GALAXIES.magnitude)},
        {"redshift": np.full(300, np.nan)},
    ],
)
def test_what_real_surveys_differ_in_is_no_contradiction(changes):
    assert check_galaxies(replace(GALAXIES, **changes)).contradictions == ()


def scaled(image, low, high):
    """Return each band of each cutout from 0 to 1."""
    return (image - low) / (high - low)


def test_pixels_that_were_scaled_for_another_purpose_are_described():
    image = GALAXIES.image
    low, high = image.min(axis=(2, 3), keepdims=True), image.max(axis=(2, 3), keepdims=True)
    assert "look normalised: the largest of most cutouts is 1, the smallest 0" in said(
        replace(GALAXIES, image=scaled(image, low, high))
    )
    lowest, highest = low.min(axis=1, keepdims=True), high.max(axis=1, keepdims=True)
    assert "normalised" in said(replace(GALAXIES, image=scaled(image, lowest, highest)))
    display = np.clip(np.rint(scaled(image, low, high) * 255), 0, 255)
    assert "images for display: integers from 0 to 255" in said(replace(GALAXIES, image=display))
    mean, scatter = image.mean(axis=(2, 3), keepdims=True), image.std(axis=(2, 3), keepdims=True)
    assert "standardised" in said(replace(GALAXIES, image=(image - mean) / scatter))
    assert "subtracted with the background" in said(replace(GALAXIES, image=image - mean))
    assert "included the background" in said(replace(GALAXIES, image=image + np.float32(0.5)))
    everywhere = (image - image.min()) / (image.max() - image.min())
    assert "included the background" in said(replace(GALAXIES, image=everywhere))


def test_magnitudes_that_are_something_else_are_described():
    flux = 10 ** ((22.5 - GALAXIES.magnitude) / 2.5)
    assert "the magnitudes look like fluxes" in said(replace(GALAXIES, magnitude=flux))
    missing, found = check_galaxies(replace(GALAXIES, magnitude=flux * 1e-9)).contradictions
    assert missing.startswith("100% of the magnitudes in u, g, r, i and z are missing") and "like fluxes" in found
    _, found = check_galaxies(replace(GALAXIES, magnitude=GALAXIES.magnitude - 22.5)).contradictions
    assert "another zero point: they are 22.5 mag brighter than the sums of the pixels" in found
    others = replace(GALAXIES, magnitude=GALAXIES.magnitude[::-1])
    assert "pixels and magnitudes belonged to different galaxies" in said(others)
    softening = 1e-8  # maggies
    asinh = -2.5 / np.log(10) * (np.arcsinh(flux * 1e-9 / (2 * softening)) + np.log(softening))
    assert "asinh magnitudes of another softening" in said(replace(GALAXIES, magnitude=asinh))


def test_what_is_missing_of_almost_all_galaxies_is_a_contradiction():
    magnitude = GALAXIES.magnitude.copy()
    magnitude[:, 0] = 99
    assert said(replace(GALAXIES, magnitude=magnitude)) == "100% of the magnitudes in u are missing (outside 5 to 40)"
    image = GALAXIES.image.copy()
    image[:, 2] = 0
    check = check_galaxies(replace(GALAXIES, image=image))
    assert check.contradictions == (
        "100% of the cutouts are constant in a band or along an edge, as if not observed there",
    )
    assert not check.could_be_checked and check.incomplete == 1
    check = check_galaxies(replace(GALAXIES, image=np.full_like(image, np.nan)))
    assert check.contradictions == ("100% of the cutouts have pixels that are not numbers",) and check.nonfinite == 1


def test_shares_are_counted():
    magnitude, image = FEW.magnitude.copy(), FEW.image.copy()
    magnitude[:15, 3], image[:6, 1, 4, 4], image[6:9, 0] = -999, np.inf, 0
    check = check_galaxies(
        replace(FEW, image=image, magnitude=magnitude, redshift=np.r_[[-9.0] * 12, FEW.redshift[12:]])
    )
    assert (check.nonfinite, check.incomplete, check.unknown_redshifts, check.usable) == (0.1, 0.05, 0.2, 51)
    assert [one.missing for one in check.bands] == [0, 0, 0, 0.25, 0]
    assert check.contradictions == ()


def test_too_few_galaxies_are_not_judged():
    check = check_galaxies(replace(FEW, image=FEW.image * np.float32(1e3))[:19])
    assert check.contradictions == () and not check.could_be_checked
    sentence = "could not be checked: 19 of 19 galaxies are usable, 20 are needed"
    assert describe_check(check) == sentence and warnings(check, "s") == [f"s {sentence}"]


def test_a_check_is_the_same_after_json():
    for galaxies in (GALAXIES, FEW[:5], with_flux(1e3), replace(GALAXIES, magnitude=np.full((300, 5), np.nan))):
        check = check_galaxies(galaxies)
        assert msgspec.json.decode(msgspec.json.encode(check), type=SurveyCheck) == check


def test_names_of_units_allow_for_tenths_of_magnitudes():
    assert name_unit(-8.9 + 0.3) == name_unit(-8.9 - 0.3) == "nJy"
    assert name_unit(22.2) == "maggies"
    assert name_unit(-5.5) == "units of 0.0063 nanomaggies"


def shards(*sizes: int) -> tuple[ShardEntry, ...]:
    """Return entries of shards with these numbers of galaxies."""
    return tuple(ShardEntry(f"{number}.h5", size, 1) for number, size in enumerate(sizes))


@pytest.mark.parametrize(
    "sizes",
    [(100_000,), (1278,) * 79, (10,) * 1000, (1,) * 5000, (0, 5, 0, 100_000, 3, 0), (10**7, 10), (2049,), (40, 2100)],
)
def test_rows_are_spread_over_a_survey_in_few_ranges(sizes):
    entries = shards(*sizes)
    found = list(select_rows(entries))
    assert 0 < len(found) <= RANGES and len({entry.name for entry, _ in found}) <= RANGES
    starts = np.cumsum([0, *sizes])
    rows = [(starts[int(entry.name[:-3])] + start, stop - start) for entry, (start, stop) in found]
    assert all(start < stop <= entry.galaxies for entry, (start, stop) in found)
    assert all(before + count <= after for (before, count), (after, _) in pairwise(rows))
    assert sum(count for _, count in rows) <= SAMPLE
    assert rows[0][0] == 0 and sum(rows[-1]) >= sum(sizes) * (RANGES - 1) // RANGES


def test_all_of_a_small_survey_is_read():
    assert list(select_rows(shards(1000, 0, 1048))) == [
        (shards(1000)[0], (0, 1000)), (shards(1, 1, 1048)[2], (0, 1048)),
    ]  # fmt: skip
    assert list(select_rows(shards(0, 0))) == list(select_rows(())) == []


def test_a_survey_is_checked_without_the_shards_that_cannot_be_read(tmp_path):
    survey = make_survey(tmp_path / "survey", GALAXIES, 100)
    assert check_survey(survey) == check_galaxies(GALAXIES)
    (tmp_path / "survey" / "000002.h5").write_bytes(b"broken")
    check = check_survey(survey)
    assert (check.galaxies, check.unreadable_shards, check.contradictions) == (200, 1, ())
    assert warnings(check, "s") == ["s: shards of the sample that cannot be read: 1"]
    nothing = check_survey(Survey(survey.uri, survey.shards[1:2]))
    assert (nothing.galaxies, nothing.unreadable_shards, nothing.could_be_checked) == (0, 1, False)


def test_a_strict_inspection_is_one_sentence_and_else_a_warning(tmp_path):
    survey = make_survey(tmp_path / "survey", replace(FEW, image=in_order(FEW.image, "zirgu")), 60)
    notices: list[str] = []
    check = inspect_survey(survey, False, notices.append)
    [sentence] = check.contradictions
    assert notices == warnings(check, survey.uri)
    assert notices[0] == f"WARNING: {survey.uri}: {sentence}" and "cosmicai survey check" in notices[1]
    with pytest.raises(InputError) as refused:
        inspect_survey(survey, True, notices.append)
    assert str(refused.value) == f"{survey.uri}: {sentence}; correct the survey, or leave --strict out"
    assert len(notices) == 2
    assert f"result      {sentence}" in list(describe_table(check, survey))
