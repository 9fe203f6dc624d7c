"""Test that an ingest that was stopped, in any way and at any place, ends as one that was not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cosmicai import storage
from cosmicai.errors import InputError
from cosmicai.surveys import upload
from cosmicai.surveys.survey import UNFINISHED, open_survey
from cosmicai.surveys.upload import output_folder
from support import sky
from support.helpers import run
from support.s3 import bucket_fixture  # noqa: F401

SKY = sky.make_sky(300)
ONE_EACH = ("--partition-mb", "0.02")  # of 300 shards, most are not written when the first one is seen


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory):
    """Write the catalogue and the cutouts."""
    folder = tmp_path_factory.mktemp("sky")
    sky.write_cutouts(SKY, folder / "cutouts")
    sky.write_table(SKY, folder / "catalogue.fits")
    return folder


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    own = (str(folder / "cutouts"), "--catalogue", str(folder / "catalogue.fits"), *sky.OPTIONS)
    return ["ingest", *own, "--partition-mb", "0.4", "--out", str(out), *more]


def start(out: Path, command: list[str], files: int, **options: Any) -> subprocess.Popen[str]:
    """Start an ingest and return when it has written this many shards."""
    process = subprocess.Popen([sys.executable, "-m", "cosmicai", *command], text=True, **options)
    while len(list((out.parent / f".{out.name}.unfinished").glob("*.json"))) < files:
        assert process.poll() is None
        time.sleep(0.001)
    return process


def count_processes(mark: str) -> int:
    """Return how many processes have this text in their environment."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += mark.encode() in path.read_bytes()
        except OSError:
            continue
    return found


def digests(survey: Path) -> list[Any]:
    return [shard.digest for shard in open_survey(str(survey)).shards]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
def test_the_processes_of_an_ingest_end_with_it(folder, tmp_path):
    mark = f"COSMICAI_TEST={tmp_path}"
    environment = os.environ | dict([mark.split("=", 1)])
    out = tmp_path / "survey"
    command = arguments(folder, out, "--processes", "2", *ONE_EACH)
    process = start(out, command, 1, env=environment, stderr=subprocess.DEVNULL)
    assert count_processes(mark) >= 3
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while count_processes(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert count_processes(mark) == 0
    assert run(*arguments(folder, out)).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["survey"]


def test_ctrl_c_ends_an_ingest_with_one_sentence(folder, tmp_path):
    out = tmp_path / "survey"
    command = arguments(folder, out, "--processes", "2", *ONE_EACH)
    process = start(out, command, 1, stderr=subprocess.PIPE, start_new_session=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert error.strip().startswith("cosmicai: interrupted") and "Traceback" not in error


def test_shards_that_changed_since_a_kill_are_written_again(folder, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "survey"
    assert run(*arguments(folder, whole)).returncode == 0
    process = start(out, arguments(folder, out, "--processes", "1"), 4, stderr=subprocess.DEVNULL)
    process.kill()
    process.wait()
    unfinished = tmp_path / ".survey.unfinished"
    damaged = unfinished / "000001.h5"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    os.truncate(unfinished / "000002.h5", 1000)
    (unfinished / "000003.json").write_text("{")
    shutil.copy(unfinished / "000004.h5", unfinished / "000099.h5")
    assert run(*arguments(folder, out)).returncode == 0
    assert digests(out) == digests(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["survey", "whole"]
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
    assert run("survey", "verify", str(out)).returncode == 0


def test_a_link_to_an_empty_folder_is_followed(folder, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "survey").symlink_to("disk")
    assert run(*arguments(folder, tmp_path / "survey")).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "survey"]
    assert open_survey(str(tmp_path / "survey")).galaxies == 300


def write(out: str, names: list[str]) -> None:
    """Write a survey of these files."""
    with output_folder(out) as folder:
        Path(folder).mkdir()
        for name in names:
            (Path(folder) / name).write_text(name)


def list_names(out: str) -> list[str]:
    return sorted(entry.name for entry in storage.list_files(out))


def test_a_copy_to_s3_that_was_stopped_is_made_again(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out, copy = f"{bucket}/survey", upload._copy

    def stop(folder: Path, to: str, name: str) -> None:
        copy(folder, to, name)
        if name == "000003.h5":
            raise KeyboardInterrupt

    monkeypatch.setattr(upload, "_copy", stop)
    with pytest.raises(KeyboardInterrupt):
        write(out, ["000001.h5", "000002.h5", "000003.h5", "survey.json"])
    monkeypatch.setattr(upload, "_copy", copy)
    assert {"000003.h5", UNFINISHED} <= set(list_names(out))
    with pytest.raises(InputError, match="was not copied entirely"):
        open_survey(out)
    write(out, ["000001.h5", "survey.json"])  # with larger shards
    assert list_names(out) == ["000001.h5", "survey.json"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="is not empty; choose another --out or remove it"):
        write(out, ["000001.h5"])
    assert list(tmp_path.iterdir()) == []


def test_what_another_machine_copies_to_s3_is_left_alone(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out = f"{bucket}/survey"
    storage.write_bytes(f"{out}/{UNFINISHED}", b"another machine")
    with pytest.raises(InputError, match="is not empty; choose another --out or remove it"):
        write(out, ["000001.h5"])
    assert list_names(out) == [UNFINISHED]
    with output_folder(f"{bucket}/other") as folder:
        Path(folder).mkdir()
        with pytest.raises(InputError, match="is being written by another process"):
            write(f"{bucket}/other", ["000001.h5"])
