"""The catalogue: who each galaxy is, what was kept of it, what the file says of itself, and every format read back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from numpy.typing import NDArray

from cosmicai import read_catalogue
from cosmicai.models.weights import DEMO
from cosmicai.ranks.environment import Rank
from cosmicai.runs.catalogue.convert import LEFT_OUT, WRITERS, convert_catalogue
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.columns import DEGREES, ColumnSpec
from cosmicai.surveys.quality import Flag
from cosmicai.surveys.shard import FIELDS, Galaxies
from cosmicai.surveys.survey import open_survey, write_survey
from support.helpers import make_run, run_worker, tiny_weights

ROWS = 300
BIG = np.uint64(2**63)  # as SDSS numbers its spectra: beyond int64, and beyond what a float tells apart
SPECS = {
    "ra": DEGREES,
    "dec": DEGREES,
    "columns/specobjid": ColumnSpec(np.dtype("<u8"), null=2**64 - 1),
    "columns/run": ColumnSpec(np.dtype("<i2"), null=-32768),
    "columns/flag": ColumnSpec(np.dtype(np.bool_)),
    "columns/field": ColumnSpec(np.dtype("<i8")),
    "columns/class": ColumnSpec(np.dtype("S6")),
    "columns/error": ColumnSpec(np.dtype("<f4"), "mag"),
}
NAMES = {"columns/flag": "flag_kept"} | {path: path.removeprefix("columns/") for path in SPECS if "flag" not in path}


def make_columns() -> dict[str, NDArray[Any]]:
    rows = np.arange(ROWS)
    return {
        "ra": np.linspace(0, 359, ROWS),
        "dec": np.linspace(-90, 90, ROWS),
        "columns/specobjid": np.where(rows % 7 == 0, np.uint64(2**64 - 1), BIG + rows.astype("<u8")),
        "columns/run": np.where(rows % 5 == 0, -32768, rows).astype("<i2"),
        "columns/flag": rows % 2 == 0,
        "columns/field": rows - 150,
        "columns/class": np.array([b"GALAXY", b"", b'a,"b"'])[rows % 3],
        "columns/error": np.where(rows % 11 == 0, np.nan, 1.5).astype("<f4"),
    }


def make_galaxies(columns: dict[str, NDArray[Any]]) -> Galaxies:
    random = np.random.default_rng(0)
    image = random.normal(1, 1, (ROWS, 5, 32, 32)).astype(np.float32)
    objid = np.array([f"J{row:04d}".encode() for row in range(ROWS)])
    return Galaxies(image, random.uniform(15, 20, (ROWS, 5)), random.uniform(0.05, 0.3, ROWS), objid, columns=columns)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of ROWS galaxies in three shards, that is complete."""
    folder = tmp_path_factory.mktemp("catalogue")
    galaxies = make_galaxies(make_columns())
    write_survey(str(folder / "sky"), [galaxies], ROWS, 100, list(FIELDS), np.dtype("S5"), SPECS)
    weights = tiny_weights(folder / "tiny.safetensors")
    run = make_run(open_survey(str(folder / "sky")), weights, str(folder / "run"), engine="reference", batch_size=32)
    run_worker(run, Rank(threads=1))
    assert summarize(run).complete
    return run


def is_missing(path: str, values: NDArray[Any]) -> NDArray[np.bool_]:
    null = SPECS[path].null
    return np.zeros(ROWS, np.bool_) if null is None else values == null


def read_quietly(file: Path, **options: Any) -> Table:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Table.read(file, **options)


def test_every_row_has_who_it_is_and_what_was_kept(finished):
    table, given = read_catalogue(finished.uri), make_columns()
    assert table.colnames == [
        "objid", "ra", "dec", "redshift_phot", "redshift_spec", "flag",
        "specobjid", "run", "flag_kept", "field", "class", "error", "shard", "row",
    ]  # fmt: skip
    assert table["objid"].tolist() == [f"J{row:04d}" for row in range(ROWS)]
    assert np.array_equal(table["redshift_spec"], make_galaxies({}).redshift)
    assert table["shard"].tolist() == [f"{row // 100 + 1:06d}.h5" for row in range(ROWS)]
    assert table["row"].tolist() == [row % 100 for row in range(ROWS)]
    for path, values in given.items():
        own, missing = table[NAMES[path]], is_missing(path, values)
        assert own.dtype == ("U6" if path == "columns/class" else values.dtype)
        if missing.any():
            assert isinstance(own, MaskedColumn) and np.array_equal(own.mask, missing)
            own, values = own[~missing].filled(), values[~missing]
        expected = values.astype("U6") if path == "columns/class" else values
        assert np.array_equal(np.asarray(own), expected, equal_nan=path == "columns/error")
    assert (table["ra"].unit, table["error"].unit) == ("deg", "mag")


