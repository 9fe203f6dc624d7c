"""The views of a cutout: the eight symmetries of a square, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cosmicai.engines.base import EngineChoice
from cosmicai.engines.registry import open_engine
from cosmicai.models.weights import find_weights
from cosmicai.worker.views import make_view, predict_views
from support.helpers import random_galaxies, tiny_weights

CHOICE = EngineChoice("reference", "float32", "cpu", 8)

# The symmetries of a square, written with transposes and reversed axes alone.
SYMMETRIES: list[Callable[[NDArray[Any]], NDArray[Any]]] = [
    lambda image: image,
    lambda image: image[..., ::-1],
    lambda image: image[..., ::-1, :],
    lambda image: image[..., ::-1, ::-1],
    lambda image: image.swapaxes(-1, -2),
    lambda image: image.swapaxes(-1, -2)[..., ::-1],
    lambda image: image.swapaxes(-1, -2)[..., ::-1, :],
    lambda image: image.swapaxes(-1, -2)[..., ::-1, ::-1],
]


def test_the_views_are_the_eight_symmetries_of_a_square_and_no_two_are_the_same():
    image = random_galaxies(3).image
    views = [make_view(image, view) for view in range(8)]
    assert all(view.shape == image.shape and view.dtype == np.float32 for view in views)
    assert all(view.flags.c_contiguous for view in views)
    found = {view.tobytes() for view in views}
    assert len(found) == 8 and found == {np.ascontiguousarray(own(image)).tobytes() for own in SYMMETRIES}


def test_the_views_are_rotations_and_then_reflections_in_a_fixed_order():
    image = random_galaxies(2).image
    assert make_view(image, 0).tobytes() == image.tobytes()
    for turns in range(4):
        for galaxy, band in np.ndindex(2, 5):
            plane = image[galaxy, band]
            assert np.array_equal(make_view(image, turns)[galaxy, band], np.rot90(plane, turns))
            assert np.array_equal(make_view(image, 4 + turns)[galaxy, band], np.rot90(np.fliplr(plane), turns))


def test_a_view_of_a_view_is_a_view():
    image = random_galaxies(1).image
    views = {make_view(image, view).tobytes() for view in range(8)}
    again = {make_view(make_view(image, first), second).tobytes() for first in range(8) for second in range(8)}
    assert again == views


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    weights = tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    return open_engine(CHOICE, find_weights(weights), 1)


def test_one_view_is_what_the_engine_predicts(engine):
    galaxies = random_galaxies(20)
    redshift, spread = predict_views(engine, galaxies.image, galaxies.magnitude, 1)
    assert np.array_equal(redshift, engine.predict(galaxies.image, galaxies.magnitude)) and spread is None


def test_the_views_of_a_symmetric_cutout_do_not_differ(engine):
    galaxies = random_galaxies(20)
    # Whole numbers below 2^20, whose sum is exact in any order.
    every = np.array([own(np.round(galaxies.image * 1000)) for own in SYMMETRIES])
    image = (every.sum(axis=0) / 1024).astype(np.float32)
    redshift, spread = predict_views(engine, image, galaxies.magnitude, 8)
    assert np.array_equal(redshift, engine.predict(image, galaxies.magnitude))
    assert spread is not None and spread.dtype == np.float32 and not spread.any()


def test_mean_and_spread_are_those_of_the_engines_redshifts_in_float64(engine):
    galaxies = random_galaxies(20)
    each = [engine.predict(np.ascontiguousarray(own(galaxies.image)), galaxies.magnitude) for own in SYMMETRIES]
    redshift, spread = predict_views(engine, galaxies.image, galaxies.magnitude, 8)
    assert redshift.dtype == np.float32 and spread is not None and spread.dtype == np.float32
    wide = np.sort(np.array(each, np.float64), axis=0)
    mean = wide.sum(axis=0) / 8
    np.testing.assert_array_max_ulp(redshift, mean.astype(np.float32), 1)
    np.testing.assert_allclose(spread, np.sqrt(((wide - mean) ** 2).sum(axis=0) / 8), rtol=1e-6)
    assert (spread > 0).all()


def test_a_redshift_that_is_not_finite_makes_the_mean_so_without_a_warning():
    class Broken:
        name = precision = device = "broken"
        calls = 0

        def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
            self.calls += 1
            values = {3: [np.nan, 1, 1, 1], 5: [0, np.inf, 0, 3e38]}.get(self.calls, [0, 0, 0, 3e38])
            return np.array(values, np.float32)

        def peak_gpu_mb(self) -> float:
            return 0.0

    galaxies = random_galaxies(4)
    redshift, spread = predict_views(Broken(), galaxies.image, galaxies.magnitude, 8)
    assert np.isnan(redshift[0]) and np.isinf(redshift[1]) and redshift[2] == 0.125 and np.isfinite(redshift[3])
    assert spread is not None and np.isfinite(spread).tolist() == [False, False, True, True]
