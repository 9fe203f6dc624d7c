"""Launched ranks that are killed, hang or lose their data: the rest is done, and the final results do not differ."""

import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from cosmicai import storage
from cosmicai.errors import InputError
from cosmicai.launchers import lock
from cosmicai.launchers.lock import LauncherLock, is_dead, read_lock, run_lock
from cosmicai.launchers.run_status import run_status
from cosmicai.processes import process_start_time
from cosmicai.runs.plan import WorkItem
from cosmicai.runs.store import RunFolder
from cosmicai.worker.interrupts import STOP_SIGNALS
from support.helpers import make_survey, random_galaxies, tiny_weights
from support.processes import SLOW, digest, is_gone, run, start, wait_for_end, wait_for_part, wait_for_pid, wait_until
from support.rank_launchers import NO_MPI

GALAXIES, PER_SHARD = 3000, 1000
needs_mpi = pytest.mark.skipif(not shutil.which("mpirun"), reason=NO_MPI)

# Python runs this before anything else of a rank.
SABOTAGE = """
import os, signal, sys, time

if "work" in sys.orig_argv:
    rank = os.environ.get("COSMICAI_RANK")
    if rank is not None and rank == os.environ.get("TEST_BROKEN"):
        print("first line\\nthis machine is broken", file=sys.stderr, flush=True)
        os._exit(7)

    from datetime import datetime, timedelta
    from cosmicai.runs import recorder
    from cosmicai.worker import loop

    predict_chunk = loop.predict_chunk

    def sabotaged(engine, plan, chunk):
        time.sleep(float(os.environ.get("TEST_SLOW", 0)))
        if int(os.environ.get("TEST_POISON", -1)) in chunk.galaxies.objid:
            os.kill(os.getpid(), signal.SIGKILL)
        return predict_chunk(engine, plan, chunk)

    loop.predict_chunk = sabotaged
    write_part = loop.RunFolder.write_part

    def mute(run, plan, item, part):
        is_first = write_part(run, plan, item, part)
        first = 1000 + item.shard * plan.shards[0].galaxies + item.start  # as `random_galaxies` numbers them
        if first <= int(os.environ.get("TEST_MUTE", -1)) < first + item.galaxies:
            os.kill(os.getpid(), signal.SIGKILL)
        return is_first

    loop.RunFolder.write_part = mute

    class Clock(datetime):
        @classmethod
        def now(cls, zone):
            hours = {"0": 1, "1": -1}.get(rank, 0)
            return datetime.now(zone) + timedelta(hours=hours)

    if os.environ.get("TEST_SKEW"):
        recorder.datetime = Clock
"""


