"""Quantiles, bins and coverage of calibrations, against crepes and against an oracle."""

import numpy as np
import pytest
from crepes import ConformalPredictiveSystem

from cosmicai.calibration.fit import (
    LEAST,
    SpectroscopicSample,
    conformal_quantiles,
    cut_evenly,
    fit_calibration,
)
from cosmicai.calibration.intervals import find_bins, find_scores, predict_quantiles
from cosmicai.calibration.records import INTERVAL_LEVELS, LEVELS, Calibration, Origin, to_note, trust_of
from cosmicai.calibration.scale import predict_scale
from cosmicai.calibration.split import is_for_calibration
from cosmicai.errors import InputError

ORIGIN = Origin("sky", "0" * 64, "2026-01-01")
LOWER, UPPER = [100 * low for low, _ in INTERVAL_LEVELS.values()], [100 * high for _, high in INTERVAL_LEVELS.values()]


def draw_sample(count: int, seed: int) -> SpectroscopicSample:
    """Return galaxies whose errors grow with magnitude and redshift, are skewed, and are biased."""
    rng = np.random.default_rng(seed)
    magnitude = 20 + np.cumsum(rng.normal(0, 0.5, (count, 5)), axis=1) + rng.normal(0, 1.5, (count, 1))
    redshift = rng.gamma(2.5, 0.1, count)
    size = true_size(magnitude, redshift)
    score = size * (rng.gamma(4, 0.5, count) - 1.8)
    return SpectroscopicSample(magnitude, redshift, redshift + (1 + redshift) * score)


def true_size(magnitude, redshift):
    return 0.01 * np.exp(0.25 * (magnitude[:, 2] - 20)) * (1 + redshift)


def bounds_of(quantiles, percent):
    return [quantiles[:, LEVELS.index(level)] for level in INTERVAL_LEVELS[percent]]


def test_quantiles_are_those_of_crepes_where_no_position_lies_between_two_scores():
    rng, groups = np.random.default_rng(1), np.repeat([0, 1, 2], 399)  # 400 p is an integer for every level
    redshift = rng.uniform(0, 1, len(groups))
    score = rng.normal(0.01 * groups, 0.02 * (1 + groups))
    system = ConformalPredictiveSystem()
    system.fit(score * (1 + redshift), 1 + redshift, groups)
    place = np.linspace(0, 1, 6)
    for group in range(3):
        own = conformal_quantiles(score[groups == group], LEVELS)
        # Shifted by what rounding makes of 400 p, which crepes rounds down or up to an integer.
        lower = [100 * level + 1e-9 for level in LEVELS if level < 0.5]
        upper = [100 * level - 1e-9 for level in LEVELS if level > 0.5]
        found = system.predict_percentiles(
            place, 1 + place, np.full(6, group), lower_percentiles=lower, higher_percentiles=upper
        )
        expected = place[:, None] + (1 + place[:, None]) * np.delete(own, LEVELS.index(0.5))
        assert np.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_of_a_fit_are_within_one_score_of_those_of_crepes(seed):
    sample = draw_sample(9000, seed)
    calibration = fit_calibration(sample, ORIGIN)
    own = sample.select(is_for_calibration(sample.magnitude))
    bins = find_bins(calibration, own.magnitude, own.redshift_phot)
    counts = np.bincount(bins)
    assert bins.min() == 0 and counts.min() >= LEAST and calibration.galaxies == len(own)
    assert [one.galaxies for each in calibration.slices for one in each.bins] == counts.tolist()
    binned = fit_calibration(own, ORIGIN)  # without others to choose by, its scores are plain ones
    assert binned.scale is None and binned.coverage is None and not binned.interval_scores
    system = ConformalPredictiveSystem()
    system.fit(own.redshift_spec - own.redshift_phot, 1 + own.redshift_phot, bins)
    others = draw_sample(500, 100 + seed)
    place = find_bins(binned, others.magnitude, others.redshift_phot)
    others, place = others.select(place >= 0), place[place >= 0]
    quantiles = predict_quantiles(binned, others.magnitude, others.redshift_phot)
    found = system.predict_percentiles(
        others.redshift_phot, 1 + others.redshift_phot, place, lower_percentiles=LOWER, higher_percentiles=UPPER
    )
    scores = find_scores(own.redshift_phot, own.redshift_spec)
    for number, percent in enumerate(INTERVAL_LEVELS):
        low, high = bounds_of(quantiles, percent)
        assert (low >= found[:, number] - 1e-6).all() and (high <= found[:, 2 + number] + 1e-6).all()
        for row, group in enumerate(place.tolist()):
            ordered, one = np.sort(scores[bins == group]), 1 + others.redshift_phot[row]
            below, above = ((bound[row] - others.redshift_phot[row]) / one for bound in (low, high))
            crepes_low, crepes_high = ((found[row, k] - others.redshift_phot[row]) / one for k in (number, 2 + number))
            assert below <= ordered[np.searchsorted(ordered, crepes_low + 1e-9)] + 1e-6
            assert above >= ordered[np.searchsorted(ordered, crepes_high - 1e-9) - 1] - 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_coverage_and_width_on_galaxies_that_no_fit_has_seen(seed):
    calibration = fit_calibration(draw_sample(20_000, seed), ORIGIN)
    assert calibration.scale is not None  # the sizes differ within a bin
    assert calibration.interval_scores["normalised"] < calibration.interval_scores["binned"]
    sample = draw_sample(20_000, 1000 + seed)
    quantiles = predict_quantiles(calibration, sample.magnitude, sample.redshift_phot).astype(np.float64)
    known = np.isfinite(quantiles[:, 0])
    assert known.mean() > 0.99
    sample, quantiles = sample.select(known), quantiles[known]
    bins = find_bins(calibration, sample.magnitude, sample.redshift_phot)
    for percent in INTERVAL_LEVELS:
        low, high = bounds_of(quantiles, percent)
        inside = (sample.redshift_spec >= low) & (sample.redshift_spec <= high)
        p = percent / 100
        error = np.sqrt(p * (1 - p) * (1 / len(sample) + 1 / calibration.galaxies))
        assert abs(inside.mean() - p) < 3 * error
        for values in (sample.redshift_phot, sample.magnitude[:, 2]):
            place = np.digitize(values, np.quantile(values, np.linspace(0, 1, 11)[1:-1]))
            for number in range(10):
                own = place == number
                error = np.sqrt(p * (1 - p) * (1 / own.sum() + len(sample) / own.sum() / calibration.galaxies))
                assert own.sum() >= 500 and abs(inside[own].mean() - p) < 3 * error
        large = draw_sample(200_000, 5000 + seed)  # the oracle: true quantiles of the same scores in the same bins
        place = find_bins(calibration, large.magnitude, large.redshift_phot)
        large, place = large.select(place >= 0), place[place >= 0]
        size = predict_scale(calibration.scale, large.magnitude, large.redshift_phot)
        score = find_scores(large.redshift_phot, large.redshift_spec) / size
        table = np.array([np.quantile(score[place == one], INTERVAL_LEVELS[percent]) for one in range(place.max() + 1)])
        scale = predict_scale(calibration.scale, sample.magnitude, sample.redshift_phot) * (1 + sample.redshift_phot)
        oracle = (table[bins, 1] - table[bins, 0]) * scale
        assert np.mean(high - low) <= 1.1 * np.mean(oracle)


