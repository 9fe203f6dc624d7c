"""Test surveys: their shards and order, every galaxy exactly once, and messages when files differ from survey.json."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import astuple, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from msgspec import UNSET, structs
from torch.utils.data import TensorDataset

from cosmicai import storage
from cosmicai.errors import InputError, StorageError
from cosmicai.storage.s3 import MAX_REQUESTS, RequestStatistics
from cosmicai.surveys import survey as surveys
from cosmicai.surveys.shard import Galaxies, open_shard
from cosmicai.surveys.shard_writing import write_shard
from cosmicai.surveys.survey import (
    ShardEntry,
    Survey,
    describe_files,
    galaxies_per_partition,
    inspect_ids,
    open_survey,
    resplit_survey,
    verify_survey,
    write_survey,
)
from support.helpers import FIELDS, make_survey, random_galaxies, run
from support.s3 import bucket_fixture, fill  # noqa: F401

GALAXIES = random_galaxies(100)


def all_of(survey: Survey, size: int = 7) -> Galaxies:
    return Galaxies.concatenate(survey.read_batches(size))


def digest(galaxies: Galaxies) -> str:
    """Return the SHA-256 of all columns."""
    return hashlib.sha256(
        b"".join(np.ascontiguousarray(values).tobytes() for values in astuple(galaxies)[:4])
    ).hexdigest()


def write_pt(path: Path, galaxies: Galaxies) -> None:
    torch.save(TensorDataset(*(torch.from_numpy(values) for values in astuple(galaxies)[:3])), path)


def refusal(call, *arguments) -> str:
    """Return the line of the InputError that the call raises."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def survey(tmp_path: Path) -> Survey:
    return make_survey(tmp_path / "survey", GALAXIES, 30)


