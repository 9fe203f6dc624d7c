"""Test the accuracy of catalogues: metrics by redshift and by magnitude, and magnitudes from the survey."""

import numpy as np
import pytest

from analysis.accuracy import BIN_COLUMNS, MIN_GALAXIES, Accuracy, bin_by_magnitude, bin_by_redshift, read_accuracy
from cosmicai import storage
from cosmicai.errors import InputError
from cosmicai.runs.part import Part
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.survey import open_survey
from support.helpers import make_run, make_survey, random_galaxies, tiny_weights
from support.s3 import bucket_fixture  # noqa: F401

GALAXIES, PER_SHARD = 100, 30


def make_accuracy(count: int, seed: int = 0, sigma: float = 0.02) -> Accuracy:
    """Return redshifts of 0.01 to 0.42 with estimates, and magnitudes of 15 to 21, one in ten missing."""
    rng = np.random.default_rng(seed)
    spec = rng.uniform(0.01, 0.42, count)
    phot = (spec + (1 + spec) * rng.normal(0.003, sigma, count)).astype(np.float32)
    magnitude = np.where(rng.random(count) < 0.1, np.nan, rng.uniform(15, 21, count))
    return Accuracy("made", count, phot, spec, magnitude)


@pytest.mark.parametrize(("table", "width"), [(bin_by_redshift, 0.05), (bin_by_magnitude, 0.5), (bin_by_redshift, 0.1)])
def test_bins_hold_the_metrics_of_their_galaxies(table, width):
    accuracy = make_accuracy(900)
    value = accuracy.spec if table is bin_by_redshift else accuracy.magnitude
    assert value is not None
    found = table(accuracy, width)
    assert list(found) == list(BIN_COLUMNS)
    expected = []
    for number in range(1000):
        low, high = round(number * width, 6), round((number + 1) * width, 6)
        inside = (value >= low) & (value < high)
        if inside.sum() >= MIN_GALAXIES:
            expected.append((low, high, inside))
    assert len(found) == len(expected) > 3
    for (_, row), (low, high, inside) in zip(found.iterrows(), expected, strict=True):
        phot, spec = accuracy.phot[inside].astype(float), accuracy.spec[inside]
        dz = (phot - spec) / (1 + spec)
        nmad = 1.48 * np.median(np.abs(dz - np.median(dz)))
        wanted = {
            "low": low, "high": high, "middle": np.median(value[inside]), "galaxies": inside.sum(),
            "median_dz": np.median(dz), "nmad": nmad, "bias": dz.mean(), "mae": np.abs(phot - spec).mean(),
            "mse": ((phot - spec) ** 2).mean(), "r2": 1 - ((phot - spec) ** 2).sum() / (inside.sum() * spec.var()),
            "outliers": (np.abs(dz) > 0.05).mean(),
        }  # fmt: skip
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-9)


def test_the_lower_edge_of_a_bin_belongs_to_it_despite_rounding():
    assert 0.15 / 0.05 < 3
    spec = np.repeat([0.15, 0.3, 0.35], MIN_GALAXIES)
    found = bin_by_redshift(Accuracy("edges", len(spec), spec.astype(np.float32), spec))
    assert found[["low", "high"]].to_numpy().tolist() == [[0.15, 0.2], [0.3, 0.35], [0.35, 0.4]]


def test_bins_of_too_few_galaxies_and_galaxies_without_magnitude_are_absent():
    magnitude = np.repeat([16.2, 17.2, np.nan], [MIN_GALAXIES, MIN_GALAXIES - 1, 50])
    spec = np.linspace(0.1, 0.2, len(magnitude))
    accuracy = Accuracy("few", len(spec), spec.astype(np.float32), spec, magnitude)
    assert bin_by_magnitude(accuracy)[["low", "galaxies"]].to_numpy().tolist() == [[16.0, MIN_GALAXIES]]
    none = bin_by_magnitude(Accuracy("none", len(spec), spec.astype(np.float32), spec, None, "they are gone"))
    assert (list(none), len(none)) == (list(BIN_COLUMNS), 0)


def test_errors_equal_the_scatter_of_samples():
    rng = np.random.default_rng(1)
    dz = rng.normal(0, 0.01, (3000, 300))
    medians = np.median(dz, axis=1)
    nmads = 1.48 * np.median(np.abs(dz - medians[:, None]), axis=1)
    spec = np.full(300, 0.12)
    row = bin_by_redshift(Accuracy("one", 300, (spec + 1.12 * dz[0]).astype(np.float32), spec)).iloc[0]
    scale = 0.01 / row["nmad"]
    assert row["median_dz_error"] * scale == pytest.approx(medians.std(), rel=0.06)
    assert row["nmad_error"] * scale == pytest.approx(nmads.std(), rel=0.06)


