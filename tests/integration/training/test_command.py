"""The command `train` as users call it."""

import re
from pathlib import Path

import pytest

from cosmicai.models.weights import load_weights
from cosmicai.surveys.synthetic import write_synthetic_survey
from support.helpers import run
from support.torchvision_operators import environment

QUICK = ("--network", "demo", "--epochs", "1")


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_synthetic_survey(str(tmp_path_factory.mktemp("surveys") / "few"), 120, 3, 60).uri


@pytest.fixture(scope="module")
def trained(survey: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "w.safetensors"
    path = environment()["PYTHONPATH"]
    done = run("train", survey, *QUICK, "--out", str(out), PYTHONPATH=path, OMP_DISPLAY_ENV="TRUE")
    assert done.returncode == 0, done.stderr
    out.with_name("errors").write_text(done.stderr)
    assert done.stdout == f"{out}\n"
    return out


def test_a_training_says_how_it_goes_and_what_the_weights_are_worth(trained: Path) -> None:
    said = trained.with_name("errors").read_text()
    galaxies = r"\(66 galaxies, 6 for validation, 48 for the test, 0 left out\)"
    test = r"test: R2 -?\d.* \(48 galaxies that the training has not seen\)"
    assert re.search(rf"66 of 66 galaxies, .* 0 s left\nepoch 1/1  loss 0\.\d{{5}}  R2 .* {galaxies}\n{test}\n", said)


def test_threads_that_wait_do_not_spin(trained: Path) -> None:
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in trained.with_name("errors").read_text()


def test_no_file_of_a_training_is_replaced_unless_asked(survey: str, trained: Path, tmp_path: Path) -> None:
    for suffix in ("", ".history.csv", ".history.png"):
        out = tmp_path / f"w{suffix}"
        Path(f"{out}{suffix}").write_text("mine")
        done = run("train", survey, *QUICK, "--out", str(out))
        assert done.returncode == 2
        assert f"{out}{suffix} exists; choose another name, or replace it with --overwrite" in done.stderr
        assert Path(f"{out}{suffix}").read_text() == "mine"
    tuned = ("train", survey, "--from", str(trained), "--epochs", "1", "--encoder-rate", "0.1", "--augment", "none")
    done = run(*tuned, "--out", str(tmp_path / "w"), "--overwrite")
    assert done.returncode == 0, done.stderr
    assert load_weights(str(tmp_path / "w")).notes["test_galaxies"] == "12"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--test-fraction", "nan"), "nan is not a number"),
        (("--clip", "-1"), "-1.0 is not in the range"),
        (("--noise", "1", "--augment", "none"), "--noise is a part of the augmentation"),
        (("--validation-fraction", "0.5", "--test-fraction", "0.5"), "their sum must be below 1"),
        (("--threads", "0"), "0 is not in the range"),
    ],
)
def test_options_that_cannot_be_used_end_with_a_sentence(
    survey: str, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    done = run("train", survey, *QUICK, *options, "--out", str(tmp_path / "w.safetensors"))
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there_is_missed_in_a_sentence(survey: str, tmp_path: Path) -> None:
    path = environment()["PYTHONPATH"]
    command = ("train", survey, *QUICK, "--device", "cuda", "--out", str(tmp_path / "w"))
    done = run(*command, PYTHONPATH=path, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "cosmicai: no GPU is visible to this process; use --device cpu, or ask the scheduler for a GPU\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shift", ["0.1", "1,2,3,4,x", "0,0,0,0,nan", "0,0,0,0,9", "0,0,0,0,0,0", ""])
def test_a_colour_shift_is_five_magnitudes(tmp_path: Path, shift: str) -> None:
    done = run("synthetic", "--galaxies", "10", f"--colour-shift={shift}", "--out", str(tmp_path / "s"))
    assert done.returncode == 2
    assert "is not the shift of u,g,r,i,z; give five magnitudes from -5 to 5" in done.stderr
    assert list(tmp_path.iterdir()) == []
