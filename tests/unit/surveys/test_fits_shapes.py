"""Test that the same galaxies in every shape of FITS files give identical arrays, and that wrong files are refused."""

import gzip
import os
import shutil

import numpy as np
import pytest
from astropy.io import fits

from cosmicai.errors import InputError
from cosmicai.surveys.ingest.pixels import PixelConversion, smallest_side, to_cutouts
from support.fits_shapes import (
    BANDS,
    CARDS,
    WCS,
    header,
    image_table,
    open_five,
    open_one,
    write_band_files,
    write_cube,
    write_planes,
)
from support.gate import GOOD, ROWS, ZIRGU, images, ingest, write_fits


def assert_galaxy(values, row=3):
    rows = slice(row, row + 1) if isinstance(row, int) else row
    np.testing.assert_array_equal(values["image"], GOOD.image[rows])
    np.testing.assert_array_equal(values["magnitude"], GOOD.magnitude[rows])
    np.testing.assert_array_equal(values["redshift"], GOOD.redshift[rows])
    np.testing.assert_array_equal(values["objid"], GOOD.objid[rows])


def refused(opened, *arguments, **options):
    with pytest.raises(InputError) as caught:
        opened(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# One extension per band.


@pytest.mark.parametrize("name", ["{band}", "SDSS_{band}", "{band}-band", "SCI-{band}"])
@pytest.mark.parametrize("order", ["ugriz", "zirgu", "girzu"])
def test_extensions_are_known_by_their_names_in_any_order(tmp_path, name, order):
    values, source = open_one(write_planes(tmp_path / "a.fits", order, name))
    assert_galaxy(values)
    assert "".join(source.bands) == "".join(source.magnitude_bands) == "ugriz"
    assert source.flux_unit.text == "nanomaggy" and source.pixel_scale == pytest.approx(0.396)


@pytest.mark.parametrize("compressed", [False, True])
def test_extensions_are_known_by_their_cards(tmp_path, compressed):
    values, _ = open_one(write_planes(tmp_path / "a.fits", "zirgu", by_card=True, compressed=compressed))
    assert_galaxy(values)


@pytest.mark.parametrize("suffix", [".fits", ".FITS", ".fit", ".fits.gz", ".FITS.GZ", ".fits.fz"])
def test_every_ending_goes_through_the_gate(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_planes(tmp_path / "plain.fits", "zirgu", compressed=suffix.endswith("fz"))
    data = (tmp_path / "plain.fits").read_bytes()
    path.write_bytes(gzip.compress(data) if suffix.lower().endswith("gz") else data)
    found, _ = ingest(tmp_path, path)
    np.testing.assert_array_equal(found.image, GOOD.image[3:4])
    np.testing.assert_array_equal(found.magnitude, GOOD.magnitude[3:4])


def test_masks_of_each_band_become_one_and_others_are_named(tmp_path):
    path = write_planes(tmp_path / "a.fits", "girzu")
    spoiled = np.zeros((5, 32, 32), "u1")
    for number in range(5):
        spoiled[number, number, 2 * number] = 1
    with fits.open(path, mode="append") as file:
        for band in "zgiur":
            file.append(fits.ImageHDU(spoiled[BANDS.index(band)], name=f"MASK_{band}"))
        file.append(fits.ImageHDU(spoiled[0], name="IVAR_G"))
        file.append(fits.ImageHDU(np.ones((25, 25)), name="PSF"))
    values, source = open_one(path)
    assert_galaxy(values)
    np.testing.assert_array_equal(values["MASK"], spoiled[None])
    assert any("the images 11 IVAR_G, 12 PSF are not one for each band" in notice for notice in source.notices)
    np.testing.assert_array_equal(images(tmp_path, path, mask="mask"), np.where(spoiled, np.nan, GOOD.image[3])[None])


def test_bands_that_are_missing_twice_or_unknown_are_refused_by_name(tmp_path):
    path = tmp_path / "a.fits"
    assert "1 U, 2 G, 3 R, 4 I: its bands are u g r i (z missing)" in refused(open_one, write_planes(path, "ugri"))
    assert "one of them twice" in refused(open_one, write_planes(path, "ugrizz"))
    write_planes(path, "ugriz")
    with fits.open(path, mode="append") as file:
        file.append(fits.ImageHDU(GOOD.image[3, 0], name="y"))
    assert "y not usable" in refused(open_one, path)


def test_headers_that_contradict_names_units_or_sizes_are_refused(tmp_path):
    path = write_planes(tmp_path / "a.fits")
    fits.setval(path, "FILTER", value="z", ext=1)
    assert "HDU 1 U states the band z" in refused(open_one, path)
    fits.setval(write_planes(path), "BUNIT", value="Jy", ext=2)
    assert "the bands are in different units (u nanomaggy, g Jy, " in refused(open_one, path)
    assert "2 G (40, 40)" in refused(open_one, write_planes(path, g=np.ones((40, 40), "f4")))
    fits.setval(write_planes(path), "CD1_1", value=-0.2 / 3600, ext=2)
    fits.setval(path, "CD2_2", value=0.2 / 3600, ext=2)
    assert "pixels of different sizes in arcsec (u 0.396, g 0.2, " in refused(open_one, path)


def test_what_lies_beside_the_bands_and_other_shapes_of_them_are_no_matter(tmp_path):
    path = write_planes(tmp_path / "a.fits", r=GOOD.image[3, 2][None])
    with fits.open(path, mode="append") as file:
        file.append(fits.ImageHDU(np.ones((5, 25, 25), "f4"), name="PSF"))
        file.append(fits.ImageHDU(GOOD.image[3, 0], name="y"))
    assert "y not usable" in refused(open_one, path)
    assert_galaxy(open_one(path, hdus=tuple(BANDS))[0])
    assert_galaxy(open_one(path, hdus=("1", "2", "3", "4", "5"))[0])
    plain = tmp_path / "b.fits"
    fits.PrimaryHDU(np.zeros((32, 32))).writeto(plain)
    assert "HDU 0 PRIMARY has the shape (32, 32)" in refused(open_one, plain, hdus=("0",))
    assert set(open_one(path, hdus=tuple(BANDS), image_only=True)[0]) == {"image", "ra", "dec"}


def test_zero_points_may_differ_from_band_to_band(tmp_path):
    path = write_planes(tmp_path / "a.fits")
    for number in range(5):
        fits.setval(path, "BUNIT", value="adu", ext=number + 1)
        fits.setval(path, "MAGZERO", value=22.5 + 2.5 * number, ext=number + 1)
    values, source = open_one(path)
    factors = 10.0 ** -np.arange(5)
    np.testing.assert_allclose(values["image"], GOOD.image[3:4] * factors[:, None, None], rtol=1e-6)
    assert source.flux_unit.text == "nanomaggy" and "each by its own factor" in source.notices[0]


def test_blank_and_scaled_integers_of_one_band_are_obeyed(tmp_path):
    stored = np.arange(1024, dtype=np.int16).reshape(32, 32)
    path = write_planes(tmp_path / "a.fits", r=stored)
    with fits.open(path, mode="update", do_not_scale_image_data=True) as file:
        file["r"].header.update({"BLANK": 7, "BSCALE": 0.5, "BZERO": 3.0})
    expected = GOOD.image[3:4].astype(np.float64)
    expected[0, 2] = np.where(stored == 7, np.nan, stored * 0.5 + 3)
    np.testing.assert_array_equal(open_one(path)[0]["image"], expected)


# One file per band.


@pytest.mark.parametrize("pattern", ["3_{band}.fits", "{band}.fit"])
def test_five_files_are_one_galaxy(tmp_path, pattern):
    paths = write_band_files(tmp_path, pattern)
    values, source = open_five(paths)
    assert_galaxy(values)
    assert source.flux_unit.text == "nanomaggy" and source.pixel_scale == pytest.approx(0.396)
    zipped = [path.with_name(f"{path.name}.gz") for path in paths]
    for path, target in zip(paths, zipped, strict=True):
        target.write_bytes(gzip.compress(path.read_bytes()))
    assert_galaxy(open_five(zipped)[0])
    only, _ = open_five(paths, image_only=True)
    assert set(only) == {"image", "ra", "dec"}


def test_five_files_of_many_galaxies_have_a_table_in_the_first(tmp_path):
    paths = write_band_files(tmp_path, rows=slice(0, ROWS))
    values, _ = open_five(paths)
    assert_galaxy(values, slice(0, ROWS))
    np.testing.assert_array_equal(values["dec"], np.arange(ROWS) - 5.25)
    assert set(open_five(paths, image_only=True)[0]) == {"image"}


def test_five_files_have_their_image_in_an_extension_and_masks_of_one_name(tmp_path):
    spoiled = np.random.default_rng(4).integers(0, 2, (5, 32, 32)).astype("u1")
    paths = [tmp_path / f"{band}.fits" for band in BANDS]
    for number, path in enumerate(paths):
        masks = [fits.ImageHDU(spoiled[number], name="DQ")]
        masks += [fits.ImageHDU(spoiled[number], name="IVAR")] if number < 3 else []
        kind = fits.CompImageHDU if number % 2 else fits.ImageHDU
        extra = {"compression_type": "GZIP_1", "quantize_level": 0} if number % 2 else {}
        image = kind(GOOD.image[3, number], header(WCS), name=["SCI", "IMAGE", "CUTOUT"][number % 3], **extra)
        fits.HDUList([fits.PrimaryHDU(header=header(CARDS)), image, *masks]).writeto(path)
    values, source = open_five(paths)
    assert_galaxy(values)
    np.testing.assert_array_equal(values["DQ"], spoiled[None])
    assert any("IVAR of u g r is not there for every band" in notice for notice in source.notices)
    with fits.open(paths[4], mode="append") as file:
        file.append(fits.ImageHDU(GOOD.image[3, 4], name="IMAGE"))
    assert "z.fits has several candidates for image: 1 IMAGE, 3 IMAGE" in refused(open_five, paths)


def test_five_files_with_units_of_their_own_are_converted(tmp_path):
    factors = dict(zip(BANDS, ["nJy", "uJy", "nanomaggy", "maggy", "Jy"], strict=True))
    paths = write_band_files(tmp_path, cards=lambda band: {"BUNIT": factors[band]})
    values, source = open_five(paths)
    jansky = 1e6 / 3.631
    scale = np.array([jansky * 1e-9, jansky * 1e-6, 1, 1e9, jansky])[:, None, None]
    np.testing.assert_allclose(values["image"], GOOD.image[3:4] * scale, rtol=1e-12)
    assert source.flux_unit.text == "nanomaggy"


def test_files_that_do_not_belong_together_are_refused_by_name(tmp_path):
    paths = write_band_files(tmp_path)
    assert "3_g.fits states the band g and is given as that of u" in refused(open_five, [paths[1], *paths[1:]])
    lying = write_band_files(tmp_path, cards=lambda band: {"FILTER": "z" if band == "u" else band})
    assert "3_u.fits states the band z and is given as that of u" in refused(open_five, lying)
    other = write_band_files(tmp_path, cards=lambda band: {"FILTER": "F814W" if band == "i" else band})
    assert "3_i.fits states the band F814W" in refused(open_five, other)
    coarse = {"CD1_1": -0.5 / 3600, "CD2_2": 0.5 / 3600}
    paths = write_band_files(tmp_path, cards=lambda band: coarse if band == "r" else {})
    assert "pixels of different sizes in arcsec" in refused(open_five, paths)
    paths = write_band_files(tmp_path, cards=lambda band: {"CRVAL1": 150.2} if band == "r" else {})
    assert "3_r.fits shows another place on the sky" in refused(open_five, paths)
    paths = write_band_files(tmp_path)
    fits.PrimaryHDU(np.ones((40, 40))).writeto(paths[3], overwrite=True)
    assert "different shapes" in refused(open_five, paths) and "3_i.fits" in refused(open_five, paths)
    assert "expected five" in refused(open_five, paths[:4])
    paths[3].unlink()
    assert "3_i.fits is not a file" in refused(open_five, paths)
    os.mkfifo(paths[3])
    assert "3_i.fits is not a file" in refused(open_five, paths)


def test_a_unit_that_only_some_files_state_is_refused(tmp_path):
    paths = write_band_files(tmp_path)
    fits.delval(paths[2], "BUNIT")
    assert "only some of the bands state a unit" in refused(open_five, paths)


# Image columns of tables.

ALL = slice(0, ROWS)
LAST = np.ascontiguousarray(np.moveaxis(GOOD.image, 1, -1))
BY_BAND = {f"image_{band}": np.ascontiguousarray(GOOD.image[:, number]) for number, band in enumerate(BANDS)}


@pytest.mark.parametrize(
    ("columns", "dims"),
    [
        ({"image": GOOD.image}, {"image": "(32,32,5)"}), ({"CUTOUT": LAST}, {"CUTOUT": "(5,32,32)"}),
        ({"flux": GOOD.image}, {}), (BY_BAND, dict.fromkeys(BY_BAND, "(32,32)")), (BY_BAND, {}),
    ],
    ids=["bands first", "bands last", "flat", "by band", "flat by band"],
)  # fmt: skip
@pytest.mark.parametrize("small_pieces", [False, True])
def test_image_columns_are_read_in_every_layout(tmp_path, columns, dims, small_pieces, monkeypatch):
    if small_pieces:  # several pieces of rows, and fields that are read without the images between them
        monkeypatch.setattr("cosmicai.surveys.ingest.fits_tables._PIECE", 60_000)
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), image_table(ALL, columns, dims)]).writeto(path)
    values, _ = open_one(path)
    if values["image"].shape[-1] == 5:
        values["image"] = np.moveaxis(values["image"], -1, 1)
    assert_galaxy(values, ALL)
    np.testing.assert_array_equal(values["ra"], np.arange(ROWS) * 1.5)
    np.testing.assert_array_equal(values["dec"], np.arange(ROWS) - 5.25)
    np.testing.assert_array_equal(images(tmp_path, path), GOOD.image)
    assert set(open_one(path, image_only=True)[0]) == {"image"}


