"""Test that what a file states of bands, units, scale, masks and packed values is obeyed exactly, or refused."""

import numpy as np
import pytest
from astropy.io import fits

from cosmicai.surveys.bands import parse_bands
from cosmicai.surveys.ingest.pixels import PixelConversion, to_cutouts
from support.gate import (
    COLUMNS,
    GOOD,
    ROWS,
    ZIRGU,
    images,
    ingest,
    refusal,
    table,
    write_fits,
    write_h5,
    write_npz,
)

REVERSED = np.ascontiguousarray(GOOD.image[:, ZIRGU])
LETTERS = ["z", "i", "r", "g", "u"]
RNG = np.random.default_rng(3)


# Bands.


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("zirgu", "zirgu"), (b"zirgu", "zirgu"), ("z,i,r,g,u", "zirgu"), ("Z I R G U", "ZIRGU"), (str(LETTERS), None),
        (LETTERS, "zirgu"), (np.array(LETTERS, "S"), "zirgu"), (np.array([LETTERS] * 3, "S1"), "zirgu"),
        (np.array(["zirgu"] * 3), "zirgu"), (np.array(["zirgu"], object), "zirgu"), (np.array([b"zirgu"] * 5), "zirgu"),
        (5, ""), (np.arange(5), ""), (np.array([3551.0, 4686, 6166, 7480, 8932]), ""), (np.array([], "S1"), ""),
    ],
)  # fmt: skip
def test_bands_are_read_in_every_spelling(value, expected):
    assert parse_bands(value) == (("['z'", "'i'", "'r'", "'g'", "'u']") if expected is None else tuple(expected))


@pytest.mark.parametrize(
    "value", [np.arange(5)[::-1], np.array(["zirgu", "ugriz"]), np.array([LETTERS, LETTERS[::-1]])]
)
def test_orders_that_differ_or_are_unclear_are_refused(value):
    with pytest.raises(ValueError):
        parse_bands(value)


@pytest.mark.parametrize(
    "cards",
    [
        {"BANDS": "zirgu"}, {"BANDS": "z,i,r,g,u"}, {"FILTERS": "sdss_z sdss_i sdss_r sdss_g sdss_u"},
        {f"BAND{i}": band for i, band in enumerate(LETTERS)}, {f"BAND{i + 1}": band for i, band in enumerate(LETTERS)},
        {f"FILTER{i + 1}": f"DES-{band.upper()}" for i, band in enumerate(LETTERS)}, {"FILTER": "ZIRGU"},
        {f"FILTER{i}": f"SDSS {band}" for i, band in enumerate(LETTERS)},
        {f"BAND{i}": f"{band} DECam c0001 4720.0" for i, band in enumerate(LETTERS)},
        {"BANDS": str(LETTERS)},
    ],
    ids=str,
)  # fmt: skip
def test_a_fits_header_states_the_order(tmp_path, cards):
    source = write_fits(tmp_path, fits.PrimaryHDU(REVERSED), table(), cards=cards)
    found, notices = ingest(tmp_path, source)
    np.testing.assert_array_equal(found.image, GOOD.image)
    np.testing.assert_array_equal(found.magnitude, GOOD.magnitude)
    assert "in the order u g r i z" in " ".join(notices)


