"""`cosmicai reproduce` accepts the published files alone and computes the metrics of the published predictions."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import cosmicai.verification.reproduce
from cosmicai.cli.reproduce import reproduce as command
from cosmicai.errors import InputError
from cosmicai.models.download import PUBLISHED_FILES, PublishedFile, git_blob_id
from cosmicai.runs.store import RunFolder
from cosmicai.verification.reproduce import METRICS, PublishedMetric, find_published_files
from support.helpers import run

CHECKPOINT, GALAXIES = "Mixed_Inception_z_VITAE_Base_Img_Full_New_Full.pt", "resized_inference.pt"
NAMES = ["r2", "mae", "mse", "bias", "precision"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)), standalone_mode=False)


@pytest.fixture
def stand_in(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files of random weights and galaxies are accepted as the published ones."""
    upstream = shared / "upstream"
    names = ("checkpoint.pt", "partition_512.pt")
    checkpoint, galaxies = (PublishedFile(f"code/{name}", git_blob_id(upstream / name)) for name in names)
    replaced = partial(
        cosmicai.verification.reproduce.reproduce, files=(checkpoint, galaxies), metrics=expected(shared)
    )
    monkeypatch.setattr(cosmicai.verification.reproduce, "reproduce", replaced)
    return upstream


def expected(shared: Path) -> tuple[PublishedMetric, ...]:
    """Metrics of the published predictions of the fixture, by independent formulas."""
    phot = np.load(shared / "upstream/expected.npz")["z_float64"]
    tensors = torch.load(shared / "upstream/partition_512.pt", weights_only=False).tensors
    spec = tensors[2].numpy()
    assert len(spec) == len(phot) == 512
    dz = (phot - spec) / (1 + spec)
    values = (
        1 - ((phot - spec) ** 2).sum() / ((spec - spec.mean()) ** 2).sum(),
        abs(phot - spec).mean(),
        ((phot - spec) ** 2).mean(),
        dz.mean(),
        1.48 * np.median(abs(dz - np.median(dz))),
    )
    # Four digits: those of R2, which is about -20 for random weights, follow the inner batch beyond that.
    return tuple(PublishedMetric(name, name, float(value), 4) for name, value in zip(NAMES, values, strict=True))


def test_the_metrics_are_those_of_the_published_predictions(stand_in, shared, tmp_path):
    done = invoke("--folder", stand_in, "--out", tmp_path / "o", "--json")
    assert done.exception is None and done.return_value == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["galaxies"], found["asked"], found["agrees"]) == (512, 512, True)
    assert found["machine"]["cpu_model"] and found["machine"]["date"]
    for row, metric in zip(found["rows"], expected(shared), strict=True):
        assert row["name"] == metric.name and row["agrees"] is True
        assert row["ours"] == pytest.approx(metric.value, abs=2e-5) and row["published"] == metric.value
        assert row["difference"] == row["ours"] - metric.value
    assert "512 of 512" in done.stderr and found["machine"]["cpu_model"] in done.stderr
    # The run is as `infer` writes it, with the imported weights next to it.
    assert found["run"] == str(tmp_path / "o/run")
    folder = RunFolder(found["run"])
    summary, plan = folder.complete_summary(), folder.plan()
    assert summary is not None and plan.weights == str(tmp_path / "o/published.safetensors")
    assert (plan.precision, plan.galaxies) == ("float32", 512)
    assert [getattr(summary.metrics, name) for name in NAMES] == [row["ours"] for row in found["rows"]]