@pytest.mark.parametrize("outlying", [0, 1, 7, 40])
def test_the_interval_of_outliers_is_wilsons(outlying):
    spec = np.full(40, 0.12)
    phot = spec + np.where(np.arange(40) < outlying, 0.2, 0.001)
    row = bin_by_redshift(Accuracy("one", 40, phot.astype(np.float32), spec)).iloc[0]
    assert row["outliers"] == outlying / 40
    for edge in (row["outliers_low"], row["outliers_high"]):
        # At the edges the measured share is one standard deviation away.
        assert (outlying / 40 - edge) ** 2 == pytest.approx(edge * (1 - edge) / 40, abs=1e-12)
    assert 0 <= row["outliers_low"] <= row["outliers"] <= row["outliers_high"] <= 1


def finished(folder, uri, galaxies: Galaxies, lost=(), missing=(), fields=()):
    """Return a finished run whose estimates are 0.01 off, without the items `lost` and the redshifts `missing`."""
    survey = make_survey(folder / "survey", galaxies, PER_SHARD)
    run = make_run(open_survey(survey.uri), tiny_weights(folder / "w.safetensors"), uri, batch_size=10)
    plan = run.plan()
    for number, item in enumerate(plan.items):
        if number not in lost:
            rows = slice(PER_SHARD * item.shard + item.start, PER_SHARD * item.shard + item.stop)
            phot = (galaxies.redshift[rows] + 0.01).astype(np.float32)
            phot[np.isin(np.arange(GALAXIES)[rows], missing)] = np.nan
            flag = np.isnan(phot).astype(np.uint8)
            run.write_part(plan, item, Part(phot, flag))
    summarize(run)
    return run, plan


def test_a_catalogue_is_matched_with_the_magnitudes_of_its_survey(tmp_path):
    galaxies = random_galaxies(GALAXIES)
    galaxies.redshift[[3, 50]] = np.nan
    galaxies.magnitude[7, 2], galaxies.magnitude[8, 2], galaxies.magnitude[9, 1] = -9999.0, np.inf, -9999.0
    run, plan = finished(tmp_path, str(tmp_path / "run"), galaxies, lost=(2,), missing=(5, 99))
    lost = plan.items[2]
    gone = np.arange(PER_SHARD * lost.shard + lost.start, PER_SHARD * lost.shard + lost.stop)
    kept = np.setdiff1d(np.arange(GALAXIES), [*gone, 3, 50, 5, 99])
    accuracy = read_accuracy(run.uri, "night 1")
    assert (accuracy.run, accuracy.galaxies, accuracy.no_magnitude) == ("night 1", GALAXIES - len(gone), "")
    assert accuracy.spec.tolist() == galaxies.redshift[kept].tolist()
    assert accuracy.phot.tolist() == (galaxies.redshift[kept] + 0.01).astype(np.float32).tolist()
    expected = galaxies.magnitude[:, 2].copy()
    expected[[7, 8]] = np.nan
    np.testing.assert_array_equal(accuracy.magnitude, expected[kept])
    metrics = accuracy.metrics
    assert metrics is not None
    assert (metrics.galaxies, metrics.mae) == (len(kept), pytest.approx(0.01, rel=1e-5))


def test_a_missing_survey_is_reported_and_costs_only_the_magnitudes(tmp_path):
    run, plan = finished(tmp_path, str(tmp_path / "run"), random_galaxies(GALAXIES))
    assert read_accuracy(run.uri, magnitudes=False).no_magnitude == "they were not requested"
    (tmp_path / "survey" / plan.shards[1].name).unlink()
    accuracy = read_accuracy(run.uri)
    assert (len(accuracy.spec), accuracy.magnitude, accuracy.run) == (GALAXIES, None, run.uri)
    where = tmp_path / "survey" / plan.shards[1].name
    assert accuracy.no_magnitude == f"cannot read {where}: it does not exist; check the path"


def test_a_run_on_s3_is_read_there(tmp_path, bucket):
    galaxies = random_galaxies(GALAXIES)
    run, _ = finished(tmp_path, f"{bucket}/run", galaxies)
    accuracy = read_accuracy(run.uri)
    np.testing.assert_array_equal(accuracy.magnitude, galaxies.magnitude[:, 2])


def test_a_run_without_any_redshift_has_no_metrics(tmp_path):
    galaxies = random_galaxies(GALAXIES)
    galaxies.redshift[:] = np.nan
    run, _ = finished(tmp_path, str(tmp_path / "run"), galaxies)
    accuracy = read_accuracy(run.uri)
    assert (accuracy.galaxies, len(accuracy.spec), accuracy.metrics) == (GALAXIES, 0, None)
    assert accuracy.magnitude is not None
    assert len(bin_by_redshift(accuracy)) == len(bin_by_magnitude(accuracy)) == 0


def test_a_damaged_or_missing_catalogue_is_one_sentence(tmp_path):
    run, _ = finished(tmp_path, str(tmp_path / "run"), random_galaxies(GALAXIES))
    whole = storage.read_bytes(run.catalogue_path)
    storage.write_bytes(run.catalogue_path, whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"{run.catalogue_path} is damaged .*write it again with `cosmicai summarize"):
        read_accuracy(run.uri)
    storage.remove(run.catalogue_path)
    with pytest.raises(InputError, match="has no catalogue yet; make it with `cosmicai summarize"):
        read_accuracy(run.uri)