def test_rows_are_read_one_batch_after_the_other(tmp_path, monkeypatch):
    from cosmicai.surveys.ingest.fits_files import open_fits
    from cosmicai.surveys.ingest.source import IngestOptions

    monkeypatch.setattr("cosmicai.surveys.ingest.fits_open._SMALL", 1000)  # read from the file itself
    for name in ("a.fits", "a.fits.gz"):
        fits.HDUList([fits.PrimaryHDU(), image_table(ALL, BY_BAND)]).writeto(tmp_path / name)
        with open_fits(str(tmp_path / name), IngestOptions()) as source:
            parts = [source.fields["image"].read_next(count) for count in (5, 4, 3)]
            magnitudes = source.fields["magnitude"].read_next(ROWS)
        np.testing.assert_array_equal(np.concatenate(parts), GOOD.image)
        np.testing.assert_array_equal(magnitudes, GOOD.magnitude)


def test_scaled_nulls_and_units_of_image_columns_are_obeyed(tmp_path):
    stored = np.random.default_rng(1).integers(0, 1000, (ROWS, 5, 32, 32)).astype("i2")
    hdu = image_table(ALL, {"image": stored}, {"image": "(32,32,5)"})
    number = hdu.columns.names.index("image") + 1
    hdu.header.update({f"TSCAL{number}": 0.5, f"TZERO{number}": -2.0, f"TNULL{number}": 7, f"TUNIT{number}": "uJy"})
    hdu.header["BANDS"] = "zirgu"
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits")
    values, source = open_one(tmp_path / "a.fits")
    np.testing.assert_array_equal(values["image"], np.where(stored == 7, np.nan, stored * 0.5 - 2.0))
    assert source.flux_unit.text == "uJy" and "".join(source.bands) == "zirgu"


