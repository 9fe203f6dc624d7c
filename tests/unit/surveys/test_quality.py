"""Test what counts as a usable pixel, magnitude and redshift, and the flags of galaxies where it does not."""

import numpy as np
import pytest

from cosmicai.surveys.quality import (
    LARGEST_PIXEL,
    Flag,
    flag_inputs,
    flag_predictions,
    has_constant_edge,
    has_unusable_pixel,
    is_usable_magnitude,
    is_usable_redshift,
    known_redshifts,
)
from support.gate import COLUMNS, GOOD, ROWS, ingest, write_npz

ZERO_FLAGS = np.zeros(ROWS, np.uint8)


@pytest.mark.parametrize("value", [99, -99, 99.99, -999, -9999, 0, 1e20, np.nan, np.inf, -np.inf, 4.99, 40.01])
def test_what_stands_for_a_missing_magnitude_is_flagged(tmp_path, value):
    magnitude = GOOD.magnitude.copy()
    magnitude[3, 2] = value
    assert np.argwhere(~is_usable_magnitude(magnitude)).tolist() == [[3, 2]]
    assert np.flatnonzero(flag_inputs(GOOD.image, magnitude) == Flag.MISSING_MAGNITUDE).tolist() == [3]
    _, notices = ingest(tmp_path, write_npz(tmp_path, magnitude=magnitude))
    assert "magnitudes that are missing or outside 5 to 40, by band: r 1" in notices


@pytest.mark.parametrize("value", [5, 40, 22.5])
def test_the_limits_of_magnitudes_are_usable(value):
    assert is_usable_magnitude(np.array([value], np.float64)).all()


@pytest.mark.parametrize("value", [-1, -9, -99, -9999, 99, 10, -0.01, np.nan, np.inf])
def test_what_stands_for_an_unknown_redshift_becomes_nan(tmp_path, value):
    redshift = GOOD.redshift.copy()
    redshift[5] = value
    expected = np.where(np.arange(ROWS) == 5, np.nan, GOOD.redshift)
    np.testing.assert_array_equal(known_redshifts(redshift), expected)
    found, notices = ingest(tmp_path, write_npz(tmp_path, redshift=redshift))
    np.testing.assert_array_equal(found.redshift, expected)
    assert "spectroscopic redshifts that are no number between -0.01 and 10: 1" in notices


def test_blueshifted_and_most_distant_galaxies_are_usable():
    assert is_usable_redshift(np.array([-0.0099, -0.001, 0, 9.99])).all()
    assert known_redshifts(np.array([1, 2])).dtype == np.float64


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.1e12, -1e20, 3.4e38])
def test_unusable_pixels_are_flagged(value):
    image = GOOD.image.copy()
    image[7, 4, 31, 0] = value
    expected = ZERO_FLAGS.copy()
    expected[7] = Flag.NONFINITE_PIXEL
    np.testing.assert_array_equal(flag_inputs(image, GOOD.magnitude), expected)


def test_bright_pixels_are_usable_however_many_they_are():
    assert not has_unusable_pixel(np.full((1, 5, 32, 32), LARGEST_PIXEL, np.float32)).any()
    assert not has_unusable_pixel(np.full((0, 5, 32, 32), np.nan, np.float32)).size


def test_bands_and_edges_without_noise_are_flagged():
    changes = {
        0: np.s_[2], 1: np.s_[:, :3], 2: np.s_[4, 30:], 3: np.s_[0, :, 0], 4: np.s_[1, :, 31], 5: np.s_[3, 10:20, 10:20]
    }  # fmt: skip
    image = GOOD.image.copy()
    for row, place in changes.items():
        image[row][place] = 0.5 * row
    assert np.flatnonzero(has_constant_edge(image)).tolist() == [0, 1, 2, 3, 4]  # a block inside is no edge
    flags = flag_inputs(image, GOOD.magnitude)
    assert np.flatnonzero(flags == Flag.INCOMPLETE_CUTOUT).tolist() == [0, 1, 2, 3, 4]
    image[0, 0, 0, 0] = np.nan
    assert flag_inputs(image, GOOD.magnitude)[0] == Flag.NONFINITE_PIXEL


def test_ingest_counts_what_it_found(tmp_path):
    image = GOOD.image.copy()
    image[0, 0, 0, 0], image[1], image[2, 4], image[3, :, :, 31] = np.nan, 0, 7, -1
    _, notices = ingest(tmp_path, write_npz(tmp_path, image=image, objid=COLUMNS["objid"] // 2))
    assert "cutouts with pixels that are NaN, infinite or beyond 1e12: 1" in notices
    assert "cutouts with a band, or an edge of it, that is constant: 3" in notices
    assert any(notice.startswith("objid: ") and "occur more than once" in notice for notice in notices)
    assert ingest(tmp_path, write_npz(tmp_path))[1] == ()


def test_predictions_are_flagged():
    values = np.array([np.nan, np.inf, -np.inf, -0.051, -0.05, 0, 10, 10.1], np.float32)
    bad, far = Flag.NONFINITE_PREDICTION, Flag.IMPLAUSIBLE_REDSHIFT
    assert flag_predictions(values[:4]).tolist() == [bad, bad, bad, far]
    assert flag_predictions(values[5:]).tolist() == [0, 0, far]
    assert flag_predictions(values).dtype == np.uint8
