"""The two halves of galaxies, and coverage that is measured on one of them alone."""

import numpy as np

from cosmicai.calibration.coverage import RunningCoverage
from cosmicai.calibration.fit import SpectroscopicSample, fit_calibration
from cosmicai.calibration.intervals import predict_quantiles
from cosmicai.calibration.records import LEVELS, Origin
from cosmicai.calibration.split import FOLDS, find_fold, is_for_calibration
from cosmicai.surveys.quality import Flag


def make_magnitudes(count: int) -> np.ndarray:
    return np.random.default_rng(3).uniform(15, 25, (count, 5))


def test_a_galaxy_stays_in_its_half_wherever_it_stands():
    magnitude = make_magnitudes(4000)
    half = is_for_calibration(magnitude)
    assert 1900 < half.sum() < 2100
    order = np.random.default_rng(0).permutation(4000)
    assert np.array_equal(is_for_calibration(magnitude[order]), half[order])
    assert np.array_equal(is_for_calibration(magnitude[7:8]), half[7:8])
    assert np.array_equal(is_for_calibration(magnitude.astype(np.float32).astype(np.float64)), half)
    assert np.array_equal(is_for_calibration(np.asfortranarray(magnitude)), half)
    changed = magnitude.copy()
    changed[:, 4] = np.nextafter(changed[:, 4].astype(np.float32), np.float32(99))
    assert 1800 < (is_for_calibration(changed) != half).sum() < 2200  # it depends on every bit


def test_halves_and_folds_have_nothing_to_do_with_each_other():
    magnitude = make_magnitudes(8000)
    half, fold = is_for_calibration(magnitude), find_fold(magnitude)
    counts = [np.count_nonzero(half & (fold == number)) for number in range(FOLDS)]
    assert sum(counts) == half.sum() and min(counts) > 900


def test_galaxies_that_calibrate_never_count_in_the_coverage():
    magnitude = make_magnitudes(6000)
    rng = np.random.default_rng(1)
    redshift = rng.uniform(0.1, 0.6, 6000)
    spec = redshift + (1 + redshift) * rng.normal(0, 0.02, 6000)
    calibration = fit_calibration(SpectroscopicSample(magnitude, redshift, spec), Origin("sky", "", "2026-01-01"))
    own = is_for_calibration(magnitude)
    narrow = redshift.astype(np.float32)

    def measure(spec_of_own, flag):
        running = RunningCoverage(calibration)
        for rows in np.array_split(np.arange(6000), 7):
            running.add(magnitude[rows], narrow[rows], np.where(own, spec_of_own, spec)[rows], flag[rows])
        return running.result()

    flag = np.zeros(6000, np.uint8)
    flag[::10], flag[1::10] = Flag.OUTSIDE_DOMAIN, Flag.INCOMPLETE_CUTOUT
    report = measure(spec, flag)
    assert measure(spec + 1, flag) == report  # whatever the redshifts of those that calibrated are
    quantiles = predict_quantiles(calibration, magnitude, narrow.astype(np.float64))
    shown = ~own & np.isfinite(quantiles[:, 0]) & (flag & Flag.INCOMPLETE_CUTOUT == 0)
    low, high = quantiles[:, LEVELS.index(0.16)], quantiles[:, LEVELS.index(0.84)]
    inside = (spec >= low) & (spec <= high)
    assert report.all.galaxies == shown.sum() == sum(report.pit)
    assert np.isclose(report.all.fractions[0], inside[shown].mean(), rtol=1e-12)
    assert np.isclose(report.all.widths[0], (high - low)[shown].mean(), rtol=1e-5)
    assert np.isclose(report.all.errors[0], np.sqrt(0.68 * 0.32 / shown.sum()))
    outside = ~own & np.isfinite(quantiles[:, 0]) & (flag == Flag.OUTSIDE_DOMAIN)
    assert report.outside_domain.galaxies == outside.sum()
    for cells, values, least in ((report.by_redshift, narrow, -0.05), (report.by_magnitude, magnitude[:, 2], 5)):
        assert cells[0].low >= least
        for cell in cells:
            rows = shown & (values >= cell.low) & (values < cell.high)
            assert abs(cell.galaxies - rows.sum()) <= 1  # a rounded edge
    below = [np.count_nonzero(spec[shown] <= quantiles[shown, 0]), np.count_nonzero(spec[shown] > quantiles[shown, -1])]
    assert [report.pit[0], report.pit[-1]] == below
    assert measure(np.full(6000, np.nan), flag).all == report.all