def test_the_order_of_bands_may_be_a_column_of_texts(tmp_path):
    hdu = image_table(ALL, {"image": np.ascontiguousarray(GOOD.image[:, ZIRGU])}, {"image": "(32,32,5)"})
    columns = hdu.columns + fits.ColDefs([fits.Column("bands", "5A", array=np.array(["zirgu"] * ROWS))])
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "a.fits")
    np.testing.assert_array_equal(images(tmp_path, tmp_path / "a.fits"), GOOD.image)


def test_image_columns_that_are_unclear_are_refused_by_name(tmp_path):
    path = tmp_path / "a.fits"

    def write(columns, dims=None):
        image_table(ALL, columns, dims or {}).writeto(path, overwrite=True)
        return path

    assert "(z missing)" in refused(open_one, write({name: BY_BAND[name] for name in list(BY_BAND)[:4]}))
    assert "several candidates for image: image, cutout" in refused(
        open_one, write({"image": GOOD.image, "cutout": GOOD.image})
    )
    assert_galaxy(open_one(path, names={"image": "cutout"})[0], ALL)
    assert "has no HDU stamps" in refused(open_one, path, names={"image": "stamps"})
    assert "image has 6144 numbers" in refused(open_one, write({"image": np.ones((ROWS, 6144), "f4")}))
    assert "its tables hold id, mag, z_spec, stamp" in refused(open_one, write({"stamp": GOOD.image}))
    assert_galaxy(open_one(path, names={"image": "stamp"})[0], ALL)
    arrays = np.empty(2, object)
    arrays[:] = [np.ones(5120, "f4"), np.ones(5120, "f4")]
    for kind in "PQ":
        columns = [fits.Column("image", f"{kind}E()", array=arrays), fits.Column("mag", "5D", array=np.ones((2, 5)))]
        fits.BinTableHDU.from_columns(columns).writeto(path, overwrite=True)
        assert "image holds arrays of variable length" in refused(open_one, path)