@pytest.mark.parametrize(
    "hold",
    [
        lambda folder: write_npz(folder, image=REVERSED, bands=np.array(LETTERS)),
        lambda folder: write_npz(folder, image=REVERSED, filters="zirgu"),
        lambda folder: write_npz(folder, image=REVERSED, wavebands="zirgu"),
        lambda folder: write_npz(folder, image=REVERSED, band=np.array([LETTERS] * ROWS, "S1")),
        lambda folder: write_npz(folder, image=np.moveaxis(REVERSED, 1, -1), bands="zirgu"),
        lambda folder: write_h5(folder, {"image": {"bands": "zirgu"}}, image=REVERSED),
        lambda folder: write_h5(folder, {"/": {"Filters": LETTERS}}, image=REVERSED),
        lambda folder: write_h5(folder, {"image": {"band": np.array(LETTERS, "S")}}, image=REVERSED),
        lambda folder: write_h5(folder, image=REVERSED, bands=np.array(LETTERS, "S")),
        lambda folder: write_h5(folder, image=REVERSED, band=np.array([LETTERS] * ROWS, "S")),
        lambda folder: write_h5(folder, image=REVERSED, band=[b"zirgu"] * ROWS),
        lambda folder: write_grouped(folder, {"g": {"bands": "zirgu"}}),
        lambda folder: write_grouped(folder, {"/": {"bands": "zirgu"}}),
        lambda folder: write_grouped(folder, {}, bands=LETTERS),
        lambda folder: write_compound(folder, ".h5"),
        lambda folder: write_compound(folder, ".npy"),
        lambda folder: write_siblings(folder),
    ],
)
@pytest.mark.parametrize("same_order", [False, True])
def test_arrays_and_attributes_state_the_order(tmp_path, hold, same_order, monkeypatch):
    if same_order:
        monkeypatch.setitem(COLUMNS, "magnitude", np.ascontiguousarray(GOOD.magnitude[:, ZIRGU]))
    found, _ = ingest(tmp_path, hold(tmp_path))
    np.testing.assert_array_equal(found.image, GOOD.image)
    np.testing.assert_array_equal(found.magnitude, GOOD.magnitude)


def write_grouped(folder, attributes, **beside):
    return write_h5(
        folder, attributes, image=None, magnitude=None, redshift=None, objid=None, g__image=REVERSED,
        g__magnitude=COLUMNS["magnitude"], **beside,
    )  # fmt: skip


def write_compound(folder, suffix):
    dtype = [("image", "<f4", (5, 32, 32)), ("magnitude", "<f8", 5), ("bands", "S5")]
    rows = np.zeros(ROWS, dtype)
    rows["image"], rows["magnitude"], rows["bands"] = REVERSED, COLUMNS["magnitude"], b"zirgu"
    if suffix == ".npy":
        np.save(folder / "a.npy", rows)
        return folder / "a.npy"
    return write_h5(folder, image=None, magnitude=None, redshift=None, objid=None, galaxies=rows)


def write_siblings(folder):
    np.save(folder / "image.npy", REVERSED)
    np.save(folder / "magnitude.npy", COLUMNS["magnitude"])
    np.save(folder / "bands.npy", np.array(LETTERS))
    return folder / "image.npy"


@pytest.mark.parametrize(
    ("bands", "named"), [("grz", "u, i missing"), ("grizy", "u missing; y not usable"), ("uugri", "z missing")]
)
def test_other_bands_are_refused_by_name(tmp_path, bands, named):
    assert named in refusal(tmp_path, write_fits(tmp_path, cards={"BANDS": bands}))
    assert named in refusal(tmp_path, write_h5(tmp_path, {"/": {"bands": bands}}))
    assert named in refusal(tmp_path, write_npz(tmp_path, bands=bands))


def test_several_orders_in_one_file_are_refused(tmp_path):
    assert "one order" in refusal(tmp_path, write_h5(tmp_path, {"image": {"bands": "zirgu", "filters": "ugriz"}}))
    assert "several orders" in refusal(tmp_path, write_npz(tmp_path, bands="zirgu", filters="ugriz"))
    rows = np.array([LETTERS] * (ROWS - 1) + [LETTERS[::-1]], "S1")
    assert "one order" in refusal(tmp_path, write_h5(tmp_path, band=rows))


def test_magnitudes_may_state_their_own_order(tmp_path):
    source = write_h5(tmp_path, {"magnitude": {"bands": "zirgu"}}, magnitude=GOOD.magnitude[:, ZIRGU])
    np.testing.assert_array_equal(ingest(tmp_path, source)[0].magnitude, GOOD.magnitude)
    assert "contradicts --magnitude-bands" in refusal(tmp_path, source, magnitude_bands="ugriz")


def test_the_order_of_magnitudes_is_asked_for_where_pixels_do_not_tell(tmp_path):
    source = write_npz(tmp_path, image=np.ones_like(REVERSED), bands="zirgu")
    assert "say it with --magnitude-bands" in refusal(tmp_path, source)
    found, _ = ingest(tmp_path, source, magnitude_bands="z,i,r,g,u")
    np.testing.assert_array_equal(found.magnitude, GOOD.magnitude[:, ZIRGU])


# Units.

JANSKY = 1e6 / 3.631  # nanomaggies


