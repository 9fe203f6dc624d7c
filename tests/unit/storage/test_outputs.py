"""Test that commands destroy no files that they were not asked to replace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cosmicai import storage
from cosmicai.errors import InputError
from cosmicai.runs.catalogue.convert import FOLDERS, WRITERS, convert_catalogue, default_name
from cosmicai.runs.store import RunFolder
from cosmicai.storage.outputs import require_folder, require_new, require_output_folder, require_replaceable
from cosmicai.surveys.synthetic import write_synthetic_survey
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
        require_replaceable(str(folder / name))
    with pytest.raises(InputError, match="belongs to"):
        require_new(str(folder / name), overwrite=True)


@pytest.mark.parametrize("name", ["run/catalogue.csv", "run/mine.csv", "survey/mine.safetensors", "a.csv", "new/a.csv"])
def test_other_files_are_written(folder: Path, name: str) -> None:
    require_replaceable(str(folder / name))


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind not in FOLDERS])
def test_a_catalogue_in_another_format_is_written_again(folder: Path, kind: str) -> None:
    path = folder / "run" / default_name(kind)
    path.write_bytes(b"1")
    require_replaceable(str(path))


def test_only_regular_files_are_replaced_and_only_if_that_is_asked_for(tmp_path: Path) -> None:
    require_new(str(tmp_path / "a"), overwrite=False)
    (tmp_path / "a").touch()
    require_new(str(tmp_path / "a"), overwrite=True)
    with pytest.raises(InputError, match=r"a exists; choose another name, or replace it with --overwrite"):
        require_new(str(tmp_path / "a"), overwrite=False)
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "no regular file"), (".", "a folder")):
        with pytest.raises(InputError, match=f"it is {kind}; choose another name"):
            require_new(str(tmp_path / name), overwrite=True)


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


@pytest.mark.parametrize(
    "name",
    ["run/catalogue.parquet", "run/inference.png", "run/inference.pdf", "run/intervals.png", "run/intervals.pdf",
     "run/calibration.json", "run/new.json", "run/12-2.json",
     "run/submissions/a/b.csv", "run/network/a.bin", "survey/000009.h5", "survey/000001.json", "run/sub/../plan.json"],
)  # fmt: skip
def test_a_name_that_a_run_or_survey_uses_is_not_taken_from_it(folder: Path, name: str) -> None:
    (folder / "run/sub").mkdir()
    with pytest.raises(InputError, match=r"belongs to the (run|survey) in .*; choose another name"):
        require_replaceable(str(folder / name))


def test_a_link_to_a_file_of_a_run_is_not_replaced(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "run/plan.json")
    (folder / "way").symlink_to(folder / "run")
    for name in ("link", "way/plan.json", "way/parts/a.csv"):
        with pytest.raises(InputError, match="belongs to the run in"):
            require_replaceable(str(folder / name))


@pytest.mark.parametrize("name", ["plan.json", "survey.json"])
def test_no_folder_is_made_to_look_like_a_run_or_survey(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="would make its folder look like that of a"):
        require_replaceable(str(tmp_path / name))


def test_a_link_to_nothing_and_a_file_in_place_of_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="it is a link to a file that does not exist; choose another name"):
        require_replaceable(str(tmp_path / "link"))
    for name in ("file/a.csv", "file/a/b.csv", "link/a.csv"):
        with pytest.raises(InputError, match="a part of its path is a file where a folder was expected"):
            require_replaceable(str(tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_weights_and_galaxies_are_known_by_their_content(tmp_path: Path) -> None:
    weights = tiny_weights(tmp_path / "w.txt")
    checkpoint = save_checkpoint(tmp_path / "a.csv", random_network(Sizes(depth=1)))
    shard = write_synthetic_survey(str(tmp_path / "s"), 3, 0, 3).uri
    (tmp_path / "s/000001.h5").rename(tmp_path / "lone.csv")
    (tmp_path / "s/survey.json").unlink()
    for path, what in ((weights, "weights"), (checkpoint, "a model or"), (f"{tmp_path}/lone.csv", "the galaxies")):
        with pytest.raises(InputError, match=f"holds {what}.*and is not replaced; choose another name"):
            require_replaceable(path)
    require_new(weights, overwrite=True)
    with pytest.raises(InputError, match="not replaced"):
        require_new(checkpoint, overwrite=True)
    assert Path(shard).is_dir()


def test_folders_of_runs_and_surveys_receive_no_files_of_other_commands(folder: Path) -> None:
    (folder / "file").touch()
    for name in ("run", "survey", "run/parts", "run/parts/new", "run/logs"):
        with pytest.raises(InputError, match=r"is the folder of a|belongs to the run in"):
            require_output_folder(str(folder / name))
    with pytest.raises(InputError, match="it is a file where a folder was expected"):
        require_output_folder(str(folder / "file"))
    require_folder(str(folder / "run"))
    for name in ("", "new", "run/report", "a/b/c"):
        require_output_folder(str(folder / name))


@pytest.mark.parametrize("out", ["run/plan.json", "pipe", "w.safetensors", "link"])
def test_commands_refuse_an_output_before_they_do_anything(folder: Path, out: str) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to(folder / "absent")
    tiny_weights(folder / "w.safetensors")
    before = sorted(folder.rglob("*"))
    for command in (["bench", "start"], ["catalogue", "absent", "--to", "csv"], ["train", "absent"]):
        done = run(*command, "--out", str(folder / out))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert "choose another name" in done.stderr
    assert sorted(folder.rglob("*")) == before


def test_a_damaged_catalogue_is_named(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "catalogue.parquet"), b"objid,redshift\n")
    with pytest.raises(InputError, match=r"catalogue.parquet is damaged \(.*\); write it again with `cosmicai summ"):
        convert_catalogue(RunFolder(str(tmp_path)), "csv", str(tmp_path / "a.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["catalogue.parquet"]