def test_kept_columns_have_units_and_what_cannot_be_kept_is_named(tmp_path):
    hdu = image_table(ALL, {"image": GOOD.image}, {"image": "(32,32,5)"})
    extra = [
        fits.Column("ebv", "E", unit="mag", array=np.arange(ROWS) / 8),
        fits.Column("name", "4A", array=["abcd"] * ROWS),
        fits.Column("good", "L", array=np.arange(ROWS) % 2 == 0),
        fits.Column("vector", "3E", array=np.ones((ROWS, 3))),
    ]
    path = tmp_path / "a.fits"
    fits.BinTableHDU.from_columns(hdu.columns + fits.ColDefs(extra)).writeto(path)
    values, source = open_one(path, keep=("ebv", "name"))
    assert set(source.columns) == {"ebv", "name"} and source.column_units == {"ebv": "mag"}
    np.testing.assert_array_equal(values["ebv"], np.arange(ROWS, dtype="f4") / 8)
    assert values["name"].tolist() == [b"abcd"] * ROWS
    values, source = open_one(path, keep=("all",))
    assert set(source.columns) == {"ebv", "name", "good"}
    assert values["good"].tolist() == (np.arange(ROWS) % 2 == 0).tolist()
    assert any("vector are not one number or text for each galaxy" in notice for notice in source.notices)
    assert "vector cannot be kept" in refused(open_one, path, keep=("vector",))