@pytest.mark.parametrize(
    ("cards", "factor"),
    [
        ({"BUNIT": "nanomaggy"}, 1), ({"BUNIT": "nmgy"}, 1), ({"BUNIT": "1e-9 maggy"}, 1), ({"BUNIT": "maggy"}, 1e9),
        ({"BUNIT": "10**-9 maggies"}, 1), ({"BUNIT": "nanomaggies/pixel"}, 1), ({"BUNIT": "Jy"}, JANSKY),
        ({"BUNIT": "uJy"}, JANSKY / 1e6), ({"BUNIT": "nJy"}, JANSKY / 1e9), ({"BUNIT": "mJy"}, JANSKY / 1e3),
        ({"BUNIT": "adu", "MAGZERO": 25.0}, 0.1), ({"BUNIT": "COUNTS", "ZP": 27.5}, 0.01),
        ({"BUNIT": "electron", "PHOTZP": 20.0}, 10), ({"MAGZPT": 25}, 0.1), ({"MAGZERO": 22.5}, 1),
        ({"BUNIT": "nanomaggy", "MAGZERO": 30.0}, 1), ({}, 1),
    ],
    ids=str,
)  # fmt: skip
def test_pixels_become_nanomaggies(tmp_path, cards, factor):
    expected = (GOOD.image.astype(np.float64) * factor).astype(np.float32)
    np.testing.assert_allclose(images(tmp_path, write_fits(tmp_path, cards=cards)), expected, rtol=2e-7)
    attributes = {name.lower(): value for name, value in cards.items()}
    on_file = write_h5(tmp_path, {"/": attributes})
    np.testing.assert_allclose(images(tmp_path, on_file), expected, rtol=2e-7)
    on_dataset = write_h5(tmp_path, {"image": attributes})
    np.testing.assert_allclose(images(tmp_path, on_dataset), expected, rtol=2e-7)
    np.testing.assert_allclose(images(tmp_path, write_npz(tmp_path, **attributes)), expected, rtol=2e-7)


@pytest.mark.parametrize("unit", ["MJy/sr", "adu", "count/s", "erg/s/cm2/Hz", "Jy/beam", "1e-17 erg", "MJY"])
def test_units_without_an_exact_conversion_are_refused(tmp_path, unit):
    assert repr(unit) in refusal(tmp_path, write_fits(tmp_path, cards={"BUNIT": unit}))
    assert repr(unit) in refusal(tmp_path, write_h5(tmp_path, {"image": {"units": unit}}))


def test_fluxes_are_no_magnitudes(tmp_path):
    hdu = table()
    hdu.columns["MAGNITUDE"].unit = "nanomaggy"
    assert "magnitudes are in 'nanomaggy'" in refusal(tmp_path, write_fits(tmp_path, fits.PrimaryHDU(GOOD.image), hdu))
    assert "magnitudes are in 'nJy'" in refusal(tmp_path, write_h5(tmp_path, {"magnitude": {"unit": "nJy"}}))


# Pixel scale.