def test_equal_values_stay_in_one_piece_and_every_piece_is_large_enough():
    values = np.concatenate([np.zeros(450), np.linspace(0.1, 1, 500)])
    pieces = cut_evenly(values, 4)
    assert [len(rows) for _, rows in pieces] == [475, 237, 238]
    assert pieces[0][0][0] == 0 and pieces[-1][0][1] == 1
    assert np.array_equal(np.sort(np.concatenate([rows for _, rows in pieces])), np.arange(950))
    assert cut_evenly(np.full(900, 0.5), 4)[0][0] == (0.5, 0.5)


def test_a_redshift_outside_of_all_bins_has_no_quantiles():
    calibration = fit_calibration(draw_sample(3000, 0), ORIGIN)
    magnitude = np.full((4, 5), 20.0)
    magnitude[1], magnitude[2] = 45, np.nan
    redshift = np.array([0.2, 0.2, 0.2, np.nan])
    assert np.isfinite(predict_quantiles(calibration, magnitude, redshift)).all(axis=1).tolist() == [True] + [False] * 3
    assert find_bins(calibration, magnitude[[0, 0]], np.array([-1.0, 99.0])).tolist() == [-1, -1]


def test_too_few_galaxies_are_refused_with_their_numbers():
    sample = draw_sample(300, 0)
    count = int(is_for_calibration(sample.magnitude).sum())
    with pytest.raises(InputError, match=f"sky: 300 galaxies have .* and {count} of them.*at least 200"):
        fit_calibration(sample, ORIGIN)


def test_a_calibration_survives_its_text_bit_for_bit():
    calibration = fit_calibration(draw_sample(3000, 0), ORIGIN)
    trust = trust_of({"calibration": to_note(calibration)}, "w.safetensors")
    assert isinstance(trust.calibration, Calibration) and trust.calibration == calibration and trust.domain is None
    with pytest.raises(InputError, match=r"w\.safetensors: its calibration"):
        trust_of({"calibration": to_note(calibration)[:-20]}, "w.safetensors")
