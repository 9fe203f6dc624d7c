"""Runs that are killed, interrupted or out of space: nothing lost, nothing half-written, the same catalogue after."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cosmicai.run.folder import RunFolder
from helpers import make_survey, random_galaxies, tiny_weights
from kill_and_resume import kill_and_resume

SLOW = ("--batch-size", "4")  # many small batches, so that there is time to disturb a run
DEADLINE = 60.0  # seconds for whatever a test waits for


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


def start(
    module: str,
    *arguments: str,
    through: tuple[str, ...] = (),
    cwd: Path | None = None,
    **environment: str,
) -> subprocess.Popen[str]:
    """Starts `python -m MODULE ARGUMENTS`, through another program's command line if there is one."""
    return subprocess.Popen(
        [*through, sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=cwd, env=os.environ | environment,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], deadline: float = DEADLINE) -> tuple[int, str, str]:
    """Exit code and what a process printed; one that does not end in time is killed, and the test fails."""
    try:
        printed, errors = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, printed, errors


def run(*arguments: str, module: str = "cosmicai", **more: Any) -> subprocess.CompletedProcess[str]:
    """Starts a command, which must end in time; `more` as in `start`."""
    process = start(module, *arguments, **more)
    return subprocess.CompletedProcess(process.args, *ended(process))


def until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """Waits for a condition, which must come before the process ends and in time, and returns what it gave."""
    deadline = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "this never came"
        time.sleep(0.01)
    return found


def wait_for_part(process: subprocess.Popen[str], out: Path) -> None:
    until(lambda: any((out / "parts").glob("*.h5")), process)


def pid_of(process: subprocess.Popen[str], out: Path, record: str) -> int:
    """The process of a rank's attempt, as soon as there is one."""
    path = out / "records" / f"{record}.json"
    until(path.exists, process)
    return json.loads(path.read_text())["pid"]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, also if nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


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
    code, _, errors = ended(process)
    assert code == 130
    assert errors.splitlines()[-1].startswith("cosmicai: interrupted") and "Traceback" not in errors
    assert run(*arguments, "--resume").returncode == 0
    assert digest(out) == expected


def test_a_killed_rank_is_named_and_replaced(tmp_path, job):
    survey, weights, expected = job
    out = tmp_path / "run"
    process = start("launch", survey, "--weights", weights, "--out", str(out), *SLOW, "--procs", "2")
    wait_for_part(process, out)
    os.kill(pid_of(process, out, "1"), signal.SIGKILL)
    code, _, errors = ended(process)
    assert code == 0, errors
    assert "rank 1 was killed by SIGKILL" in errors and "it is started again" in errors and "Traceback" not in errors
    assert digest(out) == expected
    assert sorted(RunFolder(str(out)).records()) == ["0", "1", "1-2"]


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