DEGREES = 0.262 / 3600
TURNED = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]]) * DEGREES
TYPES = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
SCALES = [
    {"CD1_1": -DEGREES, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": DEGREES},
    {f"CD{i + 1}_{j + 1}": TURNED[i, j] for i in range(2) for j in range(2)} | TYPES,
    {"CDELT1": -DEGREES, "CDELT2": DEGREES} | TYPES,
    {"CDELT1": 2 * DEGREES, "CDELT2": 2 * DEGREES, "PC1_1": -0.5, "PC2_2": 0.5} | TYPES,
    {"CDELT1": 0.262, "CDELT2": 0.262, "CUNIT1": "arcsec", "CUNIT2": "arcsec"} | TYPES,
    {"CDELT1": 0.262 / 60, "CDELT2": 0.262 / 60, "CUNIT1": "arcmin", "CUNIT2": "arcmin"} | TYPES,
    {"CTYPE1": "BAND", "CTYPE2": "RA---TAN", "CTYPE3": "DEC--TAN", "CD1_1": 1.0, "CD2_2": DEGREES, "CD3_3": DEGREES},
    {"PIXSCALE": 0.262},
]


@pytest.mark.parametrize("cards", SCALES, ids=str)
def test_another_pixel_scale_is_refused_accepted_or_resampled(tmp_path, cards):
    image = np.pad(GOOD.image, [(0, 0), (0, 0), (16, 16), (16, 16)])
    source = write_fits(tmp_path, fits.PrimaryHDU(image), table(), cards=cards)
    assert "pixels are of 0.262 arcsec" in refusal(tmp_path, source)
    np.testing.assert_array_equal(images(tmp_path, source, accept_pixel_scale=True), GOOD.image)
    found, notices = ingest(tmp_path, source, resample=True)
    np.testing.assert_allclose(found.image.sum(axis=(2, 3)), GOOD.image.sum(axis=(2, 3)), rtol=1e-5, atol=1e-4)
    assert any("resampled from 0.262 to 0.396 arcsec" in notice for notice in notices)


@pytest.mark.parametrize(
    "cards", [{"CD1_1": 0.396 / 3600, "CD2_2": 0.39 / 3600}, {"CTYPE1": "LINEAR", "CDELT1": 7.0, "CDELT2": 7.0},
              {"CD1_1": 1.0, "CD2_2": 1.0}, {"CDELT1": 1.0, "CDELT2": 1.0}],
)  # fmt: skip
def test_the_scale_of_sdss_and_coordinates_of_pixels_are_no_matter(tmp_path, cards):
    np.testing.assert_array_equal(images(tmp_path, write_fits(tmp_path, cards=cards)), GOOD.image)


def test_pixels_that_are_not_square_are_refused(tmp_path):
    source = write_fits(tmp_path, cards={"CD1_1": 0.2 / 3600, "CD2_2": 0.784 / 3600})
    assert "pixels are of 0.2 x 0.784 arcsec" in refusal(tmp_path, source)


@pytest.mark.parametrize("value", [0.262, "0.262", "0.262 arcsec", np.full(5, 0.262), np.float32(0.262)], ids=repr)
def test_attributes_state_the_pixel_scale(tmp_path, value):
    assert "0.262 arcsec" in refusal(tmp_path, write_h5(tmp_path, {"/": {"pixel_scale": value}}))
    assert "0.262 arcsec" in refusal(tmp_path, write_npz(tmp_path, pixel_scale=value))


@pytest.mark.parametrize("value", [np.nan, 0.0, -0.396, 1e9])
def test_a_pixel_scale_that_none_can_have_is_refused(tmp_path, value):
    source = write_h5(tmp_path, {"image": {"pixscale": value}})
    for options in ({}, {"resample": True}, {"accept_pixel_scale": True}):
        assert "expected about 0.396" in refusal(tmp_path, source, **options)


@pytest.mark.parametrize("scale", [0.2, 0.262, 0.5])
def test_resampling_is_what_brute_force_gives(scale):
    side = 2 * int(np.ceil(32 * 0.396 / scale / 2)) + 2
    image = RNG.normal(size=(1, 5, side, side)).astype(np.float32)
    found = to_cutouts(image, PixelConversion(resample_from=scale))
    fine, ratio = 500, 0.396 / scale  # parts of an old pixel along each axis
    position = (np.arange(side * fine) + 0.5) / fine - side / 2
    new = np.floor(position / ratio + 16).astype(int)
    share = np.zeros((32, side))
    inside = (new >= 0) & (new < 32)
    np.add.at(share, (new[inside], np.arange(side * fine)[inside] // fine), 1 / fine)
    np.testing.assert_allclose(found[0], share @ image[0].astype(np.float64) @ share.T, atol=0.03)


def test_a_point_keeps_its_flux_and_its_place_when_resampled():
    image = np.zeros((1, 5, 64, 64), np.float32)
    image[0, :, 40, 20] = 3.0
    found = to_cutouts(image, PixelConversion(resample_from=0.262))[0, 0].astype(np.float64)
    assert found.sum() == pytest.approx(3.0, rel=1e-6)
    rows, columns = np.nonzero(found)
    assert abs((rows.mean() - 15.5) * 0.396 - (40 - 31.5) * 0.262) < 0.2
    assert abs((columns.mean() - 15.5) * 0.396 - (20 - 31.5) * 0.262) < 0.2


def test_a_bad_pixel_spoils_only_the_new_pixels_it_lies_in():
    image = np.ones((2, 5, 64, 64), np.float32)
    image[0, 2, 32, 32], image[1, 0, 0, 0] = np.nan, np.inf  # the second is outside the cutout
    found = to_cutouts(image, PixelConversion(resample_from=0.262))
    assert np.argwhere(np.isnan(found)).tolist() == [[0, 2, 16, 16]]
    np.testing.assert_allclose(found[1], (0.396 / 0.262) ** 2, rtol=1e-6)


# Masks.

SPOILED = RNG.random(GOOD.image.shape) < 0.01
BLANKED = np.where(SPOILED, np.nan, GOOD.image)


@pytest.mark.parametrize(
    ("name", "values", "request_"),
    [
        ("mask", SPOILED, "mask"), ("mask", ~SPOILED, "mask"), ("MASK", SPOILED.astype("u1"), "mask=nonzero"),
        ("ivar", np.where(SPOILED, 0, 2.5), "ivar"), ("image_invvar", np.where(SPOILED, np.nan, 1), "image_invvar"),
        ("dq", SPOILED * 64, "DQ"), ("weight", np.where(SPOILED, 0.0, 1.0), "weight=zero"),
        ("mask", np.where(SPOILED, 0, 9).astype("i4"), "mask=zero"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_masks_of_every_kind_blank_pixels(tmp_path, name, values, request_):
    stored = values.astype("u1") if values.dtype == np.bool_ else values
    np.testing.assert_array_equal(images(tmp_path, write_h5(tmp_path, **{name: values}), mask=request_), BLANKED)
    np.testing.assert_array_equal(images(tmp_path, write_npz(tmp_path, **{name: values}), mask=request_), BLANKED)
    extension = fits.ImageHDU(stored, name=name.upper())
    source = write_fits(tmp_path, fits.PrimaryHDU(GOOD.image), extension, table())
    np.testing.assert_array_equal(images(tmp_path, source, mask=request_), BLANKED)
    found, notices = ingest(tmp_path, source)
    np.testing.assert_array_equal(found.image, GOOD.image)
    assert any("is not used; blank the pixels it marks with --mask NAME" in notice for notice in notices)


def test_masks_follow_the_order_of_the_bands(tmp_path):
    columns = {"image": REVERSED, "mask": SPOILED[:, ZIRGU]}
    np.testing.assert_array_equal(images(tmp_path, write_npz(tmp_path, bands="zirgu", **columns), mask="mask"), BLANKED)
    last = {name: np.moveaxis(values, 1, -1) for name, values in columns.items()}
    np.testing.assert_array_equal(images(tmp_path, write_npz(tmp_path, bands="zirgu", **last), mask="mask"), BLANKED)


def test_a_mask_that_is_absent_or_unclear_is_refused(tmp_path):
    assert "has no mask dq" in refusal(tmp_path, write_npz(tmp_path, mask=SPOILED), mask="dq")
    half = np.arange(SPOILED.size).reshape(SPOILED.shape) % 2
    assert "mask=zero or --mask mask=nonzero" in refusal(tmp_path, write_npz(tmp_path, mask=half), mask="mask")


# Packed values.


@pytest.mark.parametrize(
    ("dtype", "compressed"),
    [*((dtype, False) for dtype in ("u1", "i2", "i4", "i8", "u2", "u4", "i1")),
     *((dtype, True) for dtype in ("u1", "i2", "i4", "u2", "u4"))],  # the others cannot be compressed
)  # fmt: skip
@pytest.mark.parametrize("scaled", [False, True])
def test_blank_pixels_are_nan_in_every_kind_of_fits_integers(tmp_path, dtype, compressed, scaled):
    values = RNG.integers(2, 100, (ROWS, 5, 32, 32)).astype(dtype)
    values[0, 0, 5, 5] = 77
    offset = {"u2": 2**15, "u4": 2**31, "i1": -128}.get(dtype, 0)
    stored_as = {"u2": "i2", "u4": "i4", "i1": "u1"}.get(dtype, dtype)
    stored = (values.astype(np.int64) - offset).astype(stored_as)
    hdu = fits.CompImageHDU(stored, name="IMAGE") if compressed else fits.ImageHDU(stored, name="IMAGE")
    hdu.header["BLANK"] = 77 - offset
    scale, zero = (0.25, 3.0) if scaled else (1, offset)
    hdu.header.update({"BSCALE": scale, "BZERO": zero})
    source = write_fits(tmp_path, fits.PrimaryHDU(), hdu, table())
    expected = np.where(values == 77, np.nan, stored.astype(np.float64) * scale + zero).astype(np.float32)
    np.testing.assert_array_equal(images(tmp_path, source), expected)


def test_nan_survives_compression(tmp_path):
    image = BLANKED.astype(np.float32)
    hdu = fits.CompImageHDU(image, name="IMAGE", compression_type="GZIP_2", quantize_level=0)
    np.testing.assert_array_equal(images(tmp_path, write_fits(tmp_path, fits.PrimaryHDU(), hdu, table())), image)


@pytest.mark.parametrize(
    ("attributes", "dtype"),
    [
        ({"scale_factor": 0.5, "add_offset": -3.0, "_FillValue": np.int16(-99)}, "i2"),
        ({"scale_factor": 0.5, "add_offset": -3.0, "missing_value": np.array([-99, -98], "i2")}, "i2"),
        ({"_Unsigned": "true", "scale_factor": 0.5, "add_offset": -3.0, "_FillValue": np.uint8(157)}, "i1"),
        ({"scale_factor": np.array([0.5]), "add_offset": "-3.0", "missing_value": -99}, "f4"),
    ],
    ids=str,
)  # fmt: skip
def test_netcdf_attributes_are_obeyed(tmp_path, attributes, dtype):
    stored = RNG.integers(0, 100, (ROWS, 5, 32, 32)).astype(dtype)
    stored[0, 0, 5, 5] = -99
    values = stored.view("u1") if "_Unsigned" in attributes else stored
    expected = values * 0.5 - 3.0
    expected[0, 0, 5, 5] = np.nan
    np.testing.assert_array_equal(
        images(tmp_path, write_h5(tmp_path, {"image": attributes}, image=stored)), expected.astype(np.float32)
    )


def test_a_scale_per_band_and_packed_ids_are_refused(tmp_path):
    packed = write_h5(tmp_path, {"image": {"scale_factor": np.arange(5.0)}})
    assert "states scale_factor" in refusal(tmp_path, packed)
    assert "objid (objid) is packed" in refusal(tmp_path, write_h5(tmp_path, {"objid": {"add_offset": 5}}))


@pytest.mark.parametrize(("code", "dtype"), [("B", "u1"), ("I", "i2"), ("J", "i4"), ("K", "i8")])
@pytest.mark.parametrize("unsigned", [False, True])
def test_null_integers_of_tables_are_no_values(tmp_path, code, dtype, unsigned):
    offset = {"B": -128, "I": 2**15, "J": 2**31, "K": 2**63}[code] if unsigned else 0
    magnitude = RNG.integers(15, 25, (ROWS, 5))
    magnitude[1, 2], redshift, objid = 21, np.arange(ROWS) % 3, np.arange(ROWS) + 5
    shift = lambda values: (values.astype(object) - offset).astype(dtype)  # noqa: E731
    hdu = table(magnitude=shift(magnitude), redshift=shift(redshift), objid=shift(objid))
    for number, null in ((1, 21), (2, 2), (3, 7)):
        hdu.header[f"TNULL{number}"] = null - offset
        if unsigned:
            hdu.header[f"TZERO{number}"], hdu.header[f"TSCAL{number}"] = offset, 1
    source = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(GOOD.image), hdu]).writeto(source)
    found, _ = ingest(tmp_path, source)
    np.testing.assert_array_equal(found.magnitude, np.where(magnitude == 21, np.nan, magnitude))
    np.testing.assert_array_equal(found.redshift, np.where(redshift == 2, np.nan, redshift))
    np.testing.assert_array_equal(found.objid, np.where(objid == 7, -1, objid))


def test_nulls_are_compared_before_columns_are_scaled(tmp_path):
    stored = RNG.integers(1500, 2500, (ROWS, 5)).astype("i2")
    stored[3, 3] = 2000
    hdu = table(magnitude=stored)
    hdu.header.update({"TNULL1": 2000, "TSCAL1": 0.01, "TZERO1": 0.5})
    source = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(GOOD.image), hdu]).writeto(source)
    expected = np.where(stored == 2000, np.nan, stored * 0.01 + 0.5)
    np.testing.assert_array_equal(ingest(tmp_path, source)[0].magnitude, expected)
