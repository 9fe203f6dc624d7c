"""Ids from a survey to the catalogue in every format: text, numbers, both, and those that several galaxies have."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from analysis.audit import audit
from analysis.collect import collect
from cosmicai.errors import InputError
from cosmicai.ranks.environment import Rank
from cosmicai.runs.catalogue.convert import convert_catalogue
from cosmicai.runs.catalogue.reading import read_catalogue_objids
from cosmicai.runs.precision import sample_galaxies
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.identity import INT64, ObjIds
from cosmicai.surveys.shard_writing import write_shard
from cosmicai.surveys.survey import open_survey, write_survey
from cosmicai.training.recipe import TrainingOptions
from cosmicai.training.sample import read_training_batches, scan_survey
from support.helpers import FIELDS, make_run, random_galaxies, run, run_worker, tiny_weights

ROWS = 20
TEXT = np.array([*(f"SDSS J{row:05d}".encode() for row in range(ROWS - 1)), b""])
NAMES = [*(f"SDSS J{row:05d}" for row in range(ROWS - 1)), ""]
DIGITS = np.arange(1000, 1000 + ROWS)
DIGITS[5] = -1
DIGIT_NAMES = ["" if number == -1 else str(number) for number in DIGITS.tolist()]


def make_shards(folder: Path, *ids: ObjIds | None) -> str:
    """Write a folder of shards of ROWS galaxies with these ids, or without any where they are None."""
    for number, objid in enumerate(ids):
        galaxies = random_galaxies(ROWS, number)
        fields, dtype = (FIELDS[:3], INT64) if objid is None else (FIELDS, objid.dtype)
        galaxies = galaxies if objid is None else replace(galaxies, objid=objid)
        write_shard(folder / f"{number}.h5", [galaxies], ROWS, fields, dtype)
    return str(folder)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return tiny_weights(tmp_path / "tiny.safetensors")


def predict(survey: str, weights: str, out: Path, ranks: int = 1) -> RunFolder:
    """Return a run of the survey that is completed and summarized."""
    folder = make_run(open_survey(survey), weights, str(out), batch_size=8, engine="reference")
    for rank in range(ranks):
        run_worker(folder, Rank(rank, ranks, "local"))
    summarize(folder)
    return folder


def read_ids(folder: RunFolder) -> tuple[str, list[object]]:
    column = pq.read_table(folder.catalogue_path)["objid"]
    return str(column.type), column.to_pylist()


def test_text_ids_are_in_every_format_of_the_catalogue(tmp_path, weights):
    folder = predict(make_shards(tmp_path / "s", TEXT), weights, tmp_path / "run")
    assert read_ids(folder) == ("string", NAMES)
    assert np.concatenate(list(read_catalogue_objids(folder))).tolist() == TEXT.tolist()
    for kind in ("csv", "fits", "hdf5"):
        assert convert_catalogue(folder, kind, str(tmp_path / f"c.{kind}")) == ROWS
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert [line.partition(",")[0].strip('"') for line in lines] == ["objid", *NAMES]
    table = Table.read(tmp_path / "c.fits")
    assert table["objid"].dtype.kind == "S" and [str(text) for text in table["objid"].filled("")] == NAMES
    with h5py.File(tmp_path / "c.hdf5") as file:
        assert [text.decode() for text in file["catalogue"]["objid"]] == NAMES


def test_a_formula_in_text_ids_is_text_in_csv_and_unchanged_in_the_catalogue(tmp_path, weights):
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "a=1", "1-2", "'=1"]
    ids = np.array([texts[row % len(texts)] for row in range(ROWS)], np.bytes_)
    folder = predict(make_shards(tmp_path / "s", ids), weights, tmp_path / "run")
    assert read_ids(folder)[1] == [text.decode() for text in ids]
    convert_catalogue(folder, "csv", str(tmp_path / "c.csv"))
    with (tmp_path / "c.csv").open(newline="") as file:
        found = [row[0] for row in csv.reader(file)][1:]
    assert found[:8] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "a=1", "1-2", "'=1"]


def test_the_catalogue_of_text_ids_does_not_depend_on_ranks_and_resumes(tmp_path, weights):
    survey = make_shards(tmp_path / "s", TEXT, TEXT.astype("S40"))
    one, three = (predict(survey, weights, tmp_path / f"run-{ranks}", ranks) for ranks in (1, 3))
    data = Path(one.catalogue_path).read_bytes()
    assert Path(three.catalogue_path).read_bytes() == data
    Path(one.part_path(next(iter(one.parts())))).unlink()
    assert predict_again(one, survey, weights) == data


def predict_again(folder: RunFolder, survey: str, weights: str) -> bytes:
    make_run(open_survey(survey), weights, folder.uri, batch_size=8, engine="reference", resume=True)
    run_worker(folder, Rank())
    summarize(folder)
    return Path(folder.catalogue_path).read_bytes()


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1)])
def test_of_shards_with_numbers_with_text_and_without_ids_all_become_text(tmp_path, weights, order):
    kinds = [(DIGITS, DIGIT_NAMES), (TEXT, NAMES), (None, [""] * ROWS)]
    shards = [kinds[index] for index in order]
    folder = predict(make_shards(tmp_path / "s", *(ids for ids, _ in shards)), weights, tmp_path / "run")
    assert read_ids(folder) == ("string", [name for _, names in shards for name in names])


def test_numbers_stay_numbers_where_some_shards_have_no_ids(tmp_path, weights):
    folder = predict(make_shards(tmp_path / "s", None, DIGITS), weights, tmp_path / "run")
    assert read_ids(folder) == ("int64", [-1] * ROWS + DIGITS.tolist())


def test_text_that_fits_cannot_hold_is_refused(tmp_path, weights):
    ids = np.char.encode(np.array([f"é{row}" for row in range(ROWS)]), "utf-8")
    folder = predict(make_shards(tmp_path / "s", ids), weights, tmp_path / "run")
    assert read_ids(folder)[1] == [f"é{row}" for row in range(ROWS)]
    with pytest.raises(InputError) as caught:
        convert_catalogue(folder, "fits", str(tmp_path / "c.fits"))
    assert (
        str(caught.value) == "objid has text beyond ASCII, which FITS does not hold; write parquet, ecsv, csv or hdf5"
    )
    assert not (tmp_path / "c.fits").exists()
    assert convert_catalogue(folder, "hdf5", str(tmp_path / "c.hdf5")) == ROWS


def test_a_shard_with_text_that_is_not_utf8_fails_by_name_and_the_others_are_done(tmp_path, weights):
    survey = make_shards(tmp_path / "s", TEXT, np.array([b"\xff"] * ROWS))
    folder = predict(survey, weights, tmp_path / "run")
    assert read_ids(folder) == ("string", NAMES + [""] * ROWS)
    [failure] = folder.failures()
    assert failure.reason.startswith(f"{survey}/1.h5: objid holds text that is not UTF-8; ")


@pytest.mark.parametrize(("ids", "duplicates"), [(TEXT, 19), (DIGITS, 19), (None, 0)])
def test_ids_that_several_galaxies_have_are_counted_by_summary_and_audit(tmp_path, weights, ids, duplicates):
    folder = predict(make_shards(tmp_path / "s", ids, ids), weights, tmp_path / "run")
    assert json.loads(Path(folder.summary_path).read_text())["coverage"]["duplicate_objid"] == duplicates
    printed = run("summarize", folder.uri).stdout
    assert ("duplicates   19 ids that several galaxies have" in printed) == bool(duplicates)
    text = "19 ids are in its catalogue more than once, so that galaxies may count twice"
    assert audit_run(folder) == (("doubtful", [text]) if duplicates else ("whole", []))


def audit_run(folder: RunFolder) -> tuple[str, list[str]]:
    """Return the verdict of the audit and the texts of its findings."""
    audited = audit(collect([folder.uri]))
    return audited.verdicts.iloc[0], [finding.text for finding in audited.findings]


def test_the_audit_counts_them_in_the_catalogue_of_an_older_run(tmp_path, weights):
    folder = predict(make_shards(tmp_path / "s", DIGITS, DIGITS), weights, tmp_path / "run")
    summary = json.loads(Path(folder.summary_path).read_text())
    del summary["coverage"]["duplicate_objid"]
    Path(folder.summary_path).write_text(json.dumps(summary))
    assert audit_run(folder)[0] == "doubtful"
    Path(folder.catalogue_path).write_bytes(b"damaged")
    assert audit_run(folder) == ("whole", [])
    Path(folder.catalogue_path).unlink()
    assert audit_run(folder) == ("whole", [])


def test_a_survey_with_text_ids_can_be_sampled_for_training_and_split(tmp_path):
    galaxies = replace(random_galaxies(400), objid=np.array([f"g{row}".encode() for row in range(400)]))
    survey = write_survey(str(tmp_path / "s"), [galaxies], 400, 150, FIELDS, galaxies.objid.dtype)
    split = run("split", survey.uri, "--out", str(tmp_path / "again"), "--partition-mb", "1")
    assert split.returncode == 0, split.stderr
    again = open_survey(str(tmp_path / "again"))
    assert np.concatenate([batch.objid for batch in again.read_batches(64)]).tolist() == galaxies.objid.tolist()
    info = run("survey", "info", again.uri)
    assert "ids        text; 0 galaxies have none; every id occurs once" in info.stdout
    sample = scan_survey(survey, TrainingOptions(epochs=1))
    batches = list(read_training_batches(survey, sample, 64, np.random.default_rng(0)))
    assert len({text for batch in batches for text in batch.objid.tolist()}) == 64 * len(batches) > 0
    assert sample_galaxies(survey, 100).objid.dtype == galaxies.objid.dtype
