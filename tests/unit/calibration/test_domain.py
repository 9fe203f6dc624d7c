"""The training domain: which galaxies are like those that a network learned from."""

import numpy as np
import pytest

from cosmicai.calibration.domain import edge_noise, is_outside, measure_domain
from cosmicai.calibration.records import Origin
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.synthetic import SKY_NOISE, generate_batches


@pytest.fixture(scope="module")
def galaxies() -> Galaxies:
    return Galaxies.concatenate(list(generate_batches(4096, 3)))


@pytest.fixture(scope="module")
def domain(galaxies):
    return measure_domain(Origin("sky", "0" * 64, "2026-01-01"), "training", [galaxies[:1000], galaxies[1000:]])


def test_the_ranges_are_those_of_a_thousandth_at_either_end(galaxies, domain):
    assert (domain.galaxies, domain.survey, domain.purpose) == (4096, "sky", "training")
    assert np.allclose(domain.magnitudes, np.quantile(galaxies.magnitude, [0.001, 0.999], axis=0).T)
    colours = galaxies.magnitude[:, :4] - galaxies.magnitude[:, 1:]
    assert np.allclose(domain.colours, np.quantile(colours, [0.001, 0.999], axis=0).T)
    assert np.allclose(domain.redshift, np.quantile(galaxies.redshift, [0.001, 0.999]))


def test_the_noise_is_that_of_the_pixels():
    noise = np.random.default_rng(0).standard_normal((200, 5, 32, 32), np.float32) * SKY_NOISE[:, None, None]
    noise += np.linspace(0, 1, 32)[None, None, :, None]  # the outskirts of a galaxy
    found = edge_noise(noise.astype(np.float32))
    assert found.shape == (200, 5) and found.dtype == np.float32
    assert np.allclose(found.mean(axis=0), SKY_NOISE, rtol=0.03)


def test_few_galaxies_of_the_same_kind_are_outside(domain):
    other = Galaxies.concatenate(list(generate_batches(4096, 4)))
    outside = is_outside(domain, other.image, other.magnitude, other.redshift.astype(np.float32))
    assert 0.002 < outside.mean() < 0.04


@pytest.mark.parametrize("change", ["noise", "depth", "colour", "faint", "redshift", "missing"])
def test_galaxies_of_another_kind_are_outside(galaxies, domain, change):
    image, magnitude, redshift = galaxies.image.copy(), galaxies.magnitude.copy(), galaxies.redshift.astype(np.float32)
    if change == "noise":
        own = np.random.default_rng(0).standard_normal(image.shape, np.float32)
        image += (2 * SKY_NOISE).astype(np.float32)[:, None, None] * own
    elif change == "depth":
        image *= np.float32(0.3)
    elif change == "colour":
        magnitude[:, 1] += 3
    elif change == "faint":
        magnitude += 8
    elif change == "redshift":
        redshift += 1
    else:
        magnitude[:, 3] = np.nan
    assert is_outside(domain, image, magnitude, redshift).mean() > 0.95


def test_galaxies_without_redshifts_make_no_domain(galaxies):
    unknown = Galaxies(galaxies.image, galaxies.magnitude, np.full(len(galaxies), np.nan), galaxies.objid)
    assert measure_domain(Origin("sky", "0" * 64, "2026-01-01"), "training", [unknown]) is None
