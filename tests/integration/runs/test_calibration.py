"""From a run with spectroscopic redshifts to weights with intervals, and to catalogues that have them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from msgspec import UNSET

from cosmicai import Predictor
from cosmicai.calibration.attach import attach
from cosmicai.calibration.intervals import predict_quantiles
from cosmicai.calibration.records import LEVELS, trust_of
from cosmicai.calibration.split import is_for_calibration
from cosmicai.errors import InputError
from cosmicai.models.weights import DEMO, find_weights, load_weights
from cosmicai.ranks.environment import Rank
from cosmicai.runs.calibrate import calibrate_weights
from cosmicai.runs.catalogue.columns import INTERVALS, QUANTILES
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.quality import Flag
from cosmicai.surveys.shard import FIELDS, Galaxies
from cosmicai.surveys.survey import Survey, open_survey, write_survey
from cosmicai.surveys.synthetic import generate_batches, write_synthetic_survey
from support.helpers import make_run, run, run_worker, tiny_weights

GALAXIES = 1600
PER_SHARD = 500


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Survey:
    return write_synthetic_survey(str(tmp_path_factory.mktemp("survey") / "s"), GALAXIES, 21, PER_SHARD)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    """Weights of the demo's network without a calibration and a training domain."""
    path = str(tmp_path_factory.mktemp("weights") / "plain.safetensors")
    attach(load_weights(DEMO), None, None).save(path)
    return path


@pytest.fixture(scope="module")
def finished(survey, plain, tmp_path_factory) -> RunFolder:
    """A complete run of the plain weights."""
    return complete(survey, plain, tmp_path_factory.mktemp("run") / "r")


