"""Test shards: exact rows from known positions in the file, and one sentence for every problem of a file."""

import io
import os
import shutil
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from cosmicai import storage
from cosmicai.errors import InputError, StorageError, UnsafePickleError
from cosmicai.models.torch_archive import TensorRef
from cosmicai.storage.ranges import open_ranges
from cosmicai.storage.s3 import RequestStatistics
from cosmicai.surveys import published_partition
from cosmicai.surveys.quality import Flag, flag_inputs
from cosmicai.surveys.shard import Galaxies, Shard, open_shard
from cosmicai.surveys.shard_writing import write_shard
from support.helpers import FIELDS, random_galaxies
from support.s3 import bucket_fixture  # noqa: F401

ROWS = 20
GALAXIES = random_galaxies(ROWS)
RANGES = [(0, 20), (0, 1), (19, 20), (3, 17), (7, 7), (0, 0), (20, 20)]


def column(name: str) -> np.ndarray:
    return getattr(GALAXIES, name)


def write_h5(path: Path, **changes: Any) -> Path:
    """Write a valid shard, except for the named datasets: other values, or None to leave one out."""
    with h5py.File(path, "w") as file:
        for name in FIELDS:
            values = changes.get(name, column(name))
            if values is not None:
                file[name] = values
    return path


def tensors(fields: int = 3) -> list[torch.Tensor]:
    return [torch.from_numpy(column(name)) for name in FIELDS[:fields]]


def write_pt(path: Path, *values: torch.Tensor) -> Path:
    torch.save(TensorDataset(*values), path)
    return path


def refusal(path: Path) -> str:
    """Return the line of the InputError on opening a file, without the path at its beginning."""
    with pytest.raises(InputError) as caught:
        open_shard(str(path))
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text
    return text.removeprefix(str(path)).removeprefix(":").strip()


def convert(path: Path) -> str:
    return f"convert the file with `cosmicai ingest {path} --out SURVEY`"


def assert_same(found: Galaxies, expected: Galaxies) -> None:
    for got, wanted in zip(astuple(found)[:4], astuple(expected)[:4], strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_what_is_written_is_read_back_exactly(tmp_path):
    path = tmp_path / "a.h5"
    write_shard(path, [GALAXIES[:7], GALAXIES[7:7], GALAXIES[7:]], ROWS, FIELDS)
    with open_shard(str(path)) as shard:
        assert shard.galaxies == ROWS
        assert_same(shard.read(0, ROWS), GALAXIES)
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"format": "cosmicai-shard/2", "bands": "ugriz", "digest": shard.digest}
        assert {name: (item.shape, item.dtype.str) for name, item in file.items()} == {
            "image": ((20, 5, 32, 32), "<f4"), "magnitude": ((20, 5), "<f8"), "redshift": ((20,), "<f8"),
            "objid": ((20,), "<i8"), "checksum": ((1, 4), "<u8"),
        }  # fmt: skip


TEXT_IDS = np.array([*(f"SDSS J{row:06d} é".encode() for row in range(ROWS - 1)), b""])


@pytest.mark.parametrize("width", [TEXT_IDS.itemsize, 40])
def test_text_ids_are_read_back_exactly(tmp_path, width):
    path, galaxies = tmp_path / "a.h5", replace(GALAXIES, objid=TEXT_IDS)
    write_shard(path, [galaxies[:7], galaxies[7:]], ROWS, FIELDS, np.dtype(f"S{width}"))
    with open_shard(str(path)) as shard:
        assert shard.objid_dtype == f"S{width}"
        assert_same(shard.read(0, ROWS), replace(GALAXIES, objid=TEXT_IDS.astype(f"S{width}")))
        assert shard.read_field("objid", 3, 5).tolist() == TEXT_IDS[3:5].tolist()
    with h5py.File(path) as file:
        assert file["objid"].chunks is None and file["objid"].shape == (ROWS,)
        assert file["objid"].asstr()[:].tolist() == [text.decode() for text in TEXT_IDS.tolist()]