def test_a_card_z_is_the_band_beside_others_and_else_the_redshift(tmp_path):
    path = tmp_path / "a.fits"
    letters = {band.upper(): GOOD.magnitude[3, number] for number, band in enumerate(BANDS)}
    fits.PrimaryHDU(GOOD.image[3], header(letters)).writeto(path)
    values, _ = open_one(path)
    assert "redshift" not in values
    np.testing.assert_array_equal(values["magnitude"], GOOD.magnitude[3:4])
    magnitudes = {name: value for name, value in CARDS.items() if name.startswith("MAG")}
    fits.PrimaryHDU(GOOD.image[3], header(magnitudes | {"Z": 0.25})).writeto(path, overwrite=True)
    assert open_one(path)[0]["redshift"].tolist() == [0.25]


def test_cards_of_a_single_galaxy_may_be_kept(tmp_path):
    path = write_cube(tmp_path / "a.fits", EBV=0.125, PLATE=266, SURVEY="boss")
    values, _ = open_one(path, keep=("ebv", "SURVEY"))
    assert values["EBV"].tolist() == [0.125] and values["SURVEY"].tolist() == ["boss"]
    values, source = open_one(path, keep=("all",))
    assert set(source.columns) == {"EBV", "PLATE", "SURVEY"} and values["PLATE"].tolist() == [266]
    fits.setval(path, "HUGE", value=10**30)
    assert "HUGE cannot be kept" in refused(open_one, path, keep=("HUGE",))
    assert any("HUGE are not one number" in notice for notice in open_one(path, keep=("all",))[1].notices)