def test_metrics_that_differ_are_reported_with_exit_code_3(stand_in, tmp_path, monkeypatch):
    replaced = partial(cosmicai.verification.reproduce.reproduce, metrics=METRICS)  # of the real galaxies
    monkeypatch.setattr(cosmicai.verification.reproduce, "reproduce", replaced)
    options = ("--folder", stand_in, "--out", tmp_path / "o")
    done = invoke(*options)
    assert done.exception is None and done.return_value == 3
    assert done.stderr.endswith("our metrics do not agree with the published ones\n")
    for quoted in ("0.974674", "0.01252", "0.000297", "0.002024", "0.01136"):
        assert f" {quoted} " in done.stdout
    assert done.stdout.count(" no ") == len(METRICS) and "cpu_model" in done.stdout
    # The earlier run is done again; a run with other weights is kept.
    left = tmp_path / "o/run/left"
    left.touch()
    assert invoke(*options).return_value == 3 and not left.exists()
    plan = tmp_path / "o/run/plan.json"
    plan.write_text(plan.read_text().replace("published.safetensors", "mine.safetensors"))
    refused = invoke(*options).exception
    assert isinstance(refused, InputError) and "is another run, with the weights " in str(refused)
    assert plan.exists()


@pytest.mark.parametrize(("distance", "agrees"), [(0.49e-5, True), (-0.49e-5, True), (0.51e-5, False), (None, False)])
def test_a_metric_agrees_within_half_a_unit_of_the_last_quoted_decimal(distance, agrees):
    metric = PublishedMetric("mae", "MAE", 0.01251969638102928, 5)
    row = metric.compare(None if distance is None else metric.value + distance)
    assert (row["agrees"], row["quoted"]) == (agrees, "0.01252")


def test_the_published_metrics_are_those_of_the_published_files(shared):
    folder = shared / "published/laptop/batch_series"
    for batch_size in (1, 2, 4, 8, 16, 32, 64, 128):
        results = json.loads((folder / f"results_series_2_batch_{batch_size}_Results.json").read_text())
        assert [results[name] for name in ("R2", "MAE", "MSE", "Bias", "Precision")] == [each.value for each in METRICS]
    assert [each.key for each in METRICS] == NAMES


@pytest.mark.parametrize(
    ("present", "missing"),
    [((), f"{CHECKPOINT} and {GALAXIES} are"), ((CHECKPOINT,), f"{GALAXIES} is"), ((GALAXIES,), f"{CHECKPOINT} is")],
)
def test_missing_files_are_one_sentence(tmp_path, present, missing):
    for name in present:
        (tmp_path / name).touch()
    done = run("reproduce", "--folder", str(tmp_path), "--out", str(tmp_path / "o"))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"cosmicai: {CHECKPOINT} and {GALAXIES} are needed and {missing} not in {tmp_path}; "
        f"fetch both with `cosmicai weights fetch --out {tmp_path}`\n"
    )
    assert not (tmp_path / "o").exists()


def test_a_file_that_is_not_the_published_one_is_refused_by_name(tmp_path):
    (tmp_path / CHECKPOINT).write_bytes(b"hello\n")
    (tmp_path / GALAXIES).touch()
    refused = invoke("--folder", tmp_path, "--out", tmp_path / "o").exception
    assert isinstance(refused, InputError)
    assert str(refused) == (
        f"{tmp_path / CHECKPOINT} is not the published file: its git blob id is "
        f"ce013625030ba8dba906f756967f9e9ca394464a, expected {PUBLISHED_FILES[0].blob_id}; "
        f"fetch that with `cosmicai weights fetch --out {tmp_path}`"
    )
    assert not (tmp_path / "o").exists()


def test_galaxies_that_are_not_the_published_ones_are_refused(tmp_path, shared):
    checkpoint = shared / "upstream/checkpoint.pt"
    (tmp_path / "checkpoint.pt").symlink_to(checkpoint)
    shutil.copyfile(shared / "upstream/expected.npz", tmp_path / GALAXIES)
    with pytest.raises(InputError, match=f"{GALAXIES} is not the published file: "):
        find_published_files(
            str(tmp_path), (PublishedFile("checkpoint.pt", git_blob_id(checkpoint)), PUBLISHED_FILES[1])
        )


def test_weights_are_not_imported_to_s3(stand_in):
    refused = invoke("--folder", stand_in, "--out", "s3://bucket/reproduce").exception
    assert isinstance(refused, InputError) and "choose a local --out" in str(refused)