def test_text_ids_of_another_program_lose_their_padding_and_are_utf8(tmp_path, bucket):
    padded = np.char.ljust(TEXT_IDS, 30)
    path = write_h5(tmp_path / "a.h5", objid=padded)
    for uri in (str(path), on_s3(bucket, path)):
        with open_shard(uri) as shard:
            assert shard.read(0, ROWS).objid.tolist() == TEXT_IDS.tolist()
    path = write_h5(tmp_path / "b.h5", objid=np.array([b"a"] * 10 + ["é".encode("latin1")] * 10))
    with open_shard(str(path)) as shard:
        assert shard.read(0, 10).objid.tolist() == [b"a"] * 10
        with pytest.raises(InputError) as caught:
            shard.read(5, 15)
    assert str(caught.value).startswith(f"{path}: objid holds text that is not UTF-8; expected ids as ")


def test_batches_with_ids_of_several_kinds_are_concatenated_as_text():
    parts = [replace(GALAXIES[:2], objid=ids) for ids in (np.array([5, -1]), np.array([b"a", b"abc"]))]
    assert Galaxies.concatenate(parts).objid.tolist() == [b"5", b"", b"a", b"abc"]
    assert Galaxies.concatenate(parts[1:] * 2).objid.dtype == "S3"
    assert Galaxies.concatenate(parts[:1] * 2).objid.dtype == np.int64


def test_all_datasets_are_contiguous_at_a_known_offset(tmp_path):
    path = tmp_path / "a.h5"
    write_shard(path, [GALAXIES], ROWS, FIELDS)
    data = path.read_bytes()
    with h5py.File(path) as file, open_shard(str(path)) as shard:
        for name in FIELDS:
            where, expected = shard.fields[name], column(name).tobytes()
            assert file[name].chunks is None
            assert where.offset == file[name].id.get_offset()
            assert data[where.offset : where.offset + len(expected)] == expected


@pytest.mark.parametrize(("start", "stop"), RANGES)
@pytest.mark.parametrize("magnitude", [np.float32, np.float64])
def test_any_range_of_rows_is_what_h5py_reads(tmp_path, start, stop, magnitude):
    path = write_h5(tmp_path / "a.h5", magnitude=column("magnitude").astype(magnitude))
    with h5py.File(path) as file, open_shard(str(path)) as shard:
        expected = [file[name][start:stop] for name in FIELDS]
        expected[1] = expected[1].astype(np.float64)
        assert_same(shard.read(start, stop), Galaxies(*expected))


@pytest.mark.parametrize(("start", "stop"), [(0, 21), (20, 21), (-1, 3), (5, 4)])
@pytest.mark.parametrize("fields", [FIELDS, FIELDS[:2]])
def test_rows_outside_the_shard_are_refused(tmp_path, start, stop, fields):
    path = tmp_path / "a.h5"
    write_shard(path, [GALAXIES], ROWS, fields)
    with open_shard(str(path)) as shard:
        for name in FIELDS:
            with pytest.raises(IndexError, match=f"has no rows {start} to {stop}, it holds 20"):
                shard.read_field(name, start, stop)


def test_a_user_block_moves_the_offsets(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=1024) as file:
        for name in FIELDS:
            file[name] = column(name)
    with open_shard(str(path)) as shard:
        assert_same(shard.read(2, 5), GALAXIES[2:5])


def test_fields_that_a_shard_does_not_have_are_nan_and_minus_one(tmp_path):
    path = write_h5(tmp_path / "a.h5", redshift=None, objid=None)
    with open_shard(str(path)) as shard:
        found = shard.read(4, 6)
    assert np.isnan(found.redshift).all() and found.redshift.dtype == np.float64
    assert found.objid.tolist() == [-1, -1] and found.objid.dtype == np.int64


