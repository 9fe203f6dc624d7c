"""Catalogues for qp, RAIL, HATS and LSDB: what stands in the files, and what these libraries read of them.

The libraries are those of an environment of their own, which `make test` installs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cosmicai.calibration.records import LEVELS
from cosmicai.cli.runs import catalogue
from cosmicai.errors import InputError
from cosmicai.runs.catalogue.convert import convert_catalogue
from cosmicai.runs.catalogue.source import CatalogueSource
from cosmicai.runs.catalogue.to_hats import write_hats
from cosmicai.runs.catalogue.to_qp import LOWER, UPPER
from cosmicai.runs.store import RunFolder
from support.calibrated import calibrate_demo, complete, write_galaxies
from support.catalogues import make_columns, write_catalogue
from support.documentation import ROOT, read_blocks

ROWS = 5000
PYTHON = Path(sys.prefix, "interop/bin/python")
real_libraries = pytest.mark.skipif(
    not PYTHON.exists(),
    reason=f"qp, RAIL, hats and LSDB are not at {PYTHON.parent} (`make test` installs them)",
)


def ask(script: str, *arguments: str | Path, folder: Path) -> Any:
    """Return what a script prints last, as JSON, with the libraries; it runs in a folder of its own."""
    (folder / "script").mkdir()
    done = subprocess.run(
        [PYTHON, "-c", script, *map(str, arguments)], cwd=folder / "script", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def convert(run: str, kind: str, *options: str) -> str:
    result = CliRunner().invoke(catalogue, [run, "--to", kind, *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def make_flagged(tmp_path: Path) -> tuple[str, dict[str, Any], Any]:
    """Return a run, its columns, and which of its galaxies have a redshift and an uncertainty."""
    columns = make_columns(ROWS)
    columns["redshift_phot"][::100] = np.nan
    columns["flag"][::100] = 1
    columns[LOWER][7] = columns[UPPER][7] = columns["redshift_phot"][7]  # no width
    columns[UPPER][8] = columns[LOWER][8] - 1  # the wrong way round
    columns[UPPER][9] = np.nan
    columns[LOWER][11] = -np.inf
    usable = np.isfinite(columns["redshift_phot"])
    usable[[7, 8, 9, 11]] = False
    return write_catalogue(tmp_path / "run", columns), columns, usable


def test_qp_has_the_galaxies_with_an_uncertainty(tmp_path):
    run, columns, usable = make_flagged(tmp_path)
    said = convert(run, "qp")
    count, path = np.count_nonzero(usable), Path(run, "catalogue.qp.hdf5")
    left = ROWS - count
    assert said == f"{count} galaxies in {path}; {left} without a redshift or an uncertainty are left out\n"
    with h5py.File(path) as file:
        assert {name: sorted(file[name]) for name in file} == {
            "ancil": ["flag", "id", "redshift", "zmode"], "data": ["loc", "scale"], "meta": ["pdf_name", "pdf_version"],
        }  # fmt: skip
        assert (file["meta/pdf_name"][:].tolist(), file["meta/pdf_version"][:].tolist()) == ([b"norm"], [0])
        redshift = columns["redshift_phot"][usable].astype(np.float64)
        scale = (columns[UPPER].astype(np.float64) - columns[LOWER]) / 2
        assert np.array_equal(file["data/loc"], redshift[:, None])
        assert np.array_equal(file["data/scale"], scale[usable, None])
        assert np.array_equal(file["ancil/zmode"], redshift)
        assert np.array_equal(file["ancil/redshift"], columns["redshift_spec"][usable])
        assert np.array_equal(file["ancil/flag"], columns["flag"][usable])
        assert file["ancil/id"][:].tolist() == [b"%d" % number for number in columns["objid"][usable]]
        assert file.attrs["weights"] == "tiny.safetensors"
    assert convert(run, "qp") == said  # as often as one likes


def test_text_identifiers_reach_qp(tmp_path):
    columns = make_columns(3) | {"objid": np.array(["J1", "", "Jé"])}
    convert(run := write_catalogue(tmp_path / "run", columns), "qp", "--out", str(tmp_path / "c.hdf5"))
    with h5py.File(tmp_path / "c.hdf5") as file:
        assert file["ancil/id"][:].tolist() == [b"J1", b"", "Jé".encode()]
    assert sorted(path.name for path in Path(run).iterdir()) == ["catalogue.parquet"]


@pytest.mark.parametrize("absent", [[LOWER, UPPER], [UPPER]])
def test_qp_is_refused_without_uncertainties(tmp_path, absent):
    columns = {name: values for name, values in make_columns(3).items() if name not in absent}
    run = write_catalogue(tmp_path / "run", columns)
    done = subprocess.run(
        [sys.executable, "-m", "cosmicai", "catalogue", run, "--to", "qp"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"cosmicai: the catalogue has no column {' and no column '.join(absent)}: an ensemble of qp holds "
        "distributions, and these redshifts have no uncertainties; write them as they are, for example with --to hdf5\n"
    )
    assert [path.name for path in Path(run).iterdir()] == ["catalogue.parquet"]


def test_qp_is_refused_if_no_galaxy_is_left(tmp_path):
    columns = make_columns(3)
    columns["redshift_phot"][:] = np.nan
    run = RunFolder(write_catalogue(tmp_path / "run", columns))
    with pytest.raises(InputError, match="none of the 3 galaxies of the catalogue has both a redshift and"):
        convert_catalogue(run, "qp", str(tmp_path / "c.hdf5"))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


QP_AND_RAIL = """
import json, sys, numpy as np, qp
from rail.evaluation.dist_to_point_evaluator import DistToPointEvaluator
from rail.evaluation.point_to_point_evaluator import PointToPointEvaluator

