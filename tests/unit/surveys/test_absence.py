"""Test that values which are not there, or not as they were written, are never read as if they were."""

import fcntl
import gzip
import os
import shutil

import h5py
import numpy as np
import pytest
from astropy.io import fits

from cosmicai.errors import InputError
from cosmicai.surveys.shard import open_shard
from support.gate import COLUMNS, GOOD, ROWS, images, refusal, table, write_fits, write_h5

HALF = ROWS // 2


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Return a folder that is not the working directory."""
    monkeypatch.chdir("/")
    return tmp_path


# Virtual datasets.


def write_virtual(folder, *, rows=ROWS, source_rows=HALF, gap=0, **keywords):
    """Write two files of half of the images, and one whose image is made of them."""
    for number in range(2):
        with h5py.File(folder / f"{number}.h5", "w") as file:
            dataset = file.create_dataset("pixels", (source_rows, 5, 32, 32), "<f4", **keywords)
            dataset[:] = GOOD.image[number * HALF :][:source_rows]
    layout = h5py.VirtualLayout((rows + gap, 5, 32, 32), "<f4")
    for number in range(2):
        layout[number * HALF : (number + 1) * HALF] = h5py.VirtualSource(f"{number}.h5", "pixels", (HALF, 5, 32, 32))
    path = write_h5(folder, image=None, **{k: v[: rows + gap] for k, v in COLUMNS.items() if k != "image"})
    with h5py.File(path, "r+") as file:
        file.create_virtual_dataset("image", layout)
    return path


def test_a_complete_virtual_dataset_is_read_where_it_is_allowed(elsewhere):
    source = write_virtual(elsewhere)
    assert "lies in other files (0.h5, 1.h5); read them with --allow-external" in refusal(elsewhere, source)
    np.testing.assert_array_equal(images(elsewhere, source, allow_external=True), GOOD.image)


def test_a_virtual_dataset_with_holes_is_refused(elsewhere):
    source = write_virtual(elsewhere, rows=10, gap=2, source_rows=HALF)  # 12 rows, all mapped
    assert images(elsewhere, source, allow_external=True).shape[0] == ROWS
    layout = h5py.VirtualLayout(GOOD.image.shape, "<f4")
    whole = h5py.VirtualSource(str(elsewhere / "0.h5"), "pixels", (HALF, 5, 32, 32))
    layout[:HALF], layout[3 : 3 + HALF] = whole, whole  # overlap, and the end has no source
    with h5py.File(source, "r+") as file:
        del file["image"]
        file.create_virtual_dataset("image", layout)
    assert "has elements without a source" in refusal(elsewhere, source, allow_external=True)


def test_interleaved_sources_are_complete(elsewhere):
    source = write_virtual(elsewhere)
    layout = h5py.VirtualLayout(GOOD.image.shape, "<f4")
    for number in range(2):
        layout[number::2] = h5py.VirtualSource(f"{number}.h5", "pixels", (HALF, 5, 32, 32))
    with h5py.File(source, "r+") as file:
        del file["image"]
        file.create_virtual_dataset("image", layout)
    expected = np.empty_like(GOOD.image)
    expected[::2], expected[1::2] = GOOD.image[:HALF], GOOD.image[HALF:]
    np.testing.assert_array_equal(images(elsewhere, source, allow_external=True), expected)


def test_sources_of_a_virtual_dataset_must_be_there_and_whole(elsewhere):
    source = write_virtual(elsewhere)
    with h5py.File(elsewhere / "1.h5", "r+") as file:
        del file["pixels"]
    assert "needs pixels of 1.h5, which is missing" in refusal(elsewhere, source, allow_external=True)
    with h5py.File(elsewhere / "1.h5", "r+") as file:
        file["pixels"] = GOOD.image[: HALF - 1]
    assert "needs more of pixels of 1.h5" in refusal(elsewhere, source, allow_external=True)
    with h5py.File(elsewhere / "1.h5", "r+") as file:
        del file["pixels"]
        file.create_dataset("pixels", (HALF, 5, 32, 32), "<f4", chunks=(1, 5, 32, 32))[:2] = GOOD.image[:2]
    text = refusal(elsewhere, source, allow_external=True)
    assert "needs pixels of 1.h5, which is unfinished: 4 of 6 chunks" in text
    (elsewhere / "1.h5").unlink()
    assert "needs the file 1.h5, which does not exist" in refusal(elsewhere, source, allow_external=True)
    os.mkfifo(elsewhere / "1.h5")
    assert "needs the file 1.h5, which does not exist" in refusal(elsewhere, source, allow_external=True)


def test_a_virtual_dataset_of_itself_is_refused(elsewhere):
    layout = h5py.VirtualLayout(GOOD.image.shape, "<f4")
    layout[:] = h5py.VirtualSource(".", "image", GOOD.image.shape)
    source = write_h5(elsewhere, image=None)
    with h5py.File(source, "r+") as file:
        file.create_virtual_dataset("image", layout)
    assert "virtual dataset of itself" in refusal(elsewhere, source, allow_external=True)


# Raw files.


def write_raw(folder, held=None):
    (folder / "raw.bin").write_bytes(b"head" + GOOD.image.tobytes()[:held])
    path = write_h5(folder, image=None)
    with h5py.File(path, "r+") as file:
        file.create_dataset("image", GOOD.image.shape, "<f4", external=[("raw.bin", 4, GOOD.image.nbytes)])
    return path


def test_raw_files_are_found_beside_the_file_and_must_be_whole(elsewhere):
    source = write_raw(elsewhere)
    assert "lies in other files (raw.bin)" in refusal(elsewhere, source)
    np.testing.assert_array_equal(images(elsewhere, source, allow_external=True), GOOD.image)
    with pytest.raises(InputError, match=r"image lies in other files \(raw.bin\); convert the file with .*external`"):
        open_shard(str(source))
    os.truncate(elsewhere / "raw.bin", GOOD.image.nbytes - 1)
    assert "its raw files hold 245,755; copy them again" in refusal(elsewhere, source, allow_external=True)
    (elsewhere / "raw.bin").unlink()
    assert "needs the file raw.bin" in refusal(elsewhere, source, allow_external=True)


def test_a_mask_in_another_file_needs_permission_too(elsewhere):
    source = write_h5(elsewhere)
    (elsewhere / "raw.bin").write_bytes(GOOD.image.tobytes())
    with h5py.File(source, "r+") as file:
        file.create_dataset("mask", GOOD.image.shape, "<f4", external=[("raw.bin", 0, GOOD.image.nbytes)])
    assert "mask lies in other files (raw.bin)" in refusal(elsewhere, source)


# What was never written.


@pytest.mark.parametrize(
    ("keywords", "written", "text"),
    [
        ({}, 0, "was never written"), ({}, ROWS - 1, "row 11 holds nothing but 0"), ({}, 8, "rows 8 to 11 hold"),
        ({"chunks": (4, 5, 32, 32)}, 0, "3 of 3 chunks"), ({"chunks": (4, 5, 32, 32)}, 8, "1 of 3 chunks"),
        ({"chunks": (4, 5, 32, 32)}, 9, "rows 9 to 11 hold"),
        ({"fillvalue": -5.0}, 10, "rows 10 to 11 hold nothing but -5"),
        ({"chunks": (5, 5, 32, 32), "compression": "gzip"}, 10, "1 of 3 chunks"),
        ({"chunks": (8, 5, 32, 32), "compression": "gzip"}, 11, "row 11 holds"),
    ],
    ids=str,
)  # fmt: skip
def test_unfinished_images_are_refused_in_place_and_by_ingest(tmp_path, keywords, written, text):
    source = write_h5(tmp_path, image=None)
    with h5py.File(source, "r+") as file:
        dataset = file.create_dataset("image", GOOD.image.shape, "<f4", **keywords)
        if written:
            dataset[:written] = GOOD.image[:written]
    assert text in refusal(tmp_path, source)
    with pytest.raises(InputError, match="chunked" if "chunks" in keywords else text):
        open_shard(str(source))


@pytest.mark.parametrize("field", ["magnitude", "redshift", "objid"])
def test_other_fields_that_were_never_written_are_refused(tmp_path, field):
    source = write_h5(tmp_path, **{field: None})
    with h5py.File(source, "r+") as file:
        file.create_dataset(field, COLUMNS[field].shape, COLUMNS[field].dtype)
    assert f"{field} ({field}) was never written" in refusal(tmp_path, source)
    with h5py.File(source, "r+") as file:
        del file[field]
        file.create_dataset(field, COLUMNS[field].shape, COLUMNS[field].dtype, chunks=(4, *COLUMNS[field].shape[1:]))
        file[field][:4] = COLUMNS[field][:4]
    assert "2 of 3 chunks were never written" in refusal(tmp_path, source)


def test_a_filter_that_is_not_here_is_named(tmp_path):
    source = write_h5(tmp_path, image=None)
    with h5py.File(source, "r+") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4, 5, 32, 32))
        properties.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(GOOD.image.shape)
        h5py.h5d.create(file.id, b"image", h5py.h5t.IEEE_F32LE, space, properties)
    assert "is compressed by HDF5 filter 32999, which is not installed here" in refusal(tmp_path, source)
    with pytest.raises(InputError, match="image is compressed by HDF5 filter 32999, which is not installed here"):
        open_shard(str(source))  # to convert the file, as all other chunked ones, would end there too


def test_a_file_that_is_being_written_is_locked(tmp_path):
    source = write_h5(tmp_path)
    with source.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "is locked: another program has it open for writing" in refusal(tmp_path, source)


# Checksums.


def write_checked(folder, suffix=".fits", compressed=False):
    image = (
        fits.CompImageHDU(GOOD.image, name="IMAGE", compression_type="GZIP_2", quantize_level=0)
        if compressed
        else fits.ImageHDU(GOOD.image, name="IMAGE")
    )
    path = folder / f"a{suffix}"
    fits.HDUList([fits.PrimaryHDU(), image, table()]).writeto(path, checksum=True)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_checksums_are_verified_in_every_hdu(tmp_path, compressed):
    source = write_checked(tmp_path, ".fz" if compressed else ".fits", compressed)
    np.testing.assert_array_equal(images(tmp_path, source), GOOD.image)
    with fits.open(source, disable_image_compression=True) as file:
        places = [(hdu.fileinfo()["hdrLoc"], hdu.fileinfo()["datLoc"], hdu.fileinfo()["datSpan"]) for hdu in file]
    whole = source.read_bytes()
    for number, name in ((1, "IMAGE"), (2, "")):
        _, data, length = places[number]
        for offset, statement in ((data + length // 3, "DATASUM"), (data - 1, "CHECKSUM")):
            damaged = bytearray(whole)
            damaged[offset] ^= 1 if statement == "DATASUM" else 2
            source.write_bytes(damaged)
            try:
                text = refusal(tmp_path, source)
            finally:
                source.write_bytes(whole)
            assert f"{f'HDU {number} {name}'.strip()} differs from the {statement} that it states" in text


def test_checksums_of_gzipped_files_are_verified(tmp_path):
    plain = write_checked(tmp_path)
    source = tmp_path / "b.fits.gz"
    with plain.open("rb") as read, gzip.open(source, "wb", compresslevel=1) as write:
        shutil.copyfileobj(read, write)
    np.testing.assert_array_equal(images(tmp_path, source), GOOD.image)
    damaged = bytearray(plain.read_bytes())
    damaged[20_000] ^= 1
    with gzip.open(source, "wb", compresslevel=1) as write:
        write.write(damaged)
    assert "HDU 1 IMAGE differs from the DATASUM" in refusal(tmp_path, source)


def test_the_checksums_of_what_fpack_compressed_are_not_those_of_the_file(tmp_path):
    hdu = fits.CompImageHDU(GOOD.image, name="IMAGE", compression_type="GZIP_2", quantize_level=0)
    source = write_fits(tmp_path, fits.PrimaryHDU(), hdu, table(), name="a.fz")
    with fits.open(source, mode="update", disable_image_compression=True) as file:
        file[1].header["ZHECKSUM"], file[1].header["ZDATASUM"] = "aaaaaaaaaaaaaaaa", "12345"
    np.testing.assert_array_equal(images(tmp_path, source), GOOD.image)


def test_tables_that_end_early_are_refused(tmp_path):
    source = write_fits(tmp_path)
    os.truncate(source, source.stat().st_size - 2880)
    assert "copy it again" in refusal(tmp_path, source)
