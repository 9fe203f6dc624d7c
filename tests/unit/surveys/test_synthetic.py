import hashlib

import numpy as np
import pytest

from cosmicai.surveys import synthetic
from cosmicai.surveys.quality import flag_inputs
from cosmicai.surveys.shard import Galaxies


def drawn(galaxies: int, seed: int = 0, start: int = 0) -> Galaxies:
    return Galaxies.concatenate(synthetic.generate_batches(galaxies, seed, start))


def digest(galaxies: Galaxies) -> str:
    columns = (galaxies.image, galaxies.magnitude, galaxies.redshift, galaxies.objid)
    return hashlib.sha256(b"".join(np.ascontiguousarray(column).tobytes() for column in columns)).hexdigest()


@pytest.fixture(scope="module")
def sample() -> Galaxies:
    return drawn(2048)


def test_the_same_seed_gives_the_same_galaxies(sample: Galaxies) -> None:
    assert digest(drawn(2048)) == digest(sample)
    assert digest(drawn(2048, seed=1)) != digest(sample)


@pytest.mark.parametrize("galaxies", [1, 1023, 1024, 1025])
def test_any_total_is_a_prefix(sample: Galaxies, galaxies: int) -> None:
    assert digest(drawn(galaxies)) == digest(sample[:galaxies])


@pytest.mark.parametrize(("start", "galaxies"), [(1024, 1024), (1000, 100), (5, 10)])
def test_any_range_is_a_slice(sample: Galaxies, start: int, galaxies: int) -> None:
    assert digest(drawn(galaxies, start=start)) == digest(sample[start : start + galaxies])


def test_batches_are_blocks_and_a_rest() -> None:
    assert [len(batch) for batch in synthetic.generate_batches(2500)] == [1024, 1024, 452]
    assert [len(batch) for batch in synthetic.generate_batches(100, start=1000)] == [24, 76]
    assert list(synthetic.generate_batches(0)) == []


def test_shapes_dtypes_and_numbers(sample: Galaxies) -> None:
    assert (sample.image.shape, sample.image.dtype) == ((2048, 5, 32, 32), np.float32)
    assert (sample.magnitude.shape, sample.magnitude.dtype) == ((2048, 5), np.float64)
    assert (sample.redshift.shape, sample.redshift.dtype) == ((2048,), np.float64)
    assert sample.objid.dtype == np.int64
    assert sample.objid.tolist() == list(range(2048))


def test_values_are_those_of_a_spectroscopic_sample(sample: Galaxies) -> None:
    assert not flag_inputs(sample.image, sample.magnitude).any()
    assert sample.redshift.min() > 0.01
    assert sample.redshift.max() < 0.6
    assert 12 < sample.magnitude[:, 1:].min() < sample.magnitude[:, 1:].max() < 25
    assert sample.image.max() < 100


def test_cutout_flux_is_the_magnitude_within_noise(sample: Galaxies) -> None:
    bright = sample.magnitude[:, 2] < 17.5
    assert bright.sum() > 300
    for band in range(1, 4):
        flux = sample.image[bright, band].sum(axis=(1, 2), dtype=np.float64)
        noise = synthetic.SKY_NOISE[band] * 32  # of the sum of 32 x 32 pixels
        from_magnitude = synthetic.nanomaggies(sample.magnitude[bright, band])
        pull = (flux - from_magnitude) / np.hypot(noise * 1.5, 3 * synthetic.CALIBRATION_ERROR * from_magnitude)
        assert abs(pull.mean()) < 0.1
        assert np.abs(pull).max() < 5


def test_cutouts_hold_a_centred_galaxy_that_fades_outwards(sample: Galaxies) -> None:
    stacked = sample.image[:, 2].mean(axis=0)
    assert {int(i) for i in np.unravel_index(stacked.argmax(), stacked.shape)} <= {15, 16}
    assert stacked[:2].mean() < 0.05 * stacked.max()


