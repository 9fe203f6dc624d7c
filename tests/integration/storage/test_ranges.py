"""Byte ranges: read from the page cache and released again, or fetched from S3."""

import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from cosmicai import storage
from cosmicai.errors import InputError, StorageError
from cosmicai.models.weights import load_weights
from cosmicai.storage import buffers
from cosmicai.storage.ranges import LARGEST_PAGE, open_ranges
from cosmicai.surveys.shard import Galaxies, Shard, open_shard
from cosmicai.surveys.shard_writing import write_shard
from support.helpers import FIELDS, make_survey, random_galaxies, tiny_weights
from support.s3 import bucket_fixture  # noqa: F401

PAGE = mmap.PAGESIZE
DATA = np.random.default_rng(0).bytes(3 * PAGE + 100)
GALAXIES = random_galaxies(20)


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Write DATA to a file on either backend and return its address."""
    folder = str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
    storage.write_bytes(storage.join(folder, "a.bin"), DATA)
    return storage.join(folder, "a.bin")


def open_files() -> list[str]:
    """Return the open files of this process."""
    return [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]


def write_h5(path: Path, galaxies: Galaxies = GALAXIES) -> Path:
    write_shard(path, [galaxies], len(galaxies), FIELDS)
    return path


def write_pt(path: Path, galaxies: Galaxies = GALAXIES) -> Path:
    torch.save(TensorDataset(*(torch.from_numpy(getattr(galaxies, name)) for name in FIELDS[:3])), path)
    return path


WRITERS = {"h5": write_h5, "pt": write_pt}


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (0, 1), (0, len(DATA)), (1, len(DATA) - 1), (PAGE - 1, 2), (PAGE, PAGE), (PAGE + 1, PAGE - 2),
     (3 * PAGE + 99, 1), (len(DATA), 0)],
)  # fmt: skip
def test_a_range_is_exactly_its_bytes(uri, offset, length):
    with open_ranges(uri) as reader:
        found = reader.read(offset, length)
    assert (found.format, found.ndim, found.readonly) == ("B", 1, False)
    assert found == DATA[offset : offset + length]


def test_writing_to_a_range_changes_no_other(uri):
    with open_ranges(uri) as reader:
        mine, other = reader.read(5, 2 * PAGE), reader.read(5, 2 * PAGE)
        mine[:] = bytes(2 * PAGE)
        assert other == reader.read(5, 2 * PAGE) == DATA[5 : 5 + 2 * PAGE]
    assert mine == bytes(2 * PAGE)
    assert storage.read_bytes(uri) == DATA


@pytest.mark.parametrize(("offset", "length"), [(0, len(DATA) + 1), (len(DATA), 1), (len(DATA) - 1, 2), (10**6, 3)])
def test_a_range_past_the_end_is_refused(uri, offset, length):
    with open_ranges(uri) as reader, pytest.raises(StorageError) as caught:
        reader.read(offset, length)
    assert str(caught.value) == (
        f"{uri} ends at byte {len(DATA)} where more was expected; it was truncated, copy it again"
    )


def test_a_range_can_be_released_and_read_again(uri):
    with open_ranges(uri) as reader:
        for offset, length in ((0, len(DATA)), (PAGE + 1, 5), (3, 0)):
            reader.drop_cached(offset, length)
            assert reader.read(offset, length) == DATA[offset : offset + length]


def test_a_file_that_was_cut_off_since_it_was_opened_is_refused_and_never_touched(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    with open_ranges(str(path)) as reader:
        assert reader.size == len(DATA)
        os.truncate(path, PAGE + 10)
        assert reader.read(0, PAGE + 10) == DATA[: PAGE + 10]
        for call, *arguments in (
            (reader.read, 0, PAGE + 11),
            (reader.read, 2 * PAGE, 1),
            (reader.read_into, PAGE, memoryview(bytearray(11))),
        ):
            with pytest.raises(StorageError) as caught:
                call(*arguments)
            assert str(caught.value) == (
                f"{path} ends at byte {PAGE + 10} where more was expected; it was truncated, copy it again"
            )


@pytest.mark.parametrize("read", [storage.read_bytes, storage.sha256, open_shard, load_weights])
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("pipe", "it is a pipe where a file was expected; copy its content to a file"),
        ("device", "it is a device where a file was expected; copy its content to a file"),
        ("folder", "it is a folder where a file was expected"),
        ("absent", "it does not exist"),
    ],
)
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, read, kind, says):
    path = tmp_path / "a.h5"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=says):
        read(str(path))


@pytest.mark.parametrize("change", ["truncate", "overwrite"])
def test_rows_stay_as_they_were_read_when_another_program_changes_the_file(tmp_path, change):
    path = write_h5(tmp_path / "a.h5")
    with open_shard(str(path)) as shard:
        galaxies = shard.read(0, 20)
        if change == "truncate":
            os.truncate(path, 10)  # access to mapped pages would end the process by SIGBUS
        else:
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
        np.testing.assert_array_equal(galaxies.image, GALAXIES.image)
        np.testing.assert_array_equal(galaxies.magnitude, GALAXIES.magnitude)
        with pytest.raises(InputError, match=r"a\.h5"):
            shard.read(0, 20)


CUT_WHILE_PREDICTING = """
import os, sys
from cosmicai.cli.main import main
from cosmicai.worker import prefetch
blank_unusable = prefetch.blank_unusable
def cut(image, magnitude):
    os.truncate(sys.argv[2] + "/000001.h5", 5000)
    return blank_unusable(image, magnitude)
