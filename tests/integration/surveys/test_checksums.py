"""Test that no changed byte of a survey passes: rows are compared with their checksums at any cut of the work."""

import zlib
from dataclasses import astuple
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from cosmicai.errors import InputError
from cosmicai.ranks.environment import Rank
from cosmicai.surveys.shard import Galaxies, open_shard
from cosmicai.surveys.shard_writing import write_shard
from cosmicai.surveys.survey import open_survey
from support.helpers import FIELDS, make_run, make_survey, random_galaxies, run_worker, tiny_weights

ROWS = 150  # two blocks of 64 rows and one of 22
GALAXIES = random_galaxies(ROWS)


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("shard") / "a.h5"
    write_shard(path, [GALAXIES[:70], GALAXIES[70:]], ROWS, FIELDS)
    return path


def flip(path: Path, offset: int, out: Path, bit: int = 3) -> Path:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    out.write_bytes(data)
    return out


def read(path: Path, start: int = 0, stop: int = ROWS) -> Galaxies:
    with open_shard(str(path)) as shard:
        return shard.read(start, stop)


@pytest.mark.parametrize("cut", [1, 16, 33, 64, 100, 150])
def test_every_cut_of_the_rows_gives_the_galaxies(shard, cut):
    with open_shard(str(shard)) as opened:
        parts = [opened.read(start, min(start + cut, ROWS)) for start in range(0, ROWS, cut)]
    for got, wanted in zip(astuple(Galaxies.concatenate(parts))[:4], astuple(GALAXIES)[:4], strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("row", [0, 63, 64, 149])
def test_a_flipped_bit_of_any_field_is_found_at_any_cut_and_named(shard, tmp_path, name, row):
    with open_shard(str(shard)) as opened:
        ref = opened.fields[name]
    path = flip(shard, ref.offset + row * (ref.span // ROWS) + 2, tmp_path / "b.h5")
    first = row // 64 * 64
    text = (
        f"{path} is damaged: rows {first} to {min(first + 63, ROWS - 1)} of {name} differ from their checksum; "
        f"copy it again, and check the others with `cosmicai survey verify {tmp_path}`"
    )
    for start, stop in [
        (0, ROWS),
        (row, row + 1),
        (max(0, row - 5), min(row + 7, ROWS)),
        (first, min(first + 64, ROWS)),
    ]:
        with pytest.raises(InputError) as caught:
            read(path, start, stop)
        assert str(caught.value) == text


def test_blocks_without_the_damage_are_still_read(shard, tmp_path):
    with open_shard(str(shard)) as opened:
        path = flip(shard, opened.fields["image"].offset + 64 * 20480, tmp_path / "b.h5")
    np.testing.assert_array_equal(read(path, 3, 64).image, GALAXIES.image[3:64])
    np.testing.assert_array_equal(read(path, 130, 150).image, GALAXIES.image[130:])


def test_changed_checksums_headers_and_formats_are_refused(shard, tmp_path):
    def change(problem: str, edit) -> None:
        path = tmp_path / "b.h5"
        path.write_bytes(shard.read_bytes())
        with h5py.File(path, "r+") as file:
            edit(file)
        with pytest.raises(InputError, match=problem):
            open_shard(str(path))

    digest = "its header and checksums differ from their digest"
    change(digest, lambda file: file["checksum"].write_direct(np.zeros((3, 4), "u8")))
    change(digest, lambda file: file.attrs.modify("bands", "grizy"))
    change(digest, lambda file: file.attrs.modify("digest", "0" * 32))
    change("are missing", lambda file: file.pop("checksum"))
    change("are missing", lambda file: file.pop("objid"))
    change(
        'format is "cosmicai-shard/3"',
        lambda file: file.attrs.modify("format", "cosmicai-shard/3") or file.pop("checksum"),
    )
    change(digest, lambda file: file.attrs.modify("format", "another"))


def test_shards_of_format_1_and_of_other_programs_are_read_unchecked(tmp_path):
    for number, version in enumerate(["cosmicai-shard/1", None]):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            if version:
                file.attrs.update(format=version, bands="ugriz")
            for name in FIELDS:
                file[name] = getattr(GALAXIES, name)
        with open_shard(str(path)) as shard:
            assert (shard.checksums, shard.digest) == (None, "")
            np.testing.assert_array_equal(shard.read(3, 9).image, GALAXIES.image[3:9])


def test_an_empty_shard_has_no_blocks(tmp_path):
    write_shard(tmp_path / "a.h5", [], 0, FIELDS)
    assert len(read(tmp_path / "a.h5", 0, 0)) == 0


def write_pt(path: Path) -> Path:
    torch.save(TensorDataset(*(torch.from_numpy(getattr(GALAXIES, name)) for name in FIELDS[:3])), path)
    return path


@pytest.mark.parametrize("name", FIELDS[:3])
def test_a_flipped_bit_of_a_published_partition_is_found_where_it_is_read_whole(tmp_path, name):
    path = write_pt(tmp_path / "1.pt")
    with open_shard(str(path)) as opened:
        ref = opened.fields[name]
    assert ref.crc32 == zlib.crc32(path.read_bytes()[ref.offset : ref.offset + ref.span])
    survey = open_survey(str(path))
    flip(path, ref.offset + 70 * (ref.span // ROWS) + 2, path)
    with pytest.raises(InputError, match=f"the CRC-32 of its {name} is wrong; copy it again"):
        list(survey.read_batches(64))


@pytest.mark.parametrize("kind", ["h5", "pt"])
def test_a_run_counts_what_it_checked_and_names_a_damaged_item(tmp_path, kind):
    weights = tiny_weights(tmp_path / "w.safetensors")
    if kind == "h5":
        survey = make_survey(tmp_path / "s", GALAXIES, 75)
        path = Path(survey.uri, "000002.h5")
    else:
        (tmp_path / "s").mkdir()
        path = write_pt(tmp_path / "s" / "1.pt")
        survey = open_survey(str(tmp_path / "s"))
    options: dict[str, Any] = {"engine": "reference", "batch_size": 50}
    record = run_worker(make_run(survey, weights, str(tmp_path / "good"), **options), Rank(threads=1))
    assert record.checked == ROWS and record.unchecked == 0
    with open_shard(str(path)) as opened:
        offset = opened.fields["image"].offset
    flip(path, offset + 5 * 20480, path)
    run = make_run(survey, weights, str(tmp_path / "bad"), **options)
    record = run_worker(run, Rank(threads=1))
    (failure,) = run.failures()
    assert str(path) in failure.reason and "is damaged" in failure.reason
    assert record.galaxies == ROWS - 75 * (kind == "h5") - ROWS * (kind == "pt") == record.checked
    assert len(run.parts()) == (kind == "h5")
