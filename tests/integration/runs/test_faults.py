"""Runs that are killed, interrupted or out of disk space lose nothing, write no partial file, and end with the same
catalogue."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from cosmicai.runs.store import RunFolder
from support.helpers import make_survey, random_galaxies, tiny_weights
from support.kill_and_resume import kill_and_resume
from support.processes import SLOW, digest, run, start, wait_for_end, wait_for_part, wait_for_pid


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Return survey, weights, and the digest of the catalogue of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("job")
    survey = make_survey(folder / "survey", random_galaxies(10_000), 2500).uri
    weights = tiny_weights(folder / "w.safetensors")
    assert run("infer", survey, "--weights", weights, "--out", str(folder / "uninterrupted"), *SLOW).returncode == 0
    return survey, weights, digest(folder / "uninterrupted")


@pytest.mark.parametrize("procs", [None, 2])
def test_sigkill_and_resume_give_the_same_catalogue_and_leave_nothing(tmp_path, procs):
    counts = kill_and_resume(tmp_path, kills=3, galaxies=2048, seed=3, procs=procs)
    assert counts["kills"] == 3 and counts["completed runs"] >= 1


def test_ctrl_c_is_one_sentence_and_resume_finishes(tmp_path, job):
    survey, weights, expected = job
    out = tmp_path / "run"
    arguments = ("infer", survey, "--weights", weights, "--out", str(out), *SLOW)
    process = start("cosmicai", *arguments)
    wait_for_part(process, out)
    process.send_signal(signal.SIGINT)
    code, _, errors = wait_for_end(process)
    assert code == 130
    assert errors.splitlines()[-1].startswith("cosmicai: interrupted") and "Traceback" not in errors
    assert run(*arguments, "--resume").returncode == 0
    assert digest(out) == expected


def test_a_killed_rank_is_named_and_replaced(tmp_path, job):
    survey, weights, expected = job
    out = tmp_path / "run"
    process = start("launch", survey, "--weights", weights, "--out", str(out), *SLOW, "--procs", "2")
    wait_for_part(process, out)
    os.kill(wait_for_pid(process, out, "1"), signal.SIGKILL)
    code, _, errors = wait_for_end(process)
    assert code == 0, errors
    assert "rank 1 was killed by SIGKILL" in errors and "it is started again" in errors and "Traceback" not in errors
    assert digest(out) == expected
    assert sorted(RunFolder(str(out)).records()) == ["0", "1", "1-2"]


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """Yield the folder of a file system of 128 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_and_leaves_complete_parts_only(tiny_disk, job):
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


def test_the_run_folder_may_have_spaces_and_any_letters_in_its_name(tmp_path, job):
    survey, weights, expected = job
    out = tmp_path / "Läufe für ζ" / "run 1"
    done = run(survey, "--weights", weights, "--out", str(out), *SLOW, "--procs", "2", module="launch")
    assert done.returncode == 0
    assert digest(out) == expected