prefetch.blank_unusable = cut
main()
"""


def test_a_shard_that_is_cut_off_during_a_run_is_a_failure_that_names_it(tmp_path):
    survey = make_survey(tmp_path / "s", random_galaxies(600), 300)
    weights = tiny_weights(tmp_path / "w.safetensors")
    options = ["infer", survey.uri, "--weights", weights, "--engine", "reference", "--batch-size", "64"]
    done = subprocess.run(
        [sys.executable, "-c", CUT_WHILE_PREDICTING, *options, "--out", str(tmp_path / "run")],
        capture_output=True, text=True, env=os.environ | {"COSMICAI_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert f"{survey.uri}/000001.h5 ends at byte 5000 where more was expected; it was truncated" in done.stderr
    assert "Traceback" not in done.stderr


def test_memory_is_used_again_only_when_nothing_refers_to_it(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(buffers.SMALL + 1) + b"b" * (buffers.SMALL + 1))
    with open_ranges(str(path)) as reader:
        first = np.frombuffer(reader.read(0, buffers.SMALL + 1), "u1")
        address, part = first.ctypes.data, first.reshape(1, -1)[0, 7:9]
        del first
        second = np.frombuffer(reader.read(buffers.SMALL + 1, buffers.SMALL + 1), "u1")
        assert second.ctypes.data != address and not part.any() and (second == ord("b")).all()
        del part
        third = np.frombuffer(reader.read(0, buffers.SMALL + 1), "u1")
        assert third.ctypes.data == address and (second == ord("b")).all() and not third.any()


def test_a_file_is_closed_with_its_shard(tmp_path):
    path = write_h5(tmp_path / "a.h5")
    with open_shard(str(path)) as shard:
        galaxies = shard.read(0, 20)
        assert open_files().count(str(path)) == 1
    assert str(path) not in open_files()
    np.testing.assert_array_equal(galaxies.image, GALAXIES.image)


@pytest.mark.parametrize("suffix", WRITERS)
def test_writing_to_fields_leaves_the_file_unchanged(tmp_path, suffix):
    path = WRITERS[suffix](tmp_path / f"a.{suffix}")
    before = path.read_bytes()
    with open_shard(str(path)) as shard:
        for name in shard.fields:
            rows = shard.read_field(name, 3, 17)
            assert rows.flags.c_contiguous and rows.flags.aligned and rows.flags.writeable, name
            rows[...] = 0
            assert not rows.any()
            np.testing.assert_array_equal(shard.read_field(name, 3, 17), getattr(GALAXIES, name)[3:17])
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_shard_on_s3_is_read_into_new_arrays(tmp_path, bucket, suffix):
    path, uri = WRITERS[suffix](tmp_path / f"a.{suffix}"), f"{bucket}/a.{suffix}"
    storage.write_bytes(uri, path.read_bytes())
    with open_shard(str(path)) as local, open_shard(uri) as shard:
        for name in FIELDS:
            rows = shard.read_field(name, 2, 9)
            np.testing.assert_array_equal(rows, local.read_field(name, 2, 9))
            rows[...] = 0
        shard.drop_cached(2, 9)
        np.testing.assert_array_equal(shard.read_field("image", 2, 9), GALAXIES.image[2:9])
    assert storage.read_bytes(uri) == path.read_bytes()


def test_values_are_aligned_wherever_they_lie_in_the_file(tmp_path):
    path, seen = tmp_path / "a.pt", set()
    for shift in range(8):
        with zipfile.ZipFile(write_pt(tmp_path / "whole.pt")) as source, zipfile.ZipFile(path, "w") as target:
            target.writestr("archive/shift", bytes(shift))
            for name in source.namelist():
                target.writestr(f"archive/{name.partition('/')[2]}", source.read(name))
        with open_shard(str(path)) as shard:
            for name, where in shard.fields.items():
                rows = shard.read_field(name, 3, 17)
                assert rows.flags.aligned and rows.flags.writeable
                np.testing.assert_array_equal(rows, getattr(GALAXIES, name)[3:17])
                seen.add((name, where.offset % rows.itemsize))
    assert seen == {("image", n) for n in range(4)} | {
        (name, n) for name in ("magnitude", "redshift") for n in range(8)
    }


def test_magnitudes_in_single_precision_are_a_copy_in_double_precision(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name in FIELDS:
            file[name] = getattr(GALAXIES, name).astype("f4") if name == "magnitude" else getattr(GALAXIES, name)
    with open_shard(str(path)) as shard:
        magnitude = shard.read_field("magnitude", 3, 17)
    assert magnitude.dtype == np.float64 and magnitude.flags.writeable
    np.testing.assert_array_equal(magnitude, GALAXIES.magnitude[3:17].astype(np.float32).astype(np.float64))


def test_a_partition_is_read_without_importing_h5py(tmp_path):
    code = (
        "import sys; from cosmicai.surveys.shard import open_shard\n"
        "with open_shard(sys.argv[1]) as shard: print(shard.read(0, 20).objid.sum(), 'h5py' in sys.modules)"
    )
    printed = {
        suffix: subprocess.check_output([sys.executable, "-c", code, write(tmp_path / f"a.{suffix}")], text=True)
        for suffix, write in WRITERS.items()
    }
    assert printed == {"pt": "-20 False\n", "h5": f"{GALAXIES.objid.sum()} True\n"}


# The page cache and the memory of the process.


@pytest.fixture
def large() -> Iterator[Path]:
    """Write a shard of 1,000 galaxies (20.5 MB) to a disk: all of it is cached, and nothing waits to be written."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        kind = subprocess.check_output(["stat", "--file-system", "--format", "%T", folder], text=True).strip()
        if kind in ("tmpfs", "ramfs"):
            pytest.skip(f"/var/tmp is a {kind}: such files are nowhere but in memory, so that nothing can be given up")
        path = write_h5(Path(folder) / "a.h5", Galaxies.concatenate([GALAXIES] * 50))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            file.read()
        yield path