@pytest.fixture(scope="module")
def calibrated(finished, plain, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("calibrated") / "w.safetensors"
    done = run("calibrate", finished.uri, "--weights", plain, "--out", str(path), SOURCE_DATE_EPOCH="1796083200")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("calibrated on ") and done.stdout.endswith(f"\n{path}\n")
    return str(path)


def complete(survey: Survey, weights: str, out: Path, **options) -> RunFolder:
    folder = make_run(survey, weights, str(out), **options)
    run_worker(folder, Rank(threads=2))
    summarize(folder)
    return folder


def read_columns(folder: RunFolder) -> dict[str, np.ndarray]:
    table = pq.read_table(folder.catalogue_path)
    return {name: table[name].to_numpy() for name in table.column_names}


def read_magnitudes(survey: Survey) -> np.ndarray:
    return np.concatenate([survey.open(entry).read_field("magnitude", 0, entry.galaxies) for entry in survey.shards])


def test_weights_without_a_calibration_give_no_intervals_and_say_so_once(survey, plain, finished, tmp_path):
    notices: list[str] = []
    make_run(survey, plain, str(tmp_path / "run"), notify=notices.append)
    assert [notice for notice in notices if "interval" in notice] == [
        "no intervals: the weights have no calibration; for a survey with spectroscopic redshifts add "
        "--calibrate-on-spectra, or write calibrated weights with `cosmicai calibrate`"
    ]
    columns = read_columns(finished)
    assert not set(columns) & {*INTERVALS, *QUANTILES} and not (columns["flag"] & (8 | 64)).any()
    assert "intervals" not in json.loads(Path(finished.summary_path).read_text())
    with pytest.raises(InputError, match="--quantiles cannot be had: the weights have no calibration"):
        make_run(survey, plain, str(tmp_path / "other"), quantiles=True)
    assert not (tmp_path / "other").exists()


def test_the_catalogue_has_the_intervals_of_the_calibration(survey, calibrated, finished, tmp_path):
    compiled = sorted(Path(os.environ["COSMICAI_CACHE"]).iterdir())
    folder = complete(survey, calibrated, tmp_path / "run", quantiles=True)
    assert sorted(Path(os.environ["COSMICAI_CACHE"]).iterdir()) == compiled  # nothing was compiled anew
    file = find_weights(calibrated)
    assert file.is_demo and file.key == find_weights(DEMO).key and file.sha256 != find_weights(DEMO).sha256
    trust = trust_of(file.notes, calibrated)
    assert trust.calibration and trust.domain and trust.calibration.origin.date == "2026-12-01"
    columns, magnitude = read_columns(folder), read_magnitudes(survey)
    assert np.array_equal(columns["redshift_phot"], read_columns(finished)["redshift_phot"])
    quantiles = predict_quantiles(trust.calibration, magnitude, columns["redshift_phot"].astype(np.float64))
    for number, name in enumerate(QUANTILES):
        assert np.array_equal(columns[name], quantiles[:, number], equal_nan=True)
    for name, level in INTERVALS.items():
        assert np.array_equal(columns[name], quantiles[:, LEVELS.index(level)], equal_nan=True)
    assert np.array_equal(columns["flag"] & Flag.NOT_CALIBRATED != 0, np.isnan(quantiles[:, 0]))
    assert 0 < (columns["flag"] & Flag.OUTSIDE_DOMAIN != 0).mean() < 0.05
    report = json.loads(Path(folder.summary_path).read_text())["intervals"]["coverage"]
    shown = ~is_for_calibration(magnitude) & (columns["flag"] & ~np.uint8(Flag.OUTSIDE_DOMAIN) == 0)
    assert report["all"]["galaxies"] == shown.sum()
    spec = columns["redshift_spec"]
    inside = (spec >= columns["redshift_phot_l68"]) & (spec <= columns["redshift_phot_u68"])
    assert np.isclose(report["all"]["fractions"][0], inside[shown].mean())
    with Predictor(calibrated) as predictor:
        galaxies = survey.open(survey.shards[0]).read(0, 64)
        prediction = predictor.predict(galaxies.image, galaxies.magnitude)
    assert prediction.quantiles is not None
    assert np.array_equal(prediction.quantiles, quantiles[:64], equal_nan=True)
    assert np.array_equal(prediction.interval(95), quantiles[:64][:, [LEVELS.index(0.025), LEVELS.index(0.975)]])
    assert np.array_equal(prediction.flag, columns["flag"][:64])
    with pytest.raises(InputError, match="percent is 50; expected 68 or 95"):
        prediction.interval(50)


def test_intervals_do_not_depend_on_how_the_work_was_cut(survey, calibrated, tmp_path):
    digests = set()
    for number, (ranks, size) in enumerate([(1, 512), (2, 512)]):
        folder = make_run(survey, calibrated, str(tmp_path / str(number)), ranks=ranks, batch_size=size)
        for rank in range(ranks):
            run_worker(folder, Rank(rank, ranks, threads=1), "static")
        digests.add(summarize(folder).catalogue_sha256)
    assert len(digests) == 1


def test_a_run_calibrates_on_half_of_its_own_spectra(plain, tmp_path):
    galaxies = Galaxies.concatenate(list(generate_batches(GALAXIES, 22)))
    redshift = np.where(np.arange(GALAXIES) % 4 == 3, -9999, galaxies.redshift)  # a quarter is unknown
    galaxies = Galaxies(galaxies.image, galaxies.magnitude, redshift, galaxies.objid)
    survey = write_survey(str(tmp_path / "s"), [galaxies], GALAXIES, PER_SHARD, tuple(FIELDS))
    folder = complete(survey, plain, tmp_path / "run", calibrate_on_spectra=True)
    summary = json.loads(Path(folder.summary_path).read_text())
    known = np.arange(GALAXIES) % 4 != 3
    own = is_for_calibration(galaxies.magnitude)
    assert summary["intervals"]["galaxies"] == (known & own).sum()
    columns = read_columns(folder)
    has_interval = np.isfinite(columns["redshift_phot_l68"])
    assert summary["intervals"]["coverage"]["all"]["galaxies"] == (known & ~own & has_interval).sum()
    assert has_interval[~known].mean() > 0.95  # those without spectra have intervals, too
    digest = summary["catalogue_sha256"]
    assert summarize(folder).catalogue_sha256 == digest
    assert json.loads(Path(folder.calibration_path).read_text())["galaxies"] == (known & own).sum()


def test_too_few_spectra_leave_the_redshifts_without_intervals(plain, tmp_path):
    survey = write_synthetic_survey(str(tmp_path / "s"), 64, 23, 64)
    folder = make_run(survey, plain, str(tmp_path / "run"), calibrate_on_spectra=True)
    run_worker(folder, Rank(threads=2))
    summary = summarize(folder)
    assert summary.complete and summary.coverage.completed == 64
    assert "redshift_phot_l68" not in read_columns(folder)
    assert summary.left_out is not UNSET
    [problem] = summary.left_out
    assert problem.startswith("intervals: s: 64 galaxies have a spectroscopic")


def test_a_shard_that_cannot_be_read_again_leaves_its_galaxies_without_intervals(survey, calibrated, tmp_path):
    source = tmp_path / "survey"
    source.mkdir()
    for path in Path(survey.uri).iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    folder = make_run(open_survey(str(source)), calibrated, str(tmp_path / "run"))
    run_worker(folder, Rank(threads=2))
    (source / survey.shards[1].name).unlink()
    summarize(folder)
    columns = read_columns(folder)
    lost = slice(PER_SHARD, 2 * PER_SHARD)
    assert np.isfinite(columns["redshift_phot"][lost]).all()
    assert np.isnan(columns["redshift_phot_u95"][lost]).all() and (columns["flag"][lost] & 64 != 0).all()
    assert np.isfinite(columns["redshift_phot_u95"][:PER_SHARD]).mean() > 0.9


def test_a_run_of_other_weights_is_refused(finished, tmp_path):
    other = tiny_weights(tmp_path / "tiny.safetensors")
    done = run("calibrate", finished.uri, "--weights", other, "--out", str(tmp_path / "w.safetensors"))
    assert done.returncode == 2 and "was made with other weights" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "w.safetensors").exists()


def test_an_output_that_exists_and_a_damaged_calibration_are_refused(finished, plain, calibrated, survey, tmp_path):
    done = run("calibrate", finished.uri, "--weights", plain, "--out", calibrated)
    assert done.returncode == 2 and calibrated in done.stderr
    weights = load_weights(plain)
    weights.notes["calibration"] = '{"format": "cosmicai-calibration/1"}'
    weights.save(damaged := str(tmp_path / "damaged.safetensors"))
    for command in (
        ["weights", "info", damaged],
        ["infer", survey.uri, "--weights", damaged, "--out", str(tmp_path / "x")],
    ):
        done = run(*command)
        assert done.returncode == 2 and f"{damaged}: its calibration" in done.stderr
        assert "Traceback" not in done.stderr


def test_calibrating_again_gives_the_same_file(finished, plain, calibrated, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1796083200")
    for number, weights in enumerate((plain, calibrated)):
        calibrate_weights(finished, weights).weights.save(str(tmp_path / f"{number}.safetensors"))
    files = [(tmp_path / f"{number}.safetensors").read_bytes() for number in range(2)]
    assert files[0] == files[1] == Path(calibrated).read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(InputError, match="SOURCE_DATE_EPOCH is 'soon'"):
        calibrate_weights(finished, plain)
