"""The command line: messages for invalid input, and commands that other tests do not run."""

import csv
import json
import shlex
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from support.helpers import make_survey, random_galaxies, run, tiny_weights


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a survey, weights, and a complete run."""
    folder = tmp_path_factory.mktemp("job")
    make_survey(folder / "survey", random_galaxies(300), 200)
    tiny_weights(folder / "w.safetensors")
    done = run(
        "infer", str(folder / "survey"), "--weights", str(folder / "w.safetensors"), "--out", str(folder / "run")
    )
    assert done.returncode == 0, done.stderr
    return folder


def refused(tmp_path: Path, *arguments: str, module: str = "cosmicai") -> str:
    """Run a command that must be refused without writing anything, and return its message."""
    done = run(*arguments, module=module)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())
    return done.stderr


@pytest.mark.parametrize(
    ("survey", "weights", "sentence"),
    [
        ("absent", "w.safetensors", "absent does not exist; expected a survey folder"),
        ("survey", "absent.safetensors", "absent.safetensors: it does not exist; check the path"),
        (
            "survey/survey.json",
            "w.safetensors",
            "is a single file (json), and a survey is a folder or a file ending in .h5, .hdf5, .pt; "
            "name the folder that holds it",
        ),
        ("survey", "survey/000001.h5", "is not a whole safetensors file"),
        ("run", "w.safetensors", "holds no galaxies; expected survey.json or files ending in .h5, .hdf5, .pt"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, job, survey, weights, sentence):
    said = refused(
        tmp_path, "infer", str(job / survey), "--weights", str(job / weights), "--out", str(tmp_path / "run")
    )
    assert sentence in said


def test_launch_refuses_invalid_input_like_infer(tmp_path, job):
    assert "absent does not exist" in refused(
        tmp_path, "absent", "--weights", "demo", "--out", str(tmp_path / "run"), module="launch"
    )


@pytest.mark.parametrize("module", ["cosmicai", "launch"])
def test_weights_are_required(tmp_path, job, module):
    command = ["infer"] if module == "cosmicai" else []
    said = refused(tmp_path, *command, str(job / "survey"), "--out", str(tmp_path / "run"), module=module)
    assert "--weights is missing; name the weights file, since `--weights demo` is for synthetic galaxies only" in said


@pytest.mark.parametrize("name", ["a.fits", "a.fits.gz", "a b.npz", "a.npy", "a.H5", "noext"])
@pytest.mark.parametrize("command", ["infer", "plan"])
def test_a_file_that_needs_ingest_is_refused_with_the_command(tmp_path, command, name):
    (tmp_path / "sources").mkdir()
    (path := tmp_path / "sources" / name).write_bytes(b"galaxies")
    done = run(command, str(path), "--weights", "demo", "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and "does not exist" not in done.stderr
    assert f"convert it with `cosmicai ingest {shlex.quote(str(path))} --out SURVEY`" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("layout", ["other names", "a group"])
def test_an_hdf5_file_of_another_layout_is_refused_with_the_command(tmp_path, layout):
    (tmp_path / "sources").mkdir()
    with h5py.File(path := tmp_path / "sources/a.h5", "w") as file:
        file["images" if layout == "other names" else "image/u"] = np.zeros((2, 5, 32, 32), np.float32)
    done = run("infer", str(path), "--weights", "demo", "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and f"convert the file with `cosmicai ingest {path} --out SURVEY`" in done.stderr


def test_a_file_as_run_folder_is_refused(tmp_path, job):
    done = run(
        "infer", str(job / "survey"), "--weights", str(job / "w.safetensors"), "--out", str(job / "w.safetensors")
    )
    assert done.returncode == 2 and "is a file; expected a folder for the run" in done.stderr


def test_a_requested_gpu_that_is_not_visible_is_refused(tmp_path, job):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    said = refused(
        tmp_path, "infer", str(job / "survey"), "--weights", str(job / "w.safetensors"), "--out",
        str(tmp_path / "run"), "--device", "cuda",
    )  # fmt: skip
    assert "no GPU is visible to this process; use --device cpu" in said


@pytest.mark.parametrize("command", ["summarize", "work"])
def test_a_folder_without_plan_is_no_run(tmp_path, command):
    assert "is not a run folder (it has no plan.json)" in refused(tmp_path, command, str(tmp_path))


def test_the_catalogue_in_other_formats_has_the_same_rows(tmp_path, job):
    rows = pq.read_table(job / "run/catalogue.parquet")
    for kind in ("fits", "csv", "hdf5"):
        out = str(tmp_path / f"c.{kind}")
        assert run("catalogue", str(job / "run"), "--to", kind, "--out", out).stdout == f"300 galaxies in {out}\n"
    fits = Table.read(tmp_path / "c.fits")
    with h5py.File(tmp_path / "c.hdf5") as file, (tmp_path / "c.csv").open(newline="") as text:
        lines, hdf5 = list(csv.DictReader(text)), file["catalogue"][:]
        for name in rows.column_names:
            expected = rows[name].to_numpy()
            assert [line[name] for line in lines] == [str(value) for value in rows[name].to_pylist()] or np.array_equal(
                np.array([line[name] for line in lines], expected.dtype), expected
            )
            if name == "shard":
                assert list(fits[name]) == list(hdf5[name].astype(str)) == list(expected)
            else:
                assert np.array_equal(fits[name], expected) and np.array_equal(hdf5[name], expected)


def test_a_catalogue_that_does_not_exist_yet_is_refused(tmp_path, job):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/plan.json").write_text((job / "run/plan.json").read_text())
    done = run("catalogue", str(tmp_path / "run"), "--to", "csv")
    assert done.returncode == 2 and "make it with `cosmicai summarize" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["plan.json"]


def test_the_demo_weights_are_available_by_name():
    said = run("weights", "info", "demo").stdout.split()
    assert said[said.index("parameters") + 1] == "366793" and said[said.index("trained_on") + 1] == "synthetic-seed1"


def test_weights_info_names_the_network(job):
    said = run("weights", "info", str(job / "w.safetensors")).stdout.split()
    assert said[said.index("depth") + 1] == "1" and said[said.index("sha256") + 1]


def test_the_demo_writes_a_complete_accurate_catalogue_and_can_be_repeated(tmp_path):
    for _ in range(2):
        done = run("demo", "--out", str(tmp_path / "demo"), "--galaxies", "1500")
        assert done.returncode == 0, done.stderr
        assert "1500/1500" in done.stdout and "catalogue.parquet" in done.stdout
        summary = json.loads((tmp_path / "demo/run/summary.json").read_text())
        assert summary["complete"] and summary["metrics"]["r2"] >= 0.95
    for path in (tmp_path / "demo/run").rglob("*"):
        if path.is_file():
            path.unlink()  # as if the last run had been killed before it wrote its plan
    assert run("demo", "--out", str(tmp_path / "demo"), "--galaxies", "1500").returncode == 0
    assert "choose another --out" in run("demo", "--out", str(tmp_path / "demo"), "--galaxies", "10").stderr


@pytest.mark.parametrize("number", ["1000001", "999999999999999999999999"])
@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("infer",), "--batch-size"),
        (("plan",), "--ranks"),
        (("bench", "ranks"), "--ranks"),
        (("bench", "sweep"), "--batch-sizes"),
        (("bench", "sweep"), "--world-sizes"),
    ],
)
def test_absurd_numbers_are_refused_before_anything_is_done(
    arguments: tuple[str, ...], option: str, number: str, tmp_path: Path
) -> None:
    number = str(2 * int(number))
    run_arguments = () if arguments == ("bench", "ranks") else ("absent", "--out", str(tmp_path / "out"))
    done = run(*arguments, *run_arguments, option, number)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Invalid value for '{option}': " in done.stderr and number in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_sizes_that_are_no_numbers_are_refused(number: str, tmp_path: Path) -> None:
    done = run("synthetic", "--galaxies", "5", "--partition-mb", number, "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (2, "") and "Invalid value for '--partition-mb': " in done.stderr
    assert not list(tmp_path.iterdir())