def describe(survey: Survey, **changes: object) -> None:
    """Write survey.json again with other values."""
    path = Path(survey.uri, "survey.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def describe_shard(survey: Survey, **changes: object) -> None:
    """Write survey.json again with other values for its second shard."""
    shards = json.loads(Path(survey.uri, "survey.json").read_text())["shards"]
    shards[1] |= changes
    describe(survey, shards=shards)


@pytest.mark.parametrize(
    ("partition_mb", "galaxies"), [(10, 511), (25, 1278), (50, 2556), (75, 3834), (100, 5113), (0.001, 1)]
)
def test_a_partition_holds_as_many_galaxies_as_the_published_ones(partition_mb, galaxies):
    assert galaxies_per_partition(partition_mb) == galaxies


def test_a_written_survey_is_opened_as_it_was_written(survey):
    assert [(shard.name, shard.galaxies) for shard in survey.shards] == [
        ("000001.h5", 30), ("000002.h5", 30), ("000003.h5", 30), ("000004.h5", 10),
    ]  # fmt: skip
    assert sorted(path.name for path in Path(survey.uri).parent.rglob("*.*")) == [
        "000001.h5", "000002.h5", "000003.h5", "000004.h5", "survey.json",
    ]  # fmt: skip
    for shard in survey.shards:
        data = Path(survey.uri, shard.name).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert open_survey(survey.uri) == survey
    assert (survey.galaxies, survey.bytes) == (100, sum(shard.bytes for shard in survey.shards))


def test_survey_json_has_the_documented_content(survey):
    assert json.loads(Path(survey.uri, "survey.json").read_text()) == {
        "format": "cosmicai-survey/1",
        "galaxies": 100,
        "shards": [
            {
                "name": shard.name,
                "galaxies": shard.galaxies,
                "bytes": shard.bytes,
                "sha256": shard.sha256,
                "digest": shard.digest,
            }
            for shard in survey.shards
        ],
    }


@pytest.mark.parametrize("size", [1, 7, 30, 1000])
def test_batches_give_every_galaxy_once_in_order_and_never_cross_shards(survey, size):
    batches = list(survey.read_batches(size))
    assert digest(Galaxies.concatenate(batches)) == digest(GALAXIES)
    assert [len(batch) for batch in batches] == [
        min(size, shard.galaxies - start) for shard in survey.shards for start in range(0, shard.galaxies, size)
    ]


def test_a_relative_address_and_a_trailing_slash_are_the_same_survey(survey, monkeypatch):
    monkeypatch.chdir(Path(survey.uri).parent)
    assert open_survey("survey") == open_survey("survey/") == open_survey(f"{survey.uri}/") == survey


def test_a_folder_of_h5_and_pt_files_is_a_survey_in_natural_order(tmp_path):
    write_pt(tmp_path / "1.pt", GALAXIES[:10])
    write_shard(tmp_path / "2.h5", [GALAXIES[10:25]], 15, FIELDS)
    write_shard(tmp_path / "3.hdf5", [GALAXIES[25:40]], 15, FIELDS[:2])
    write_pt(tmp_path / "10.pt", GALAXIES[40:])
    (tmp_path / "notes.txt").write_text("not a shard")
    (tmp_path / ".4.h5.partial-00000000").write_text("not yet a shard")
    found = open_survey(str(tmp_path))
    assert tuple(structs.replace(shard, digest=UNSET) for shard in found.shards) == tuple(
        ShardEntry(name, galaxies, (tmp_path / name).stat().st_size)
        for name, galaxies in [("1.pt", 10), ("2.h5", 15), ("3.hdf5", 15), ("10.pt", 60)]
    )
    galaxies = all_of(found)
    np.testing.assert_array_equal(galaxies.image, GALAXIES.image)
    np.testing.assert_array_equal(galaxies.magnitude, GALAXIES.magnitude)
    np.testing.assert_array_equal(galaxies.redshift[:25], GALAXIES.redshift[:25])
    assert np.isnan(galaxies.redshift[25:40]).all()
    assert galaxies.objid.tolist() == [-1] * 10 + list(range(1010, 1025)) + [-1] * 75


@pytest.mark.parametrize("name", ["one.h5", "one.pt"])
def test_a_single_file_is_a_survey(tmp_path, name):
    path = tmp_path / name
    write_pt(path, GALAXIES) if name.endswith(".pt") else write_shard(path, [GALAXIES], 100, FIELDS)
    (tmp_path / "other.h5").write_text("not looked at")
    found = open_survey(str(path))
    with open_shard(str(path)) as shard:
        assert found == Survey(str(tmp_path), (ShardEntry(name, 100, path.stat().st_size, digest=shard.digest),))
    np.testing.assert_array_equal(all_of(found).image, GALAXIES.image)


def test_nothing_an_empty_folder_and_other_files_are_refused(tmp_path):
    none = tmp_path / "none"
    expected = "expected a survey folder, an s3:// prefix or a .h5 or .pt file"
    assert refusal(open_survey, str(none)) == f"{none} does not exist; {expected}"
    assert refusal(open_survey, f"{none}.h5") == f"{none}.h5 does not exist; {expected}"
    (tmp_path / "a.csv").write_text("1,2")
    assert refusal(open_survey, str(tmp_path)) == (
        f"{tmp_path} holds no galaxies; expected survey.json or files ending in .h5, .hdf5, .pt"
    )


# Damage.


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"null", b"[]", b"3", b'"text"', b"{}", b"\xff\xfe", b'{"format": "cosmicai-survey/1"}',
        b'{"format": "cosmicai-survey/1", "galaxies": 0, "shards": []}',
        b'{"format": "cosmicai-survey/1", "galaxies": 1, "shards": {"name": "a.h5"}}',
        b'{"format": "cosmicai-survey/1", "galaxies": 1, "shards": [{"name": "a.h5"}]}',
        b'{"format": "cosmicai-survey/1", "galaxies": 1, "shards": [[]]}',
        b'{"format": "cosmicai-survey/1", "galaxies": 1, "shards": 7}',
    ],
)  # fmt: skip
def test_a_damaged_survey_json_is_one_sentence(survey, text):
    path = Path(survey.uri, "survey.json")
    path.write_bytes(text)
    said = refusal(open_survey, survey.uri)
    assert said.startswith(f"{path} cannot be used: ") and said.endswith(", write the survey again")