def test_the_same_galaxies_give_the_same_bytes_however_they_are_batched(tmp_path):
    write_shard(tmp_path / "a.h5", [GALAXIES], ROWS, FIELDS)
    write_shard(tmp_path / "b.h5", (GALAXIES[row : row + 3] for row in range(0, ROWS, 3)), ROWS, FIELDS)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_a_shard_of_no_galaxies_is_a_shard(tmp_path):
    write_shard(tmp_path / "a.h5", [], 0, FIELDS)
    with open_shard(str(tmp_path / "a.h5")) as shard:
        assert shard.galaxies == 0
        assert len(shard.read(0, 0)) == 0


@pytest.mark.parametrize("announced", [19, 21, 0])
def test_another_number_of_galaxies_than_announced_keeps_the_earlier_file(tmp_path, announced):
    path = tmp_path / "a.h5"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match=f"20 galaxies were given, {announced} announced"):
        write_shard(path, [GALAXIES[:10], GALAXIES[10:]], announced, FIELDS)
    assert [found.name for found in tmp_path.iterdir()] == ["a.h5"]
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize(
    "error", [RuntimeError("the source broke"), OSError(5, "the source broke"), KeyboardInterrupt()]
)
def test_an_error_of_the_source_stays_its_own_and_leaves_nothing(tmp_path, error):
    def source():
        yield GALAXIES[:10]
        raise error

    with pytest.raises(type(error)) as caught:
        write_shard(tmp_path / "a.h5", source(), ROWS, FIELDS)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_or_read_only_is_one_sentence(tmp_path):
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", tmp_path]).returncode:
        pytest.skip("a file system can only be mounted by root")
    path = tmp_path / "a.h5"
    try:
        with pytest.raises(StorageError) as full:
            write_shard(path, [GALAXIES], ROWS, FIELDS)
        assert list(tmp_path.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with pytest.raises(StorageError) as closed:
            write_shard(path, [GALAXIES], ROWS, FIELDS)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert str(full.value) == (
        f"cannot write {path}: no space left on the device; free some space or choose another place, then run again"
    )
    assert str(closed.value) == f"cannot write {path}: the file system is read-only; choose another place"


def test_a_missing_file_of_another_kind_or_a_folder_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"^cannot read .*none.h5: it does not exist; check the path$"):
        open_shard(str(tmp_path / "none.h5"))
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(StorageError, match=r"folder.h5: it is a folder where a file was expected$"):
        open_shard(str(tmp_path / "folder.h5"))
    (tmp_path / "a.csv").write_text("1,2")
    assert refusal(tmp_path / "a.csv") == (
        "is not a file of galaxies; expected .h5, .hdf5, .pt, or use `cosmicai ingest`"
    )


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".pt"])
def test_an_empty_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.touch()
    assert refusal(path) == "is empty; expected galaxies, copy it again"


@pytest.mark.parametrize("text", [b"x", b"not HDF5 at all" * 1000, b"\x89HDF\r\n\x1a\n" + bytes(5000)])
def test_what_is_not_hdf5_is_refused(tmp_path, text):
    path = tmp_path / "a.h5"
    path.write_bytes(text)
    assert refusal(path) == ("is not an HDF5 file or is damaged; expected image and magnitude, copy it again")


@pytest.mark.parametrize("text", [b"x", b"not a zip archive" * 1000, b"\x80\x02}q\x00."])
def test_what_is_not_a_torch_file_is_refused(tmp_path, text):
    path = tmp_path / "a.pt"
    path.write_bytes(text)
    assert refusal(path) == (
        "is not in the zip format of torch.save (torch 1.6 or newer); save it again with torch.save"
    )