ensemble, truth = qp.read(sys.argv[1]), {"ancil": qp.read(sys.argv[1]).ancil}
options = {"force_exact": True, "hdf5_groupname": "ancil"}
points = PointToPointEvaluator.make_stage(name="points", metrics=["point_bias", "point_stats_sigma_mad"], **options)
loss = DistToPointEvaluator.make_stage(name="loss", metrics=["cdeloss"], **options)
found = points.evaluate(ensemble, truth)["summary"]() | loss.evaluate(ensemble, truth)["summary"]()
answer = {name: float(values[0]) for name, values in found.items()}
answer |= {"galaxies": int(ensemble.npdf), "id": [str(one) for one in ensemble.ancil["id"][:3]]}
answer |= {"median": ensemble.median().ravel().tolist(), "std": ensemble.std().ravel().tolist()}
answer["density"] = ensemble.pdf(truth["ancil"]["redshift"][:, None]).ravel().tolist()
print(json.dumps(answer))
"""


@real_libraries
def test_qp_reads_and_rail_evaluates_the_ensemble(tmp_path):
    run, columns, usable = make_flagged(tmp_path)
    convert(run, "qp")
    answer = ask(QP_AND_RAIL, Path(run, "catalogue.qp.hdf5"), folder=tmp_path)
    redshift, truth = (columns[name][usable].astype(np.float64) for name in ("redshift_phot", "redshift_spec"))
    scale = ((columns[UPPER].astype(np.float64) - columns[LOWER]) / 2)[usable]
    assert answer["galaxies"] == len(redshift) and answer["id"] == [str(one) for one in columns["objid"][usable][:3]]
    assert np.allclose(answer["median"], redshift, atol=1e-12) and np.allclose(answer["std"], scale, atol=1e-12)
    density = np.exp(-0.5 * ((truth - redshift) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))
    assert np.allclose(answer["density"], density, rtol=1e-9)
    error = (redshift - truth) / (1 + truth)
    assert np.isclose(answer["point_bias"], np.median(error), rtol=1e-6)
    assert np.isclose(answer["point_stats_sigma_mad"], 1.4826 * np.median(np.abs(error - np.median(error))), rtol=1e-2)
    loss = np.mean(1 / (2 * scale * np.sqrt(np.pi))) - 2 * np.mean(density)
    assert np.isclose(answer["cdeloss"], loss, rtol=1e-2)


QUANTILES_OF_QP = """
import json, sys, numpy as np, qp
from rail.evaluation.dist_to_point_evaluator import DistToPointEvaluator