@pytest.mark.parametrize(
    "changes",
    [
        {"galaxies": "30"}, {"galaxies": 30.0}, {"galaxies": -30}, {"galaxies": True}, {"galaxies": 31},
        {"bytes": "1"}, {"bytes": None}, {"name": 5}, {"name": None}, {"name": ["a"]}, {"name": "000001.h5"},
        {"sha256": 5}, {"colour": "red"},
    ],
)  # fmt: skip
def test_a_wrong_value_in_survey_json_is_one_sentence(survey, changes):
    describe_shard(survey, **changes)
    said = refusal(open_survey, survey.uri)
    assert said.startswith(f"{survey.uri}/survey.json cannot be used: ")
    assert said.endswith(", write the survey again")


def test_another_format_is_named(survey):
    describe(survey, format="cosmicai-survey/2")
    assert refusal(open_survey, survey.uri) == (
        f"{survey.uri}/survey.json cannot be used: field format: invalid value 'cosmicai-survey/2'; "
        'expected the "cosmicai-survey/1" of a whole survey, write the survey again'
    )


def test_a_shard_outside_the_folder_is_not_read(survey, tmp_path):
    shutil.copy(Path(survey.uri, "000002.h5"), tmp_path / "elsewhere.h5")
    describe_shard(survey, name="../elsewhere.h5")
    assert "elsewhere.h5 is missing, survey.json says" in refusal(open_survey, survey.uri)


def test_a_missing_and_a_truncated_shard_are_found_at_opening(survey):
    shard = Path(survey.uri, "000002.h5")
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    assert refusal(open_survey, survey.uri) == (
        f"{shard} is of {size - 1} bytes, survey.json says {size} bytes; copy it again"
    )
    shard.unlink()
    assert refusal(open_survey, survey.uri) == f"{shard} is missing, survey.json says {size} bytes; copy it again"


def test_a_shard_with_another_number_of_galaxies_than_survey_json_says_is_refused(survey):
    describe_shard(survey, galaxies=31)
    describe(survey, galaxies=101)
    found, size = open_survey(survey.uri), survey.shards[1].bytes
    assert refusal(found.open, found.shards[1]) == (
        f"{survey.uri}/000002.h5 holds 30 galaxies in {size} bytes, the survey says 31 galaxies in {size} bytes; "
        f"find what changed with `cosmicai survey verify {survey.uri}`"
    )
    assert "holds 30 galaxies" in refusal(all_of, found)


def test_a_shard_that_was_replaced_by_another_of_as_many_galaxies_is_refused(survey):
    found = open_survey(survey.uri)
    write_shard(Path(survey.uri, "000002.h5"), [GALAXIES[29:59]], 30, FIELDS)
    assert Path(survey.uri, "000002.h5").stat().st_size == found.shards[1].bytes
    assert refusal(found.open, found.shards[1]) == (
        f"{survey.uri}/000002.h5 was replaced: it holds other galaxies than when it was described; put the file back "
        f"that was there, or start a new run (find what changed with `cosmicai survey verify {survey.uri}`)"
    )


def test_verify_accepts_a_written_survey(survey):
    assert list(verify_survey(survey)) == [(shard, "") for shard in survey.shards]


def test_verify_finds_a_flipped_bit_a_missing_and_a_truncated_shard(survey):
    paths = [Path(survey.uri, shard.name) for shard in survey.shards]
    data = bytearray(paths[0].read_bytes())
    data[-1] ^= 1
    paths[0].write_bytes(data)
    paths[1].unlink()
    os.truncate(paths[2], 5000)
    found = [what for _, what in verify_survey(survey)]
    assert found == [
        f"its SHA-256 is {hashlib.sha256(data).hexdigest()}, survey.json says {survey.shards[0].sha256}",
        f"cannot read {paths[1]}: it does not exist; check the path",
        f"{paths[2]} is truncated; expected image and magnitude, copy it again",
        "",
    ]


@pytest.mark.parametrize("position", [0, 600, 8192, 300_000])
def test_verify_finds_a_flipped_bit_anywhere(survey, position):
    path = Path(survey.uri, "000003.h5")
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)
    assert [bool(what) for _, what in verify_survey(survey)] == [False, False, True, False]


def test_a_survey_without_checksums_cannot_be_verified(tmp_path):
    write_shard(tmp_path / "1.h5", [GALAXIES], 100, FIELDS)
    with pytest.raises(InputError, match=r"has no checksums to compare with.*make one with `cosmicai split"):
        list(verify_survey(open_survey(str(tmp_path))))


# Writing and splitting again.


@pytest.mark.parametrize("size", [1, 7, 29, 30, 31, 60, 99, 100, 101, 1000])
def test_resplit_keeps_every_galaxy_once_in_order(survey, tmp_path, size):
    written = resplit_survey(survey, str(tmp_path / "out"), size)
    assert [shard.galaxies for shard in written.shards] == [min(size, 100 - start) for start in range(0, 100, size)]
    assert digest(all_of(written)) == digest(GALAXIES)
    assert open_survey(written.uri) == written


def test_resplit_across_shards_and_batches_gives_the_bytes_of_writing_directly(tmp_path):
    galaxies = random_galaxies(1500)
    direct = make_survey(tmp_path / "direct", galaxies, 511)
    again = resplit_survey(make_survey(tmp_path / "one", galaxies, 400), str(tmp_path / "again"), 511)
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in direct.shards]


def test_resplit_keeps_fields_that_only_some_shards_have(tmp_path):
    folder = tmp_path / "mixed"
    write_shard(folder / "1.h5", [GALAXIES[:10]], 10, FIELDS[:2])
    write_shard(folder / "2.h5", [GALAXIES[10:20]], 10, FIELDS)
    write_pt(folder / "3.pt", GALAXIES[20:30])
    before = open_survey(str(folder))
    after = resplit_survey(before, str(tmp_path / "out"), 15)
    assert digest(all_of(after)) == digest(all_of(before))
    assert all_of(after).objid.tolist() == [-1] * 10 + list(range(1010, 1020)) + [-1] * 10


def write_with_ids(path: Path, rows: slice, ids: np.ndarray) -> None:
    galaxies = replace(GALAXIES[rows], objid=ids)
    write_shard(path, [galaxies], len(galaxies), FIELDS, ids.dtype)


def write_mixed_ids(folder: Path) -> Survey:
    """Write shards with numbers, texts of two widths, and none as ids."""
    write_with_ids(folder / "1.h5", slice(0, 3), np.array([7, -1, 2**63 - 1]))
    write_with_ids(folder / "2.h5", slice(3, 6), np.array([b"a", b"", b"7"]))
    write_with_ids(folder / "3.h5", slice(6, 8), np.array(["SDSS J0000 ö".encode(), b"a"]))
    write_pt(folder / "4.pt", GALAXIES[8:10])
    return open_survey(str(folder))


MIXED_IDS = [b"7", b"", b"9223372036854775807", b"a", b"", b"7", "SDSS J0000 ö".encode(), b"a", b"", b""]


@pytest.mark.parametrize("size", [1, 2, 100])
def test_ids_of_several_kinds_become_text_in_one_survey(tmp_path, size):
    before = write_mixed_ids(tmp_path / "mixed")
    assert all_of(before, size).objid.tolist() == MIXED_IDS
    after = resplit_survey(before, str(tmp_path / "out"), size)
    assert all_of(after).objid.tolist() == MIXED_IDS
    for entry in after.shards:
        with after.open(entry) as shard:
            assert shard.objid_dtype == "S20"


def test_the_ids_of_a_survey_are_counted(tmp_path, survey):
    report = inspect_ids(survey)
    assert (report.kinds, report.missing, report.duplicates.ids) == ({"int64": 4}, 0, 0)
    report = inspect_ids(write_mixed_ids(tmp_path / "mixed"))
    assert (report.kinds, report.missing) == ({"int64": 1, "text": 2, "none": 1}, 4)
    assert (report.duplicates.ids, report.duplicates.galaxies, report.duplicates.examples) == (2, 4, ("7", "a"))
    assert report.describe() == (
        "int64 in 1 shard, text in 2 shards, none in 1 shard; 4 galaxies have none; 2 ids occur more than once (4 "
        "galaxies), as 7, a"
    )
    shutil.copy(Path(survey.uri, "000001.h5"), tmp_path / "5.h5")
    write_with_ids(tmp_path / "6.h5", slice(0, 2), GALAXIES.objid[:2])
    assert inspect_ids(open_survey(str(tmp_path))).describe() == (
        "int64; 0 galaxies have none; 2 ids occur more than once (4 galaxies), as 1000, 1001"
    )
    (tmp_path / "pt").mkdir()
    write_pt(tmp_path / "pt" / "1.pt", GALAXIES[:1])
    assert inspect_ids(open_survey(str(tmp_path / "pt"))).describe() == "none"


def test_ids_on_s3_are_counted_as_well(tmp_path, bucket):
    report = inspect_ids(write_mixed_ids(tmp_path))
    for path in tmp_path.iterdir():
        storage.write_bytes(f"{bucket}/s/{path.name}", path.read_bytes())
    assert inspect_ids(open_survey(f"{bucket}/s")) == report


def test_text_that_is_longer_than_announced_is_not_cut(tmp_path):
    galaxies = replace(GALAXIES[:2], objid=np.array([b"a", b"abcd"]))
    with pytest.raises(ValueError, match="text ids of 4 bytes do not fit into 3"):
        write_survey(str(tmp_path / "out"), [galaxies], 2, 2, FIELDS, np.dtype("S3"))
    assert list(tmp_path.iterdir()) == []


def test_resplit_adds_no_field(tmp_path):
    write_shard(tmp_path / "1.h5", [GALAXIES], 100, FIELDS[:2])
    written = resplit_survey(open_survey(str(tmp_path)), str(tmp_path / "out"), 50)
    with written.open(written.shards[0]) as shard:
        assert set(shard.fields) == {"image", "magnitude"}


def test_a_survey_is_not_written_to_a_file_or_a_folder_that_is_not_empty(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "full", tmp_path / "file"):
        assert refusal(make_survey, place, GALAXIES, 30) == (
            f"{place} exists and is not empty; choose another --out or remove it"
        )
    assert (tmp_path / "full" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_a_survey_is_written_to_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert open_survey(make_survey(tmp_path / "empty", GALAXIES, 30).uri).galaxies == 100


def test_a_survey_is_not_written_to_s3():
    assert refusal(write_survey, "s3://bucket/survey", [GALAXIES], 100, 30, FIELDS) == (
        "s3://bucket/survey: surveys are written to a local folder; write one there and copy it to S3"
    )


def test_a_survey_of_no_galaxies_is_not_written(tmp_path):
    out = tmp_path / "out"
    assert (
        refusal(write_survey, str(out), [], 0, 30, FIELDS) == f"nothing to write to {out}: the source holds no galaxies"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), InputError("broken"), OSError(5, "broken"), KeyboardInterrupt()]
)
def test_an_error_of_the_source_leaves_nothing(tmp_path, error):
    def source():
        yield GALAXIES[:50]
        raise error

    with pytest.raises(type(error)) as caught:
        write_survey(str(tmp_path / "out"), source(), 100, 30, FIELDS)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_source_with_fewer_galaxies_than_announced_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="10 galaxies were given, 30 announced"):
        write_survey(str(tmp_path / "out"), [GALAXIES], 120, 30, FIELDS)
    assert list(tmp_path.iterdir()) == []


