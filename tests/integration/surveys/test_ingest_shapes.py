"""Test that the same galaxies go in by every shape in which astronomers have them, with one digest."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from cosmicai.surveys.survey import open_survey
from support import sky
from support.helpers import run
from support.s3 import bucket_fixture, fill  # noqa: F401

GALAXIES, WITHOUT_CUTOUT = 300, 10
SKY = sky.make_sky(GALAXIES)
FOUND = SKY[WITHOUT_CUTOUT:]  # those that have a cutout


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory):
    """Write the catalogue and the cutouts, with five cutouts that have no row."""
    folder = tmp_path_factory.mktemp("sky")
    strangers = sky.make_sky(5, seed=99)
    strangers.columns["name"] = np.array([f"X{number}" for number in range(5)])
    sky.write_cutouts(FOUND, folder / "cutouts")
    sky.write_cutouts(strangers, folder / "cutouts")
    sky.write_table(SKY, folder / "catalogue.fits")
    return folder


@pytest.fixture(scope="module", name="expected")
def expected_fixture(folder):
    """Return the survey that the catalogue and the cutouts give."""
    done = run("ingest", "cutouts", "--catalogue", "catalogue.fits", *sky.OPTIONS, "--out", "expected", cwd=folder)
    assert (done.returncode, done.stdout) == (0, f"290 galaxies in 1 shard in {folder}/expected\n"), done.stderr
    return folder / "expected", done.stderr


def digests(survey: Path) -> list[str]:
    return [shard["digest"] for shard in json.loads((survey / "survey.json").read_text())["shards"]]


def ingest(folder: Path, *arguments: str) -> list[str]:
    """Return the digests of the shards that `cosmicai ingest` writes."""
    out = folder / f"survey{len(list(folder.glob('survey*')))}"
    done = run("ingest", *arguments, "--out", str(out), cwd=folder)
    assert done.returncode == 0, done.stderr
    return digests(out)


def refusal(folder: Path, *arguments: str) -> str:
    before = sorted(folder.rglob("*"))
    done = run("ingest", *arguments, "--out", "refused", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert sorted(folder.rglob("*")) == before
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("cosmicai: ")
    return line.removeprefix("cosmicai: ")


def test_a_catalogue_and_its_cutouts_become_a_survey_with_positions_and_columns(expected):
    survey = open_survey(str(expected[0]))
    with survey.open(survey.shards[0]) as shard:
        found, columns = shard.read(0, 290), shard.read_columns(0, 290)
        assert shard.columns["ra"].unit == "deg"
    np.testing.assert_array_equal(found.image, FOUND.image[..., 16:48, 16:48])
    magnitude = np.stack([FOUND.columns[f"modelMag_{band}"] for band in "ugriz"], axis=1)
    np.testing.assert_array_equal(found.magnitude, magnitude)
    np.testing.assert_array_equal(
        found.redshift, np.where(FOUND.columns["z_sdss"] == -1, np.nan, FOUND.columns["z_sdss"])
    )
    np.testing.assert_array_equal(found.objid, np.char.encode(FOUND.columns["name"], "utf-8"))
    assert list(columns) == ["ra", "dec", "columns/run", "columns/survey"]
    np.testing.assert_array_equal(columns["ra"], FOUND.columns["raj"])
    np.testing.assert_array_equal(columns["dec"], FOUND.columns["decj"])
    np.testing.assert_array_equal(columns["columns/run"], FOUND.columns["run"])
    np.testing.assert_array_equal(columns["columns/survey"], np.char.encode(FOUND.columns["survey"], "utf-8"))
    assert columns["columns/run"].dtype == np.int32


def test_rows_without_a_cutout_and_cutouts_without_a_row_are_counted_and_named(expected):
    names = ", ".join(SKY.columns["name"][:WITHOUT_CUTOUT])
    assert f"rows left out, since they have no cutout: 10, for example {names}\n" in expected[1]
    assert (
        "cutouts left out, since they have no row: 5, for example plate0/X0.fits.gz, plate0/X2.fits, plate0/X4.fits, "
        in expected[1]
    )
    assert "290 sources, the first cutouts/plate0/" in expected[1]
    assert "bands are reordered from z i r g u to u g r i z\n" in expected[1]


def test_every_shape_gives_the_same_survey(folder, expected, tmp_path):
    wanted, catalogue = digests(expected[0]), ["--catalogue", str(sky.write_table(FOUND, tmp_path / "rows.fits"))]
    sky.write_bands(FOUND, tmp_path / "bands")
    sky.write_extensions(FOUND, tmp_path / "extensions")
    sky.write_hdf5(FOUND, tmp_path / "a.h5")
    sky.write_npz(FOUND, tmp_path / "a.npz")
    sky.write_parquet(FOUND, tmp_path / "a.parquet")
    sky.write_bintable(FOUND, tmp_path / "table.fits")
    for source in ("a.h5", "a.npz", "a.parquet", "table.fits"):
        assert ingest(tmp_path, source, *sky.OPTIONS) == wanted, source
        assert ingest(tmp_path, source, *catalogue, *sky.OPTIONS) == wanted, source
    assert ingest(tmp_path, "extensions", *catalogue, *sky.OPTIONS) == wanted
    per_band = ("--per-band", "{id}_{band}.fits")
    assert ingest(tmp_path, "bands", *per_band, *catalogue, *sky.OPTIONS) == wanted
    arrays: dict[str, Any] = {name: FOUND.columns[name] for name in ("name", "raj", "decj", "z_sdss", "run", "survey")}
    arrays["magnitude"] = np.stack([FOUND.columns[f"modelMag_{band}"] for band in "ugriz"], axis=1)
    np.savez(tmp_path / "arrays.npz", image=FOUND.image, **arrays)
    options = [option for option in sky.OPTIONS if option not in ("--magnitudes", "modelMag_{band}")]
    assert ingest(tmp_path, "arrays.npz", *options) == wanted


@pytest.mark.parametrize("ending", ["csv", "ecsv", "parquet", "vot"])
def test_the_catalogue_may_be_of_any_format(folder, expected, tmp_path, ending):
    path = tmp_path / f"catalogue.{ending}"
    Table(SKY.columns).write(path, **{"format": "votable"} if ending == "vot" else {})
    found = ingest(tmp_path, str(folder / "cutouts"), "--catalogue", str(path), *sky.OPTIONS)
    if ending != "csv":  # which does not say that `run` is int32
        assert found == digests(expected[0])
    survey = open_survey(str(tmp_path / "survey0"))
    with survey.open(survey.shards[0]) as shard:
        np.testing.assert_array_equal(shard.read_columns(0, 290)["columns/run"], FOUND.columns["run"])


def test_the_order_is_that_of_the_catalogue_and_the_bytes_those_of_any_number_of_processes(folder, tmp_path):
    order = np.random.default_rng(0).permutation(GALAXIES)
    sky.write_table(SKY[order], tmp_path / "shuffled.fits")
    arguments = (str(folder / "cutouts"), "--catalogue", "shuffled.fits", *sky.OPTIONS, "--partition-mb", "1")
    results = [ingest(tmp_path, *arguments, "--processes", processes) for processes in ("1", "3")]
    assert results[0] == results[1] and len(results[0]) == 6
    ids = np.concatenate([batch.objid for batch in open_survey(str(tmp_path / "survey0")).read_batches(64)])
    kept = order[order >= WITHOUT_CUTOUT]
    np.testing.assert_array_equal(ids, np.char.encode(SKY.columns["name"][kept], "utf-8"))


def test_a_killed_ingest_goes_on_where_it_was(folder, tmp_path):
    arguments = [
        "ingest", str(folder / "cutouts"), "--catalogue", str(folder / "catalogue.fits"), *sky.OPTIONS,
        "--partition-mb", "0.1", "--processes", "1", "--out", str(tmp_path / "survey"),
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "cosmicai", *arguments], stderr=subprocess.DEVNULL)
    unfinished = tmp_path / ".survey.unfinished"
    while not (unfinished / "000003.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "survey").exists()
    done = sorted(unfinished.glob("*.json"))
    written = {path: path.with_suffix(".h5").stat().st_mtime_ns for path in done}
    assert len(done) < 58
    assert run(*arguments).returncode == 0
    assert os.listdir(tmp_path) == ["survey"]  # noqa: PTH208
    for path, modified in written.items():
        assert (tmp_path / "survey" / path.with_suffix(".h5").name).stat().st_mtime_ns == modified
    assert digests(tmp_path / "survey") == ingest(tmp_path, *arguments[1:-2])


def test_a_file_that_changed_since_a_kill_is_read_again(tmp_path):
    small = SKY[:20]
    sky.write_cutouts(small, tmp_path / "cutouts")
    sky.write_table(small, tmp_path / "catalogue.fits")
    broken = next((tmp_path / "cutouts" / "plate1").iterdir())
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    arguments = ("cutouts", "--catalogue", "catalogue.fits", *sky.OPTIONS, "--partition-mb", "0.1")
    done = run("ingest", *arguments, "--out", "survey", cwd=tmp_path)
    assert done.returncode == 2 and broken.name in done.stderr and not (tmp_path / "survey").exists()
    broken.write_bytes(whole)
    assert ingest(tmp_path, *arguments) == ingest(tmp_path, *arguments)
    assert run("ingest", *arguments, "--out", "survey", cwd=tmp_path).returncode == 0
    assert digests(tmp_path / "survey") == digests(tmp_path / "survey0")


def test_an_ambiguous_match_is_refused(tmp_path):
    small = SKY[:4]
    sky.write_cutouts(small, tmp_path / "cutouts")
    sky.write_table(small, tmp_path / "catalogue.fits")
    arguments = ("cutouts", "--catalogue", "catalogue.fits", *sky.OPTIONS)
    name = small.columns["name"][1]
    original = tmp_path / "cutouts" / "plate1" / f"{name}.fits"
    double = tmp_path / "cutouts" / "plate0" / f"{name}.fits"
    double.write_bytes(original.read_bytes())
    assert refusal(tmp_path, *arguments) == (
        f"cutouts/plate0/{name}.fits and cutouts/plate1/{name}.fits both fit {name} of catalogue.fits; remove one, or "
        "name the right one in a column with --file COLUMN"
    )
    double.unlink()
    twice = SKY[[0, 1, 1, 2]]
    (tmp_path / "catalogue.fits").unlink()
    sky.write_table(twice, tmp_path / "catalogue.fits")
    assert refusal(tmp_path, *arguments) == (
        f"catalogue.fits: rows 1 and 2 both have {name}; expected one row for each cutout, remove one"
    )


def test_cutouts_are_found_by_a_column_of_names_or_by_a_word_of_theirs(tmp_path):
    small = SKY[:6]
    small.columns["name"] = np.arange(6) + 1237648720693755918
    sky.write_cutouts(small, tmp_path / "cutouts")
    for path in (tmp_path / "cutouts").rglob("*.fits*"):
        path.rename(path.with_name(f"cutout_{path.name}"))
    small.columns["path"] = np.array(
        [f"cutout_{n}.fits{'.gz' * (i % 3 == 0)}" for i, n in enumerate(small.columns["name"])]
    )
    sky.write_table(small, tmp_path / "catalogue.fits")
    arguments = ("cutouts", "--catalogue", "catalogue.fits", *sky.OPTIONS)
    assert ingest(tmp_path, *arguments) == ingest(tmp_path, *arguments, "--file", "path")
    ids = next(open_survey(str(tmp_path / "survey0")).read_batches(6)).objid
    np.testing.assert_array_equal(ids, small.columns["name"])


@pytest.mark.parametrize("axis", [0, 2])
def test_cutouts_may_be_arrays_of_one_galaxy_each(tmp_path, axis):
    small = SKY[:6]
    (tmp_path / "cutouts").mkdir()
    for name, image in zip(small.columns["name"], small.image, strict=True):
        np.save(tmp_path / "cutouts" / f"{name}.npy", np.moveaxis(image, 0, axis))
    sky.write_table(small, tmp_path / "catalogue.fits")
    ingest(tmp_path, "cutouts", "--catalogue", "catalogue.fits", *sky.OPTIONS)
    found = next(open_survey(str(tmp_path / "survey0")).read_batches(6))
    np.testing.assert_array_equal(found.image, small.image[..., 16:48, 16:48])
    np.testing.assert_array_equal(found.objid, np.char.encode(small.columns["name"], "utf-8"))


def test_a_pattern_and_a_prefix_on_s3_give_the_same_survey_also_on_s3(folder, expected, tmp_path, bucket):
    pattern = str(folder / "cutouts" / "*" / "*.fits*")
    catalogue = ("--catalogue", str(folder / "catalogue.fits"))
    assert ingest(tmp_path, pattern, *catalogue, *sky.OPTIONS) == digests(expected[0])
    cutouts = {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "cutouts").rglob("*.fits*")}
    fill(bucket, cutouts)
    out = f"{bucket}/survey"
    done = run("ingest", f"{bucket}/cutouts", *catalogue, *sky.OPTIONS, "--out", out, TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"290 galaxies in 1 shard in {out}\n"), done.stderr
    assert [shard.digest for shard in open_survey(out).shards] == digests(expected[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["survey0"]


def test_a_catalogue_of_another_length_than_the_arrays_is_refused(tmp_path):
    sky.write_hdf5(SKY[:6], tmp_path / "a.h5")
    sky.write_table(SKY[:5], tmp_path / "catalogue.fits")
    assert refusal(tmp_path, "a.h5", "--catalogue", "catalogue.fits", *sky.OPTIONS) == (
        "catalogue.fits has 5 rows, there are 6 galaxies or more; expected one row for each galaxy, in their order"
    )
    sky.write_table(SKY[:7], tmp_path / "longer.fits")
    assert refusal(tmp_path, "a.h5", "--catalogue", "longer.fits", *sky.OPTIONS) == (
        "longer.fits has 7 rows, there are 6 galaxies; expected one row for each galaxy, in their order"
    )


def test_columns_that_are_missing_or_mean_nothing_here_are_named(tmp_path):
    sky.write_cutouts(SKY[:4], tmp_path / "cutouts")
    sky.write_table(SKY[:4], tmp_path / "catalogue.fits")
    arguments = ("cutouts", "--catalogue", "catalogue.fits")
    assert "catalogue.fits has no objid_sdss, it holds name, raj, decj" in refusal(
        tmp_path, *arguments, "--id", "objid_sdss"
    )
    assert "has no column of ids, by which to find the cutouts" in refusal(tmp_path, *arguments)
    assert refusal(tmp_path, "cutouts", "--file", "name") == (
        "--file names a column of a catalogue; give the table with --catalogue"
    )
    assert "no cutout fits a row of catalogue.fits: files have names such as plate0/" in refusal(
        tmp_path, *arguments, "--id", "run"
    )


def test_positions_that_are_none_are_counted(tmp_path):
    small = SKY[:4]
    small.columns["raj"][1], small.columns["decj"][2] = -999, 90.5
    sky.write_cutouts(small, tmp_path / "cutouts")
    sky.write_table(small, tmp_path / "catalogue.fits")
    done = run("ingest", "cutouts", "--catalogue", "catalogue.fits", *sky.OPTIONS, "--out", "survey", cwd=tmp_path)
    assert "positions that are missing, or not ra from -180 to 360 and dec -90 to 90: 2\n" in done.stderr
    survey = open_survey(str(tmp_path / "survey"))
    with survey.open(survey.shards[0]) as shard:
        columns = shard.read_columns(0, 4)
    np.testing.assert_array_equal(np.isnan(columns["ra"]), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(columns["dec"]), [False, True, True, False])


@pytest.mark.parametrize("how", ["cards", "wcs"])
def test_a_cutout_of_another_place_than_its_row_is_refused(tmp_path, how):
    small = SKY[:2]
    (tmp_path / "cutouts").mkdir()
    for number, name in enumerate(small.columns["name"]):
        ra, dec = small.columns["raj"][number], small.columns["decj"][number] + number * 1.8 / 3600 * (1 + 4 * number)
        hdu = fits.PrimaryHDU(small.image[number])
        if how == "cards":
            hdu.header["RA"], hdu.header["DEC"] = ra, dec
        else:
            hdu.header.update(
                {
                    "CTYPE1": "RA---TAN",
                    "CTYPE2": "DEC--TAN",
                    "CRVAL1": ra,
                    "CRVAL2": dec,
                    "CRPIX1": 32.5,
                    "CRPIX2": 32.5,
                }
            )
            hdu.header.update({"CD1_1": -1.1e-4, "CD2_2": 1.1e-4})
        hdu.writeto(tmp_path / "cutouts" / f"{name}.fits")
    sky.write_table(small, tmp_path / "catalogue.fits")
    said = refusal(tmp_path, "cutouts", "--catalogue", "catalogue.fits", *sky.OPTIONS)
    assert said.startswith(f"cutouts/{small.columns['name'][1]}.fits shows ra {small.columns['raj'][1]:.5f}, dec ")
    assert said.endswith("; expected a cutout of this galaxy, check which file belongs to it")
    sky.write_table(small[:1], tmp_path / "first.fits")
    ingest(tmp_path, "cutouts", "--catalogue", "first.fits", *sky.OPTIONS)


def test_ids_with_signs_and_dots_are_found_in_names_and_rows_without_an_id_are_named(tmp_path):
    small = SKY[:4]
    small.columns["name"] = np.array(["J123400.78+012300.6", "J123400.78-012300.6", "J1.5+2", ""])
    (tmp_path / "cutouts").mkdir()
    for name, image in zip(small.columns["name"][:3], small.image, strict=False):
        np.save(tmp_path / "cutouts" / f"SDSS {name} cutout.npy", image)
    sky.write_table(small, tmp_path / "catalogue.fits")
    done = run("ingest", "cutouts", "--catalogue", "catalogue.fits", *sky.OPTIONS, "--out", "survey", cwd=tmp_path)
    assert done.stdout == f"3 galaxies in 1 shard in {tmp_path}/survey\n", done.stderr
    assert "rows left out, since they have no id: 1, the first is row 3\n" in done.stderr
    found = next(open_survey(str(tmp_path / "survey")).read_batches(3))
    np.testing.assert_array_equal(found.objid, np.char.encode(small.columns["name"][:3], "utf-8"))


def test_masks_that_astropy_writes_beside_columns_are_obeyed(tmp_path):
    small, hidden = SKY[:6], np.arange(6) == 2
    table = Table({**small.columns, "image": small.image}, masked=True)
    for name in ("z_sdss", "run", *(f"modelMag_{band}" for band in "ugriz")):
        table[name].mask = hidden
    table.write(tmp_path / "a.h5", path="galaxies", serialize_meta=True)
    del table["image"]
    table.write(tmp_path / "catalogue.parquet")
    sky.write_hdf5(sky.Sky(small.image, {}), tmp_path / "images.h5")
    for arguments in (("a.h5",), ("images.h5", "--catalogue", "catalogue.parquet")):
        ingest(tmp_path, *arguments, *sky.OPTIONS)
        survey = open_survey(str(tmp_path / f"survey{len(list(tmp_path.glob('survey*'))) - 1}"))
        with survey.open(survey.shards[0]) as shard:
            found, numbers = shard.read(0, 6), shard.read_column("columns/run", 0, 6)
            null = shard.columns["columns/run"].null
        np.testing.assert_array_equal(np.isnan(found.magnitude).all(axis=1), hidden)
        np.testing.assert_array_equal(np.isnan(found.redshift), hidden | (small.columns["z_sdss"] == -1))
        np.testing.assert_array_equal(numbers == null, hidden)
        np.testing.assert_array_equal(numbers[~hidden], small.columns["run"][~hidden])


def test_options_that_contradict_each_other_are_refused(tmp_path):
    sky.write_cutouts(SKY[:2], tmp_path / "cutouts")
    sky.write_table(SKY[:2], tmp_path / "catalogue.fits")
    catalogue = ("cutouts", "--catalogue", "catalogue.fits")
    assert refusal(tmp_path, "cutouts", "--resample", "--accept-pixel-scale") == (
        "--resample and --accept-pixel-scale contradict each other; give one of them"
    )
    for keep in ("all,run", "", "run,"):
        assert refusal(tmp_path, *catalogue, "--keep", keep) == (
            f"--keep expects names of columns as A,B,C, or all alone; got {keep!r}"
        )
    assert refusal(tmp_path, *catalogue, "--file", "name", "--per-band", "{id}_{band}.fits") == (
        "--file and --per-band both say which files are a galaxy's; give one of them"
    )
    assert refusal(tmp_path, "cutouts", "--table", "1") == (
        "--table chooses one in the file of a catalogue; give the file with --catalogue"
    )