ensemble = qp.read(sys.argv[1])
levels, locs = np.asarray(ensemble.metadata["quants"]).ravel()[1:-1], ensemble.objdata["locs"][:, 1:-1]  # qp adds ends
loss = DistToPointEvaluator.make_stage(name="loss", metrics=["cdeloss"], hdf5_groupname="ancil", force_exact=True)
found = loss.evaluate(ensemble, {"ancil": ensemble.ancil})["summary"]()
answer = {name: float(value[0]) for name, value in found.items()}
answer |= {"galaxies": int(ensemble.npdf), "shape": list(locs.shape), "levels": levels.tolist()}
answer["largest"] = float(np.abs(ensemble.ppf(levels) - locs).max())
answer["pit"] = ensemble.cdf(ensemble.ancil["redshift"][:, None]).ravel().tolist()
print(json.dumps(answer))
"""


@real_libraries
def test_qp_and_rail_read_the_quantiles_of_a_calibrated_run(tmp_path):
    survey = write_galaxies(tmp_path / "sky", 1000)
    run = complete(survey, calibrate_demo(survey, tmp_path), tmp_path / "run")
    count = convert_catalogue(run, "qp", str(tmp_path / "c.hdf5"))
    answer = ask(QUANTILES_OF_QP, tmp_path / "c.hdf5", folder=tmp_path)
    assert (answer["galaxies"], answer["shape"], answer["levels"]) == (count, [count, 25], list(LEVELS))
    assert answer["largest"] < 1e-4 and answer["cdeloss"] < 0
    known = np.array(answer["pit"])
    assert abs(np.mean(known < 0.5) - 0.5) < 0.06


def make_placed(rows: int = ROWS) -> dict[str, Any]:
    """Return columns of a catalogue: a cluster of galaxies, galaxies at the edges of cells, and two without a position.

    Some of its names are those that HATS needs itself.
    """
    columns = make_columns(rows)
    columns["ra"][:2000] = 150 + columns["ra"][:2000] / 1e3
    columns["dec"][:2000] = 2 + columns["dec"][:2000] / 1e3
    edges = np.array([(0, 0), (45, 0), (90, 90), (0, -90), (359.9999999, 41.8103148957786), (180, 0)])
    columns["ra"][-6:], columns["dec"][-6:] = edges.T
    columns["ra"][2500] = columns["dec"][2501] = np.nan
    return columns | {"Npix": columns["row"] * 2, "Npix_kept": -columns["row"], "_healpix_29": np.zeros(rows, np.int32)}


def write_small_tiles(run: str, folder: Path, max_rows: int = 700) -> int:
    folder.mkdir()
    with pq.ParquetFile(Path(run, "catalogue.parquet")) as file:
        return write_hats(CatalogueSource(file), folder, max_rows)


def test_hats_files_are_sorted_small_enough_and_hold_every_galaxy_once(tmp_path):
    columns = make_placed()
    run = write_catalogue(tmp_path / "run", columns)
    assert write_small_tiles(run, tmp_path / "hats") == ROWS - 2
    paths = sorted((tmp_path / "hats/dataset").rglob("*.parquet"))
    tables = [pq.ParquetFile(path).read() for path in paths]
    assert max(table.num_rows for table in tables) <= 700 and len({path.parts[-3] for path in paths}) > 2
    assert all((np.diff(table["_healpix_29"].to_numpy()) >= 0).all() for table in tables)
    assert {(table.schema.names[0], str(table.schema.types[0])) for table in tables} == {("_healpix_29", "int64")}
    rows = np.concatenate([table["row"].to_numpy() for table in tables])
    placed = np.delete(np.arange(ROWS), [2500, 2501])
    assert np.array_equal(np.sort(rows), placed)
    for name, own in (
        ("objid", "objid"),
        ("ra", "ra"),
        ("Npix", "Npix_kept_kept"),
        ("Npix_kept", "Npix_kept"),
        ("_healpix_29", "_healpix_29_kept"),
    ):
        found = np.concatenate([table[own].to_numpy() for table in tables])
        assert np.array_equal(found, columns[name][rows])
    lines = (tmp_path / "hats/partition_info.csv").read_text().splitlines()
    named = [f"Norder={order}/Npix={cell}" for order, _, cell in (line.partition(",") for line in lines[1:])]
    assert sorted(named) == sorted(f"{path.parts[-3]}/{path.stem}" for path in paths)
    assert sorted(path.name for path in (tmp_path / "hats").iterdir()) == [
        "dataset", "hats.properties", "partition_info.csv", "properties",
    ]  # fmt: skip


def test_hats_is_the_same_for_any_row_groups(tmp_path):
    columns = make_placed()
    for name, rows in (("one", 77), ("two", ROWS)):
        write_small_tiles(write_catalogue(tmp_path / name, columns, row_group=rows), tmp_path / f"{name}.hats")
    one, two = (
        {path.name: pq.ParquetFile(path).read() for path in (tmp_path / f"{name}.hats").rglob("*.parquet")}
        for name in ("one", "two")
    )
    assert one.keys() == two.keys() and all(one[name].equals(two[name]) for name in one)


def test_hats_is_a_folder_and_what_is_left_out_is_counted(tmp_path):
    run = write_catalogue(tmp_path / "run", make_placed())
    folder = Path(run, "catalogue.hats")
    assert convert(run, "hats") == f"{ROWS - 2} galaxies in {folder}; 2 without a position are left out\n"
    properties = dict(line.split("=", 1) for line in (folder / "hats.properties").read_text().splitlines()[1:])
    assert (properties["hats_nrows"], properties["obs_collection"], properties["hats_version"]) == (
        str(ROWS - 2), "sky", "v1.0",
    )  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(InputError) as error:
        convert_catalogue(RunFolder(run), "hats", str(folder))
    assert str(error.value) == f"{folder} exists and is not empty; choose another --out or remove it"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ra": None}, "the catalogue has no columns ra and dec, by which HATS sorts galaxies into files; make"),
        ({"dec": np.full(9, np.nan)}, "none of the 9 galaxies of the catalogue has a position (ra, dec)"),
    ],
)
def test_hats_is_refused_without_positions(tmp_path, change, reason):
    columns = {name: values for name, values in (make_columns(9) | change).items() if values is not None}
    run = RunFolder(write_catalogue(tmp_path / "run", columns))
    with pytest.raises(InputError) as error:
        convert_catalogue(run, "hats", str(tmp_path / "c.hats"))
    assert str(error.value).startswith(reason)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_hats_is_not_written_to_s3(tmp_path):
    run = RunFolder(write_catalogue(tmp_path / "run", make_columns(9)))
    with pytest.raises(InputError) as error:
        convert_catalogue(run, "hats", "s3://bucket/c.hats")
    assert str(error.value) == (
        "s3://bucket/c.hats: a catalogue in the format hats is written to a local folder; write one there and copy it "
        "to S3"
    )


def test_the_group_that_brings_healpix_is_named(tmp_path):
    run = write_catalogue(tmp_path / "run", make_columns(9))
    program = (
        "import runpy, sys; sys.modules |= {'cdshealpix': None, 'astropy': None}; "
        "runpy.run_module('cosmicai', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "catalogue", run, "--to", "hats"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        2,
        "cosmicai: this needs the package cdshealpix, which is not installed; install it with "
        "pip install 'cosmicai[hats]'\n",
    )
    assert [path.name for path in Path(run).iterdir()] == ["catalogue.parquet"]


HATS_AND_LSDB = """
import json, logging, sys, dask, hats, lsdb
from hats.io.validation import is_valid_catalog
from hats.pixel_math.spatial_index import compute_spatial_index