# Sizes.


@pytest.mark.parametrize("size", [33, 35, 63, 65])
def test_odd_sizes_keep_their_middle_pixel(tmp_path, size):
    image = np.zeros((ROWS, 5, size, size), np.float32)
    image[:, :, size // 2, size // 2] = 7
    found, notices = ingest(tmp_path, write_fits(tmp_path, fits.PrimaryHDU(image), fits.BinTableHDU.from_columns(
        [fits.Column("MAGNITUDE", "5D", array=GOOD.magnitude)]
    )))  # fmt: skip
    assert np.argwhere(found.image[0, 0]).tolist() == [[16, 16]]
    assert any(f"pixel ({size // 2}, {size // 2}), counted from 0, lands on (16, 16)" in text for text in notices)


@pytest.mark.parametrize("size", [33, 34, 63, 64])
def test_resampling_of_the_same_scale_is_the_crop(size):
    image = np.random.default_rng(2).normal(size=(1, 5, size, size)).astype(np.float32)
    cropped = to_cutouts(image, PixelConversion())
    np.testing.assert_allclose(to_cutouts(image, PixelConversion(resample_from=0.396)), cropped, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.2, 0.262, 0.5])
def test_the_middle_pixel_of_an_odd_size_stays_in_the_middle_of_pixel_16(scale):
    size = int(np.ceil(smallest_side(scale, True))) // 2 * 2 + 1
    image = np.zeros((1, 5, size, size), np.float32)
    image[:, :, size // 2, size // 2] = 1
    found = to_cutouts(image, PixelConversion(resample_from=scale))[0, 0].astype(np.float64)
    assert found.sum() == pytest.approx(1)
    assert found.sum(axis=1) @ np.arange(32) == pytest.approx(16) == found.sum(axis=0) @ np.arange(32)


# Damage.


def test_a_wrong_checksum_or_a_truncated_file_is_refused(tmp_path):
    def spoil(path, target):
        data = bytearray(path.read_bytes())
        data[-2000] ^= 1
        target.write_bytes(gzip.compress(data) if target.suffix == ".gz" else data)

    for name in ("a.fits", "a.fits.gz"):
        with fits.open(write_planes(tmp_path / "plain.fits")) as file:
            file.writeto(tmp_path / "sum.fits", checksum=True, overwrite=True)
        assert_galaxy(open_one(tmp_path / "sum.fits")[0])
        spoil(tmp_path / "sum.fits", tmp_path / name)
        assert "HDU 5 Z differs from the DATASUM" in refused(open_one, tmp_path / name)
    for suffix in (".fits", ".fits.gz"):
        path = tmp_path / f"short{suffix}"
        shutil.copy(tmp_path / "plain.fits", path)
        if suffix == ".fits.gz":
            path.write_bytes(gzip.compress(path.read_bytes()))
        for length in (path.stat().st_size - 1, path.stat().st_size // 2, 3000, 100, 5):
            os.truncate(path, length)
            assert str(path) in refused(open_one, path)


def test_headers_are_read_as_astropy_reads_them(tmp_path):
    from cosmicai.surveys.ingest.fits_cards import read_cards

    cards = header(CARDS | WCS)
    cards["TEXT"], cards["LONG"], cards["EMPTY"] = "it's 'quoted'  ", "x" * 150 + "&'", None
    cards["NEGATIVE"], cards["SMALL"], cards["FLAG"], cards["BIG"] = -5, -1.5e-300, True, 10**18 + 1
    cards["HIERARCH a long keyword"] = 2.5
    cards["COMMENT"], cards["HISTORY"] = "a = 'b'", "c"
    text = cards.tostring(padding=False, endcard=False) + f"{'DOUBLE  =               1.5D+02':<80}"
    expected = {
        name.upper(): None if isinstance(value, fits.card.Undefined) else value
        for name, value in fits.Header.fromstring(text).items()
        if name not in ("COMMENT", "HISTORY", "")
    }
    assert read_cards(text) == expected