def cached(path: Path) -> np.ndarray:
    """Return for every page of a file whether it is in the page cache, by mincore on a separate mapping."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        bytes_of_it = np.frombuffer(pages, np.uint8)
        found = np.zeros(-(-len(pages) // PAGE), np.uint8)
        address, length = ctypes.c_void_p(bytes_of_it.ctypes.data), ctypes.c_size_t(len(pages))
        assert ctypes.CDLL(None).mincore(address, length, ctypes.c_void_p(found.ctypes.data)) == 0
        del bytes_of_it
    return (found & 1).astype(bool)


def page_of(shard: Shard, row: int) -> int:
    """Return the page in which the image of a row begins and that of the row before ends."""
    return (shard.fields["image"].offset + row * 20480) // PAGE


def test_a_released_shard_leaves_the_page_cache(large):
    with open_shard(str(large)) as shard:
        galaxies = shard.read(0, 1000)
        assert np.isfinite(galaxies.image).all()
        assert cached(large).all() and len(cached(large)) > 5000
        shard.drop_cached(0, 1000)
        assert not cached(large).any()
        np.testing.assert_array_equal(shard.read_field("image", 980, 1000), GALAXIES.image)  # from the disk


@pytest.mark.parametrize("rows", [96, 333])
def test_rows_released_in_order_leave_no_pages_behind_and_keep_those_ahead(large, rows):
    with open_shard(str(large)) as shard:
        for start in range(0, 1000, rows):
            stop = min(start + rows, 1000)
            shard.read(start, stop)
            shard.drop_cached(start, stop)
            now, end = cached(large), page_of(shard, stop)
            assert not now[: max(0, end - LARGEST_PAGE // PAGE)].any()
            assert stop == 1000 or now[end:].all()
    assert not cached(large).any()


def test_nothing_is_released_for_no_rows_and_no_bytes(large):
    with open_shard(str(large)) as shard:
        for row in (0, 500, 1000):
            shard.drop_cached(row, row)
            shard.reader.drop_cached(row * PAGE, 0)
        assert cached(large).all()


def test_reading_rows_does_not_load_what_lies_before_them(large):
    with open_shard(str(large)) as shard:
        shard.drop_cached(0, 1000)
        shard.read_field("image", 500, 600)
        now = cached(large)
        assert now[page_of(shard, 500) : page_of(shard, 600)].all()
        assert not now[: page_of(shard, 448)].any()  # where the block of rows begins whose checksum is compared


@pytest.mark.parametrize(("start", "stop"), [(0, 21), (-1, 3), (5, 4)])
def test_missing_rows_cannot_be_released(tmp_path, start, stop):
    said = f"has no rows {start} to {stop}, it holds 20"
    with open_shard(str(write_h5(tmp_path / "a.h5"))) as shard, pytest.raises(IndexError, match=said):
        shard.drop_cached(start, stop)


MEMORY = """
import sys
import numpy as np
from cosmicai.surveys.shard import open_shard

def peak_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024

kept = []
with open_shard(sys.argv[1]) as shard:
    before = peak_mb()
    for start in range(0, shard.galaxies, 512):
        galaxies = shard.read(start, min(start + 512, shard.galaxies))
        assert np.isfinite(galaxies.image).all()
        if sys.argv[2] == "keep":
            kept.append(galaxies)
    print(peak_mb() - before)
"""


def test_reading_batch_by_batch_takes_the_memory_of_two_batches_and_not_of_the_file(tmp_path):
    path = tmp_path / "a.h5"
    write_shard(path, [GALAXIES] * 154, 3080, FIELDS)
    assert path.stat().st_size > 63e6
    drop, keep = (
        float(subprocess.check_output([sys.executable, "-c", MEMORY, str(path), what])) for what in ("drop", "keep")
    )
    assert drop < 30
    assert keep > 55  # what such a measurement says of the whole file
