"""Runs that predict each cutout in several views: the mean and the spread of eight runs with one view each."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.io.votable.ucd import parse_ucd
from astropy.table import Table
from numpy.typing import NDArray

import cosmicai
from cosmicai.errors import InputError
from cosmicai.launchers import estimate
from cosmicai.launchers.estimate import measure_rate
from cosmicai.ranks.environment import Rank
from cosmicai.runs.catalogue.convert import convert_catalogue
from cosmicai.runs.catalogue.reading import read_catalogue
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.columns import ColumnSpec
from cosmicai.surveys.quality import Flag
from cosmicai.surveys.shard import FIELDS, Galaxies
from cosmicai.surveys.survey import write_survey
from support.helpers import flagged_galaxies, make_run, make_survey, random_galaxies, run, run_worker, tiny_weights

ROWS, BATCH = 300, 64
PER_SHARD = 2 * BATCH  # so that arrays, which have no shards, are cut into the same batches
SPREAD = "redshift_spread"

# In the order in which a run predicts them: the order of a sum decides its last bit.
TURNED: list[Callable[[NDArray[Any]], NDArray[Any]]] = [
    *(lambda image, turns=turns: np.rot90(image, turns, axes=(2, 3)) for turns in range(4)),
    *(lambda image, turns=turns: np.rot90(image[..., ::-1], turns, axes=(2, 3)) for turns in range(4)),
]


@pytest.fixture(scope="module")
def galaxies() -> Galaxies:
    return flagged_galaxies(ROWS)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def folder(tmp_path: Path, galaxies: Galaxies, weights: str) -> RunFolder:
    """A complete run of eight views."""
    return predict(tmp_path, "run", galaxies, weights, views=8)


def predict(
    tmp_path: Path, name: str, galaxies: Galaxies, weights: str, engine: str = "reference", views: int = 1
) -> RunFolder:
    """Complete a run and return its folder."""
    survey = make_survey(tmp_path / f"{name}-survey", galaxies, PER_SHARD)
    made = make_run(survey, weights, str(tmp_path / name), engine=engine, batch_size=BATCH, views=views)
    run_worker(made, Rank(threads=1))
    assert summarize(made).complete
    return made


def column(folder: RunFolder, name: str) -> NDArray[Any]:
    return np.concatenate([table[name].to_numpy() for table in read_catalogue(folder)])


@pytest.mark.parametrize("engine", ["reference", "openvino"])
def test_eight_views_are_the_mean_and_the_spread_of_eight_runs(tmp_path, galaxies, weights, engine):
    found = predict(tmp_path, "all", galaxies, weights, engine=engine, views=8)
    each = []
    for number, turn in enumerate(TURNED):
        turned = replace(galaxies, image=np.ascontiguousarray(turn(galaxies.image)))
        one = predict(tmp_path, f"view-{number}", turned, weights, engine=engine)
        assert SPREAD not in pq.read_schema(one.catalogue_path).names
        assert np.array_equal(column(one, "flag"), column(found, "flag"))
        each.append(column(one, "redshift_phot").astype(np.float64))
    for name, expected in (("redshift_phot", np.mean(each, axis=0)), (SPREAD, np.std(each, axis=0, ddof=0))):
        values = column(found, name)
        assert values.dtype == np.float32
        assert np.array_equal(values, expected.astype(np.float32), equal_nan=True)
        assert np.flatnonzero(np.isnan(values)).tolist() == [3, 70]
    assert np.nanmin(column(found, SPREAD)) > 0


def test_what_is_done_again_and_by_two_ranks_is_the_same_to_the_bit(tmp_path, galaxies, weights, folder):
    expected = summarize(folder).catalogue_sha256
    for item in folder.plan().items[1:]:
        Path(folder.part_path(item)).unlink()
    partial = summarize(folder)
    assert not partial.complete and partial.catalogue_sha256 != expected
    not_done = column(folder, "flag") & Flag.NOT_DONE != 0
    assert not_done.any() and np.isnan(column(folder, SPREAD)[not_done]).all()
    run_worker(RunFolder(folder.uri), Rank(threads=1))
    assert summarize(folder).catalogue_sha256 == expected
    survey = make_survey(tmp_path / "again", galaxies, PER_SHARD)
    shared = make_run(survey, weights, str(tmp_path / "shared"), ranks=2, engine="reference", batch_size=BATCH, views=8)
    for rank in (1, 0):
        run_worker(shared, Rank(rank, 2, threads=1), "static")
    assert len(shared.plan().items) > len(folder.plan().items)
    assert summarize(shared).catalogue_sha256 == expected


def test_every_format_of_the_catalogue_has_the_spread(tmp_path, folder):
    expected = column(folder, SPREAD)
    table = cosmicai.read_catalogue(folder.uri)
    assert table.colnames[1:5] == ["redshift_phot", SPREAD, "redshift_spec", "flag"]
    assert table[SPREAD].description == "Standard deviation of redshifts of 8 views" and table.meta["views"] == "8"
    readers: dict[str, dict[str, Any]] = {
        "parquet": {"format": "parquet"}, "fits": {"format": "fits"}, "votable": {"format": "votable"},
        "ecsv": {"format": "ascii.ecsv"}, "csv": {"format": "ascii.csv"}, "hdf5": {"format": "hdf5"},
    }  # fmt: skip
    for kind, options in readers.items():
        path = str(tmp_path / f"c.{kind}")
        assert convert_catalogue(folder, kind, path) == ROWS
        found = Table.read(path, **options)[SPREAD]
        values = np.ma.filled(np.ma.asarray(found, np.float64), np.nan).astype(np.float32)
        assert np.array_equal(values, expected, equal_nan=True), kind
    header = fits.getheader(str(tmp_path / "c.fits"), 1)
    ucd = {header[f"TTYPE{number}"]: header.get(f"TUCD{number}") for number in range(1, 8)}[SPREAD]
    assert header["VIEWS"] == "8" and ucd == "stat.stdev;src.redshift.phot"
    assert parse_ucd(ucd, check_controlled_vocabulary=True)


def test_a_column_of_the_user_with_this_name_is_kept_under_another_one(tmp_path, galaxies, weights):
    own, path = np.arange(ROWS), f"columns/{SPREAD}"
    named = replace(galaxies, columns={path: own})
    survey = write_survey(str(tmp_path / "s"), [named], ROWS, ROWS, FIELDS, columns={path: ColumnSpec(np.dtype("<i8"))})
    kept = make_run(survey, weights, str(tmp_path / "run"), engine="reference", views=8)
    run_worker(kept, Rank(threads=1))
    assert summarize(kept).complete
    assert np.array_equal(column(kept, f"{SPREAD}_kept"), own) and column(kept, SPREAD).dtype == np.float32


def test_a_part_with_another_spread_or_none_is_named(folder):
    plan = folder.plan()
    item = plan.items[0]
    path = Path(folder.part_path(item))
    good = path.read_bytes()

    def refusal(edit: Callable[[h5py.File], None]) -> str:
        buffer = io.BytesIO(good)
        with h5py.File(buffer, "r+") as file:
            edit(file)
        path.write_bytes(buffer.getvalue())
        with pytest.raises(InputError) as refused:
            folder.read_part(plan, item)
        return str(refused.value).removeprefix(f"{path} ").partition(";")[0]

    def store(file: h5py.File, values: NDArray[Any] | None) -> None:
        del file[SPREAD]
        if values is not None:
            file[SPREAD] = values

    spread = folder.read_part(plan, item).redshift_spread
    assert spread is not None
    assert refusal(lambda file: store(file, None)) == f"is damaged (it has no {SPREAD})"
    assert refusal(lambda file: store(file, spread.astype("f8"))) == "is damaged (a column has another dtype)"
    assert refusal(lambda file: store(file, spread[1:])) == "belongs to another item"
    changed = spread.copy()
    changed[0] += 1
    assert "differ from their digest" in refusal(lambda file: store(file, changed))


def test_a_part_with_a_spread_is_none_of_a_run_with_one_view(tmp_path, galaxies, weights):
    found = predict(tmp_path, "one", galaxies, weights)
    item = found.plan().items[0]
    with h5py.File(found.part_path(item), "r+") as file:
        file[SPREAD] = np.zeros(item.galaxies, np.float32)
    with pytest.raises(InputError, match=r"is damaged \(it has redshift_spread, and the plan has one view\)"):
        found.read_part(found.plan(), item)


@pytest.mark.parametrize("engine", ["reference", "openvino"])
def test_arrays_have_the_spread_of_a_run(tmp_path, galaxies, weights, engine):
    found = predict(tmp_path, "run", galaxies, weights, engine=engine, views=8)
    with cosmicai.Predictor(weights, engine=engine, batch_size=BATCH, views=8, threads=2) as predictor:
        prediction = predictor.predict(galaxies.image, galaxies.magnitude)
        empty = predictor.predict(galaxies.image[:0], galaxies.magnitude[:0])
    assert prediction.spread is not None and prediction.spread.dtype == np.float32
    assert np.array_equal(prediction.redshift, column(found, "redshift_phot"), equal_nan=True)
    assert np.array_equal(prediction.spread, column(found, SPREAD), equal_nan=True)
    assert np.array_equal(prediction.flag, column(found, "flag"))
    assert empty.spread is not None and empty.spread.shape == (0,)
    with cosmicai.Predictor(weights, engine=engine, batch_size=BATCH) as predictor:
        assert predictor.predict(galaxies.image, galaxies.magnitude).spread is None
    values: tuple[Any, ...] = (3, 0, True, "8", None)
    for views in values:
        with pytest.raises(InputError, match=rf"^views {views!r} cannot be used; expected 1 "):
            cosmicai.Predictor(weights, engine=engine, views=views)


def test_the_command_refuses_other_numbers_and_a_resume_with_another_one(tmp_path, galaxies, weights):
    survey, out = make_survey(tmp_path / "survey", galaxies, ROWS), tmp_path / "run"
    command = ("infer", survey.uri, "--weights", weights, "--engine", "reference", "--out", str(out))
    refused = run(*command, "--views", "3")
    assert refused.returncode == 2 and not out.exists()
    assert "Invalid value for '--views': '3' is not one of '1', '8'." in refused.stderr
    done = run(*command, "--views", "8")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "plan.json").read_text())["views"] == 8
    for name in ("--views", "--quantiles"):
        again = run(*command, "--resume", *((name, "1") if name == "--views" else (name,)))
        assert again.returncode == 2 and "Traceback" not in again.stderr
        assert again.stderr == (
            f"cosmicai: {out} belongs to another plan (it differs in {name[2:]}); choose another --out\n"
        )


@pytest.mark.parametrize("views", [1, 8])
def test_estimates_are_of_all_views(tmp_path, weights, monkeypatch, views):
    now = [0.0]

    class Clocked:
        def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
            now[0] += len(image) / 1024
            return np.zeros(len(image), np.float32)

    survey = make_survey(tmp_path / "survey", random_galaxies(64), 64)
    planned = make_run(survey, weights, str(tmp_path / "run"), engine="reference", views=views)
    monkeypatch.setattr(estimate, "open_engine", lambda *arguments: Clocked())
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert measure_rate(planned, 1) == 1024 / views
