"""Synthetic galaxies: cutouts, magnitudes and redshifts from a simple physical model, for demonstrations and tests.

They resemble the galaxies of SDSS (redshift 0.01 to 0.6, five bands, pixels of 0.396 arcsec, flux in nanomaggies)
closely enough to test everything that real galaxies test. They do not replace real galaxies in science.

One galaxy is drawn in this order: redshift, age mix, dust, luminosity -> true flux in five bands -> measured
magnitudes; and size, Sersic index, axis ratio, position angle -> profile, convolved with the PSF of each band, scaled
to the flux, plus sky noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .shard import FIELDS, IMAGE_SHAPE, Galaxies
from .survey import Survey, write_survey

Array = NDArray[np.float64]

BLOCK = 1024  # galaxies that share one random generator
REDSHIFT_RANGE = (0.01, 0.6)
PIXEL_ARCSEC = 0.396

# One value per band u, g, r, i, z. Effective wavelengths as SDSS gives them, widths (FWHM) of Fukugita et al. 1996.
WAVELENGTH = np.array([3551.0, 4686.0, 6166.0, 7480.0, 8932.0])  # Angstrom
WIDTH = np.array([599.0, 1379.0, 1382.0, 1535.0, 1370.0])  # Angstrom
PSF_FWHM = np.array([1.53, 1.44, 1.32, 1.26, 1.29])  # arcsec, the median seeing of SDSS
SKY_NOISE = np.array([0.054, 0.022, 0.033, 0.052, 0.20])  # nanomaggies per pixel, about that of a single SDSS frame
SOFTENING = np.array([1.4e-10, 0.9e-10, 1.2e-10, 1.8e-10, 7.4e-10])  # b of the asinh magnitudes of SDSS
CALIBRATION_ERROR = 0.015  # magnitudes, in every band

H0, OMEGA_M, LIGHT_SPEED = 70.0, 0.3, 299792.458  # km/s/Mpc, 1, km/s
BREAK = 4000.0  # Angstrom
REFERENCE = 6166.0  # rest-frame wavelength (Angstrom) at which the absolute magnitude is defined
_MARGIN = 5  # pixels of the profile around the cutout, from which the PSF spreads light into it


@dataclass(frozen=True)
class Photometry:
    """How a synthetic survey differs from the one that this module describes, in images and magnitudes alike."""

    noise: float = 1.0  # of the sky, relative to SKY_NOISE
    colour_shift: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)  # magnitudes added to every galaxy, one per band


PLAIN = Photometry()


def generate_batches(
    galaxies: int, seed: int = 0, start: int = 0, photometry: Photometry = PLAIN
) -> Iterator[Galaxies]:
    """Generate synthetic galaxies number `start` to `start + galaxies`, at most BLOCK at a time.

    Galaxy i (its objid) is the same in every range that includes it: each block of BLOCK galaxies has its own random
    generator, seeded with (seed, block), and is always drawn whole.
    This holds bit for bit on one machine; on others float32 arithmetic may differ in the last digits of an image.
    Image in nanomaggies, magnitude as SDSS measures it (`asinh_magnitude`); dtypes and shapes as in `Galaxies`.
    """
    stop = start + galaxies
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        first = block * BLOCK
        yield _draw(seed, block, photometry)[max(start - first, 0) : stop - first]


def write_synthetic_survey(
    out: str, galaxies: int, seed: int, galaxies_per_shard: int, photometry: Photometry = PLAIN
) -> Survey:
    """Write a survey of synthetic galaxies and return it. Raises InputError if `out` is not empty."""
    batches = generate_batches(galaxies, seed, photometry=photometry)
    return write_survey(out, batches, galaxies, galaxies_per_shard, FIELDS)


def _draw(seed: int, block: int, photometry: Photometry) -> Galaxies:
    """Return the BLOCK galaxies of a block."""
    rng = np.random.default_rng([seed, block])
    redshift = _redshifts(rng)
    # Distant galaxies enter a spectroscopic sample mostly as luminous red ones.
    old = rng.random(BLOCK) < np.clip(0.5 + 1.2 * redshift, 0, 0.97)
    age = np.where(old, rng.beta(9, 1.5, BLOCK), rng.beta(1.5, 4, BLOCK))
    dust = rng.exponential(np.where(old, 0.03, 0.12)).clip(0, 0.5)
    # A flux limit: near galaxies are faint ones, far galaxies are luminous ones.
    luminosity = -17.5 - 5.3 * redshift / (redshift + 0.05) + rng.normal(0, 0.4, BLOCK)
    flux = nanomaggies(apparent_magnitudes(redshift, age, dust, luminosity) + np.array(photometry.colour_shift))
    sky_noise = SKY_NOISE * photometry.noise

    kpc = 4.0 * 10 ** (-0.15 * (luminosity + 21.5) + rng.normal(0, 0.12, BLOCK))
    kpc_per_arcsec = luminosity_distance(redshift) / (1 + redshift) ** 2 * 1e3 * np.pi / 648000
    radius = (kpc / kpc_per_arcsec / PIXEL_ARCSEC).clip(0.5, 16)
    index = (1 + 3 * age + rng.normal(0, 0.3, BLOCK)).clip(0.5, 6)
    axis_ratio = rng.uniform(np.where(old, 0.5, 0.2), 1.0)
    angle, offset = rng.uniform(0, np.pi, BLOCK), rng.normal(0, 0.3, (2, BLOCK))
    image = _convolve(_sersic(radius, index, axis_ratio, angle, offset))
    image *= flux.astype(np.float32)[:, :, None, None]
    image += sky_noise.astype(np.float32)[:, None, None] * rng.standard_normal((BLOCK, *IMAGE_SHAPE), np.float32)

    # A model magnitude weights the pixels that the galaxy covers, including the PSF.
    area = 4 * np.pi * (radius[:, None] ** 2 * axis_ratio[:, None] / 2 + _psf_sigma() ** 2)
    measured = flux + rng.standard_normal((BLOCK, 5)) * sky_noise * np.sqrt(area)
    magnitude = asinh_magnitude(measured) + rng.normal(0, CALIBRATION_ERROR, (BLOCK, 5))
    return Galaxies(image, magnitude, redshift, np.arange(block * BLOCK, (block + 1) * BLOCK, dtype=np.int64))


def _redshifts(rng: np.random.Generator) -> Array:
    """Draw redshifts of a flux-limited main sample (median near 0.1) and of the luminous red galaxies beyond it."""
    main = rng.random(BLOCK) < 0.55
    drawn = np.where(main, rng.gamma(2.6, 0.045, BLOCK), rng.normal(0.38, 0.09, BLOCK))
    low, high = REDSHIFT_RANGE
    return np.where((drawn > low) & (drawn < high), drawn, rng.uniform(low, high, BLOCK))


def luminosity_distance(redshift: Array) -> Array:
    """Return the luminosity distance in Mpc of redshifts between 0 and 1, flat LambdaCDM with H0 70 and Omega_m 0.3.

    D_L = (1 + z) c/H0 * integral of dz / sqrt(Omega_m (1+z)^3 + 1 - Omega_m) (Hogg 1999, astro-ph/9905116).
    """
    grid = np.linspace(0, 1, 2001)
    inverse = 1 / np.sqrt(OMEGA_M * (1 + grid) ** 3 + 1 - OMEGA_M)
    comoving = np.concatenate([[0], np.cumsum((inverse[1:] + inverse[:-1]) / 2 * np.diff(grid))])
    return np.asarray((1 + redshift) * LIGHT_SPEED / H0 * np.interp(redshift, grid, comoving))


def spectrum(wavelength: Array, age: Array, dust: Array) -> Array:
    """Return the flux per unit frequency at rest-frame wavelengths in Angstrom, in arbitrary units, by broadcasting.

    Two broken power laws, f_nu ~ (wavelength/4000)^slope with a step at 4000 Angstrom, smoothed over 60 Angstrom: an
    old population (strong break, steep ultraviolet decline) and a young one (weak break, flat), mixed by `age`
    (0 young, 1 old) as fractions of the light at 4000 Angstrom; dimmed by `dust`, the colour excess E(B-V).
    """
    x = np.log(wavelength / BREAK)
    above = 1 / (1 + np.exp((BREAK - wavelength) / 60))
    old = np.exp(x * (1.1 * above + 5.0 * (1 - above))) * (above + (1 - above) / 1.9)
    young = np.exp(x * (0.4 * above + 0.8 * (1 - above))) * (above + (1 - above) / 1.2)
    return (age * old + (1 - age) * young) * 10 ** (-0.4 * dust * attenuation(wavelength))


def attenuation(wavelength: Array) -> Array:
    """Return the dust attenuation k = A/E(B-V) at wavelengths of 1200 to 22000 Angstrom.

    The attenuation curve is equation 4 of Calzetti et al. 2000.
    """
    inverse = 1e4 / wavelength  # 1/micron
    blue = -2.156 + inverse * (1.509 + inverse * (-0.198 + inverse * 0.011))
    red = -1.857 + 1.040 * inverse
    return 2.659 * np.where(wavelength < 6300, blue, red) + 4.05


def apparent_magnitudes(redshift: Array, age: Array, dust: Array, luminosity: Array) -> Array:
    """Return true AB magnitudes (N, 5); `luminosity` (N,) is the absolute magnitude at rest-frame 6166 Angstrom.

    m = M + 5 log10(D_L / 10 pc) - 2.5 log10((1+z) <f_nu> / f_nu(6166)), where <f_nu> is the mean over the band of
    the redshifted spectrum, weighted by transmission per photon (Hogg et al. 2002, astro-ph/0210394). The
    transmission is a flat top with rounded edges, exp(-ln 2 (2 offset/width)^6), at the band's wavelength and width.
    """
    steps = np.linspace(-0.7, 0.7, 29)  # in widths
    observed = WAVELENGTH[:, None] + steps * WIDTH[:, None]  # (5, 29)
    weight = np.exp(-np.log(2) * (2 * steps) ** 6) / observed
    weight /= weight.sum(axis=1, keepdims=True)
    emitted = observed / (1 + redshift[:, None, None])  # (N, 5, 29)
    mean = (spectrum(emitted, age[:, None, None], dust[:, None, None]) * weight).sum(axis=2)  # (N, 5)
    relative = (1 + redshift[:, None]) * mean / spectrum(np.array(REFERENCE), age, dust)[:, None]
    modulus = 5 * np.log10(luminosity_distance(redshift) * 1e5)
    return np.asarray((luminosity + modulus)[:, None] - 2.5 * np.log10(relative))


def nanomaggies(magnitude: Array) -> Array:
    """Return the flux of AB magnitudes in nanomaggies: 1 nanomaggy is magnitude 22.5."""
    return np.asarray(10 ** ((22.5 - magnitude) / 2.5))


def asinh_magnitude(flux: Array) -> Array:
    """Return the magnitudes (N, 5) of fluxes (N, 5) in nanomaggies that noise may have made negative.

    m = -2.5/ln 10 * (asinh(f / 2b) + ln b), f in maggies (Lupton, Gunn & Szalay 1999, with the b of SDSS).
    """
    return np.asarray(-2.5 / np.log(10) * (np.arcsinh(flux * 1e-9 / (2 * SOFTENING)) + np.log(SOFTENING)))


def _sersic(radius: Array, index: Array, axis_ratio: Array, angle: Array, offset: Array) -> NDArray[np.float32]:
    """Return unscaled profiles (N, side, side): exp(-b (r/radius)^(1/n)), b = 2n - 1/3 (Ciotti & Bertin 1999).

    Radius (half the light) and offset (2, N) from the centre in pixels, angle in radians.
    """
    side = IMAGE_SHAPE[1] + 2 * _MARGIN
    centre = np.arange(side) - (side - 1) / 2
    x, y = centre - offset[0, :, None, None], centre[:, None] - offset[1, :, None, None]
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    major, minor = x * cosine + y * sine, (y * cosine - x * sine) / axis_ratio[:, None, None]
    # A quarter pixel added to r rounds the cusp, which one sample per pixel would exaggerate.
    squared = (major**2 + minor**2 + 0.25**2) / radius[:, None, None] ** 2
    power = np.power(squared.astype(np.float32), (0.5 / index).astype(np.float32)[:, None, None])
    return np.exp(-(2 * index - 1 / 3).astype(np.float32)[:, None, None] * power)


def _psf_sigma() -> Array:
    return np.asarray(PSF_FWHM / PIXEL_ARCSEC / np.sqrt(8 * np.log(2)))  # pixels, (5,)


def _convolve(profile: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convolve profiles (N, side, side) with the Gaussian PSF of each band to cutouts (N, 5, 32, 32) of sum 1.

    A Gaussian is separable, so rows and columns are two matrix products. The flux of a galaxy is that of its cutout.
    """
    side = profile.shape[1]
    distance = np.arange(_MARGIN, side - _MARGIN)[:, None] - np.arange(side)  # (32, side)
    kernel = np.exp(-0.5 * (distance / _psf_sigma()[:, None, None]) ** 2).astype(np.float32)  # (5, 32, side)
    image: NDArray[np.float32] = np.matmul(np.matmul(kernel, profile[:, None]), kernel.transpose(0, 2, 1))
    image /= image.sum(axis=(2, 3), keepdims=True)
    return image
