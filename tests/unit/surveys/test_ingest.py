"""Test that galaxies of every format become the same survey, or one sentence and nothing written."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import astuple
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from astropy.io import fits
from torch.utils.data import TensorDataset

from cosmicai.errors import InputError
from cosmicai.surveys.ingest.gate import ingest_files
from cosmicai.surveys.ingest.reading import MAX_BATCH
from cosmicai.surveys.ingest.source import IngestOptions
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.survey import open_survey
from support.helpers import random_galaxies, run

ROWS = 300  # more than one batch
GALAXIES = random_galaxies(ROWS)
COLUMNS: dict[str, Any] = {
    "image": GALAXIES.image,
    "magnitude": GALAXIES.magnitude,
    "redshift": GALAXIES.redshift,
    "objid": GALAXIES.objid,
}
assert ROWS > MAX_BATCH
NAME_MAGNITUDES = (
    "name the field with --magnitudes NAME, an array (N, 5) in the order u g r i z; or five columns, as U,G,R,I,Z or "
    "as NAME_{band}"
)


def ingest_and_read(tmp_path: Path, *sources: Path, **names: str) -> Galaxies:
    """Ingest these sources, and return the galaxies of the survey."""
    survey = ingest_files([str(source) for source in sources], str(tmp_path / "out"), 128, IngestOptions(names)).survey
    assert open_survey(survey.uri) == survey
    return Galaxies.concatenate(survey.read_batches(100))


def refusal(tmp_path: Path, *sources: Path, **names: str) -> str:
    """Return the InputError of ingest as a line, with the last source as SOURCE; check that nothing is written."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as caught:
        ingest_files([str(source) for source in sources], str(tmp_path / "out"), 128, IngestOptions(names))
    assert sorted(tmp_path.iterdir()) == before
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(sources[-1]), "SOURCE")