def test_of_two_surveys_written_to_one_folder_at_once_one_is_whole_and_the_other_is_refused(tmp_path):
    out, other = tmp_path / "out", random_galaxies(100, seed=1)

    def source():
        yield GALAXIES[:50]
        make_survey(out, other, 30)
        yield GALAXIES[50:]

    assert refusal(write_survey, str(out), source(), 100, 30, FIELDS) == (
        f"{out} was written by another process meanwhile, which was left as it is; choose another --out"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    found = open_survey(str(out))
    assert digest(all_of(found)) == digest(other) and [problem for _, problem in verify_survey(found)] == [""] * 4


def test_files_of_a_killed_writer_are_removed(tmp_path):
    code = (
        "import os, sys; from support.helpers import *\n"
        "def batches():\n    yield random_galaxies(50)\n    os.kill(os.getpid(), 9)\n"
        "write_survey(sys.argv[1], batches(), 100, 30, FIELDS)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], env=environment).returncode == -9
    assert [path.name for path in next(tmp_path.iterdir()).iterdir()] != []
    make_survey(tmp_path / "out", GALAXIES, 30)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert open_survey(str(tmp_path / "out")).galaxies == 100


# S3.


def test_a_survey_on_s3_gives_the_same_galaxies(survey, bucket):
    for path in Path(survey.uri).iterdir():
        storage.write_bytes(f"{bucket}/a/survey/{path.name}", path.read_bytes())
    found = open_survey(f"{bucket}/a/survey/")
    shards = tuple(structs.replace(shard, etag=UNSET) for shard in found.shards)
    assert Survey(found.uri, shards) == Survey(f"{bucket}/a/survey", survey.shards)
    assert all(shard.etag for shard in found.shards)
    changed = bytearray(storage.read_bytes(survey.shard_uri(survey.shards[0])))
    changed[-1] ^= 1
    storage.write_bytes(found.shard_uri(found.shards[0]), bytes(changed))
    assert "was replaced" in refusal(found.open, found.shards[0])
    storage.write_bytes(found.shard_uri(found.shards[0]), Path(survey.shard_uri(survey.shards[0])).read_bytes())
    assert digest(all_of(found, 16)) == digest(GALAXIES)
    assert [what for _, what in verify_survey(found)] == [""] * 4
    storage.remove(f"{bucket}/a/survey/000002.h5")
    assert refusal(open_survey, found.uri).startswith(f"{bucket}/a/survey/000002.h5 is missing, survey.json says ")


def test_partitions_on_s3_are_a_survey_and_so_is_one_of_them(tmp_path, bucket):
    for name, part in (("10.pt", GALAXIES[60:]), ("9.pt", GALAXIES[:60])):
        write_pt(tmp_path / name, part)
        storage.write_bytes(f"{bucket}/data/{name}", (tmp_path / name).read_bytes())
    found = open_survey(f"{bucket}/data")
    assert [(shard.name, shard.galaxies) for shard in found.shards] == [("9.pt", 60), ("10.pt", 40)]
    np.testing.assert_array_equal(all_of(found, 64).image, GALAXIES.image)
    one = open_survey(f"{bucket}/data/10.pt")
    assert one == Survey(f"{bucket}/data", found.shards[1:])
    again = resplit_survey(found, str(tmp_path / "out"), 100)
    np.testing.assert_array_equal(all_of(again).redshift, GALAXIES.redshift)


@pytest.mark.parametrize("name", ["000002.h5", "000003.h5", "survey.json"])
@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("gone"), lambda path: path.symlink_to("/dev/null")]
)
def test_a_file_of_a_survey_that_is_not_regular_is_named_and_not_left_out(tmp_path, name, make):
    make_survey(tmp_path / "s", random_galaxies(20), 10)
    (tmp_path / "s/survey.json").unlink()
    path = tmp_path / "s" / name
    path.unlink(missing_ok=True)
    make(path)
    with pytest.raises(InputError) as refused:
        open_survey(str(tmp_path / "s"))
    assert str(refused.value) == f"{path} is not a regular file; put back the file, or remove it"