folder, cones = sys.argv[1], json.loads(sys.argv[2])
warnings = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: warnings.append(record.getMessage())
logging.getLogger().addHandler(handler)
answer = {"valid": is_valid_catalog(folder, strict=True), "warnings": warnings}
with dask.config.set(scheduler="synchronous"):
    catalog = lsdb.open_catalog(folder)
    everything = catalog.compute()
    index = compute_spatial_index(everything["ra"].to_numpy(), everything["dec"].to_numpy())
    answer |= {"rows": len(catalog), "same_index": bool((index == everything.index.to_numpy()).all())}
    found = [catalog.cone_search(ra=ra, dec=dec, radius_arcsec=radius).compute() for ra, dec, radius in cones]
answer["cones"] = [sorted(map(int, cone["row"])) for cone in found]
answer["objid"] = sorted(map(int, everything["objid"]))
print(json.dumps(answer))
"""


@real_libraries
def test_hats_validates_and_lsdb_finds_what_brute_force_finds(tmp_path):
    columns = make_placed()
    write_small_tiles(write_catalogue(tmp_path / "run", columns), tmp_path / "hats")
    cones = [(150.1, 2.0, 60), (150.2, 2.0, 60), (0, 90, 36_000), (0.05, 0, 18_000), (200, -30, 36_000), (10, 60, 1)]
    answer = ask(HATS_AND_LSDB, tmp_path / "hats", json.dumps(cones), folder=tmp_path)
    assert (answer["valid"], answer["warnings"], answer["rows"]) == (True, [], ROWS - 2)
    assert answer["same_index"]
    assert answer["objid"] == np.delete(columns["objid"], [2500, 2501]).tolist()
    expected = [find_in_cone(columns, *cone) for cone in cones]
    assert answer["cones"] == expected and [len(found) > 1 for found in expected] == [True] * 5 + [False]


def find_in_cone(columns: dict[str, Any], ra: float, dec: float, arcsec: float) -> list[int]:
    """Return the rows of the galaxies within an angle of a position."""
    ra_all, dec_all, ra, dec = (np.radians(values) for values in (columns["ra"], columns["dec"], ra, dec))
    sine = np.sin((dec_all - dec) / 2) ** 2 + np.cos(dec_all) * np.cos(dec) * np.sin((ra_all - ra) / 2) ** 2
    return [int(row) for row in np.flatnonzero(2 * np.arcsin(np.sqrt(sine)) <= np.radians(arcsec / 3600))]


PAGE = ROOT / "docs/interop.md"


@real_libraries
@pytest.mark.parametrize("number", range(3))
def test_the_lines_of_the_documentation_work(tmp_path, number):
    blocks = [block.text for block in read_blocks(PAGE) if block.language == "py"]
    assert len(blocks) == 3
    run = write_catalogue(tmp_path / "run", make_placed())
    for kind in ("qp", "hats"):
        convert(run, kind)
    done = subprocess.run([PYTHON, "-c", blocks[number]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr
