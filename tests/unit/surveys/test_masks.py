"""Test masks that hold one value for all bands, in every format, and those beside images that are read in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from astropy.io import fits
from torch.utils.data import TensorDataset

from cosmicai.surveys.check import inspect_survey
from cosmicai.surveys.mask_arrays import fits_image
from cosmicai.surveys.survey import Survey, open_survey, resplit_survey
from support.gate import COLUMNS, GOOD, images, ingest, refusal, table, write_fits, write_h5, write_npz

RNG = np.random.default_rng(7)
GALAXIES, _, HEIGHT, WIDTH = GOOD.image.shape
BAD = RNG.random((GALAXIES, HEIGHT, WIDTH)) < 0.01
BLANKED = np.where(BAD[:, None], np.nan, GOOD.image)
EACH = RNG.random(GOOD.image.shape) < 0.01
LAST = np.moveaxis(GOOD.image, 1, -1)


def write_pt(folder: Path, *masks: np.ndarray, with_redshift: bool = True) -> Path:
    known = [GOOD.image, GOOD.magnitude.astype(np.float32), *[GOOD.redshift] * with_redshift, *masks]
    torch.save(TensorDataset(*(torch.from_numpy(np.ascontiguousarray(values)) for values in known)), folder / "a.pt")
    return folder / "a.pt"


def write_npy(folder: Path, **columns: Any) -> Path:
    for name, values in (COLUMNS | columns).items():
        np.save(folder / f"a_{name}.npy", values)
    return folder / "a_image.npy"


@pytest.mark.parametrize(
    ("shape", "fits_it"),
    [
        ((3, 5, 40, 40), True), ((3, 40, 40, 5), True), ((3, 40, 40), True), ((3, 1, 40, 40), True),
        ((3, 40, 40, 1), True), ((3, 2, 40, 40), False), ((3, 40), False), ((40, 40), False), ((3,), False),
        ((), False), ((2, 40, 40), False), ((3, 40, 32), False), ((1, 3, 40, 40), False),
    ],
)  # fmt: skip
def test_a_mask_has_a_value_per_pixel_for_each_band_or_for_all(shape, fits_it):
    assert fits_image(shape, (3, 5, 40, 40)) is fits_it
    assert fits_image(shape, (3, 40, 40, 5)) is fits_it


@pytest.mark.parametrize("shaped", [BAD, BAD[:, None], BAD[..., None]], ids=["N,H,W", "N,1,H,W", "N,H,W,1"])
@pytest.mark.parametrize("image", [GOOD.image, LAST], ids=["bands first", "bands last"])
@pytest.mark.parametrize(
    ("name", "values", "requested"),
    [
        ("mask", BAD, "mask"), ("mask", ~BAD, "mask"), ("ivar", np.where(BAD, 0, 2.5), "ivar"),
        ("DQ", BAD * np.int16(64), "dq"), ("weight", np.where(BAD, 0, 1).astype(">f4"), "weight=zero"),
    ],
    ids=["mask", "sound", "ivar", "dq", "weight"],
)  # fmt: skip
def test_one_mask_for_all_bands_blanks_every_band(tmp_path, shaped, image, name, values, requested):
    columns = {"image": image, name: values.reshape(shaped.shape)}
    stored = columns[name].astype("u1") if values.dtype == np.bool_ else columns[name]
    hdus = fits.PrimaryHDU(image), fits.ImageHDU(stored, name=name.upper()), table()
    sources = [write_h5(tmp_path, **columns), write_npz(tmp_path, **columns), write_fits(tmp_path, *hdus)]
    if name in ("mask", "ivar", "weight"):
        sources.append(write_npy(tmp_path, **columns))
    for source in sources:
        np.testing.assert_array_equal(images(tmp_path, source, mask=requested), BLANKED)
        found, notices = ingest(tmp_path, source)
        np.testing.assert_array_equal(found.image, GOOD.image)
        shown = name.upper() if source.suffix == ".fits" else name
        expected = f"{source}: {shown} beside the image is not used; blank the pixels it marks with --mask NAME"
        assert expected in notices


def test_one_mask_for_all_bands_in_a_file_of_one_galaxy(tmp_path):
    cards = {f"MAG_{band}": value for band, value in zip("UGRIZ", GOOD.magnitude[0], strict=True)}
    source = write_fits(
        tmp_path, fits.PrimaryHDU(GOOD.image[0]), fits.ImageHDU(BAD[0].astype("u1"), name="DQ"), cards=cards
    )
    np.testing.assert_array_equal(images(tmp_path, source, mask="DQ"), BLANKED[:1])


@pytest.mark.parametrize("write", [write_h5, write_npz, write_npy])
def test_a_mask_without_bad_pixels_at_its_end_is_whole(tmp_path, write):
    """Zeros at the end of an image mean that it was not written, but of a mask that the last galaxies are sound."""
    first = np.where(np.arange(GALAXIES)[:, None, None] < 3, BAD, False).astype("u1")
    blanked = np.where(first[:, None], np.nan, GOOD.image)
    np.testing.assert_array_equal(images(tmp_path, write(tmp_path, mask=first), mask="mask"), blanked)
    np.testing.assert_array_equal(images(tmp_path, write(tmp_path, mask=first * 0), mask="mask"), GOOD.image)
    np.testing.assert_array_equal(images(tmp_path, write(tmp_path, mask=first * 0)), GOOD.image)


@pytest.mark.parametrize("with_redshift", [True, False])
def test_a_tensor_behind_the_fields_of_a_partition_is_a_mask(tmp_path, with_redshift):
    for values, blanked in ((BAD, BLANKED), (~BAD, BLANKED), (EACH.astype("u1"), np.where(EACH, np.nan, GOOD.image))):
        source = write_pt(tmp_path, values, with_redshift=with_redshift)
        found, _ = ingest(tmp_path, source, mask="mask")
        np.testing.assert_array_equal(found.image, blanked)
        np.testing.assert_array_equal(found.redshift, GOOD.redshift if with_redshift else np.full(GALAXIES, np.nan))
    found, notices = ingest(tmp_path, source)
    np.testing.assert_array_equal(found.image, GOOD.image)
    assert f"{source}: mask beside the image is not used; blank the pixels it marks with --mask NAME" in notices


def test_several_masks_of_a_partition_are_numbered(tmp_path):
    source = write_pt(tmp_path, EACH, BAD)
    np.testing.assert_array_equal(images(tmp_path, source, mask="mask2"), BLANKED)
    assert "has no mask mask of one value per pixel, for each band or for all; it has mask1, mask2" in refusal(
        tmp_path, source, mask="mask"
    )


def test_a_partition_of_other_tensors_is_refused(tmp_path):
    expected = (
        "SOURCE holds {} tensors; expected image, magnitude and redshift, in this order, and behind them nothing but "
        "masks of one value per pixel"
    )
    assert refusal(tmp_path, write_pt(tmp_path, GOOD.objid)) == expected.format(4)
    assert refusal(tmp_path, write_pt(tmp_path, BAD, GOOD.objid)) == expected.format(5)


# Read in place.


def notices_of(survey: Survey) -> list[str]:
    """Return what `infer`, `launch` and `survey check` say of a survey, without what its pixels look like."""
    notices: list[str] = []
    inspect_survey(survey, False, notices.append)
    return [notice for notice in notices if "--mask" in notice]


@pytest.mark.parametrize("values", [EACH, BAD, np.where(BAD, 0, 2.5), BAD * 64], ids=["each", "all", "ivar", "bits"])
@pytest.mark.parametrize("name", ["mask", "ivar", "DQ", "image_mask", "invvar"])
def test_a_mask_beside_an_image_that_is_read_in_place_is_named(tmp_path, name, values):
    source = write_h5(tmp_path, **{name: values})
    expected = [
        f"{source}: {name} beside the image is not used where a file is read in place; blank the pixels it marks with "
        "`cosmicai ingest FILES --out SURVEY --mask NAME`"
    ]
    assert notices_of(open_survey(str(source))) == expected
    folder = open_survey(str(tmp_path))
    assert notices_of(folder) == expected
    assert list(resplit_survey(folder, str(tmp_path / "split"), 10).notices) == expected
    assert notices_of(open_survey(str(tmp_path / "split"))) == []  # the mask is not in the new survey


def test_masks_of_many_files_are_one_notice(tmp_path):
    for number, name in enumerate(["other", "mask", "ivar", "mask"], start=1):
        columns: dict[str, Any] = {name: EACH}
        write_h5(tmp_path, **columns).rename(tmp_path / f"{number}.h5")
    (found,) = notices_of(open_survey(str(tmp_path)))
    assert found.startswith(f"{tmp_path}/2.h5 and 2 more of its folder: ivar, mask beside the image is not used")


@pytest.mark.parametrize(
    "columns",
    [{}, {"weight": np.ones(GALAXIES)}, {"model": GOOD.image}, {"mask__image": EACH}],
    ids=["nothing", "weight of galaxies", "model", "in a group"],
)
def test_what_is_no_mask_of_the_image_is_not_named(tmp_path, columns):
    assert notices_of(open_survey(str(write_h5(tmp_path, **columns)))) == []


def test_a_mask_in_another_file_is_named_without_opening_it(tmp_path):
    source = write_h5(tmp_path)
    with h5py.File(source, "a") as file:
        file["mask"] = h5py.ExternalLink("absent.h5", "mask")
    (found,) = notices_of(open_survey(str(source)))
    assert found.startswith(f"{source}: mask beside the image is not used")
