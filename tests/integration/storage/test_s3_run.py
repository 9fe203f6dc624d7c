"""A run whose survey, weights and run folder are on S3 (moto's server)."""

import json
from pathlib import Path

from cosmicai import storage
from support.helpers import make_survey, random_galaxies, run, tiny_weights
from support.s3 import bucket_fixture  # noqa: F401


def copy_to_s3(folder: Path, uri: str) -> None:
    for path in folder.iterdir():
        storage.write_bytes(storage.join(uri, path.name), path.read_bytes())


def test_a_run_on_s3_gives_the_catalogue_of_a_local_one(tmp_path, bucket):
    make_survey(tmp_path / "survey", random_galaxies(700), 300)
    weights = tiny_weights(tmp_path / "w.safetensors")
    copy_to_s3(tmp_path / "survey", f"{bucket}/survey")
    storage.write_bytes(f"{bucket}/w.safetensors", Path(weights).read_bytes())

    local, out = tmp_path / "run", f"{bucket}/runs/1"
    assert run("infer", str(tmp_path / "survey"), "--weights", weights, "--out", str(local)).returncode == 0
    done = run("infer", f"{bucket}/survey", "--weights", f"{bucket}/w.safetensors", "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"{out}/catalogue.parquet" in done.stdout
    assert storage.read_bytes(f"{out}/catalogue.parquet") == (local / "catalogue.parquet").read_bytes()
    names = {entry.name for entry in storage.list_files(out)}
    assert {"plan.json", "summary.json", "inference.png", "0.json", "combined_data.json", "Results.json"} <= names
    assert json.loads(storage.read_bytes(f"{out}/summary.json"))["coverage"]["done"] == 700

    refused = run("infer", f"{bucket}/survey", "--weights", f"{bucket}/w.safetensors", "--out", out)
    assert refused.returncode == 2 and "already holds this run" in refused.stderr
    csv = tmp_path / "c.csv"
    assert run("catalogue", out, "--to", "csv", "--out", str(csv)).returncode == 0
    assert len(csv.read_text().splitlines()) == 701


def test_several_ranks_share_a_run_on_s3_and_resume_does_the_rest(tmp_path, bucket):
    survey = make_survey(tmp_path / "survey", random_galaxies(5000), 2500)
    weights, out = tiny_weights(tmp_path / "w.safetensors"), f"{bucket}/run"
    arguments = (survey.uri, "--weights", weights, "--out", out)
    assert run(*arguments, "--procs", "2", module="launch").returncode == 0
    catalogue = storage.read_bytes(f"{out}/catalogue.parquet")
    part = storage.list_files(f"{out}/parts")[0].name
    storage.remove(f"{out}/parts/{part}")
    assert run("summarize", out).returncode == 3
    assert run("infer", *arguments, "--resume").returncode == 0
    assert storage.read_bytes(f"{out}/catalogue.parquet") == catalogue


def test_a_missing_bucket_is_one_sentence(tmp_path, bucket):
    done = run("infer", "s3://no-such-bucket-here/survey", "--weights", "demo", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "s3://no-such-bucket-here/survey" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
