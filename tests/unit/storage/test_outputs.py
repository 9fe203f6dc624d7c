"""Test that commands destroy no files that they were not asked to replace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cosmicai import storage
from cosmicai.errors import InputError
from support.helpers import run, tiny_weights
from support.upstream_network import Sizes, random_network, save_checkpoint


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    """Return a folder that looks like a run's."""
    for name in ("plan.json", "summary.json", "catalogue.parquet", "catalogue.csv", "parts/a.h5", "records/0.json"):
        storage.write_bytes(str(tmp_path / "run" / name), b"1")
    storage.write_bytes(str(tmp_path / "survey/survey.json"), b"1")
    storage.write_bytes(str(tmp_path / "survey/000001.h5"), b"1")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["run/plan.json", "run/summary.json", "run/parts/a.h5", "run/parts/new.csv", "run/records/0.json",
     "run/logs/0.log", "survey/survey.json", "survey/000001.h5"],
)  # fmt: skip
def test_a_file_of_a_run_or_survey_is_not_replaced(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"belongs to the (run|survey) in .*; choose another name"):
        storage.require_replaceable(str(folder / name))
    with pytest.raises(InputError, match="belongs to"):
        storage.require_new(str(folder / name), overwrite=True)


@pytest.mark.parametrize("name", ["run/catalogue.csv", "run/mine.csv", "survey/mine.safetensors", "a.csv", "new/a.csv"])
def test_other_files_are_written(folder: Path, name: str) -> None:
    storage.require_replaceable(str(folder / name))


def test_only_regular_files_are_replaced_and_only_if_that_is_asked_for(tmp_path: Path) -> None:
    storage.require_new(str(tmp_path / "a"), overwrite=False)
    (tmp_path / "a").touch()
    storage.require_new(str(tmp_path / "a"), overwrite=True)
    with pytest.raises(InputError, match=r"a exists; choose another name, or replace it with --overwrite"):
        storage.require_new(str(tmp_path / "a"), overwrite=False)
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "no regular file"), (".", "a folder")):
        with pytest.raises(InputError, match=f"it is {kind}; choose another name"):
            storage.require_new(str(tmp_path / name), overwrite=True)


def test_weights_are_not_overwritten_by_an_import(tmp_path: Path) -> None:
    out = tiny_weights(tmp_path / "w.safetensors")
    before = Path(out).read_bytes()
    checkpoint = save_checkpoint(tmp_path / "a.pt", random_network(Sizes(depth=1)))
    done = run("weights", "import", checkpoint, out)
    assert done.returncode == 2 and "exists; choose another name" in done.stderr
    assert Path(out).read_bytes() == before
    assert run("weights", "import", checkpoint, out, "--overwrite").returncode == 0
    assert Path(out).read_bytes() != before


def test_weights_are_not_overwritten_by_a_training(tmp_path: Path) -> None:
    out = tiny_weights(tmp_path / "w.safetensors")
    done = run("train", "absent", "--out", out)
    assert done.returncode == 2 and "exists; choose another name, or replace it with --overwrite" in done.stderr
