"""Predict arrays from Python: to the same bits as a run, whatever the arrays are, or refused in one sentence."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table
from astropy.utils.masked import Masked

import cosmicai
from cosmicai import InputError, Predictor
from cosmicai.ranks.environment import Rank
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.quality import Flag
from cosmicai.surveys.shard import Galaxies
from support.helpers import flagged_galaxies, make_run, make_survey, run_worker, tiny_weights

ROWS = 150
BATCH = 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def galaxies() -> Galaxies:
    return flagged_galaxies(ROWS)


@pytest.fixture(scope="module")
def predictor(weights: str) -> Any:
    with Predictor(weights, engine="reference", batch_size=BATCH, threads=2) as opened:
        yield opened


def expect(predictor: Predictor, galaxies: Galaxies, rows: int = 4) -> np.ndarray[Any, Any]:
    return predictor.predict(galaxies.image[:rows], galaxies.magnitude[:rows]).redshift


@pytest.mark.parametrize("engine", ["reference", "openvino"])
@pytest.mark.parametrize("threads", [1, 2])
def test_arrays_have_the_redshifts_and_flags_of_a_run(tmp_path, weights, galaxies, engine, threads):
    survey = make_survey(tmp_path / "survey", galaxies, ROWS)
    run = make_run(survey, weights, str(tmp_path / "run"), engine=engine, batch_size=BATCH)
    run_worker(run, Rank(threads=1))
    summarize(run)
    catalogue = cosmicai.read_catalogue(run.uri)
    with Predictor(weights, engine=engine, batch_size=BATCH, threads=threads) as predictor:
        found = predictor.predict(galaxies.image, galaxies.magnitude)
    assert found.redshift.dtype == np.float32 and found.flag.dtype == np.uint8
    assert np.array_equal(found.redshift, catalogue["redshift_phot"], equal_nan=True)
    assert np.array_equal(found.flag, catalogue["flag"])
    assert {row: int(found.flag[row]) for row in np.flatnonzero(found.flag)} == {
        3: Flag.NONFINITE_PIXEL, 70: Flag.MISSING_MAGNITUDE, 100: Flag.INCOMPLETE_CUTOUT,
    }  # fmt: skip
    assert np.flatnonzero(np.isnan(found.redshift)).tolist() == [3, 70]
    whole = cosmicai.predict(
        galaxies.image, galaxies.magnitude, weights=weights, engine=engine, batch_size=BATCH, threads=threads
    )
    assert np.array_equal(whole, found.redshift, equal_nan=True)


def test_the_arrays_of_the_caller_stay_as_they_are(predictor, galaxies):
    image, magnitude = galaxies.image.copy(), galaxies.magnitude.copy()
    predictor.predict(image, magnitude)
    assert np.array_equal(image, galaxies.image, equal_nan=True)
    assert np.array_equal(magnitude, galaxies.magnitude)


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f8", "float128"])
def test_other_dtypes_of_the_same_numbers_give_the_same_redshifts(predictor, galaxies, dtype):
    magnitude = galaxies.magnitude[:4].astype("<f4")  # which every dtype here holds exactly
    expected = predictor.predict(galaxies.image[:4], magnitude)
    found = predictor.predict(galaxies.image[:4].astype(dtype), magnitude.astype(dtype))
    assert np.array_equal(found.redshift, expected.redshift, equal_nan=True)


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "u8"])
def test_integers_are_numbers_too(predictor, dtype):
    random = np.random.default_rng(1)
    image, magnitude = random.integers(0, 99, (3, 5, 32, 32)), random.integers(15, 22, (3, 5))
    expected = predictor.predict(image.astype("<f4"), magnitude.astype("<f8"))
    found = predictor.predict(image.astype(dtype), magnitude.astype(dtype))
    assert np.array_equal(found.redshift, expected.redshift) and np.array_equal(found.flag, expected.flag)


def test_lists_and_views_are_arrays_too(predictor, galaxies):
    expected = expect(predictor, galaxies, 2)
    found = predictor.predict(galaxies.image[:2].tolist(), galaxies.magnitude[:2].tolist())
    assert np.array_equal(found.redshift, expected)
    bands_last = np.ascontiguousarray(np.moveaxis(galaxies.image[:2], 1, -1))
    found = predictor.predict(np.moveaxis(bands_last, -1, 1), np.asfortranarray(galaxies.magnitude[:2]))
    assert np.array_equal(found.redshift, expected)


@pytest.mark.parametrize(("side", "before"), [(64, 16), (33, 0), (35, 1), (63, 15), (34, 1)])
def test_larger_images_are_cropped_to_the_galaxy_in_the_middle(predictor, galaxies, side, before):
    random = np.random.default_rng(2)
    larger = random.normal(size=(4, 5, side, side)).astype(np.float32)
    larger[:, :, before : before + 32, before : before + 32] = galaxies.image[:4]
    found = predictor.predict(larger, galaxies.magnitude[:4])
    assert np.array_equal(found.redshift, expect(predictor, galaxies), equal_nan=True)


def test_what_is_masked_is_missing(predictor, galaxies):
    pixels, bands = np.zeros((4, 5, 32, 32), np.bool_), np.zeros((4, 5), np.bool_)
    pixels[0, 2, 7, 7], bands[1, 4] = True, True
    expected = expect(predictor, galaxies).copy()
    expected[:2] = np.nan
    image, magnitude = galaxies.image[:4], galaxies.magnitude[:4]
    for mask in (np.ma.array, Masked):
        found = predictor.predict(mask(image, mask=pixels), mask(magnitude, mask=bands))
        assert np.array_equal(found.redshift, expected, equal_nan=True)
        assert found.flag.tolist() == [Flag.NONFINITE_PIXEL, Flag.MISSING_MAGNITUDE, 0, Flag.NONFINITE_PIXEL]
    counts = np.ma.array(np.full((4, 5), 18), mask=bands)  # integers, which have no NaN
    assert predictor.predict(image, counts).flag.tolist() == [0, Flag.MISSING_MAGNITUDE, 0, Flag.NONFINITE_PIXEL]


def test_units_of_astropy_are_obeyed(predictor, galaxies):
    expected = expect(predictor, galaxies)
    image, magnitude = galaxies.image[:4].astype(np.float64), galaxies.magnitude[:4]
    assert np.array_equal(predictor.predict(image * u.nmgy, magnitude * u.mag).redshift, expected, equal_nan=True)
    found = predictor.predict(image * 3.631 * u.uJy, magnitude * u.ABmag).redshift
    assert np.allclose(found, expected, rtol=0, atol=1e-5, equal_nan=True)


def test_no_galaxies_have_no_redshifts(predictor):
    found = predictor.predict(np.empty((0, 5, 32, 32)), np.empty((0, 5)))
    assert (found.redshift.shape, found.redshift.dtype) == ((0,), np.float32)
    assert (found.flag.shape, found.flag.dtype) == ((0,), np.uint8)


def test_threads_share_a_predictor(predictor, galaxies):
    expected = predictor.predict(galaxies.image, galaxies.magnitude)
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda _: predictor.predict(galaxies.image, galaxies.magnitude), range(8))
        for one in found:
            assert np.array_equal(one.redshift, expected.redshift, equal_nan=True)


def test_a_closed_predictor_says_so(weights, galaxies):
    with Predictor(weights, engine="reference", threads=1) as predictor:
        predictor.close()
    predictor.close()
    for call in (lambda: predictor.predict(galaxies.image, galaxies.magnitude), predictor.__enter__):
        with pytest.raises(InputError, match=r"^this Predictor is closed; open another one$"):
            call()


IMAGE, MAGNITUDE = np.zeros((2, 5, 32, 32), np.float32), np.full((2, 5), 18.0)
BANDS = "in the bands u, g, r, i, z, H = W >= 32"
REFUSED: list[tuple[Any, Any, str]] = [
    (
        np.zeros((2, 32, 32, 5)), MAGNITUDE,
        "images are (2, 32, 32, 5); expected (N, 5, H, W), as np.moveaxis(images, -1, 1) makes them",
    ),
    (IMAGE[0], MAGNITUDE, f"images are (5, 32, 32); expected (N, 5, H, W) {BANDS}"),
    (IMAGE[:, :4], MAGNITUDE, f"images are (2, 4, 32, 32); expected (N, 5, H, W) {BANDS}"),
    (np.zeros((2, 5, 64, 32)), MAGNITUDE, f"images are (2, 5, 64, 32); expected (N, 5, H, W) {BANDS}"),
    ([], [], f"images are (0,); expected (N, 5, H, W) {BANDS}"),
    (
        np.zeros((2, 5, 30, 30)), MAGNITUDE,
        "images are of 30 pixels a side; expected at least 32, cut out a larger part",
    ),
    (
        np.zeros((2, 5, 31, 31)), MAGNITUDE,
        "images are of 31 pixels a side; expected at least 33, cut out a larger part",
    ),
    (IMAGE, MAGNITUDE[0], "magnitudes are (5,); expected (N, 5), one each in u, g, r, i, z"),
    (IMAGE, MAGNITUDE[:, :4], "magnitudes are (2, 4); expected (N, 5), one each in u, g, r, i, z"),
    (IMAGE, MAGNITUDE[:1], "images are of 2 galaxies, magnitudes of 1; expected as many"),
    (IMAGE.astype(complex), MAGNITUDE, "images are of dtype complex128; expected real numbers"),
    (IMAGE, MAGNITUDE > 0, "magnitudes are of dtype bool; expected real numbers"),
    (IMAGE, MAGNITUDE.astype(str), "magnitudes are of dtype <U32; expected real numbers"),
    (None, MAGNITUDE, "images are of dtype object; expected real numbers"),
    (IMAGE, [[18] * 5, [18] * 4], "magnitudes are of different shapes; expected one array"),
    (
        IMAGE, Table(MAGNITUDE, names=list("ugriz")).as_array(),
        "magnitudes are a table; expected one array, as np.column_stack makes it of columns",
    ),
    (
        IMAGE * u.m, MAGNITUDE,
        "predict: pixels are in 'm'; expected nanomaggies, maggies, Jy, mJy, uJy, nJy or counts with a zero point; "
        "convert the pixels to nanomaggies",
    ),
    (
        IMAGE, MAGNITUDE * u.nmgy,
        "predict: magnitudes are in 'nmgy'; expected mag, as fluxes cannot be magnitudes exactly where they are "
        "negative; convert them as SDSS does (asinh magnitudes)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("images", "magnitudes", "sentence"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_other_arrays_are_refused_in_a_sentence(predictor, images, magnitudes, sentence):
    with pytest.raises(InputError) as refusal:
        predictor.predict(images, magnitudes)
    assert str(refusal.value) == sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": "x"}, "there is no engine 'x'; expected one of auto, openvino, native, cuda, reference"),
        (
            {"engine": "openvino", "precision": "float16"},
            "the engine openvino has no precision float16; expected float32 or bfloat16 or int8",
        ),
        ({"engine": "openvino", "device": "tpu"}, "the engine openvino has no device tpu; expected cpu"),
        ({"precision": "int8"}, "int8 is calibrated on a survey; use cosmicai.infer, or another precision"),
        ({"batch_size": 0}, "batch_size is 0; expected an integer of at least 1, or None"),
        ({"batch_size": "3"}, "batch_size is '3'; expected an integer of at least 1, or None"),
        ({"threads": 1.5}, "threads is 1.5; expected an integer of at least 1, or None"),
        ({"threads": -1}, "threads is -1; expected an integer of at least 1, or None"),
    ],
)
def test_other_options_are_refused_in_a_sentence(weights, options, sentence):
    with pytest.raises(InputError) as refusal:
        Predictor(weights, **options)
    assert str(refusal.value) == sentence


def test_weights_that_do_not_exist_are_named(tmp_path: Path):
    with pytest.raises(InputError) as refusal:
        Predictor(str(tmp_path / "absent.safetensors"))
    assert str(refusal.value) == f"cannot read {tmp_path}/absent.safetensors: it does not exist; check the path"