def test_a_colour_shift_changes_images_and_magnitudes_alike(sample: Galaxies) -> None:
    shift = (0.5, 0.0, -0.2, 0.0, 0.1)
    quiet, shifted = (
        Galaxies.concatenate(synthetic.generate_batches(1024, photometry=synthetic.Photometry(1e-6, one)))
        for one in (synthetic.PLAIN.colour_shift, shift)
    )
    ratio = shifted.image.sum((2, 3)) / quiet.image.sum((2, 3))
    np.testing.assert_allclose(-2.5 * np.log10(ratio), np.tile(shift, (1024, 1)), atol=1e-3)
    bright = quiet.magnitude < 21  # where asinh magnitudes are the usual ones
    np.testing.assert_allclose(
        (shifted.magnitude - quiet.magnitude)[bright], np.tile(shift, (1024, 1))[bright], atol=0.02
    )
    assert np.array_equal(shifted.redshift, sample[:1024].redshift)


def test_noise_is_relative_to_that_of_the_sky(sample: Galaxies) -> None:
    quiet, noisy = (
        Galaxies.concatenate(synthetic.generate_batches(1024, photometry=synthetic.Photometry(factor)))
        for factor in (1e-6, 3.0)
    )
    once = sample[:1024].image - quiet.image
    np.testing.assert_allclose(noisy.image - quiet.image, 3 * once, atol=2e-3)
    np.testing.assert_allclose(once.std((0, 2, 3)), synthetic.SKY_NOISE, rtol=0.01)
    assert np.abs(noisy.magnitude - quiet.magnitude).mean() > np.abs(sample[:1024].magnitude - quiet.magnitude).mean()


def test_the_break_reddens_g_minus_r_until_it_reaches_r() -> None:
    redshift = np.array([0.05, 0.15, 0.25, 0.35, 0.55])
    one = np.ones(5)
    magnitude = synthetic.apparent_magnitudes(redshift, 0.9 * one, 0.02 * one, -22 * one)
    g_r, r_i = magnitude[:, 1] - magnitude[:, 2], magnitude[:, 2] - magnitude[:, 3]
    assert (np.diff(g_r[:4]) > 0.15).all()
    assert r_i[4] > r_i[3] + 0.15
    assert (np.diff(magnitude[:, 2]) > 0).all()


def test_dust_reddens_and_dims() -> None:
    redshift, age = np.full(2, 0.1), np.full(2, 0.5)
    clean, dusty = (synthetic.spectrum(wavelength, age, np.array([0.0, 0.3])) for wavelength in (3600.0, 8000.0))  # type: ignore[arg-type]
    assert clean[1] / clean[0] < dusty[1] / dusty[0] < 1
    # The absolute magnitude is that of the dimmed galaxy: at the reference wavelength dust changes nothing.
    magnitude = synthetic.apparent_magnitudes(redshift, age, np.array([0.0, 0.3]), np.full(2, -21.0))
    assert magnitude[1, 1] > magnitude[0, 1]
    assert magnitude[1, 4] < magnitude[0, 4]


def test_attenuation_is_calzettis() -> None:
    # k(V) = R_V = 4.05 by definition; the two branches meet at 6300 Angstrom.
    assert synthetic.attenuation(np.array([5500.0]))[0] == pytest.approx(4.05, abs=0.02)
    below, above = synthetic.attenuation(np.array([6299.9, 6300.1]))
    assert below == pytest.approx(above, abs=0.05)


def test_luminosity_distance_is_astropys() -> None:
    # astropy.cosmology.FlatLambdaCDM(H0=70, Om0=0.3).luminosity_distance, in Mpc
    expected = {0.01: 43.158235, 0.1: 460.299936, 0.3: 1552.715931, 0.6: 3530.192911, 1.0: 6607.657612}
    found = synthetic.luminosity_distance(np.array(list(expected)))
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-7)


def test_asinh_magnitude_is_the_usual_one_when_bright_and_finite_below_zero() -> None:
    magnitude = np.full((1, 5), 16.0)
    np.testing.assert_allclose(synthetic.asinh_magnitude(synthetic.nanomaggies(magnitude)), magnitude, atol=1e-3)
    assert np.isfinite(synthetic.asinh_magnitude(np.full((1, 5), -1.0))).all()
