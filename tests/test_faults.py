"""Runs that are killed, interrupted or out of space: nothing lost, nothing half-written, the same catalogue after."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cosmicai.run.folder import RunFolder
from helpers import make_survey, random_galaxies, run, tiny_weights
from kill_and_resume import kill_and_resume

SLOW = ("--batch-size", "4")  # many small batches, so that there is time to disturb a run


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Survey, weights, and the digest of the undisturbed catalogue."""
    folder = tmp_path_factory.mktemp("job")
    survey = make_survey(folder / "survey", random_galaxies(10_000), 2500).uri
    weights = tiny_weights(folder / "w.safetensors")
    assert run("infer", survey, "--weights", weights, "--out", str(folder / "calm"), *SLOW).returncode == 0
    return survey, weights, digest(folder / "calm")


def digest(out: Path) -> str:
    return json.loads((out / "summary.json").read_text())["catalogue_sha256"]


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_part(process: subprocess.Popen[str], out: Path) -> None:
    while not any((out / "parts").glob("*.h5")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_kill_minus_nine_and_resume_give_the_undisturbed_catalogue(tmp_path):
    counts = kill_and_resume(tmp_path, kills=3, galaxies=2048, seed=3)
    assert counts["kills"] == 3 and counts["completed runs"] >= 1


def test_ctrl_c_is_one_sentence_and_resume_finishes(tmp_path, job):
    survey, weights, expected = job
    out = tmp_path / "run"
    arguments = ("infer", survey, "--weights", weights, "--out", str(out), *SLOW)
    process = start("cosmicai", *arguments)
    wait_for_part(process, out)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("cosmicai: interrupted") and "Traceback" not in errors
    assert run(*arguments, "--resume").returncode == 0
    assert digest(out) == expected


def test_a_killed_rank_is_named_and_resume_finishes(tmp_path, job):
    survey, weights, expected = job
    out = tmp_path / "run"
    arguments = (survey, "--weights", weights, "--out", str(out), *SLOW, "--procs", "2")
    process = start("launch", *arguments)
    wait_for_part(process, out)
    os.kill(RunFolder(str(out)).records()["1"]["pid"], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 3
    assert "rank 1 was killed by SIGKILL" in errors and "Traceback" not in errors
    assert "finish the run with --resume" in errors
    assert run(*arguments, "--resume", module="launch").returncode == 0
    assert digest(out) == expected


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_launcher_stops_its_ranks(tmp_path, job, sent):
    survey, weights, expected = job
    out = tmp_path / "run"
    arguments = (survey, "--weights", weights, "--out", str(out), *SLOW, "--procs", "2")
    process = start("launch", *arguments)
    wait_for_part(process, out)
    pids = [record["pid"] for record in RunFolder(str(out)).records().values()]
    process.send_signal(sent)
    process.communicate()
    assert process.returncode == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert run(*arguments, "--resume", module="launch").returncode == 0
    assert digest(out) == expected


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A file system of 128 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_whole_parts_only(tiny_disk, job):
    survey, weights, _ = job
    out = tiny_disk / "run"
    arguments = ("infer", survey, "--weights", weights, "--out", str(out))
    full = run(*arguments)
    assert full.returncode == 2
    assert "no space left on the device; free some space" in full.stderr and "Traceback" not in full.stderr
    assert not [path for path in out.rglob("*") if "partial" in path.name]
    assert len(RunFolder(str(out)).parts()) >= 1
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    assert run(*arguments, "--resume").returncode == 0


def test_a_disk_that_fills_up_at_the_end_leaves_the_catalogue_as_it_was(tiny_disk, job):
    survey, weights, _ = job
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    out = tiny_disk / "run"
    assert run("infer", survey, "--weights", weights, "--out", str(out)).returncode == 0
    before = (out / "catalogue.parquet").read_bytes()
    with (tiny_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(2**20))
    commands = {"summarize": "catalogue.parquet"}
    commands |= {f"catalogue --to {kind}": f"catalogue.{kind}" for kind in ("csv", "hdf5", "fits")}
    for command, file in commands.items():
        name, *options = command.split()
        full = run(name, str(out), *options)
        assert full.returncode == 2
        assert full.stderr == (
            f"cosmicai: cannot write {out / file}: no space left on the device; free some space or choose another "
            "place, then run again\n"
        )
    assert (out / "catalogue.parquet").read_bytes() == before
    assert not [path for path in out.rglob("*") if "partial" in path.name]


def test_the_runs_folder_may_have_spaces_and_letters_of_any_kind(tmp_path, job):
    survey, weights, expected = job
    out = tmp_path / "Läufe für ζ" / "run 1"
    done = run(survey, "--weights", weights, "--out", str(out), *SLOW, "--procs", "2", module="launch")
    assert done.returncode == 0
    assert digest(out) == expected