def assert_same(found: Galaxies, expected: Galaxies = GALAXIES) -> None:
    for got, wanted in zip(astuple(found)[:4], astuple(expected)[:4], strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def structured(**columns: np.ndarray) -> np.ndarray:
    dtype = [(name, values.dtype, values.shape[1:]) for name, values in columns.items()]
    array = np.zeros(len(next(iter(columns.values()))), dtype)
    for name, values in columns.items():
        array[name] = values
    return array


def swapped(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder(">"))


# Every format.


def write_npz(folder: Path, **columns: Any) -> Path:
    np.savez(folder / "a.npz", **columns)
    return folder / "a.npz"


def write_npz_compressed(folder: Path, **columns: Any) -> Path:
    np.savez_compressed(folder / "a.npz", **columns)
    return folder / "a.npz"


def write_npy(folder: Path, **columns: Any) -> Path:
    np.save(folder / "a.npy", structured(**columns))
    return folder / "a.npy"


def write_npy_siblings(folder: Path, **columns: Any) -> Path:
    for name, values in columns.items():
        np.save(folder / f"field7_{name}.npy", values)
    return folder / "field7_image.npy"


def write_h5(folder: Path, **columns: Any) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        for name, values in columns.items():
            file[name] = values
    return folder / "a.h5"


def write_h5_chunked(folder: Path, **columns: Any) -> Path:
    with h5py.File(folder / "a.hdf5", "w") as file:
        for name, values in columns.items():
            file.create_dataset(
                name, data=values, chunks=(min(17, len(values)), *values.shape[1:]), compression="gzip", shuffle=True
            )
    return folder / "a.hdf5"


def write_fits(folder: Path, image: np.ndarray, **columns: np.ndarray) -> Path:
    codes = {"f": {4: "E", 8: "D"}, "i": {2: "I", 4: "J", 8: "K"}}
    table = [
        fits.Column(
            name.upper(), f"{values.shape[1] if values.ndim > 1 else ''}{codes[values.dtype.kind][values.itemsize]}",
            array=values,
        )
        for name, values in columns.items()
    ]  # fmt: skip
    fits.HDUList([fits.PrimaryHDU(image), fits.BinTableHDU.from_columns(table)]).writeto(folder / "a.fits")
    return folder / "a.fits"


WRITERS = [write_npz, write_npz_compressed, write_npy, write_npy_siblings, write_h5, write_h5_chunked, write_fits]
each_format = pytest.mark.parametrize("write", WRITERS)


@each_format
def test_every_format_gives_the_same_galaxies(tmp_path, write):
    assert_same(ingest_and_read(tmp_path, write(tmp_path, **COLUMNS)))


@each_format
def test_without_redshift_there_is_none_and_without_objid_galaxies_are_numbered(tmp_path, write):
    found = ingest_and_read(tmp_path, write(tmp_path, image=GALAXIES.image, magnitude=GALAXIES.magnitude))
    assert_same(found, Galaxies(GALAXIES.image, GALAXIES.magnitude, np.full(ROWS, np.nan), np.arange(ROWS)))
    survey = open_survey(str(tmp_path / "out"))
    with survey.open(survey.shards[0]) as shard:
        assert set(shard.fields) == {"image", "magnitude", "objid"}


@each_format
@pytest.mark.parametrize("bands_last", [False, True])
def test_larger_cutouts_keep_their_exact_centre(tmp_path, write, bands_last):
    image = np.arange(10 * 5 * 64 * 64, dtype=np.float32).reshape(10, 5, 64, 64)
    given = np.ascontiguousarray(np.moveaxis(image, 1, -1)) if bands_last else image
    found = ingest_and_read(tmp_path, write(tmp_path, image=given, magnitude=GALAXIES.magnitude[:10]))
    np.testing.assert_array_equal(found.image, image[:, :, 16:48, 16:48])


@pytest.mark.parametrize(("size", "first"), [(32, 0), (33, 0), (34, 1), (40, 4), (63, 15), (64, 16)])
def test_the_centre_pixel_lands_on_pixel_16(tmp_path, size, first):
    image = np.arange(2 * 5 * size * size, dtype=np.float32).reshape(2, 5, size, size)
    found = ingest_and_read(tmp_path, write_npz(tmp_path, image=image, magnitude=np.zeros((2, 5))))
    np.testing.assert_array_equal(found.image, image[:, :, first : first + 32, first : first + 32])


@each_format
@pytest.mark.parametrize("dtype", ["int16", "int32", "float64"])
def test_integer_and_double_images_keep_their_values(tmp_path, write, dtype):
    image = np.arange(4 * 5 * 32 * 32).reshape(4, 5, 32, 32).astype(dtype)
    columns = {"image": image, "magnitude": GALAXIES.magnitude[:4].astype(np.float32)}
    found = ingest_and_read(tmp_path, write(tmp_path, **columns))
    assert found.image.dtype == np.float32
    np.testing.assert_array_equal(found.image, image)
    np.testing.assert_array_equal(found.magnitude, GALAXIES.magnitude[:4].astype(np.float32))


@pytest.mark.parametrize("write", [write_npz, write_npz_compressed, write_npy, write_npy_siblings, write_h5])
def test_big_endian_values_are_converted(tmp_path, write):
    assert_same(
        ingest_and_read(tmp_path, write(tmp_path, **{name: swapped(values) for name, values in COLUMNS.items()}))
    )


@each_format
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((4, 5, 31, 31), "SOURCE: cutouts are of 31x31 pixels; expected squares of 32 or more"),
        ((4, 5, 16, 16), "SOURCE: cutouts are of 16x16 pixels; expected squares of 32 or more"),
        ((4, 5, 32, 64), "SOURCE: cutouts are of 32x64 pixels; expected squares of 32 or more"),
        ((4, 64, 32, 5), "SOURCE: cutouts are of 64x32 pixels; expected squares of 32 or more"),
        (
            (4, 3, 32, 32),
            "SOURCE: image has the shape (4, 3, 32, 32); expected (N, 5, H, W) or (N, H, W, 5), bands u g r i z",
        ),
    ],
)
def test_cutouts_of_another_size_or_number_of_bands_are_refused(tmp_path, write, shape, said):
    source = write(tmp_path, image=np.ones(shape, np.float32), magnitude=np.zeros((4, 5)))
    assert refusal(tmp_path, source) == said


@each_format
def test_magnitudes_of_another_number_of_bands_are_refused(tmp_path, write):
    source = write(tmp_path, image=GALAXIES.image[:4], magnitude=np.zeros((4, 4)))
    assert refusal(tmp_path, source) == (
        "SOURCE: magnitude has the shape (4, 4), image is of 4 galaxies; expected (4, 5)"
    )


@pytest.mark.parametrize("write", [write_npz, write_npy_siblings, write_h5, write_fits])
@pytest.mark.parametrize(("name", "wanted"), [("magnitude", (6, 5)), ("redshift", (6,)), ("objid", (6,))])
def test_a_field_of_another_number_of_galaxies_is_refused(tmp_path, write, name, wanted):
    columns = {field: values[: 6 if field == "image" else 4] for field, values in COLUMNS.items()}
    columns |= {field: values[:6] for field, values in COLUMNS.items() if field != name and write is not write_fits}
    said = refusal(tmp_path, write(tmp_path, **columns))
    first = "magnitude" if write is write_fits else name  # a FITS table has one length
    shape = columns[first].shape
    wanted = (6, 5) if first == "magnitude" else wanted
    assert said == f"SOURCE: {first} has the shape {shape}, image is of 6 galaxies; expected {wanted}"


@pytest.mark.parametrize("write", [write_npz, write_npy, write_h5, write_fits])
def test_a_source_without_magnitudes_is_refused_with_the_option_to_name_them(tmp_path, write):
    said = refusal(tmp_path, write(tmp_path, image=GALAXIES.image[:4], colours=np.zeros((4, 5))))
    assert re.fullmatch(
        r"SOURCE has no magnitude, it holds (image, colours|image, COLOURS|colours, image); "
        rf"{re.escape(NAME_MAGNITUDES)}",
        said,
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@each_format
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, write):
    source = write(tmp_path, **{name: values[:40] for name, values in COLUMNS.items()})
    size = source.stat().st_size
    for length in (size - 1, size - 5000, size // 2, 4000, 100, 3, 1):
        os.truncate(source, length)
        assert refusal(tmp_path, source).startswith("SOURCE")
    os.truncate(source, 0)
    assert refusal(tmp_path, source) == "SOURCE is empty; expected galaxies, copy it again"


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("write", [write_npz, write_npz_compressed, write_h5_chunked])
def test_damage_that_shows_only_while_reading_names_the_source_and_leaves_nothing(tmp_path, write):
    source = write(tmp_path, **COLUMNS)
    flip(source, source.stat().st_size // 2)
    assert re.fullmatch(r"SOURCE: image is damaged \(.*\); write the file again", refusal(tmp_path, source))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("write", [write_npz, write_npy, write_npy_siblings, write_h5, write_fits])
def test_any_damaged_byte_of_a_header_is_refused_or_harmless(tmp_path, write):
    """Check that no other exception is raised, which the user would see as a traceback."""
    source = write(tmp_path, **{name: values[:2] for name, values in COLUMNS.items()})
    size, refused = source.stat().st_size, 0
    for number, position in enumerate([*range(0, 600, 11), *range(size - 700, size, 19)]):
        flip(source, position)
        try:
            ingest_files([str(source)], str(tmp_path / f"out{number}"), 128)
        except InputError as error:
            assert str(source) in str(error) and "\n" not in str(error)
            refused += 1
        flip(source, position)
    assert refused > 5


# Each format on its own.


@pytest.mark.parametrize(
    "names",
    [
        ("images", "magnitudes", "z_spec", "object_id"),
        ("IMG", "Mag", "specz", "ID"),
        ("cutouts", "mags", "z", "objID"),
        ("cube", "MAGNITUDE", "redshifts", "ObjID"),
    ],
)
def test_fields_are_known_by_other_names_in_any_letter_case(tmp_path, names):
    assert_same(ingest_and_read(tmp_path, write_h5(tmp_path, **dict(zip(names, COLUMNS.values(), strict=True)))))


def test_fields_in_groups_are_named_with_field(tmp_path):
    groups = {f"survey/data/{name}_v2": values for name, values in COLUMNS.items()}
    source = write_h5(tmp_path, **groups)
    assert refusal(tmp_path, source).startswith("SOURCE has no image, it holds survey/data/image_v2, survey/data/")
    assert_same(ingest_and_read(tmp_path, source, **{name: f"survey/data/{name}_v2" for name in COLUMNS}))


def test_the_named_field_wins_and_must_be_there(tmp_path):
    source = write_npz(tmp_path, **COLUMNS, photo_z=GALAXIES.redshift + 1)
    assert refusal(tmp_path, source, redshift="nowhere") == (
        "SOURCE has no nowhere, it holds image, magnitude, redshift, objid, photo_z; "
        "name the field with --redshift NAME"
    )
    np.testing.assert_array_equal(ingest_and_read(tmp_path, source, redshift="photo_z").redshift, GALAXIES.redshift + 1)


def test_hdf5_with_a_group_or_an_empty_dataspace_in_place_of_a_field_is_refused(tmp_path):
    source = write_h5(tmp_path, magnitude=GALAXIES.magnitude)
    with h5py.File(source, "a") as file:
        file.create_group("image")
        file["cutouts"] = h5py.Empty("f4")
    assert refusal(tmp_path, source) == (
        "SOURCE has no image, it holds magnitude; name the field with --field image=NAME"
    )


class Bad:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("write", [write_npz, write_npz_compressed, write_npy, write_npy_siblings])
@pytest.mark.parametrize("name", ["image", "magnitude"])
def test_arrays_of_objects_are_refused_and_nothing_is_executed(tmp_path, write, name):
    columns = {"image": GALAXIES.image[:1], "magnitude": GALAXIES.magnitude[:1]}
    columns[name] = np.array([Bad(tmp_path / "executed")], dtype=object)
    said = refusal(tmp_path, write(tmp_path, **columns))
    assert "expected numbers (pickled objects are never loaded)" in said or "is not a whole .npy file" in said
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("write", [write_npz, write_npy, write_npy_siblings])
def test_text_in_place_of_numbers_is_refused(tmp_path, write):
    source = write(tmp_path, image=GALAXIES.image[:2], magnitude=np.full((2, 5), "18.0"))
    assert refusal(tmp_path, source) == (
        "SOURCE: magnitude is of dtype <U4; expected numbers (pickled objects are never loaded)"
    )


def test_object_numbers_that_lost_digits_are_refused(tmp_path):
    source = write_npz(tmp_path, **COLUMNS | {"objid": np.arange(ROWS) + 1.2376487206937559e18})
    assert refusal(tmp_path, source) == (
        "SOURCE: objid is float64 and holds 1.237648720693756e+18, which may have been rounded; "
        "write the ids as int64 or text"
    )


@pytest.mark.parametrize("write", [write_npz, write_npy, write_h5, write_fits])
def test_object_numbers_of_19_digits_are_kept(tmp_path, write):
    objid = np.arange(1237648720693755918, 1237648720693755918 + 4)
    columns = {"image": GALAXIES.image[:4], "magnitude": GALAXIES.magnitude[:4], "objid": objid}
    assert ingest_and_read(tmp_path, write(tmp_path, **columns)).objid.tolist() == objid.tolist()


@pytest.mark.parametrize("write", [write_npz, write_npy_siblings])
def test_arrays_in_fortran_order_are_refused(tmp_path, write):
    source = write(tmp_path, image=np.asfortranarray(GALAXIES.image[:4]), magnitude=GALAXIES.magnitude[:4])
    said = refusal(tmp_path, source)
    assert said.startswith("SOURCE") and said.endswith("is in Fortran order; expected C order (np.ascontiguousarray)")


def test_an_npz_that_is_not_a_numpy_archive_is_refused(tmp_path):
    source = tmp_path / "a.npz"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("image", b"x")
        archive.writestr("magnitude.txt", b"x")
    assert refusal(tmp_path, source) == "SOURCE has no image, it holds nothing; name the field with --field image=NAME"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("image.npy", b"x" * 1000)
        archive.writestr("magnitude.npy", b"x" * 1000)
    assert refusal(tmp_path, source).startswith("SOURCE: image is damaged (the magic string is not correct")


def test_an_npz_under_the_name_of_an_npy_is_refused(tmp_path):
    source = write_npz(tmp_path, **COLUMNS).rename(tmp_path / "image.npy")
    np.save(tmp_path / "magnitude.npy", GALAXIES.magnitude)
    assert refusal(tmp_path, source).startswith("SOURCE is not a whole .npy file of numbers (")


def test_one_npy_array_needs_its_siblings(tmp_path):
    np.save(tmp_path / "a.npy", GALAXIES.image)
    assert refusal(tmp_path, tmp_path / "a.npy") == (
        "SOURCE is a single array; expected a structured one, or a name with `image` in it and the other fields in "
        "files of the same folder"
    )
    np.save(tmp_path / "image.npy", GALAXIES.image)
    assert refusal(tmp_path, tmp_path / "image.npy") == (
        f"SOURCE has no magnitudes; expected them in {tmp_path / 'magnitude.npy'}"
    )


def write_cube(path: Path, image: np.ndarray, table: dict[str, np.ndarray]) -> Path:
    columns = [
        fits.Column(name, "K" if values.dtype.kind == "i" else "D", array=values) for name, values in table.items()
    ]
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image), fits.BinTableHDU.from_columns(columns)]).writeto(path)
    return path


BANDS = {f"MAG_{band}": GALAXIES.magnitude[:, number] for number, band in enumerate("UGRIZ")}


def test_fits_magnitudes_may_be_one_column_per_band(tmp_path):
    table = BANDS | {"Z_SPEC": GALAXIES.redshift, "objID": GALAXIES.objid, "RA": GALAXIES.redshift}
    assert_same(ingest_and_read(tmp_path, write_cube(tmp_path / "a.fit", GALAXIES.image, table)))


def test_fits_without_a_table_a_cube_or_a_band_is_refused(tmp_path):
    source = tmp_path / "a.fits"
    fits.PrimaryHDU(GALAXIES.image).writeto(source)
    assert refusal(tmp_path, source) == (f"SOURCE has no magnitude, it holds image; {NAME_MAGNITUDES}")
    fits.PrimaryHDU(np.zeros((32, 32))).writeto(source, overwrite=True)
    assert refusal(tmp_path, source) == (
        "SOURCE has no image; expected a cube (N, 5, H, W), or (5, H, W) for one galaxy, or an image for each of "
        "u g r i z by EXTNAME or FILTER, or an image column of a table"
    )
    source.unlink()
    write_cube(source, GALAXIES.image, {name: values for name, values in BANDS.items() if name != "MAG_R"})
    assert refusal(tmp_path, source).startswith("SOURCE has no magnitude, it holds image, MAG_U, MAG_G, MAG_I, MAG_Z; ")


def test_what_is_not_fits_is_refused(tmp_path):
    (tmp_path / "a.fits").write_bytes(b"not FITS" * 1000)
    assert re.fullmatch(
        r"SOURCE is not a FITS file or is damaged \(.*\); copy it again", refusal(tmp_path, tmp_path / "a.fits")
    )


def test_scaled_and_compressed_fits_images_are_converted(tmp_path):
    image = np.arange(4 * 5 * 32 * 32, dtype=np.uint16).reshape(4, 5, 32, 32) + 40000  # stored with BZERO
    table = fits.BinTableHDU.from_columns([fits.Column("MAGNITUDE", "5D", array=GALAXIES.magnitude[:4])])
    fits.HDUList([fits.PrimaryHDU(image), table]).writeto(tmp_path / "a.fits")
    packed = fits.CompImageHDU(image.astype(np.int32), compression_type="RICE_1", tile_shape=(1, 5, 32, 32))
    fits.HDUList([fits.PrimaryHDU(), packed, table]).writeto(tmp_path / "b.fits.fz")
    found = ingest_and_read(tmp_path, tmp_path / "a.fits", tmp_path / "b.fits.fz")
    np.testing.assert_array_equal(found.image, np.concatenate([image, image]))
    np.testing.assert_array_equal(found.magnitude, np.concatenate([GALAXIES.magnitude[:4]] * 2))


def write_galaxy(path: Path, row: int, **cards: Any) -> Path:
    header = fits.Header(
        {f"MAG_{band}": GALAXIES.magnitude[row, number] for number, band in enumerate("UGRIZ")} | cards
    )
    header["COMMENT"] = "one galaxy"
    fits.PrimaryHDU(GALAXIES.image[row], header).writeto(path)
    return path


def test_fits_files_of_one_galaxy_each_become_one_survey(tmp_path):
    sources = [
        write_galaxy(tmp_path / f"{row}.fits", row, REDSHIFT=GALAXIES.redshift[row], OBJID=int(GALAXIES.objid[row]))
        for row in range(5)
    ]
    assert_same(ingest_and_read(tmp_path, *sources), GALAXIES[:5])


def test_a_fits_galaxy_whose_header_lacks_a_magnitude_or_has_text_is_refused(tmp_path):
    header = fits.Header({"MAG_U": 18.0})
    fits.PrimaryHDU(GALAXIES.image[0], header).writeto(tmp_path / "a.fits")
    assert refusal(tmp_path, tmp_path / "a.fits") == (
        f"SOURCE has no magnitude, it holds image, MAG_U; {NAME_MAGNITUDES}"
    )
    source = write_galaxy(tmp_path / "b.fits", 0, REDSHIFT="unknown")
    assert refusal(tmp_path, source) == (
        "SOURCE: redshift is of dtype <U7; expected numbers (pickled objects are never loaded)"
    )


def tensors(count: int = 3) -> list[torch.Tensor]:
    return [torch.from_numpy(values) for values in list(COLUMNS.values())[:count]]


@pytest.mark.parametrize("count", [2, 3])
def test_a_partition_like_the_published_ones_is_ingested(tmp_path, count):
    torch.save(TensorDataset(*tensors(count)), tmp_path / "1.pt")
    redshift = GALAXIES.redshift if count == 3 else np.full(ROWS, np.nan)
    assert_same(
        ingest_and_read(tmp_path, tmp_path / "1.pt"),
        Galaxies(GALAXIES.image, GALAXIES.magnitude, redshift, np.arange(ROWS)),
    )


@pytest.mark.parametrize("name", ["float64", "float16", "bfloat16", "int32"])
def test_a_partition_that_cannot_be_read_in_place_is_converted_as_its_message_promises(tmp_path, name):
    image, magnitude, redshift = tensors()
    image = image.to(getattr(torch, name))
    torch.save(TensorDataset(image, magnitude, redshift), tmp_path / "1.pt")
    found = ingest_and_read(tmp_path, tmp_path / "1.pt")
    np.testing.assert_array_equal(found.image, image.float().numpy())
    np.testing.assert_array_equal(found.redshift, GALAXIES.redshift)


def test_a_partition_with_views_and_bands_last_is_converted(tmp_path):
    image, magnitude, redshift = tensors()
    torch.save(TensorDataset(image.permute(0, 2, 3, 1)[5:], magnitude.flip(1)[5:], redshift[5:]), tmp_path / "1.pt")
    found = ingest_and_read(tmp_path, tmp_path / "1.pt")
    np.testing.assert_array_equal(found.image, GALAXIES.image[5:])
    np.testing.assert_array_equal(found.magnitude, GALAXIES.magnitude[5:, ::-1])
    np.testing.assert_array_equal(found.redshift, GALAXIES.redshift[5:])


def test_the_published_partition_is_ingested(tmp_path, shared):
    source = shared / "upstream" / "partition_512.pt"
    image, magnitude, redshift = torch.load(source, weights_only=False).tensors  # our own fixture
    found = ingest_and_read(tmp_path, source)
    assert_same(found, Galaxies(image.numpy(), magnitude.numpy(), redshift.numpy(), np.arange(512)))


# Several sources, and none.


def test_sources_with_and_without_redshift_and_objid_become_one_survey(tmp_path):
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    parts = {name: {field: COLUMNS[field][rows] for field in fields} for name, rows, fields in [
        ("first", slice(0, 100), ("image", "magnitude")),
        ("second", slice(100, 220), ("image", "magnitude", "redshift", "objid")),
        ("third", slice(220, 300), ("image", "magnitude", "redshift")),
    ]}  # fmt: skip
    sources = [
        write_npz(tmp_path / "first", **parts["first"]),
        write_fits(tmp_path / "second", **parts["second"]),
        write_h5_chunked(tmp_path / "third", **parts["third"]),
    ]
    found = ingest_and_read(tmp_path, *sources)
    np.testing.assert_array_equal(found.image, GALAXIES.image)
    np.testing.assert_array_equal(found.magnitude, GALAXIES.magnitude)
    assert np.isnan(found.redshift[:100]).all()
    np.testing.assert_array_equal(found.redshift[100:], GALAXIES.redshift[100:])
    assert found.objid.tolist() == [*[-1] * 100, *range(1100, 1220), *[-1] * 80]  # numbers could be the ids of others
    assert [shard.galaxies for shard in open_survey(str(tmp_path / "out")).shards] == [128, 128, 44]


def test_the_last_of_several_sources_being_wrong_leaves_nothing(tmp_path):
    good = write_npz(tmp_path, **COLUMNS)
    bad = write_h5(tmp_path, image=GALAXIES.image)
    assert refusal(tmp_path, good, bad).startswith("SOURCE has no magnitude")