OPTIONS = {"hdf5": {"path": "catalogue"}, "csv": {"format": "pandas.csv"}, "ecsv": {"format": "ascii.ecsv"}}
ROUNDED = ("parquet", "csv")  # by these readers, which have no missing integers


def read_text(column: Any) -> list[str]:
    """Return the text of a column, empty where it is missing."""
    if hasattr(column, "filled"):
        column = column.filled("")
    return [text.decode() if isinstance(text, bytes) else str(text).replace("nan", "") for text in column]


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind not in LEFT_OUT])
def test_astropy_reads_every_format_without_a_warning(finished, tmp_path, kind):
    path = tmp_path / f"c.{'vot' if kind == 'votable' else kind}"
    assert convert_catalogue(finished, kind, str(path)) == ROWS
    table, expected = read_quietly(path, **OPTIONS.get(kind, {})), read_catalogue(finished.uri)
    assert table.colnames == expected.colnames
    for name in expected.colnames:
        own, wanted = table[name], expected[name]
        if kind != "csv":
            assert own.unit == wanted.unit and (kind == "fits" or own.description == wanted.description)
        missing = getattr(wanted, "mask", np.zeros(ROWS, np.bool_))
        if missing.any() and kind not in ROUNDED and own.dtype.kind in "iu":
            assert np.array_equal(own.mask, missing)
        if name == "specobjid" and kind in ("fits", "votable"):  # where there are no such integers
            assert read_text(own[~missing]) == [str(number) for number in wanted[~missing]]
        elif wanted.dtype.kind == "U":
            assert read_text(own) == wanted.tolist()
        else:
            found, wanted = (np.asarray(values)[~missing].astype(np.float64) for values in (own, wanted))
            digits = 1e-7 if kind == "csv" and name in ("redshift_phot", "error") else 0
            assert np.allclose(found, wanted, rtol=digits, atol=0, equal_nan=True)
            assert kind in ROUNDED or np.array_equal(
                np.asarray(own)[~missing], np.asarray(expected[name])[~missing], True
            )


def test_pandas_reads_integers_of_which_some_are_missing(finished):
    table, given = pd.read_parquet(finished.catalogue_path), make_columns()
    assert (str(table["specobjid"].dtype), str(table["run"].dtype)) == ("UInt64", "Int16")
    missing = is_missing("columns/specobjid", given["columns/specobjid"])
    assert table["specobjid"].isna().tolist() == missing.tolist()
    assert table["specobjid"][~missing].tolist() == given["columns/specobjid"][~missing].tolist()