class Job:
    """Survey, weights, the digest of the undisturbed catalogue, and launches that take their time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.survey = make_survey(folder / "survey", random_galaxies(GALAXIES), PER_SHARD).uri
        self.weights = tiny_weights(folder / "w.safetensors")
        (folder / "sitecustomize.py").write_text(SABOTAGE)
        calm = folder / "calm"
        done = run("infer", self.survey, "--weights", self.weights, "--out", str(calm), *SLOW)
        assert done.returncode == 0, done.stderr
        self.digest = digest(calm)

    def start(self, out: Path, *options: str, survey: str | None = None, **settings: str) -> subprocess.Popen[str]:
        """Launches a run whose every call of the network takes 10 ms."""
        path = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")]))
        arguments = (survey or self.survey, "--weights", self.weights, "--out", str(out), *SLOW, *options)
        environment: dict[str, Any] = {"PYTHONPATH": path, "TEST_SLOW": "0.01"} | settings
        return start("launch", *arguments, **environment)

    def require_complete(self, out: Path) -> None:
        """The run is complete and its catalogue as if nothing had happened."""
        summary = json.loads((out / "summary.json").read_text())
        assert summary["complete"] and summary["failures"] == []
        assert summary["catalogue_sha256"] == self.digest
        assert not (out / "launcher.json").exists()

    def require_resumable(self, out: Path) -> None:
        """The run is not complete, and `resume` completes it."""
        assert run_status(RunFolder(str(out))).is_complete is False
        done = run("resume", str(out), "--procs", "2", module="launch")
        assert done.returncode == 0, done.stderr
        self.require_complete(out)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job"))


def parts(out: Path) -> int:
    return len(list((out / "parts").glob("*.h5")))


def ends(errors: str) -> list[str]:
    """The lines that name a rank that ended, without what each held."""
    return [
        re.sub(r" with \d+ items unfinished", "", line) for line in errors.splitlines() if re.match(r"rank \d+ ", line)
    ]


@pytest.mark.parametrize("rank", ["0", "2"])
def test_a_killed_rank_is_named_and_replaced(tmp_path, job, rank):
    out = tmp_path / "run"
    process = job.start(out, "--procs", "3")
    wait_for_part(process, out)
    os.kill(wait_for_pid(process, out, rank), signal.SIGKILL)
    code, _, errors = wait_for_end(process)
    assert code == 0, errors
    assert ends(errors) == [f"rank {rank} was killed by SIGKILL; it is started again"]
    assert sorted(RunFolder(str(out)).records()) == sorted(["0", "1", "2", f"{rank}-2"])
    job.require_complete(out)


def test_all_ranks_are_killed_one_after_the_other(tmp_path, job):
    out = tmp_path / "run"
    process = job.start(out, "--procs", "3", TEST_SLOW="0.03")
    wait_for_part(process, out)
    for rank in ("0", "1", "2"):
        os.kill(wait_for_pid(process, out, rank), signal.SIGKILL)
        again = out / "records" / f"{rank}-2.json"  # what the first one held is done before the next one is killed
        wait_until(lambda again=again: again.exists() and json.loads(again.read_text())["items"] >= 3, process)  # type: ignore[misc]
    code, _, errors = wait_for_end(process)
    assert code == 0, errors
    assert ends(errors) == [f"rank {rank} was killed by SIGKILL; it is started again" for rank in range(3)]
    job.require_complete(out)


def test_without_restarts_the_others_do_everything(tmp_path, job):
    out = tmp_path / "run"
    process = job.start(out, "--procs", "3", "--max-restarts", "0", "--schedule", "static")
    wait_for_part(process, out)
    os.kill(wait_for_pid(process, out, "1"), signal.SIGKILL)
    code, _, errors = wait_for_end(process)
    assert code == 0, errors
    assert ends(errors) == ["rank 1 was killed by SIGKILL; the others go on"]
    job.require_complete(out)


def test_when_no_rank_is_left_the_run_is_listed_and_resumed(tmp_path, job):
    out = tmp_path / "run"
    process = job.start(out, "--max-restarts", "0")
    wait_for_part(process, out)
    os.kill(wait_for_pid(process, out, "0"), signal.SIGKILL)
    code, printed, errors = wait_for_end(process)
    assert code == 3, errors
    assert ends(errors) == ["rank 0 was killed by SIGKILL; no rank is left"]
    run_folder = RunFolder(str(out))
    missing = [item for item in run_folder.plan().items if item not in run_folder.parts()]
    galaxies = sum(item.galaxies for item in missing)
    assert errors.splitlines()[-1] == (
        f"incomplete: {galaxies} galaxies missing in the items {', '.join(item.name for item in missing[:20])}; "
        "finish the run with --resume"
    )
    assert printed.splitlines()[0] == f"coverage     {GALAXIES - galaxies}/{GALAXIES}"
    job.require_resumable(out)


def test_a_rank_that_cannot_start_is_named_with_the_end_of_its_log(tmp_path, job):
    out = tmp_path / "run"
    code, _, errors = wait_for_end(
        job.start(out, "--procs", "2", "--max-restarts", "2", TEST_BROKEN="1", TEST_SLOW="0.005")
    )
    assert code == 0, errors
    message = "rank 1 ended with exit code 7 with 0 items unfinished; {}\n  first line\n  this machine is broken\n"
    assert errors.count(message.format("it is started again")) == 2
    assert errors.count(message.format("the others go on")) == 1
    assert (out / "logs" / "1.log").read_text() == "first line\nthis machine is broken\n" * 3
    job.require_complete(out)


def test_a_rank_that_hangs_is_replaced(tmp_path, job):
    out = tmp_path / "run"
    process = job.start(out, "--procs", "3", "--rank-timeout", "4")
    wait_for_part(process, out)
    os.kill(pid := wait_for_pid(process, out, "1"), signal.SIGSTOP)
    code, _, errors = wait_for_end(process)
    assert code == 0, errors
    assert ends(errors) == ["rank 1 was silent for 4 s and was killed; it is started again"]
    assert is_gone(pid)
    job.require_complete(out)


def test_an_item_that_crashes_ranks_is_given_up_and_the_rest_is_done(tmp_path, job):
    out = tmp_path / "run"
    code, _, errors = wait_for_end(job.start(out, "--procs", "3", TEST_POISON=str(1000 + 1500), TEST_SLOW="0"))
    assert code == 3, errors
    run_folder = RunFolder(str(out))
    [item] = [item for item in run_folder.plan().items if item.shard == 1 and item.start <= 500 < item.stop]
    [failure] = run_folder.failures()
    reason = "it crashed 2 ranks; the last one was killed by SIGKILL"
    assert (failure.item, failure.reason, failure.count) == (item.name, reason, 1)
    assert run_folder.parts() == set(run_folder.plan().items) - {item}
    assert len(ends(errors)) == 2 and all(" was killed by SIGKILL; " in line for line in ends(errors))
    assert errors.splitlines()[-2:] == [
        f"incomplete: {item.galaxies} galaxies missing in the items {item.name}; finish the run with --resume",
        f"{item.name}: {reason}",
    ]
    job.require_resumable(out)


def test_an_item_that_crashes_a_single_rank_does_not_prevent_the_rest(tmp_path, job):
    out = tmp_path / "run"
    code, _, errors = wait_for_end(job.start(out, "--procs", "1", TEST_POISON="1000", TEST_SLOW="0"))
    assert code == 3, errors
    run_folder = RunFolder(str(out))
    assert [failure.item for failure in run_folder.failures()] == [run_folder.plan().items[0].name]
    assert run_folder.parts() == set(run_folder.plan().items[1:])


def test_an_item_whose_rank_died_after_writing_it_is_done(tmp_path, job):
    out = tmp_path / "run"
    code, _, errors = wait_for_end(job.start(out, "--procs", "3", TEST_MUTE=str(1000 + 1500), TEST_SLOW="0"))
    assert code == 0, errors
    assert len(ends(errors)) == 1 and " was killed by SIGKILL; " in ends(errors)[0]
    job.require_complete(out)


def test_kills_at_random_lose_nothing(tmp_path, job):
    out, rng = tmp_path / "run", random.Random(4)
    process = job.start(out, "--procs", "3", "--max-restarts", "5", TEST_SLOW="0.03")

    def living() -> list[int]:
        pids = [json.loads(path.read_text())["pid"] for path in (out / "records").glob("[0-9]*.json")]
        return sorted(pid for pid in pids if not is_gone(pid))

    for kill in range(5):
        wait_until(lambda least=1 + 9 * kill: parts(out) >= least, process)  # type: ignore[misc]
        os.kill(rng.choice(wait_until(living, process)), signal.SIGKILL)
    code, _, errors = wait_for_end(process)
    assert ends(errors).count("no rank is left") == 0
    assert sum(" was killed by SIGKILL; " in line for line in ends(errors)) == 5
    failures = RunFolder(str(out)).failures()  # an item that two of the kills happened to meet
    assert code == (3 if failures else 0), errors
    if failures:
        job.require_resumable(out)
    job.require_complete(out)


@pytest.mark.parametrize(
    "sent, more",
    [*((sent, ()) for sent in STOP_SIGNALS), pytest.param(signal.SIGINT, ("--mpi",), marks=needs_mpi)],
)
def test_a_stopped_launcher_stops_its_ranks_and_leaves_a_run_to_resume(tmp_path, job, sent, more):
    out = tmp_path / "run"
    process = job.start(out, "--procs", "2", *more, TEST_SLOW="0.1")
    wait_for_part(process, out)
    pids = [wait_for_pid(process, out, rank) for rank in ("0", "1")]
    process.send_signal(sent)
    code, printed, errors = wait_for_end(process)
    assert (code, printed) == (130, "")
    assert errors.splitlines()[-1].startswith("launch: interrupted; a run keeps what is finished")
    assert "Traceback" not in errors and ends(errors) == []
    wait_until(lambda: all(map(is_gone, pids)))  # mpirun may end a moment before its ranks
    assert not (out / "launcher.json").exists()
    job.require_resumable(out)


def test_a_launcher_stops_a_rank_that_hangs_too(tmp_path, job):
    out = tmp_path / "run"
    process = job.start(out, "--procs", "2")
    wait_for_part(process, out)
    pids = [wait_for_pid(process, out, rank) for rank in ("0", "1")]
    os.kill(pids[1], signal.SIGSTOP)
    process.terminate()
    assert wait_for_end(process)[0] == 130
    assert all(map(is_gone, pids))


def test_ranks_end_when_their_launcher_is_killed_and_resume_takes_over(tmp_path, job):
    out = tmp_path / "run"
    process = job.start(out, "--procs", "2")
    wait_for_part(process, out)
    pids = [wait_for_pid(process, out, rank) for rank in ("0", "1")]
    process.kill()
    wait_until(lambda: all(map(is_gone, pids)))
    stale = read_lock(RunFolder(str(out)))
    assert stale is not None and stale.pid == process.pid
    done = run("resume", str(out), "--procs", "2", module="launch")
    wait_for_end(process)
    assert done.returncode == 0, done.stderr
    assert "may be at work" not in done.stderr
    job.require_complete(out)


def test_a_second_launcher_refuses_and_disturbs_nothing(tmp_path, job):
    out = tmp_path / "run"
    process = job.start(out, "--procs", "2")
    wait_for_part(process, out)
    since = json.loads((out / "launcher.json").read_text())["started_at"]
    second = run("resume", str(out), "--procs", "2", module="launch")
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr == (
        f"launch: a launcher is at work on {out} (process {process.pid} on {platform.node()}, since {since}); "
        f"watch it with `python -m launch status --watch {out}`\n"
    )
    code, _, errors = wait_for_end(process)
    assert code == 0 and ends(errors) == []
    assert sorted(RunFolder(str(out)).records()) == ["0", "1"]
    job.require_complete(out)


ELSEWHERE = LauncherLock("elsewhere", 1, "1", "2026-01-01T00:00:00+00:00", beats=7)


def test_a_silent_launcher_of_another_machine_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.1)
    run_folder = RunFolder(str(tmp_path))
    notices: list[str] = []
    Path(run_folder.launcher_path).write_bytes(ELSEWHERE.to_json())
    assert is_dead(ELSEWHERE) is None
    with run_lock(run_folder, notices.append):
        mine = read_lock(run_folder)
        assert mine is not None and (mine.host, mine.pid) == (platform.node(), os.getpid())
        assert is_dead(mine) is False
    assert notices == ["a launcher on elsewhere may be at work on this run; waiting 0.3 s for its heartbeat"]
    assert read_lock(run_folder) is None


def test_a_launcher_of_another_machine_that_ends_meanwhile_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 5.0)
    run_folder = RunFolder(str(tmp_path))
    Path(run_folder.launcher_path).write_bytes(ELSEWHERE.to_json())
    begin = time.monotonic()
    with run_lock(run_folder, lambda notice: Path(run_folder.launcher_path).unlink()):
        mine = read_lock(run_folder)
        assert mine is not None and mine.pid == os.getpid()
    assert time.monotonic() - begin < 3 * 5.0, "the time after which a silent launcher is considered dead"


def test_the_lock_of_a_killed_launcher_is_removed_also_if_nothing_is_missing(tmp_path, job):
    out = tmp_path / "run"
    assert wait_for_end(job.start(out, "--procs", "2"))[0] == 0
    dead = structs.replace(ELSEWHERE, host=platform.node(), pid=os.getpid())
    for lock_file, stays in ((dead, False), (ELSEWHERE, True)):
        (out / "launcher.json").write_bytes(lock_file.to_json())
        assert run("resume", str(out), "--procs", "2", module="launch").returncode == 0
        assert (out / "launcher.json").exists() == stays


@pytest.fixture
def living_elsewhere(tmp_path: Path) -> Iterator[RunFolder]:
    """A run at which a launcher of another machine is at work."""
    run_folder, over = RunFolder(str(tmp_path)), threading.Event()

    def live() -> None:
        beats = 0
        while not over.wait(0.02):
            beats += 1
            storage.write_bytes(run_folder.launcher_path, structs.replace(ELSEWHERE, beats=beats).to_json())

    thread = threading.Thread(target=live)
    thread.start()
    wait_until(Path(run_folder.launcher_path).exists)
    yield run_folder
    over.set()
    thread.join()


def test_a_living_launcher_of_another_machine_is_left_alone(living_elsewhere, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 1.0)
    with (
        pytest.raises(InputError, match=r"a launcher is at work on .* \(process 1 on elsewhere, since 2026-01-01"),
        run_lock(living_elsewhere, lambda notice: None),
    ):
        pytest.fail("two launchers at once")
    found = read_lock(living_elsewhere)
    assert found is not None and found.host == "elsewhere"


def test_a_launcher_writes_heartbeats(tmp_path, monkeypatch):
    run_folder = RunFolder(str(tmp_path))
    with run_lock(run_folder, pytest.fail) as beat:
        before = read_lock(run_folder)
        beat()
        assert read_lock(run_folder) == before, "it is too early for another"
        monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.0)
        beat()
        beat()
        after = read_lock(run_folder)
        assert before is not None and after == structs.replace(before, beats=2)


def test_a_zombie_launcher_is_dead():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = LauncherLock(platform.node(), process.pid, process_start_time(process.pid), "2026-01-01T00:00:00+00:00")
    assert is_dead(other) is False
    assert is_dead(structs.replace(other, process_start="0")) is True, "another process has got its number"
    process.kill()
    wait_until(lambda: is_gone(process.pid))
    assert is_dead(other) is True, "it is a zombie"
    process.communicate()
    assert is_dead(other) is True


@pytest.mark.parametrize("damage", ["deleted", "truncated", "replaced"])
def test_a_shard_that_is_lost_during_a_run_is_skipped_until_it_is_back(tmp_path, job, damage):
    survey, out = tmp_path / "survey", tmp_path / "run"
    shutil.copytree(job.survey, survey)
    shard, whole = survey / "000001.h5", tmp_path / "whole.h5"
    process = job.start(out, "--procs", "2", survey=str(survey))
    wait_for_part(process, out)
    if damage == "truncated":  # in place: what ranks have mapped of it is gone under their hands
        shutil.copy(shard, whole)
        os.truncate(shard, 4096)
    else:
        shard.rename(whole)
    if damage == "replaced":
        (survey / "beside").write_bytes(bytes(1000))
        (survey / "beside").rename(shard)
    code, _, errors = wait_for_end(process)
    assert code == 3, errors
    assert "Traceback" not in errors
    run_folder = RunFolder(str(out))
    failures = {WorkItem.from_name(failure.item): failure.reason for failure in run_folder.failures()}
    assert {item.shard for item in failures if item} == {0}
    assert failures.keys() == set(run_folder.plan().items) - run_folder.parts()
    why = {
        "deleted": rf"cannot read {shard}: it does not exist; check the path",
        "truncated": rf"{shard} (is truncated; .*|ends at byte 4096 where more was expected; .*)",
        "replaced": rf"{shard} is not an HDF5 file or is damaged; .*",
    }[damage]
    assert [reason for reason in failures.values() if not re.fullmatch(why, reason)] == []
    assert all(f"{item.name}: {reason}" in errors.splitlines() for item, reason in failures.items() if item)
    how = Counter(line.partition(" was ")[2] for line in ends(errors))
    assert how.keys() <= ({"killed by SIGBUS; it is started again"} if damage == "truncated" else set())
    whole.rename(shard)
    done = run("resume", str(out), module="launch")
    assert done.returncode == 0, done.stderr
    job.require_complete(out)


@needs_mpi
def test_mpi_that_aborts_is_started_again(tmp_path, job):
    out = tmp_path / "run"
    process = job.start(out, "--procs", "2", "--mpi")
    wait_for_part(process, out)
    os.kill(wait_for_pid(process, out, "1"), signal.SIGKILL)
    code, _, errors = wait_for_end(process)
    assert code == 0, errors
    assert errors.count("mpirun ended with exit code 137; it is started again\n") == 1
    assert "signal 9 (Killed)" in errors
    assert sorted(RunFolder(str(out)).records()) == ["0", "0-2", "1", "1-2"]
    job.require_complete(out)


@needs_mpi
def test_mpi_that_is_not_started_again_leaves_a_run_to_resume(tmp_path, job):
    out = tmp_path / "run"
    process = job.start(out, "--procs", "2", "--mpi", "--max-restarts", "0")
    wait_for_part(process, out)
    pids = [wait_for_pid(process, out, rank) for rank in ("0", "1")]
    os.kill(pids[0], signal.SIGKILL)
    code, _, errors = wait_for_end(process)
    assert code == 3, errors
    assert errors.count("mpirun ended with exit code 137; no restart is left\n") == 1
    assert all(map(is_gone, pids))
    job.require_resumable(out)


def test_clocks_that_differ_by_hours_disturb_nothing(tmp_path, job):
    out = tmp_path / "run"
    process = job.start(out, "--procs", "3", TEST_SKEW="1")
    wait_for_part(process, out)
    state = run_status(RunFolder(str(out)))
    assert isinstance(state.launcher, LauncherLock) and not state.is_complete and state.launcher.pid == process.pid
    assert all(row.silent_seconds >= 0 and row.galaxies_per_second >= 0 for row in state.ranks)
    code, _, errors = wait_for_end(process)
    assert code == 0 and ends(errors) == [], errors
    job.require_complete(out)
    records = RunFolder(str(out)).records()
    started = [records[rank].started_at for rank in ("1", "2", "0")]
    assert started == sorted(started) and started[0][:13] != started[1][:13] != started[2][:13]
    state = run_status(RunFolder(str(out)))
    assert state.is_complete and state.completed == GALAXIES
    assert [row.state for row in state.ranks] == ["finished"] * 3
    own = [row.galaxies / row.galaxies_per_second for row in state.ranks]
    assert max(own) < 60, "seconds by each rank's own clock"
    totals = json.loads((out / "summary.json").read_text())["totals"]
    assert totals["galaxies"] == GALAXIES
    assert max(own) - 1e-3 <= totals["working_seconds"] <= sum(own) + 1e-3
