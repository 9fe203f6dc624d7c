"""Runs and their catalogues from Python: infer, open_run, read_catalogue; and what `import cosmicai` loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cosmicai
from cosmicai import InputError
from support.helpers import make_survey, random_galaxies, tiny_weights

ROWS = 120
BATCH = {"engine": "reference", "batch_size": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a survey, weights and a complete run."""
    folder = tmp_path_factory.mktemp("library")
    make_survey(folder / "survey", random_galaxies(ROWS), 80)
    weights = tiny_weights(folder / "w.safetensors")
    run = cosmicai.infer(str(folder / "survey"), weights=weights, out=str(folder / "run"), **BATCH)
    assert run.summary.complete and run.uri == str(folder / "run")
    return folder


def infer(place: Path, out: Path, **options: object) -> cosmicai.Run:
    return cosmicai.infer(
        str(place / "survey"), weights=str(place / "w.safetensors"), out=str(out), **{**BATCH, **options}
    )


def refusal(function: object, *arguments: object, **options: object) -> str:
    with pytest.raises(InputError) as refused:
        function(*arguments, **options)  # type: ignore[operator]
    return str(refused.value)


def test_infer_does_a_run_as_the_command_does(place):
    run = cosmicai.open_run(str(place / "run"))
    assert run.summary.coverage.completed == run.summary.coverage.planned == ROWS
    assert run.summary.metrics is not None and run.summary.metrics.galaxies == ROWS
    table = run.catalogue()
    assert table["objid"].tolist() == list(range(1000, 1000 + ROWS))
    assert table.meta["survey"] == "survey" and table.meta["weights"] == "w.safetensors"
    frame = table.to_pandas()
    assert np.array_equal(frame["redshift_phot"], table["redshift_phot"]) and len(frame) == ROWS


def test_paths_may_be_pathlib(place, tmp_path):
    run = cosmicai.infer(place / "survey", weights=place / "w.safetensors", out=tmp_path / "run", **BATCH)
    assert run == cosmicai.open_run(tmp_path / "run")
    assert len(cosmicai.read_catalogue(tmp_path / "run")) == ROWS


def test_resume_does_what_is_missing_to_the_same_bits(place, tmp_path):
    run = infer(place, tmp_path / "run")
    part = sorted((tmp_path / "run/parts").iterdir())[1]
    part.unlink()
    again = infer(place, tmp_path / "run", resume=True)
    assert part.exists() and again.summary.complete
    digests = {one.summary.catalogue_sha256 for one in (run, again, cosmicai.open_run(str(place / "run")))}
    assert len(digests) == 1


def test_a_shard_that_cannot_be_read_leaves_a_run_that_is_not_complete(place, tmp_path):
    shutil.copytree(place / "survey", tmp_path / "survey")
    shard = sorted((tmp_path / "survey").glob("*.h5"))[1]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    summary = cosmicai.infer(
        str(tmp_path / "survey"), weights=str(place / "w.safetensors"), out=str(tmp_path / "run"), **BATCH
    ).summary
    assert not summary.complete and summary.coverage.missing == ROWS - 80
    table = cosmicai.read_catalogue(str(tmp_path / "run"))
    assert len(table) == ROWS and table["flag"].tolist() == [0] * 80 + [128] * (ROWS - 80)
    assert np.isnan(table["redshift_phot"][80:]).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "{run} already holds this run; finish it with --resume or choose another --out"),
        ({"shards": 3}, "cosmicai.infer: got an unexpected keyword argument 'shards'"),
        (
            {"engine": "x", "out": "new"},
            "there is no engine 'x'; expected one of auto, openvino, native, cuda, reference",
        ),
        ({"batch_size": 0, "out": "new"}, "--batch-size and --limit-files must be at least 1"),
    ],
)
def test_infer_refuses_as_the_command_does(place, tmp_path, options, sentence):
    out = tmp_path / options.pop("out") if "out" in options else place / "run"
    assert refusal(infer, place, out, **options) == sentence.format(run=place / "run")
    assert not any(tmp_path.iterdir())


def test_infer_in_one_of_several_ranks_is_refused(place, tmp_path, monkeypatch):
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("TORCHELASTIC_RUN_ID", "1"),
    ):
        monkeypatch.setenv(name, value)
    assert refusal(infer, place, tmp_path / "run") == (
        "this process is one of 2 ranks, and cosmicai.infer does a run alone; let all of them call `cosmicai work RUN`"
    )
    assert not any(tmp_path.iterdir())


def test_what_is_chosen_is_logged(place, tmp_path, caplog):
    infer(place, tmp_path / "run", engine="auto", device="cpu")
    assert {(record.name, record.levelname) for record in caplog.records} <= {("cosmicai", "WARNING")}


def test_a_catalogue_is_read_from_a_run_or_a_file(place, tmp_path):
    table = cosmicai.read_catalogue(str(place / "run"))
    shutil.copy(place / "run/catalogue.parquet", tmp_path / "mine.parquet")
    for source in (tmp_path / "mine.parquet", f"{place}/run/", place / "run/catalogue.parquet"):
        other = cosmicai.read_catalogue(str(source))
        assert other.colnames == table.colnames and other.meta == table.meta
        assert all(np.array_equal(other[name], table[name]) for name in table.colnames)


def test_a_folder_with_a_catalogue_alone_is_read_too(place, tmp_path):
    shutil.copy(place / "run/catalogue.parquet", tmp_path)
    assert len(cosmicai.read_catalogue(str(tmp_path))) == ROWS


@pytest.mark.parametrize("function", [cosmicai.read_catalogue, cosmicai.open_run])
def test_what_is_no_run_is_refused(place, tmp_path, function):
    for folder in (tmp_path, tmp_path / "absent", place / "survey"):
        assert refusal(function, str(folder)) == (
            f"{folder} is not a run folder (it has no plan.json); start one with `cosmicai infer`"
        )


def test_a_run_without_catalogue_is_refused(place, tmp_path):
    shutil.copy(place / "run/plan.json", tmp_path)
    remedy = f"`cosmicai summarize {tmp_path}`"
    assert refusal(cosmicai.read_catalogue, str(tmp_path)) == f"{tmp_path} has no catalogue yet; make it with {remedy}"
    assert refusal(cosmicai.open_run, str(tmp_path)) == f"{tmp_path} has no summary yet; write it with {remedy}"


def test_a_parquet_file_that_cannot_be_read_is_named(tmp_path):
    absent, damaged = tmp_path / "absent.parquet", tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1 and no more")
    assert refusal(cosmicai.read_catalogue, str(absent)) == (f"cannot read {absent}: it does not exist; check the path")
    said = refusal(cosmicai.read_catalogue, str(damaged))
    assert said.startswith(f"{damaged} is damaged (") and said.endswith("); copy it again")


def test_importing_loads_nothing_that_is_slow():
    slow = ["numpy", "torch", "openvino", "pyarrow", "h5py", "astropy", "pandas", "matplotlib", "msgspec"]
    code = f"import sys, cosmicai; dir(cosmicai); print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_is_there():
    for name in cosmicai.__all__:
        assert getattr(cosmicai, name).__name__ == name and name in dir(cosmicai)
    with pytest.raises(AttributeError, match=r"^module 'cosmicai' has no attribute 'prediction'$"):
        _ = cosmicai.prediction