@pytest.mark.parametrize("place", ["local", "s3"])
def test_hidden_files_are_left_out_and_copies_are_refused(tmp_path, bucket, place):
    uri = f"{bucket}/data" if place == "s3" else str(tmp_path / "data")
    write_pt(tmp_path / "a.pt", GALAXIES[:2])

    def put(name: str, content: bytes) -> None:
        if place == "local":
            (tmp_path / "data").mkdir(exist_ok=True)
        storage.write_bytes(f"{uri}/{name}", content)

    for name in ("1.pt", "2.pt"):
        put(name, (tmp_path / "a.pt").read_bytes())
    for name in ("._1.pt", ".DS_Store", ".3.h5", "1.pt~"):
        put(name, b"no galaxies")
    assert [shard.name for shard in open_survey(uri).shards] == ["1.pt", "2.pt"]
    assert [shard.name for shard in open_survey(uri, 1).shards] == ["1.pt"]
    for name in ("2 (copy).pt", "2.h5"):
        put(name, b"is not read")
        found = " and ".join(sorted(["2.pt", name], key=storage.natural_key))
        assert refusal(open_survey, uri) == (
            f"{uri} holds {found}, by their names the same galaxies more than once; remove all but one, or rename "
            "them if they hold different galaxies"
        )
        assert [shard.name for shard in open_survey(uri, 1).shards] == ["1.pt"]  # neither of the two is used
        storage.remove(f"{uri}/{name}")


def test_hundreds_of_partitions_on_s3_are_a_survey_in_natural_order(tmp_path, bucket):
    write_pt(tmp_path / "a.pt", GALAXIES[:2])
    write_shard(tmp_path / "a.h5", [GALAXIES[:1]], 1, FIELDS)
    content = {".pt": (tmp_path / "a.pt").read_bytes(), ".h5": (tmp_path / "a.h5").read_bytes()}
    names = [f"{number}{'.pt' if number % 50 == 0 else '.h5'}" for number in range(1, 301)]
    fill(bucket, {f"many/{name}": content[name[-3:]] for name in names} | {"many/README.txt": b"x"})
    found = open_survey(f"{bucket}/many")
    assert tuple(structs.replace(shard, digest=UNSET, etag=UNSET) for shard in found.shards) == tuple(
        ShardEntry(name, 1 if name.endswith("h5") else 2, len(content[name[-3:]])) for name in names
    )
    requests = RequestStatistics()
    some = open_survey(f"{bucket}/many", 3)
    assert some.shards == found.shards[:3]
    assert requests.counts["HeadObject"] == 3  # no header of another is read


def test_headers_on_s3_are_read_concurrently(tmp_path, monkeypatch):
    together = threading.Barrier(MAX_REQUESTS, timeout=60)

    def opened(uri: str):
        together.wait()
        return open_shard(str(tmp_path / storage.basename(uri)))

    monkeypatch.setattr(surveys, "open_shard", opened)
    names = [f"{number}.h5" for number in range(2 * MAX_REQUESTS)]
    for number, name in enumerate(names):
        write_shard(tmp_path / name, [GALAXIES[:number]], number, FIELDS)
    described = describe_files("s3://bucket/survey", names)
    assert [entry.galaxies for entry in described.shards] == list(range(2 * MAX_REQUESTS))


