"""Runs with calibrated intervals: their catalogue in every format, their summary and the files that show coverage."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from numpy.typing import NDArray

from cosmicai import read_catalogue
from cosmicai.calibration.intervals import predict_quantiles
from cosmicai.calibration.records import LEVELS, Calibration, trust_of
from cosmicai.calibration.split import is_for_calibration
from cosmicai.models.weights import find_weights
from cosmicai.records import decode_json
from cosmicai.runs.catalogue.columns import INTERVALS, QUANTILES
from cosmicai.runs.catalogue.convert import WRITERS, convert_catalogue, default_name
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.quality import Flag
from support.calibrated import calibrate_demo, complete, make_galaxies, write_galaxies, write_plain

ROWS = 1500
NO_INTERVAL = Flag.MISSING_MAGNITUDE | Flag.NOT_CALIBRATED


@dataclass(frozen=True)
class Calibrated:
    """Runs of ROWS galaxies: without and with quantiles, calibrated on their own spectra, and without intervals."""

    weights: str
    plain: RunFolder
    quantiles: RunFolder
    on_spectra: RunFolder
    without: RunFolder

    @property
    def calibration(self) -> Calibration:
        found = trust_of(find_weights(self.weights).notes, self.weights).calibration
        assert found
        return found


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    folder = tmp_path_factory.mktemp("calibrated")
    survey = write_galaxies(folder / "sky", ROWS)
    weights = calibrate_demo(survey, folder)
    return Calibrated(
        weights,
        complete(survey, weights, folder / "plain"),
        complete(survey, weights, folder / "quantiles", quantiles=True),
        complete(survey, write_plain(folder), folder / "on_spectra", calibrate_on_spectra=True),
        RunFolder(str(folder / "first")),
    )


def expected_quantiles(calibrated: Calibrated, redshift: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the quantiles of all galaxies by the weights' calibration, their redshifts and their magnitudes."""
    return predict_quantiles(calibrated.calibration, make_galaxies(ROWS).magnitude, redshift.astype(np.float64))


def test_the_bounds_are_those_of_the_calibration(calibrated):
    table = read_catalogue(calibrated.quantiles.uri)
    assert table.colnames == [
        "objid", "ra", "dec", "redshift_phot", *INTERVALS, "redshift_spec", "flag", *QUANTILES, "shard", "row",
    ]  # fmt: skip
    redshift = np.asarray(table["redshift_phot"])
    expected = expected_quantiles(calibrated, redshift)
    for name, level in (INTERVALS | QUANTILES).items():
        assert table[name].dtype.newbyteorder("=") == np.float32
        assert np.array_equal(table[name], expected[:, LEVELS.index(level)], equal_nan=True)
    has_none = np.isnan(expected[:, 0])
    assert np.array_equal(has_none, table["flag"] & NO_INTERVAL != 0)
    assert (table["flag"][-4] & NO_INTERVAL, table["flag"][-2] & NO_INTERVAL) == (2, 64)
    assert table["flag"][-2] & Flag.OUTSIDE_DOMAIN and np.isfinite(redshift[-2])
    plain = read_catalogue(calibrated.plain.uri)
    assert plain.colnames == [name for name in table.colnames if name not in QUANTILES]
    for name in plain.colnames:
        assert np.asarray(plain[name]).tobytes() == np.asarray(table[name]).tobytes()


def read_format(path: Path, kind: str) -> Table:
    if kind == "hats":
        table = pq.read_table(path / "dataset")
        rows = np.lexsort((table["row"].to_numpy(), table["shard"].to_numpy().astype(str)))
        return Table({name: table[name].to_numpy()[rows] for name in table.column_names})
    options: dict[str, Any] = {"hdf5": {"path": "catalogue"}, "csv": {"format": "pandas.csv"}}
    return Table.read(path, **options.get(kind, {}))


@pytest.mark.parametrize("with_quantiles", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "qp"])
def test_every_format_has_the_intervals(calibrated, tmp_path, kind, with_quantiles):
    run = calibrated.quantiles if with_quantiles else calibrated.plain
    path = tmp_path / default_name(kind)
    assert convert_catalogue(run, kind, str(path)) == ROWS
    table, expected = read_format(path, kind), read_catalogue(run.uri)
    assert [name for name in table.colnames if name in expected.colnames] == expected.colnames
    for name in (*INTERVALS, *(QUANTILES if with_quantiles else ())):
        values = np.ma.filled(np.ma.asarray(table[name]).astype(np.float64), np.nan)
        assert np.array_equal(values.astype(np.float32), np.asarray(expected[name]), equal_nan=True)
        if kind not in ("csv", "hats"):
            assert table[name].dtype.newbyteorder("=") == np.float32
        if kind not in ("csv", "fits", "hats"):
            assert table[name].description == expected[name].description != ""


def test_the_ensemble_of_qp_has_all_quantiles(calibrated, tmp_path):
    written = {}
    for name, run in (("plain", calibrated.plain), ("quantiles", calibrated.quantiles)):
        count = convert_catalogue(run, "qp", str(tmp_path / name))
        with h5py.File(tmp_path / name) as file:
            written[name] = {path: file[path][:] for path in ("data/locs", *(f"ancil/{one}" for one in file["ancil"]))}
            assert sorted(file["data"]) == ["locs"] and len(file["data/locs"]) == count
            assert file["meta/pdf_name"][:].tolist() == [b"quant"]
            assert np.array_equal(file["meta/quants"], [LEVELS]) and file["data/locs"].shape == (count, 25)
    table = read_catalogue(calibrated.plain.uri)
    expected = expected_quantiles(calibrated, np.asarray(table["redshift_phot"]))
    known = np.isfinite(expected[:, 0])
    for found in written.values():
        assert np.array_equal(found["data/locs"], expected[known])
        assert np.array_equal(found["ancil/zmode"], np.asarray(table["redshift_phot"])[known])
        assert np.array_equal(found["ancil/redshift"], np.asarray(table["redshift_spec"])[known], equal_nan=True)
        assert found["ancil/id"].tolist() == [b"%d" % number for number in table["objid"][known]]


def test_the_ensemble_of_a_run_calibrated_on_its_spectra_is_that_of_its_calibration(calibrated, tmp_path):
    run = calibrated.on_spectra
    own = decode_json(Path(run.calibration_path).read_bytes(), Calibration, where="calibration", remedy="")
    convert_catalogue(run, "qp", str(tmp_path / "c"))
    table = read_catalogue(run.uri)
    redshift = np.asarray(table["redshift_phot"], np.float64)
    expected = predict_quantiles(own, make_galaxies(ROWS).magnitude, redshift)
    with h5py.File(tmp_path / "c") as file:
        assert np.array_equal(file["data/locs"], expected[np.isfinite(expected[:, 0])])


SHOWN = {"intervals.png", "intervals.pdf"}


def test_runs_with_intervals_have_the_figures_of_their_coverage(calibrated):
    own = {"plain": SHOWN, "quantiles": SHOWN, "on_spectra": {*SHOWN, "calibration.json"}, "without": set()}
    for name, expected in own.items():
        run = getattr(calibrated, name)
        found = {path.name for path in Path(run.uri).iterdir()}
        assert found & {*SHOWN, "calibration.json"} == expected
        assert ("intervals" in json.loads(Path(run.summary_path).read_text())) == bool(expected)


def test_the_coverage_is_that_of_galaxies_which_did_not_calibrate(calibrated):
    others = ~is_for_calibration(make_galaxies(ROWS).magnitude)
    for run in (calibrated.plain, calibrated.on_spectra):
        table, report = read_catalogue(run.uri), run.summary().intervals.coverage
        spec, flag = np.asarray(table["redshift_spec"]), np.asarray(table["flag"])
        counted = others & (flag & ~np.uint8(Flag.OUTSIDE_DOMAIN) == 0) & np.isfinite(spec)
        assert report.all.galaxies == sum(report.pit) == np.count_nonzero(counted)
        for number, percent in enumerate((68, 95)):
            low, high = (np.asarray(table[f"redshift_phot_{side}{percent}"]) for side in "lu")
            inside = (spec >= low) & (spec <= high)
            assert report.all.fractions[number] == pytest.approx(np.mean(inside[counted]), abs=1e-12)
            assert report.all.widths[number] == pytest.approx(np.mean((high - low)[counted]), rel=1e-5)


def test_summarizing_again_gives_the_same_figures(calibrated):
    run = calibrated.on_spectra
    paths = [Path(run.interval_plot_path(kind)) for kind in ("png", "pdf")] + [Path(run.calibration_path)]
    before = [path.read_bytes() for path in paths]
    summarize(run)
    assert [path.read_bytes() for path in paths] == before