@pytest.mark.parametrize("suffix", [".h5", ".pt"])
def test_a_file_truncated_anywhere_is_refused(tmp_path, suffix):
    whole = write_h5(tmp_path / "whole.h5") if suffix == ".h5" else write_pt(tmp_path / "whole.pt", *tensors())
    data, path = whole.read_bytes(), tmp_path / f"a{suffix}"
    cuts = {*range(1, 100), *range(100, len(data), 4999), *range(len(data) - 60, len(data))}
    for length in sorted(cuts):
        path.write_bytes(data[:length])
        text = refusal(path)
        assert "truncated" in text or "is not an HDF5 file" in text or "is not in the zip format" in text, length


@pytest.mark.parametrize("suffix", [".h5", ".pt"])
def test_any_damaged_byte_of_the_description_is_refused_or_harmless(tmp_path, suffix):
    """Check that no other exception is raised, which the user would see as a traceback."""
    path = tmp_path / f"a{suffix}"
    write_h5(path) if suffix == ".h5" else write_pt(path, *tensors())
    data, refused = path.read_bytes(), 0
    description = range(0, 3000, 5) if suffix == ".h5" else [*range(900), *range(len(data) - 1500, len(data), 3)]
    with path.open("r+b", buffering=0) as file:
        for position in description:
            os.pwrite(file.fileno(), bytes([data[position] ^ 0xFF]), position)
            try:
                open_shard(str(path)).__exit__()
            except InputError as error:
                assert str(path) in str(error)
                refused += 1
            os.pwrite(file.fileno(), data[position : position + 1], position)
    assert refused > 50


WANTED = {
    "image": "expected (N, 5, 32, 32) float32",
    "magnitude": "expected (N, 5) float64",
    "redshift": "expected (N,) float64",
    "objid": "expected (N,) int64 or text of a fixed length",
}


@pytest.mark.parametrize("name", ["image", "magnitude"])
def test_hdf5_without_a_required_field_is_refused(tmp_path, name):
    path = write_h5(tmp_path / "a.h5", **{name: None})
    assert refusal(path) == f"has no {name}; {WANTED[name]}, {convert(path)}"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image", (20, 3, 32, 32)),
        ("image", (20, 5, 64, 64)),
        ("image", (20, 32, 32, 5)),
        ("image", (5, 32, 32)),
        ("image", ()),
        ("magnitude", (20, 4)),
        ("magnitude", (20,)),
        ("redshift", (20, 1)),
        ("objid", ()),
    ],
)
def test_a_field_of_another_shape_is_refused(tmp_path, name, shape):
    path = write_h5(tmp_path / "a.h5", **{name: np.zeros(shape, column(name).dtype)})
    assert refusal(path) == f"{name} has the shape {shape}; {WANTED[name]}, {convert(path)}"


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("image", "float64"),
        ("image", "float16"),
        ("image", "int32"),
        ("image", ">f4"),
        ("magnitude", "int64"),
        ("magnitude", ">f8"),
        ("redshift", "float16"),
        ("objid", "int32"),
        ("objid", "float64"),
        ("objid", "uint64"),
        ("objid", "object"),
    ],
)
def test_a_field_of_another_dtype_is_refused(tmp_path, name, dtype):
    values = column(name).astype(str).astype(object) if dtype == "object" else column(name).astype(dtype)
    path = write_h5(tmp_path / "a.h5", **{name: values})
    assert refusal(path) == f"{name} is {dtype}; {WANTED[name]}, {convert(path)}"


@pytest.mark.parametrize("name", ["magnitude", "redshift", "objid"])
@pytest.mark.parametrize("rows", [0, 19, 21])
def test_a_field_of_another_number_of_galaxies_is_refused(tmp_path, name, rows):
    path = write_h5(tmp_path / "a.h5", **{name: np.resize(column(name), (rows, *column(name).shape[1:]))})
    assert refusal(path) == (
        f"{name} is of {rows} galaxies, image of 20; expected the same number, write the file again"
    )


@pytest.mark.parametrize("options", [{"chunks": True}, {"compression": "gzip"}, {"maxshape": (None, 5)}])
def test_a_chunked_or_compressed_dataset_is_refused_with_a_remedy(tmp_path, options):
    path = write_h5(tmp_path / "a.h5", magnitude=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("magnitude", data=column("magnitude"), **options)
    assert refusal(path) == f"magnitude is chunked or compressed; expected a contiguous dataset, {convert(path)}"


def test_a_group_or_an_empty_dataspace_instead_of_a_dataset_is_refused(tmp_path):
    path = write_h5(tmp_path / "a.h5", image=None)
    with h5py.File(path, "a") as file:
        file.create_group("image")
    assert refusal(path).startswith("image is a group; expected a dataset of numbers, convert the file with `cosmicai")
    path = write_h5(tmp_path / "b.h5", redshift=h5py.Empty("f8"))
    assert refusal(path).startswith("redshift is a dataset without values; expected a dataset of numbers, convert")


# The published partitions.


@pytest.mark.parametrize("fields", [2, 3])
@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_a_partition_is_read_in_place(tmp_path, fields, start, stop):
    path = write_pt(tmp_path / "1.pt", *tensors(fields))
    with open_shard(str(path)) as shard:
        found = shard.read(start, stop)
    unknown = np.full(stop - start, np.nan)
    redshift = unknown if fields == 2 else GALAXIES.redshift[start:stop]
    expected = Galaxies(GALAXIES.image[start:stop], GALAXIES.magnitude[start:stop], redshift, np.full(stop - start, -1))
    assert_same(found, expected)


def test_tensors_that_are_views_of_one_storage_are_read_in_place(tmp_path):
    image, magnitude, redshift = tensors()
    path = write_pt(tmp_path / "1.pt", image[3:9], magnitude.float()[3:9], redshift[3:9])
    with open_shard(str(path)) as shard:
        found = shard.read(1, 4)
    np.testing.assert_array_equal(found.image, GALAXIES.image[4:7])
    np.testing.assert_array_equal(found.magnitude, GALAXIES.magnitude[4:7].astype(np.float32).astype(np.float64))
    np.testing.assert_array_equal(found.redshift, GALAXIES.redshift[4:7])


@pytest.mark.parametrize("count", [1, 4])
def test_a_partition_of_another_number_of_tensors_is_refused(tmp_path, count):
    path = write_pt(tmp_path / "1.pt", *tensors(4)[:count])
    expected = f"holds {count} tensors; expected image, magnitude and redshift, in this order"
    mask = f"; if a mask is behind them, convert the file with `cosmicai ingest {path} --out SURVEY --mask mask`"
    assert refusal(path) == expected + mask * (count > 3)


@pytest.mark.parametrize("content", [torch.zeros(3), {"image": torch.zeros(3)}, [1, 2], None])
def test_a_torch_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "1.pt"
    torch.save(content, path)
    assert refusal(path) == "holds no TensorDataset; expected one of image, magnitude and redshift"


@pytest.mark.parametrize("name", ["float64", "float16", "bfloat16", "int32"])
def test_a_partition_of_another_dtype_is_refused(tmp_path, name):
    image, magnitude, redshift = tensors()
    path = write_pt(tmp_path / "1.pt", image.to(getattr(torch, name)), magnitude, redshift)
    assert refusal(path) == f"image is {name}; {WANTED['image']}, {convert(path)}"


def test_a_partition_of_the_published_tensors_in_another_order_is_refused(tmp_path):
    image, magnitude, redshift = tensors()
    path = write_pt(tmp_path / "1.pt", magnitude, image, redshift)
    assert refusal(path) == f"image has the shape (20, 5); {WANTED['image']}, {convert(path)}"


def test_a_partition_with_a_non_contiguous_image_is_refused(tmp_path):
    image, magnitude, redshift = tensors()
    path = write_pt(tmp_path / "1.pt", image.transpose(2, 3), magnitude, redshift)
    assert refusal(path) == f"image is not contiguous; {convert(path)}"


def test_a_compressed_partition_is_refused(tmp_path):
    whole, path = write_pt(tmp_path / "whole.pt", *tensors()), tmp_path / "1.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert refusal(path) == "is compressed; expected stored entries as torch.save writes them, save it again"


def test_a_partition_that_names_another_global_is_refused_and_nothing_of_it_is_executed(tmp_path):
    class Bad:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    buffer = io.BytesIO()
    torch.save(Bad(), buffer)
    path = tmp_path / "1.pt"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UnsafePickleError, match=r"names posix.mkdir, which is not among the globals such a file needs"):
        open_shard(str(path))
    assert not (tmp_path / "executed").exists()


class CountingReader:
    """A reader that records every requested range."""

    def __init__(self, path: Path) -> None:
        self.inner = open_ranges(str(path))
        self.ranges: list[tuple[int, int]] = []
        self.size = self.inner.size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.ranges.append((offset, len(buffer)))
        self.inner.read_into(offset, buffer)

    def read(self, offset: int, length: int) -> memoryview:
        self.ranges.append((offset, length))
        return self.inner.read(offset, length)

    def __exit__(self, *_: object) -> None:
        self.inner.__exit__(None, None, None)


def test_the_published_partition_equals_what_torch_loads(shared):
    path = shared / "upstream" / "partition_512.pt"
    image, magnitude, redshift = torch.load(path, weights_only=False).tensors  # our own fixture, it may be executed
    with open_shard(str(path)) as shard:
        assert shard.galaxies == 512
        assert_same(
            shard.read(0, 512), Galaxies(image.numpy(), magnitude.numpy(), redshift.numpy(), np.full(512, -1, np.int64))
        )
        np.testing.assert_array_equal(shard.read_field("image", 100, 103), image[100:103].numpy())


def test_a_range_of_the_published_partition_is_one_read_of_images_and_all_of_the_other_fields(shared):
    path = shared / "upstream" / "partition_512.pt"
    reader: Any = CountingReader(path)
    shard = Shard(str(path), reader, published_partition.locate_fields(str(path), reader))
    assert sum(length for _, length in reader.ranges) < 2**18  # the description, of 10.5 MB
    reader.ranges.clear()
    with shard:
        shard.read(100, 164)
    where: list[TensorRef] = [shard.fields[name] for name in FIELDS[:3]]
    assert reader.ranges == [
        (where[0].offset + 100 * 20480, 64 * 20480),
        (where[1].offset, 512 * 40),
        (where[2].offset, 512 * 8),
    ]


def test_a_truncated_copy_of_the_published_partition_is_refused(shared, tmp_path):
    path = tmp_path / "1.pt"
    shutil.copyfile(shared / "upstream" / "partition_512.pt", path)
    os.truncate(path, path.stat().st_size - 1000)
    assert refusal(path) == "is truncated or damaged (the zip directory at its end is missing); copy it again"


# Quality flags.


@pytest.mark.parametrize(
    ("pixel", "magnitude", "flag"),
    [
        (0.0, 18.0, 0),
        (-1e12, 5.0, 0),
        (1e12, 40.0, 0),
        (-1e30, -9998.0, 3),
        (3e38, 18.0, 1),
        (0.0, 99.0, 2),
        (0.0, -99.0, 2),
        (0.0, 0.0, 2),
        (0.0, 1e20, 2),
        (np.nan, 18.0, 1),
        (np.inf, 18.0, 1),
        (-np.inf, 18.0, 1),
        (0.0, -9999.0, 2),
        (0.0, np.nan, 2),
        (0.0, np.inf, 2),
        (0.0, -np.inf, 2),
        (np.nan, -9999.0, 3),
        (np.inf, np.nan, 3),
    ],
)
def test_each_galaxy_gets_exactly_its_flags(pixel, magnitude, flag):
    galaxies = random_galaxies(3)
    galaxies.image[1, 4, 31, 0] = pixel
    galaxies.magnitude[1, 4] = magnitude
    flags = flag_inputs(galaxies.image, galaxies.magnitude)
    assert flags.dtype == np.uint8
    assert flags.tolist() == [0, flag, 0]


def test_the_flags_are_the_documented_bits():
    assert {flag.name: int(flag) for flag in Flag} == {
        "NONFINITE_PIXEL": 1, "MISSING_MAGNITUDE": 2, "NONFINITE_PREDICTION": 4, "OUTSIDE_DOMAIN": 8,
        "INCOMPLETE_CUTOUT": 16, "IMPLAUSIBLE_REDSHIFT": 32, "NOT_CALIBRATED": 64, "NOT_DONE": 128,
    }  # fmt: skip
    assert flag_inputs(np.zeros((0, 5, 32, 32), np.float32), np.zeros((0, 5))).tolist() == []


def on_s3(bucket: str, path: Path) -> str:
    storage.write_bytes(f"{bucket}/{path.name}", path.read_bytes())
    return f"{bucket}/{path.name}"


def test_small_fields_of_a_shard_on_s3_are_fetched_once_however_many_ranges_are_read(tmp_path, bucket):
    with open_shard(on_s3(bucket, write_h5(tmp_path / "a.h5"))) as shard:
        requests = RequestStatistics()
        for start, stop in RANGES:
            assert_same(shard.read(start, stop), GALAXIES[start:stop])
        images = sum(stop > start for start, stop in RANGES)  # no bytes are no request
        assert requests.counts == {"GetObject": images + 3}
        shard.read(0, 5)
        assert requests.counts == {"GetObject": images + 4}


def test_threads_that_read_a_shard_on_s3_at_once_fetch_its_small_fields_once(tmp_path, bucket):
    together = threading.Barrier(8, timeout=60)

    def read(number: int) -> Galaxies:
        together.wait()
        return shard.read(2 * number, 2 * number + 3)

    with open_shard(on_s3(bucket, write_h5(tmp_path / "a.h5"))) as shard, ThreadPoolExecutor(8) as pool:
        requests = RequestStatistics()
        for number, found in enumerate(pool.map(read, range(8))):
            assert_same(found, GALAXIES[2 * number : 2 * number + 3])
        assert requests.counts == {"GetObject": 8 + 3}


def test_writing_to_rows_from_s3_does_not_change_other_rows(tmp_path, bucket):
    with open_shard(on_s3(bucket, write_h5(tmp_path / "a.h5"))) as shard:
        found = shard.read(0, ROWS)
        for name in FIELDS:
            getattr(found, name)[:] = 0
        assert_same(shard.read(0, ROWS), GALAXIES)


def test_small_fields_from_s3_are_converted_or_filled_as_those_of_a_local_file(tmp_path, bucket):
    path = write_h5(tmp_path / "a.h5", magnitude=GALAXIES.magnitude.astype("<f4"), redshift=None, objid=None)
    with open_shard(str(path)) as local, open_shard(on_s3(bucket, path)) as shard:
        requests = RequestStatistics()
        for start, stop in RANGES:
            assert_same(shard.read(start, stop), local.read(start, stop))
        assert requests.counts["GetObject"] == sum(stop > start for start, stop in RANGES) + 1


def test_a_shard_on_s3_that_is_replaced_while_it_is_read_is_one_sentence(tmp_path, bucket):
    uri = on_s3(bucket, write_h5(tmp_path / "a.h5"))
    with open_shard(uri) as shard:
        shard.read(0, 1)
        storage.write_bytes(uri, b"another")
        with pytest.raises(StorageError) as caught:
            shard.read(0, 1)
    assert str(caught.value) == f"cannot read {uri}: it was replaced while it was being read; run again"
