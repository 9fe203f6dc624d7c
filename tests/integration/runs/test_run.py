"""Runs from a survey to a catalogue: redshifts, coverage, flags, resume, published outputs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from msgspec import structs

from cosmicai import storage
from cosmicai.errors import InputError, StorageError
from cosmicai.models.astromae import AstroMAE
from cosmicai.models.weights import build_network, extract_weights, load_weights
from cosmicai.ranks.environment import Rank
from cosmicai.runs.published import OWN_KEY, count_galaxies
from cosmicai.runs.record import PUBLISHED_KEYS
from cosmicai.runs.recorder import Recorder
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.runs.summary import covered_seconds
from cosmicai.runs.summary_text import print_summary
from cosmicai.surveys.quality import Flag
from cosmicai.surveys.shard import Galaxies, Shard
from cosmicai.surveys.survey import open_survey
from support.helpers import TINY, make_run, make_survey, random_galaxies, run, run_worker, tiny_weights


@pytest.fixture
def survey(tmp_path: Path) -> str:
    return make_survey(tmp_path / "survey", random_galaxies(5000), 2300).uri


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return tiny_weights(tmp_path / "tiny.safetensors")


def read_columns(run_folder: RunFolder) -> SimpleNamespace:
    table = pq.read_table(run_folder.catalogue_path)
    return SimpleNamespace(**{name: table[name].to_numpy() for name in table.column_names})


def predict_directly(weights: str, image: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return build_network(load_weights(weights))(torch.from_numpy(image), torch.from_numpy(magnitude)).numpy()


def test_every_galaxy_is_in_the_catalogue_once_in_survey_order_with_the_networks_prediction(tmp_path, survey, weights):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"), batch_size=512)
    run_worker(folder, Rank())
    summary = summarize(folder)
    rows, galaxies = read_columns(folder), random_galaxies(5000)
    assert summary.complete
    assert summary.coverage.planned == summary.coverage.completed == 5000
    assert rows.objid.tolist() == galaxies.objid.tolist()
    assert rows.shard.tolist() == ["000001.h5"] * 2300 + ["000002.h5"] * 2300 + ["000003.h5"] * 400
    assert rows.row.tolist() == [*range(2300), *range(2300), *range(400)]
    assert np.array_equal(rows.redshift_spec, galaxies.redshift)
    assert np.abs(rows.redshift_phot - predict_directly(weights, galaxies.image, galaxies.magnitude)).max() <= 1e-5
    assert not rows.flag.any()


def test_flagged_galaxies_are_counted_and_leave_their_neighbours_bit_identical(tmp_path, weights):
    clean, dirty = random_galaxies(600), random_galaxies(600)
    dirty.image[3, 2, 5, 5] = np.nan
    dirty.image[511, 0, 0, 0] = np.inf
    dirty.magnitude[512, 4] = -9999
    dirty.magnitude[513, 0] = np.nan
    dirty.magnitude[3, 1] = -np.inf
    results = {}
    for name, galaxies in {"clean": clean, "dirty": dirty}.items():
        survey = make_survey(tmp_path / name, galaxies, 600)
        folder = make_run(survey, weights, str(tmp_path / f"run-{name}"))
        run_worker(folder, Rank())
        results[name] = (summarize(folder), read_columns(folder))
    summary, rows = results["dirty"]
    bad = [3, 511, 512, 513]
    good = np.setdiff1d(np.arange(600), bad)
    assert rows.flag[bad].tolist() == [3, 1, 2, 2]
    assert np.isnan(rows.redshift_phot[bad]).all()
    assert np.array_equal(rows.redshift_phot[good], results["clean"][1].redshift_phot[good])
    assert summary.coverage.flagged == {
        "NONFINITE_PIXEL": 2, "MISSING_MAGNITUDE": 3, "NONFINITE_PREDICTION": 0, "OUTSIDE_DOMAIN": 0,
        "INCOMPLETE_CUTOUT": 0, "IMPLAUSIBLE_REDSHIFT": 0, "NOT_CALIBRATED": 0, "NOT_DONE": 0,
    }  # fmt: skip
    assert summary.complete
    assert summary.metrics is not None and summary.metrics.galaxies == 596


def test_a_prediction_that_is_not_finite_is_flagged(tmp_path, survey):
    weights = load_weights(tiny_weights(tmp_path / "w.safetensors"))
    for name in ("magnitude_head.0", "magnitude_head.2", "redshift_head.0", "redshift_head.2"):
        weights.tensors[f"{name}.weight"][:] = 1e9  # finite, and their sums of products are not
    weights.save(str(tmp_path / "huge.safetensors"))
    folder = make_run(open_survey(survey), str(tmp_path / "huge.safetensors"), str(tmp_path / "run"))
    run_worker(folder, Rank())
    assert summarize(folder).coverage.flagged["NONFINITE_PREDICTION"] == 5000  # type: ignore[index]
    assert (read_columns(folder).flag == Flag.NONFINITE_PREDICTION).all()


@pytest.mark.parametrize("engine", ["openvino", "reference"])
def test_weights_that_are_not_finite_are_refused_by_every_engine(tmp_path, survey, engine):
    weights = load_weights(tiny_weights(tmp_path / "w.safetensors"))
    weights.tensors["patch.weight"].flat[7] = np.nan
    weights.save(str(tmp_path / "nan.safetensors"))
    with pytest.raises(InputError, match=r"tensor patch.weight holds NaN or infinite values \(1 of 5120\)"):
        make_run(open_survey(survey), str(tmp_path / "nan.safetensors"), str(tmp_path / "run"), engine=engine)
    assert not (tmp_path / "run").exists()


def test_the_weights_are_stated_wherever_redshifts_are(tmp_path, survey, weights, capsys):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"))
    run_worker(folder, Rank())
    summary, digest = summarize(folder), folder.plan().weights_sha256
    name = Path(weights).name
    assert (summary.weights, summary.weights_sha256) == (name, digest)
    metadata = pq.read_schema(folder.catalogue_path).metadata
    assert (metadata[b"cosmicai.weights"], metadata[b"cosmicai.weights_sha256"]) == (name.encode(), digest.encode())
    assert print_summary(summary) == 0
    assert f"weights      {name}, SHA-256 {digest[:16]}\n" in capsys.readouterr().out


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_any_number_of_ranks_gives_the_same_catalogue(tmp_path, survey, weights, world_size):
    digests = set()
    for size in (1, world_size):
        folder = make_run(open_survey(survey), weights, str(tmp_path / f"run-{size}"))
        for rank in range(size):
            run_worker(folder, Rank(rank, size, "local"))
        digests.add(summarize(folder).catalogue_sha256)
    assert len(digests) == 1


def test_missing_galaxies_are_counted_and_resume_predicts_only_these(tmp_path, survey, weights):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"))
    run_worker(folder, Rank(0, 2, "local"))
    half = summarize(folder)
    assert not half.complete
    assert half.coverage.completed + half.coverage.missing == 5000
    assert half.coverage.missing_items == tuple(item.name for item in folder.plan().items if item not in folder.parts())
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "parts").iterdir()}
    make_run(open_survey(survey), weights, str(tmp_path / "run"), resume=True)
    record = run_worker(folder, Rank())
    assert record.galaxies == half.coverage.missing
    assert summarize(folder).complete
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "parts").iterdir()}
    assert before.items() <= after.items()
    assert sorted(folder.records()) == ["0", "0-2"]


def test_limit_files_takes_the_first_shards_only(tmp_path, survey, weights):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"), limit_files=2)
    run_worker(folder, Rank())
    assert summarize(folder).coverage.completed == 4600


def test_a_missing_shard_is_recorded_as_failed_and_the_rest_is_completed(tmp_path, survey, weights):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"))
    lost = Path(survey, "000002.h5")
    lost.rename(lost.with_suffix(".away"))
    run_worker(folder, Rank())
    summary = summarize(folder)
    assert summary.coverage.completed == 2700
    assert [failure.count for failure in summary.failures] == [1, 1]
    assert all("000002.h5" in failure.reason for failure in summary.failures)
    lost.with_suffix(".away").rename(lost)
    run_worker(folder, Rank())
    summary = summarize(folder)
    assert summary.complete
    assert summary.failures == ()


def test_an_item_that_fails_half_way_is_not_counted(tmp_path, survey, weights, monkeypatch):
    read = Shard.read

    def fail(shard: Shard, start: int, stop: int) -> Galaxies:
        if shard.uri.endswith("000002.h5") and start >= 1024:
            raise StorageError("the disk is gone")
        return read(shard, start, stop)

    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"))
    monkeypatch.setattr(Shard, "read", fail)
    record = run_worker(folder, Rank())
    assert (record.galaxies, record.batches, record.items) == (2700, 5 + 1, 3)
    monkeypatch.setattr(Shard, "read", read)
    run_worker(folder, Rank())
    summary = summarize(folder)
    assert summary.complete
    assert summary.totals.galaxies == 5000 and summary.totals.batches == 11


def test_the_times_of_ranks_and_attempts_add_up_to_the_elapsed_time(tmp_path, survey, weights):
    assert covered_seconds([]) == 0
    spans = {"first": (0, 10), "second rank": (2, 12), "later": (30, 35), "within": (31, 32), "idle": (40, 40)}
    times: list[Any] = [tuple(f"2026-01-01T00:00:{second:02d}+00:00" for second in span) for span in spans.values()]
    assert covered_seconds(reversed(times)) == 12 + 5

    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"))
    run_worker(folder, Rank())
    for part in Path(folder.uri, "parts").iterdir():
        part.unlink()
    for rank in range(2):  # more ranks than before: rank 1 is new
        run_worker(folder, Rank(rank, 2, "local"))
    totals, records = summarize(folder).totals, folder.records()
    assert sorted(records) == ["0", "0-2", "1"]
    assert totals.galaxies == 10_000 and totals.attempts == 2
    combined = json.loads(Path(folder.combined_path).read_text())
    assert [record["cosmicai"]["rank"] for record in combined] == [0, 1]
    assert sum(map(count_galaxies, combined)) == 5000  # which were done twice
    each = [covered_seconds([(record.working_at, record.updated_at)]) for record in records.values()]
    assert totals.working_seconds == pytest.approx(sum(each), abs=1e-5)  # they came one after the other
    assert totals.galaxies_per_second == pytest.approx(10_000 / totals.working_seconds)
    assert totals.throughput_bps == pytest.approx(totals.galaxies_per_second * 164160)


@pytest.mark.parametrize(
    ("planned", "unknown", "problem"),
    [
        ('"engine": "openvino"', '"engine": "abacus"', "there is no engine 'abacus'"),
        ('"precision": "float32"', '"precision": "float8"', "the engine openvino has no precision 'float8'"),
        ('"device": "cpu"', '"device": "tpu"', "the engine openvino has no device 'tpu'"),
    ],
)
def test_a_plan_for_an_engine_that_does_not_exist_is_refused(tmp_path, survey, weights, planned, unknown, problem):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"), engine="openvino")
    plan = Path(folder.plan_path)
    plan.write_text(plan.read_text().replace(planned, unknown))
    with pytest.raises(InputError, match=f"{problem}; the run was planned with another version"):
        run_worker(folder, Rank())
    assert folder.parts() == set()


def test_json_has_no_nan(tmp_path, weights):
    galaxies = random_galaxies(10)
    galaxies.redshift[:] = 0.2
    folder = make_run(make_survey(tmp_path / "s", galaxies, 10), weights, str(tmp_path / "run"))
    run_worker(folder, Rank())
    metrics = summarize(folder).metrics
    assert metrics is not None and metrics.r2 is None
    for path in Path(folder.uri).rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)


def test_records_and_published_outputs_have_the_published_keys(tmp_path, survey, weights):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"), batch_size=1000)
    for rank in range(2):
        run_worker(folder, Rank(rank, 2, "local"))
    summary = summarize(folder)
    combined = json.loads(Path(folder.combined_path).read_text())
    assert [tuple(record) for record in combined] == [(*PUBLISHED_KEYS, OWN_KEY)] * 2
    assert combined == [json.loads(Path(folder.uri, f"{rank}.json").read_text()) for rank in range(2)]
    galaxies = [record["cosmicai"]["galaxies"] for record in combined]
    assert [record["num_batches"] for record in combined] == [-(-count // 1000) for count in galaxies]
    assert [count_galaxies(record) for record in combined] == galaxies and sum(galaxies) == 5000
    for record in folder.records().values():
        assert record.throughput_bps * record.cpu_seconds == pytest.approx(record.galaxies * 164160)
        assert record.galaxies_per_cpu_second * record.cpu_seconds == pytest.approx(record.galaxies)
        assert record.cpu_seconds_per_batch * record.galaxies == pytest.approx(record.cpu_seconds * 1000)
        assert record.galaxies_per_second * record.seconds.working == pytest.approx(record.galaxies, rel=1e-4)
        assert record.seconds.__struct_fields__ == ("start", "load", "read", "predict", "write")
    results = json.loads(Path(folder.results_path).read_text())
    assert {"MAE", "MSE", "Bias", "Precision", "R2", "batch size", "number of batches"} <= results.keys()
    assert summary.metrics is not None and results["R2"] == summary.metrics.r2
    assert Path(folder.plot_path("png")).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_spectroscopic_redshifts_there_are_no_metrics(tmp_path, weights):
    galaxies = random_galaxies(10)
    galaxies.redshift[:] = np.nan
    folder = make_run(make_survey(tmp_path / "s", galaxies, 10), weights, str(tmp_path / "run"))
    run_worker(folder, Rank())
    summary = summarize(folder)
    assert summary.complete and summary.metrics is None


def test_another_plan_is_refused_with_the_fields_that_differ(tmp_path, survey, weights):
    out = str(tmp_path / "run")
    make_run(open_survey(survey), weights, out)
    with pytest.raises(InputError, match="already holds this run; finish it with --resume"):
        make_run(open_survey(survey), weights, out)
    with pytest.raises(InputError, match="another plan \\(it differs in batch_size\\)"):
        make_run(open_survey(survey), weights, out, batch_size=300, resume=True)
    with pytest.raises(InputError, match="it differs in weights, weights_sha256"):
        make_run(open_survey(survey), tiny_weights(tmp_path / "other.safetensors", seed=1), out, resume=True)


def test_weights_that_change_during_a_run_are_refused(tmp_path, survey, weights):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"), engine="reference")
    tiny_weights(Path(weights), seed=5)
    with pytest.raises(InputError, match="has changed since the run was planned"):
        run_worker(folder, Rank())


def test_a_compiled_network_does_not_need_its_weights(tmp_path, survey, weights):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"), engine="openvino")
    expected = predict_directly(weights, *(getattr(random_galaxies(5000), name) for name in ("image", "magnitude")))
    tiny_weights(Path(weights), seed=5)
    run_worker(folder, Rank())
    summarize(folder)
    assert np.abs(read_columns(folder).redshift_phot - expected).max() <= 1e-5


def test_resume_takes_from_the_plan_what_is_not_requested(tmp_path, survey, weights):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"), engine="reference", batch_size=100)
    text = Path(folder.plan_path).read_bytes()
    again = make_run(open_survey(survey), weights, str(tmp_path / "run"), resume=True)
    assert again == folder and Path(folder.plan_path).read_bytes() == text
    for other in ({"engine": "openvino"}, {"precision": "bfloat16"}, {"device": "cuda"}, {"limit_files": 1}):
        with pytest.raises(InputError, match="belongs to another plan"):
            make_run(open_survey(survey), weights, str(tmp_path / "run"), resume=True, **other)


@pytest.mark.parametrize(
    ("planned", "other"),
    [
        ({"views": 8}, {"views": 1}),
        ({}, {"views": 8}),
        ({}, {"quantiles": True}),
        ({"calibrate_on_spectra": True}, {"quantiles": True}),
    ],
)
def test_what_a_plan_states_of_views_and_intervals_is_not_changed_by_resume(tmp_path, survey, weights, planned, other):
    out = str(tmp_path / "run")
    folder = make_run(open_survey(survey), weights, out, engine="reference", **planned)
    text = Path(folder.plan_path).read_bytes()
    assert make_run(open_survey(survey), weights, out, resume=True, **planned).plan() == folder.plan()
    assert make_run(open_survey(survey), weights, out, resume=True).plan() == folder.plan()
    [name] = other
    with pytest.raises(InputError, match=rf"belongs to another plan \(it differs in {name}\); choose another --out$"):
        make_run(open_survey(survey), weights, out, resume=True, **planned | other)
    assert Path(folder.plan_path).read_bytes() == text


@pytest.mark.parametrize("views", [0, 2, 3, -8, True, 8.0, "8"])
def test_other_numbers_of_views_are_refused_before_anything_is_written(tmp_path, survey, weights, views):
    with pytest.raises(
        InputError, match=rf"^--views {views!r} cannot be used; expected 1 \(each cutout as it is\) or 8"
    ):
        make_run(open_survey(survey), weights, str(tmp_path / "run"), views=views)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("engine", ["openvino", "reference"])
def test_any_batch_size_gives_the_same_redshifts(tmp_path, weights, engine):
    survey = make_survey(tmp_path / "s", random_galaxies(1300), 700)
    found = {}
    for size in (1, 7, 64, 100, 512, 2000):
        folder = make_run(survey, weights, str(tmp_path / f"run-{size}"), engine=engine, batch_size=size)
        run_worker(folder, Rank(threads=2))
        summarize(folder)
        found[size] = read_columns(folder).redshift_phot
    assert max(np.abs(redshift - found[512]).max() for redshift in found.values()) <= 1e-6


def test_a_network_for_other_galaxies_is_refused(tmp_path, survey):
    path = str(tmp_path / "three.safetensors")
    extract_weights(AstroMAE(structs.replace(TINY, bands=3)), {}).save(path)
    with pytest.raises(InputError, match=r"is for cutouts \(3, 32, 32\) and 5 magnitudes; expected"):
        make_run(open_survey(survey), path, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["truncate", "garbage", "foreign"])
def test_a_damaged_part_is_named_and_can_be_redone(tmp_path, survey, weights, damage):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"))
    run_worker(folder, Rank())
    whole = summarize(folder).catalogue_sha256
    path = Path(folder.part_path(folder.plan().items[0]))
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "garbage":
        path.write_bytes(b"x" * 5000)
    else:
        other = make_run(open_survey(survey), weights, str(tmp_path / "other"), batch_size=256)
        run_worker(other, Rank())
        path.write_bytes(Path(other.part_path(other.plan().items[0])).read_bytes())
    if damage == "foreign":
        with pytest.raises(InputError, match=f"{path.name} belongs to another plan.*remove it"):
            summarize(folder)
        path.unlink()
    else:
        summary = summarize(folder)
        assert not summary.complete and f"{path.name} is damaged" in str(summary.left_out)
    run_worker(folder, Rank())
    assert summarize(folder).catalogue_sha256 == whole


def test_a_record_names_machine_engine_and_data(tmp_path, survey, weights):
    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"))
    record = run_worker(folder, Rank())
    assert record.host and record.cpu_model and record.engine == "openvino"
    assert record.state == "finished" and record.galaxies == 5000 and record.items == len(folder.plan().items)
    assert record.data_path == survey and record.result_path == folder.uri


def test_the_published_partition_gives_the_published_redshifts_in_little_memory(tmp_path, shared):
    """The acceptance test of import and run: 512 of 512 galaxies, within 1e-5, under 900 MB."""
    weights, out = str(tmp_path / "w.safetensors"), tmp_path / "r"
    assert run("weights", "import", str(shared / "upstream/checkpoint.pt"), weights).returncode == 0
    done = run("infer", str(shared / "upstream/partition_512.pt"), "--weights", weights, "--out", str(out))
    assert done.returncode == 0, done.stderr
    expected = np.load(shared / "upstream/expected.npz")
    predicted = read_columns(RunFolder(str(out))).redshift_phot
    assert len(predicted) == 512
    assert np.abs(predicted - expected["z_float32"]).max() <= 1e-5
    assert np.abs(predicted - expected["z_float64"]).max() <= 1e-5
    assert json.loads(storage.read_bytes(str(out / "summary.json")))["totals"]["peak_rss_mb"] < 900


@pytest.mark.parametrize("when", ["before its record", "before its part"])
def test_the_published_reading_is_exact_after_a_rank_was_killed_at_an_item(
    tmp_path, survey, weights, monkeypatch, when
):
    class KilledError(BaseException):
        pass

    def die(*_: Any) -> None:
        raise KilledError

    folder = make_run(open_survey(survey), weights, str(tmp_path / "run"))
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        if when == "before its record":
            patch.setattr(Recorder, "add", die)
        else:
            patch.setattr(RunFolder, "write_part", die)
        run_worker(folder, Rank(0, 2, "local"))
    assert len(folder.parts()) == (when == "before its record")
    for rank in range(2):
        run_worker(folder, Rank(rank, 2, "local"))
    summary = summarize(folder)
    combined = json.loads(Path(folder.combined_path).read_text())
    assert summary.complete and [record["cosmicai"]["attempts"] for record in combined] == [2, 1]
    assert sum(map(count_galaxies, combined)) == 5000
    assert sorted(path.name for path in Path(folder.uri).glob("[0-9]*.json")) == ["0.json", "1.json"]
