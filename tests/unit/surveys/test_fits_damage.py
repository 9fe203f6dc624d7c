"""Test that damaged FITS files of every shape are refused in one sentence, or give what they gave before."""

import gzip
import warnings

import numpy as np
import pytest
from astropy.io import fits

from cosmicai.errors import InputError
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
from support.gate import GOOD, ROWS, table

MUTATIONS = 150


def with_table(path):
    fits.HDUList([fits.PrimaryHDU(GOOD.image), table()]).writeto(path)


def with_images(path):
    hdu = image_table(slice(0, ROWS), {"image": GOOD.image}, {"image": "(32,32,5)"})
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)


def with_columns(path):
    images = {f"image_{band}": np.ascontiguousarray(GOOD.image[:, number]) for number, band in enumerate(BANDS)}
    fits.HDUList([fits.PrimaryHDU(), image_table(slice(0, ROWS), images)]).writeto(path)


def compressed_cube(path):
    cube = fits.CompImageHDU(GOOD.image[3], header(CARDS | WCS), compression_type="GZIP_1", quantize_level=0)
    fits.HDUList([fits.PrimaryHDU(), cube]).writeto(path)


SHAPES = {
    "planes.fits": lambda path: write_planes(path, "zirgu"),
    "planes.fits.fz": lambda path: write_planes(path, compressed=True),
    "cube.fits": write_cube,
    "cube.fits.fz": compressed_cube,
    "table.fits": with_table,
    "images.fits": with_images,
    "columns.fits": with_columns,
    "files": None,
}


def mutate(data, random):
    """Return bytes with a few flipped bits, most of them in headers, or without their end."""
    if random.random() < 0.2:
        return data[: random.integers(1, len(data))]
    changed = bytearray(data)
    headers = [at for at in range(0, len(data) - 2880, 2880) if data[at : at + 8] in (b"SIMPLE  ", b"XTENSION")]
    for _ in range(random.integers(1, 4)):
        begin = headers[random.integers(len(headers))]
        at = begin + random.integers(2880) if random.random() < 0.8 else random.integers(len(data))
        changed[at] ^= 1 << random.integers(8)
    return bytes(changed)


def read(paths):
    return (open_five(paths) if len(paths) > 1 else open_one(paths[0]))[0]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Return for files without and with checksums, by shape: their names with their bytes, and what is read of them."""
    found: dict[bool, dict[str, tuple]] = {False: {}, True: {}}
    for summed, shapes in found.items():
        for name, write in SHAPES.items():
            folder = tmp_path_factory.mktemp("shape")
            paths = write_band_files(folder) if write is None else [folder / name]
            if write is not None:
                write(paths[0])
            for path in paths if summed else ():
                with fits.open(path, disable_image_compression=True) as file:
                    file.writeto(folder / "sum", checksum=True)
                (folder / "sum").replace(path)
            shapes[name] = {path.name: path.read_bytes() for path in paths}, read(paths)
    return found


@pytest.mark.parametrize("summed", [False, True])
def test_files_that_astropy_opens_give_the_same(tmp_path, originals, summed, monkeypatch):
    monkeypatch.setattr("cosmicai.surveys.ingest.fits_open.scan_hdus", lambda data: None)
    for contents, original in originals[summed].values():
        for name, data in contents.items():
            (tmp_path / name).write_bytes(data)
        found = read([tmp_path / name for name in contents])
        assert found.keys() == original.keys()
        for field, values in original.items():
            np.testing.assert_array_equal(found[field], values)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_mutations_are_refused_in_one_sentence_or_harmless(tmp_path, originals, summed, zipped):
    """Check that checksums find every change that matters, and that without them only values differ."""
    random, refused = np.random.default_rng(20260), 0
    for number in range(MUTATIONS):
        contents, original = originals[summed][list(SHAPES)[number % len(SHAPES)]]
        victim = list(contents)[random.integers(len(contents))]
        for name, data in contents.items():
            changed = mutate(data, random) if name == victim else data
            (tmp_path / name).write_bytes(gzip.compress(changed, 1) if zipped else changed)
        try:
            found = read([tmp_path / name for name in contents])
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(tmp_path) in str(error)
            continue
        if summed:
            assert found.keys() == original.keys()
            for field, values in original.items():
                np.testing.assert_array_equal(found[field], values)
    assert refused > MUTATIONS * (0.9 if summed else 0.3)


@pytest.mark.parametrize("length", range(1, 400, 40))
def test_damaged_gzip_streams_are_refused(tmp_path, length):
    path = write_cube(tmp_path / "a.fits")
    data = gzip.compress(path.read_bytes())
    target = tmp_path / "a.fits.gz"
    for broken in (data[:-length], data[:length], data[: len(data) // 2] + bytes(20) + data[len(data) // 2 + 20 :]):
        target.write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.fits\.gz"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            open_one(target)


def test_bytes_behind_a_gzip_file_are_refused_unless_they_are_zero(tmp_path):
    data = gzip.compress(write_cube(tmp_path / "a.fits").read_bytes())
    (tmp_path / "a.fits.gz").write_bytes(data + bytes(512))
    np.testing.assert_array_equal(open_one(tmp_path / "a.fits.gz")[0]["image"], GOOD.image[3:4])
    (tmp_path / "a.fits.gz").write_bytes(data + b"more")
    with pytest.raises(InputError, match="other bytes behind the compressed data"):
        open_one(tmp_path / "a.fits.gz")


def test_several_members_of_a_gzip_file_are_one_file(tmp_path):
    data = write_cube(tmp_path / "a.fits").read_bytes()
    (tmp_path / "a.fits.gz").write_bytes(gzip.compress(data[:5000]) + gzip.compress(data[5000:]))
    np.testing.assert_array_equal(open_one(tmp_path / "a.fits.gz")[0]["image"], GOOD.image[3:4])