def test_the_first_file_that_is_not_a_shard_is_named(tmp_path, monkeypatch):
    for name in ("1.h5", "2.h5", "3.h5", "4.h5"):
        write_shard(tmp_path / name, [GALAXIES[:1]], 1, FIELDS)
    for name in ("2.h5", "3.h5"):
        (tmp_path / name).write_bytes(b"no shard")
    expected = f"{tmp_path}/2.h5 is not an HDF5 file or is damaged; expected image and magnitude, copy it again"
    assert refusal(open_survey, str(tmp_path)) == expected
    monkeypatch.setattr(surveys, "open_shard", lambda uri: open_shard(str(tmp_path / storage.basename(uri))))
    assert refusal(describe_files, "s3://bucket/survey", ["1.h5", "2.h5", "3.h5", "4.h5"]) == expected
    assert len(open_survey(str(tmp_path), 1).shards) == 1  # files beyond the limit are not opened


@pytest.mark.parametrize("limit", [1, 3, 4, 100])
def test_the_limit_keeps_the_first_shards_only(survey, limit):
    assert open_survey(survey.uri, limit) == Survey(survey.uri, survey.shards[:limit])
    Path(survey.uri, "survey.json").unlink()
    names = [shard.name for shard in survey.shards[:limit]]
    assert [shard.name for shard in open_survey(survey.uri, limit).shards] == names


def test_a_prefix_with_nothing_under_it_and_a_missing_bucket_are_one_sentence(bucket):
    assert refusal(open_survey, f"{bucket}/none").startswith(f"{bucket}/none does not exist; expected a survey folder")
    assert refusal(open_survey, "s3://no-such-bucket/a").startswith("cannot inspect s3://no-such-bucket/a: the bucket")
    with pytest.raises(StorageError):
        open_survey("s3://no-such-bucket/a.h5")


# Memory.

PEAK = """
import sys
{statement}
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(int(status["VmHWM"].split()[0]) / 1024)
"""


def peak_mb(statement: str, *arguments: str) -> float:
    """Return the peak memory in MB of a new process that runs the statement."""
    code = PEAK.format(statement=statement)
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return float(ran.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_the_survey(tmp_path):
    batch = random_galaxies(500)  # 10 MB
    statement = (
        "from cosmicai.surveys.survey import *; resplit_survey(open_survey(sys.argv[1]), sys.argv[2], int(sys.argv[3]))"
    )
    peaks = []
    for number, batches in enumerate((1, 20)):
        source = write_survey(str(tmp_path / f"{number}"), [batch] * batches, 500 * batches, 5113, FIELDS)
        peaks.append(peak_mb(statement, source.uri, str(tmp_path / f"out{number}"), "3834"))
        shutil.rmtree(source.uri)
        shutil.rmtree(tmp_path / f"out{number}")
    assert peaks[1] - peaks[0] < 30, peaks


# The command line.


def test_split_info_and_verify_work_together(tmp_path):
    source = make_survey(tmp_path / "survey", random_galaxies(1100), 1000)
    out = tmp_path / "out"
    done = run("split", source.uri, "--out", str(out), "--partition-mb", "10")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"1100 galaxies in 3 shards in {out}\n", "")
    shown = run("survey", "info", str(out))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.splitlines() == [
        f"survey     {out}",
        "galaxies   1100",
        "shards     3 of 78 to 511 galaxies",
        f"size       {open_survey(str(out)).bytes / 2**20:,.1f} MB",
        "fields     image <f4, magnitude <f8, redshift <f8, objid <i8",
        "ids        int64; 0 galaxies have none; every id occurs once",
        "checksums  3 of 3 shards",
    ]
    sound = run("survey", "verify", str(out))
    assert (sound.returncode, sound.stdout) == (0, "3 shards, 1100 galaxies, all as written\n")
    with h5py.File(out / "000002.h5", "r+") as file:
        file["redshift"][5] = 9
    damaged = run("survey", "verify", str(out))
    assert damaged.returncode == 2
    assert "000002.h5: its SHA-256 is " in damaged.stderr and "Traceback" not in damaged.stderr
    assert damaged.stderr.splitlines()[-1] == (f"cosmicai: {out}: 1 of 3 shards are not as written; copy them again")