def test_fits_has_ucds_nulls_provenance_and_valid_checksums(finished, tmp_path):
    convert_catalogue(finished, "fits", path := str(tmp_path / "c.fits"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(path, checksum=True) as file:
            file.verify("exception")
            header = file[1].header
    ucds = {header[f"TTYPE{number}"]: header.get(f"TUCD{number}") for number in range(1, 15)}
    assert ucds["redshift_phot"] == "src.redshift.phot;meta.main" and ucds["flag"] == "meta.code.qual"
    assert (header["EXTNAME"], header["NAXIS2"], header["TUNIT2"], header["TNULL8"]) == (
        "CATALOGUE",
        ROWS,
        "deg",
        -32768,
    )
    plan = finished.plan()
    stated = [header[key] for key in ("WEIGHTS", "WTSHA256", "PLAN", "SURVEY", "ENGINE", "PRECIS", "FLAG128")]
    assert stated == [
        "tiny.safetensors",
        plan.weights_sha256,
        plan.inputs_digest,
        "sky",
        "reference",
        "float32",
        "not done yet",
    ]


def test_the_votable_in_the_head_of_the_file_describes_its_columns(finished):
    metadata = pq.read_schema(finished.catalogue_path).metadata
    assert metadata[b"IVOA.VOTable-Parquet.version"] == b"1.0"
    root = ElementTree.fromstring(metadata[b"IVOA.VOTable-Parquet.content"])
    space = "{http://www.ivoa.net/xml/VOTable/v1.3}"
    found = {field.get("name"): field for field in root.iter(f"{space}FIELD")}
    assert list(found) == pq.read_schema(finished.catalogue_path).names
    assert [(found[name].get("ucd"), found[name].get("unit"), found[name].get("ref")) for name in ("ra", "objid")] == [
        ("pos.eq.ra;meta.main", "deg", "icrs"), ("meta.id;meta.main", None, None),
    ]  # fmt: skip
    (frame,) = root.iter(f"{space}COOSYS")
    assert frame.attrib == {"ID": "icrs", "system": "ICRS"} and not list(root.iter(f"{space}DATA"))


def test_a_small_catalogue_is_a_small_hdf5_file(finished, tmp_path):
    convert_catalogue(finished, "hdf5", str(path := tmp_path / "c.hdf5"))
    assert path.stat().st_size < 100_000
    with h5py.File(path) as file:
        assert file["catalogue"].shape == (ROWS,)


def test_rows_of_an_unfinished_run_match_those_of_the_survey(finished, tmp_path):
    plan, whole = finished.plan(), read_catalogue(finished.uri)
    run = make_run(open_survey(plan.survey), plan.weights, str(tmp_path / "run"), engine="reference", batch_size=32)
    run_worker(run, Rank(0, 2, "local", threads=1))
    summary = summarize(run)
    done = np.isin(
        np.arange(ROWS), [100 * item.shard + row for item in run.parts() for row in range(item.start, item.stop)]
    )
    table = read_catalogue(run.uri)
    assert not summary.complete and 0 < np.count_nonzero(done) == summary.coverage.completed < ROWS
    assert np.array_equal(table["flag"] == Flag.NOT_DONE, ~done) and np.isnan(table["redshift_phot"][~done]).all()
    assert table["redshift_phot"][done].tolist() == whole["redshift_phot"][done].tolist()
    for name in ("objid", "row", "ra", "redshift_spec"):
        assert table[name].tolist() == whole[name].tolist()
    run_worker(run, Rank(1, 2, "local", threads=1))
    assert summarize(run).catalogue_sha256 == summarize(finished).catalogue_sha256


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("how", ["away", "damaged"])
def test_a_shard_that_cannot_be_read_again_costs_no_redshift(finished, tmp_path, lost, how):
    plan, whole = finished.plan(), read_catalogue(finished.uri)
    digest = summarize(finished).catalogue_sha256
    shard = Path(plan.survey, plan.shards[lost].name)
    good = shard.read_bytes()
    with h5py.File(shard) as file:
        place = file["columns/field"].id.get_offset()
    try:
        shard.unlink()
        if how == "damaged":
            shard.write_bytes(good[:place] + b"?" + good[place + 1 :])
        summary, table = summarize(finished), read_catalogue(finished.uri)
        for kind in ("fits", "hdf5", "votable", "csv"):
            assert convert_catalogue(finished, kind, str(tmp_path / f"c.{kind}")) == ROWS
    finally:
        shard.write_bytes(good)
    assert not summary.complete and summary.coverage.missing == 0
    assert isinstance(summary.left_out, tuple) and str(shard) in summary.left_out[0]
    assert table["redshift_phot"].tolist() == whole["redshift_phot"].tolist()
    known = np.arange(ROWS) // 100 != lost
    assert table["objid"].tolist() == np.where(known, whole["objid"], "").tolist()
    for name in ("run", "field", "flag_kept"):
        present = known & ~getattr(whole[name], "mask", np.zeros(ROWS, np.bool_))
        assert np.array_equal(table[name].mask, ~present)
        assert table[name][present].tolist() == whole[name][present].tolist()
    assert summarize(finished).catalogue_sha256 == digest


def test_the_demo_weights_are_said_to_be_synthetic(finished, tmp_path):
    run = make_run(open_survey(finished.plan().survey), DEMO, str(tmp_path / "run"), engine="reference")
    summarize(run)
    assert "synthetic galaxies" in read_catalogue(run.uri).meta["synthetic"]
    assert "synthetic" not in read_catalogue(finished.uri).meta