def test_missing_unknown_and_galaxy_free_sources_are_refused(tmp_path):
    assert refusal(tmp_path, tmp_path / "none.npz") == "SOURCE does not exist; check the path"
    (tmp_path / "a.csv").write_text("1,2")
    assert refusal(tmp_path, tmp_path / "a.csv") == (
        "SOURCE is of an unknown kind; expected a file ending in "
        ".npz, .npy, .h5, .hdf5, .pt, .fits, .fit, .fz, .parquet, .pq, .fits.gz"
    )
    source = write_npz(tmp_path, image=GALAXIES.image[:0], magnitude=GALAXIES.magnitude[:0])
    assert refusal(tmp_path, source) == f"nothing to write to {tmp_path / 'out'}: the source holds no galaxies"


def test_an_existing_survey_is_not_touched(tmp_path):
    source = write_npz(tmp_path, **COLUMNS)
    ingest_and_read(tmp_path, source)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert refusal(tmp_path, source) == (
        f"{tmp_path / 'out'} is a whole survey already; use it, or choose another --out"
    )
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


# Memory.

PEAK = """
import sys
from cosmicai.surveys.ingest.gate import ingest_files
ingest_files([sys.argv[1]], sys.argv[2], 3834)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) / 1024)
"""


def write_pt(folder: Path, **columns: np.ndarray) -> Path:
    torch.save(TensorDataset(*(torch.from_numpy(values) for values in columns.values())), folder / "a.pt")
    return folder / "a.pt"


@pytest.mark.parametrize("write", [write_npz, write_npy_siblings, write_h5, write_fits, write_pt])
def test_memory_does_not_grow_with_the_source(tmp_path, write):
    peaks = []
    for rows in (500, 10_000):  # 10 and 200 MB
        folder = tmp_path / str(rows)
        folder.mkdir()
        columns = {"image": np.ones((rows, 5, 32, 32), np.float32), "magnitude": np.zeros((rows, 5))}
        command = [sys.executable, "-c", PEAK, str(write(folder, **columns)), str(folder / "out")]
        peaks.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        shutil.rmtree(folder)
    assert peaks[1] - peaks[0] < 30, peaks


# The command line.


def test_ingest_from_the_command_line(tmp_path):
    source = write_npz(tmp_path, pictures=GALAXIES.image, magnitude=GALAXIES.magnitude)
    out = tmp_path / "out"
    done = run("ingest", str(source), "--out", str(out), "--partition-mb", "2.5", "--field", "image=pictures")
    assert (done.returncode, done.stdout) == (0, f"300 galaxies in 3 shards in {out}\n")
    assert done.stderr.startswith(f"WARNING: {out}: ")  # its galaxies are noise
    assert [shard.galaxies for shard in open_survey(str(out)).shards] == [127, 127, 46]


def fails(tmp_path: Path, *arguments: str) -> str:
    """Run a command that must fail, and return its standard error."""
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    return done.stderr


def test_the_command_line_reports_a_problem_in_one_sentence_and_writes_nothing(tmp_path):
    source = write_npz(tmp_path, image=np.zeros((4, 3, 32, 32), np.float32), magnitude=np.zeros((4, 5)))
    out = ("--out", str(tmp_path / "out"))
    assert fails(tmp_path, "ingest", str(source), *out) == (
        f"cosmicai: {source}: image has the shape (4, 3, 32, 32); "
        "expected (N, 5, H, W) or (N, H, W, 5), bands u g r i z\n"
    )
    assert fails(tmp_path, "ingest", str(source), *out, "--field", "colour=red") == (
        "cosmicai: --field expects FIELD=NAME with FIELD one of image, magnitude, redshift, objid, ra, dec\n"
    )
    none = tmp_path / "none"
    assert fails(tmp_path, "split", str(none), *out) == (
        f"cosmicai: {none} does not exist; expected a survey folder, an s3:// prefix or a .h5 or .pt file\n"
    )
    os.truncate(source, 1000)
    assert fails(tmp_path, "ingest", str(source), *out) == (
        f"cosmicai: {source} is not a whole .npz file; copy it again\n"
    )


def test_a_truncated_fits_file_is_one_sentence_on_the_command_line_too(tmp_path):
    source = write_fits(tmp_path, **COLUMNS)
    os.truncate(source, 1_000_000)
    said = fails(tmp_path, "ingest", str(source), "--out", str(tmp_path / "out"))
    assert said.count("\n") == 1 and "File may have been truncated" in said
