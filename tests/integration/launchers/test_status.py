"""`python -m launch status`: how a run stands, from its folder alone."""

import json
import os
import platform
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cosmicai.errors import InputError, StorageError
from cosmicai.launchers import status
from cosmicai.launchers.base import RemoteStatus
from cosmicai.launchers.lock import LauncherLock, run_lock
from cosmicai.launchers.run_status import RankStatus, RunStatus, UnplannedRun, node_statuses, run_status
from cosmicai.launchers.slurm.usage import sum_usage, use_of_records
from cosmicai.launchers.status import print_status_document, show_status
from cosmicai.launchers.status_document import encode_document, status_document
from cosmicai.launchers.status_text import render_status
from cosmicai.ranks.environment import Rank
from cosmicai.runs.record import RECENT
from cosmicai.runs.store import RunFolder
from cosmicai.surveys.survey import open_survey
from support.helpers import make_record, make_run, make_survey, random_galaxies, run_worker, tiny_weights
from support.processes import run, start, wait_for_end, wait_for_part


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("job")
    return make_survey(folder / "survey", random_galaxies(2000), 1000).uri, tiny_weights(folder / "w.safetensors")


@pytest.fixture
def planned(tmp_path: Path, job: tuple[str, str]) -> RunFolder:
    """A run of 2000 galaxies in 40 items, of which nothing is done."""
    survey, weights = job
    return make_run(open_survey(survey), weights, str(tmp_path / "run"), batch_size=50, ranks=2)


def change_record(folder: RunFolder, name: str, **values: Any) -> None:
    path = Path(folder.path("records", f"{name}.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def lines_of(status: RunStatus) -> list[str]:
    console = Console(width=140, highlight=False)
    with console.capture() as captured:
        console.print(render_status(status, RemoteStatus()))
    return captured.get().splitlines()


def half_done(folder: RunFolder) -> None:
    """What is left of a run of two ranks when one of them has not come."""
    run_worker(folder, Rank(0, 2, "local"))


def test_a_run_that_has_not_begun(planned):
    state = run_status(planned)
    assert state == RunStatus(
        run=planned.uri, planned=2000, completed=0, missing=2000, failed=0, galaxies_per_second=0.0, seconds_left=None,
        launcher=None, launcher_state="", at_work=0, may_continue=True, failures=(), problems=(), ranks=(),
    )  # fmt: skip
    assert not state.is_complete
    assert lines_of(state)[:2] == [
        f"{planned.uri}: not complete",
        "0 of 2,000 galaxies done, 2,000 missing, 0 of them failed",
    ]
    assert "".join(lines_of(state)[2:]).endswith(f"`python -m launch resume {planned.uri}`")


def test_a_finished_run(planned):
    records = [run_worker(planned, Rank(rank, 2, "local")) for rank in range(2)]
    state = run_status(planned)
    assert state.is_complete and (state.planned, state.completed, state.missing) == (2000, 2000, 0)
    assert (state.galaxies_per_second, state.seconds_left, state.launcher) == (0.0, None, None)
    for row, record in zip(state.ranks, records, strict=True):
        begun, wrote = map(datetime.fromisoformat, (record.working_at, record.updated_at))
        seconds = (wrote - begun).total_seconds()
        assert row.galaxies_per_second == pytest.approx(1000 / seconds)
        assert 0 <= row.silent_seconds < 60
        assert replace(row, galaxies_per_second=0.0, silent_seconds=0.0) == RankStatus(
            rank=record.rank, attempt=1, state="finished", host=platform.node(), items=20, galaxies=1000,
            galaxies_per_second=0.0, silent_seconds=0.0,
        )  # fmt: skip
    lines = lines_of(run_status(planned))
    assert lines[:2] == [f"{planned.uri}: complete", "2,000 of 2,000 galaxies done, 0 missing"]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert [row[:6] for row in cells] == [
        [rank, "1", "finished", platform.node(), "20", "1,000"] for rank in ("0", "1")
    ]


def test_a_run_that_is_partly_done(planned):
    half_done(planned)
    state = run_status(planned)
    assert not state.is_complete and (state.completed, state.missing, state.failed) == (1000, 1000, 0)
    assert [row.rank for row in state.ranks] == [0]


def test_failures_are_shown_with_their_reason(planned):
    item = planned.plan().items[-1]
    planned.write_failure(item, 0, "the disk is broken")
    half_done(planned)
    state = run_status(planned)
    assert (state.failed, state.missing) == (item.galaxies, 1000)
    assert f"failed: {item.name}: the disk is broken" in lines_of(state)


def test_a_run_at_work_shows_rate_and_time_left(planned):
    half_done(planned)
    begun = datetime.now(UTC) - timedelta(seconds=30)
    times = {"working_at": begun.isoformat(), "updated_at": (begun + timedelta(seconds=10)).isoformat()}
    change_record(planned, "0", state="running", **times)
    with run_lock(planned, pytest.fail):
        state = run_status(planned)
    [row] = state.ranks
    assert (row.state, row.galaxies_per_second) == ("running", 100.0)
    assert 20 <= row.silent_seconds < 60
    assert (state.galaxies_per_second, state.seconds_left) == (100.0, 10.0)
    assert state.launcher is not None
    assert (state.launcher.pid, state.launcher_state) == (os.getpid(), "at work")
    lines = lines_of(state)
    assert lines[2].startswith(f"launcher: process {os.getpid()} on {platform.node()}, since ")
    assert lines[3] == "100 galaxies/s, 0:00:10 left"
    ended_since = run_status(planned)
    assert (ended_since.launcher, ended_since.at_work, ended_since.galaxies_per_second) == (None, 1, 100.0)
    assert lines_of(ended_since)[2] == "no launcher; 1 rank wrote in the last 120 s"


def test_a_launcher_that_died_is_not_shown(planned):
    half_done(planned)
    change_record(planned, "0", state="running")
    dead = {"host": platform.node(), "pid": os.getpid(), "born": "0", "started_at": "2026-01-01T00:00:00+00:00"}
    planned.write_json(planned.launcher_path, dead)
    state = run_status(planned)
    assert (state.launcher, state.galaxies_per_second, state.seconds_left) == (None, 0.0, None)
    assert lines_of(state)[2].startswith("no rank is at work; finish the run with `python -m launch resume ")


def test_a_launcher_of_another_machine_is_shown(planned):
    other = {"host": "elsewhere", "pid": 7, "born": "1", "started_at": "2026-01-01T00:00:00+00:00"}
    planned.write_json(planned.launcher_path, other)
    state = run_status(planned)
    assert state.launcher == LauncherLock("elsewhere", 7, "1", "2026-01-01T00:00:00+00:00")
    assert state.launcher_state == "on another machine"
    assert lines_of(state)[2] == "launcher: process 7 on elsewhere, since 2026-01-01T00:00:00+00:00"


def test_words_that_look_like_markup_are_shown_as_they_are(planned):
    half_done(planned)
    change_record(planned, "0", host="[/x]")
    item = planned.plan().items[-1]
    planned.write_failure(item, 0, "[bold]disk[/bold] is [/broken]")
    lines = lines_of(run_status(planned))
    assert f"failed: {item.name}: [bold]disk[/bold] is [/broken]" in lines
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert [row[3] for row in cells] == ["[/x]"]


def test_a_damaged_lock_is_one_sentence(planned):
    for text in ("{", "[]", '{"host": "n1", "pid": -1, "born": null, "started_at": ""}', "\xff"):
        Path(planned.launcher_path).write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=r"launcher\.json cannot be used: .*; remove it if no launcher is at work"):
            run_status(planned)


def test_ranks_and_attempts_come_in_order(planned):
    for rank in (10, 2, 0, 2):
        run_worker(planned, Rank(rank, 11, "local"))
    order = [(row.rank, row.attempt) for row in run_status(planned).ranks]
    assert order == [(0, 1), (2, 1), (2, 2), (10, 1)]


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_rank_with_another_clock_disturbs_nothing(planned, hours):
    for rank in range(2):
        run_worker(planned, Rank(rank, 2, "local"))
    before, record = run_status(planned), planned.records()["1"]
    times = ("started_at", "working_at", "updated_at")
    shifted = {
        name: (datetime.fromisoformat(getattr(record, name)) + timedelta(hours=hours)).isoformat() for name in times
    }
    change_record(planned, "1", **shifted)
    after = run_status(planned)
    ours = [state.ranks[1].silent_seconds for state in (before, after)]
    assert ours[1] == 0 if hours == 1 else 3600 <= ours[1] - ours[0] < 3660
    calm = [
        replace(state, ranks=tuple(replace(rank, silent_seconds=0.0) for rank in state.ranks))
        for state in (before, after)
    ]
    assert calm[1] == calm[0]


def test_a_clock_that_was_set_back_in_mid_run_gives_no_rate(planned):
    half_done(planned)
    record = planned.records()["0"]
    back = datetime.fromisoformat(record.working_at) - timedelta(hours=1)
    change_record(planned, "0", state="running", updated_at=back.isoformat())
    with run_lock(planned, pytest.fail):
        state = run_status(planned)
    assert (state.galaxies_per_second, state.seconds_left) == (0.0, None)


def test_no_plan_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"is not a run folder \(it has no plan\.json\)"):
        run_status(RunFolder(str(tmp_path)))
    for more in ((), ("--watch",)):
        done = run("status", str(tmp_path), *more, module="launch")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"launch: {tmp_path} is not a run folder (it has no plan.json); start one with `cosmicai infer`\n"
        )
    assert not any(tmp_path.iterdir())


def test_the_exit_code_says_whether_the_run_is_complete(planned, capsys):
    assert show_status(planned, watch=False) == 3
    assert "not complete" in capsys.readouterr().out
    for rank in range(2):
        run_worker(planned, Rank(rank, 2, "local"))
    assert show_status(planned, watch=False) == show_status(planned, watch=True) == 0
    assert capsys.readouterr().out.count(": complete") == 2


def test_a_run_is_found_from_another_working_directory(planned):
    half_done(planned)
    before = {path: path.stat().st_mtime_ns for path in Path(planned.uri).rglob("*")}
    folder = Path(planned.uri)
    done = run("status", "..", module="launch", cwd=folder / "records")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith(f"{planned.uri}: not complete\n1,000 of 2,000 galaxies done, ")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "it only looks"


def test_watching_ends_when_the_run_is_complete(tmp_path, job):
    survey, weights = job
    out = tmp_path / "run"
    launcher = start("launch", survey, "--weights", weights, "--out", str(out), "--batch-size", "1", "--procs", "2")
    wait_for_part(launcher, out)
    watcher = start("launch", "status", "--watch", out.name, cwd=tmp_path)
    code, printed, errors = wait_for_end(watcher)
    assert (code, errors) == (0, "")
    assert f"{out}: complete\n2,000 of 2,000 galaxies done, 0 missing\n" in printed
    assert wait_for_end(launcher)[0] == 0


@pytest.mark.parametrize(("failures", "passes"), [(status.MAX_FAILURES - 1, True), (status.MAX_FAILURES, False)])
def test_watching_survives_errors_of_the_storage_that_pass(planned, monkeypatch, failures, passes):
    read, calls = status._read_status, []

    def read_unless_broken(run, remote):
        calls.append(1)
        if 2 <= len(calls) < 2 + failures:
            raise StorageError(f"cannot read {run.plan_path}: stale file handle")
        if len(calls) > 1:
            run_worker(run, Rank())
        return read(run, remote)

    monkeypatch.setattr(status, "_read_status", read_unless_broken)
    monkeypatch.setattr(status, "REFRESH_INTERVAL", 0.0)
    if passes:
        assert status.show_status(planned, watch=True) == 0
    else:
        with pytest.raises(StorageError, match="stale file handle"):
            status.show_status(planned, watch=True)


def test_watching_does_not_wait_for_a_launcher(planned):
    half_done(planned)
    watcher = start("launch", "status", "--watch", planned.uri)
    done = run("resume", planned.uri, module="launch")
    assert done.returncode == 0, done.stderr
    code, printed, errors = wait_for_end(watcher)
    assert (code, errors) == (0, "")
    assert printed.rstrip().splitlines()[0].startswith(f"{planned.uri}: ")


def wrote(folder: RunFolder, name: str, seconds: float, **values: Any) -> None:
    """Let a record have been written so many seconds ago."""
    change_record(folder, name, updated_at=(datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(), **values)


def age_plan(folder: RunFolder, seconds: float) -> None:
    os.utime(folder.plan_path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize(
    ("records", "may_continue"),
    [
        ({}, False),
        ({"0": (1, {})}, True),  # rank 1 may still come
        ({"0": (RECENT + 1, {})}, False),
        ({"0": (1, {}), "1": (1, {})}, False),  # all ranks have finished
        ({"0": (1, {"world_size": 1})}, False),
        ({"0": (1, {}), "1": (1, {"state": "running"})}, True),
        ({"0": (1, {}), "1": (RECENT + 1, {"state": "running"})}, True),  # which may only be slow, for a while
        ({"0": (RECENT + 1, {}), "1": (RECENT + 1, {"state": "running"})}, False),
        ({"0": (1, {}), "1": (1, {"state": "running", "pid": 2**22})}, False),  # a process that there is not
        ({"0": (1, {}), "1": (1, {"state": "running", "pid": 2**22, "host": "elsewhere"})}, True),
    ],
)
def test_whether_anything_is_still_to_come(planned, records, may_continue):
    age_plan(planned, RECENT + 1)
    for name, (seconds, values) in records.items():
        planned.write_json(planned.path("records", f"{name}.json"), make_record(int(name), 2, state="finished"))
        wrote(planned, name, seconds, **values)
    state = run_status(planned)
    assert state.may_continue is may_continue
    with run_lock(planned, pytest.fail):
        assert run_status(planned).may_continue


def test_ranks_may_come_after_a_plan_that_is_new(planned):
    assert run_status(planned).may_continue
    age_plan(planned, RECENT + 1)
    assert not run_status(planned).may_continue


class Clock:
    """Time that passes only when something sleeps; `events` happen at the first sleep after their second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **events: Any) -> None:
        self.now, self.events = 0.0, {float(at.removeprefix("at_")): event for at, event in events.items()}
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1000, "the watcher does not end"
        for at in [at for at in self.events if at <= self.now]:
            self.events.pop(at)()


def test_watching_ends_when_nothing_is_at_work(planned, monkeypatch, capsys):
    planned.write_json(planned.path("records", "0.json"), make_record(0, 1, state="running"))
    wrote(planned, "0", 0)
    clock = Clock(monkeypatch, at_6=lambda: change_record(planned, "0", state="finished"))
    assert show_status(planned, watch=True) == 3
    assert clock.now == 6.0, "at once"
    first, last = capsys.readouterr().out.split("\n\n")
    assert "no launcher; 1 rank wrote in the last 120 s" in first
    assert f"no rank is at work; finish the run with `python -m launch resume {planned.uri}`" in last


def test_watching_waits_for_a_job_in_the_queue(planned, monkeypatch, capsys):
    age_plan(planned, RECENT + 1)
    remotes = [RemoteStatus(working=("job 7: PENDING (Priority)",))] * 2 + [RemoteStatus(ended=("1 failed",))] * 9
    monkeypatch.setattr(status, "remote_status", lambda run, launchers: remotes.pop(0))
    clock = Clock(monkeypatch)
    assert show_status(planned, watch=True) == 3
    assert clock.now == 24.0, "SLURM is asked every 12 s"
    first, last = capsys.readouterr().out.split("\n\n")
    assert "job 7: PENDING (Priority)" in first and "1 failed" in last


def test_a_job_that_came_meanwhile_keeps_the_watcher(planned, monkeypatch, capsys):
    wrote_first = make_record(0, 1, state="running")
    planned.write_json(planned.path("records", "0.json"), wrote_first)
    wrote(planned, "0", 0)
    remotes = [RemoteStatus(), RemoteStatus(working=("job 8: RUNNING",)), *[RemoteStatus()] * 9]
    monkeypatch.setattr(status, "remote_status", lambda run, launchers: remotes.pop(0))
    Clock(monkeypatch, at_2=lambda: change_record(planned, "0", state="finished"))
    assert show_status(planned, watch=True) == 3
    assert "job 8: RUNNING" in capsys.readouterr().out.split("\n\n")[1]


def test_a_launcher_elsewhere_that_misses_its_heartbeats_is_not_waited_for(planned, monkeypatch, capsys):
    age_plan(planned, RECENT + 1)
    lock = {"host": "elsewhere", "pid": 7, "born": "1", "started_at": "2026-01-01T00:00:00+00:00", "beats": 0}
    planned.write_json(planned.launcher_path, lock)
    clock = Clock(monkeypatch, at_20=lambda: planned.write_json(planned.launcher_path, lock | {"beats": 1}))
    assert show_status(planned, watch=True) == 3
    assert clock.now == 52.0, "30 s after its last heartbeat"
    first, last = capsys.readouterr().out.split("\n\n")
    assert "launcher: process 7 on elsewhere" in first and "no rank is at work" in last


def many_ranks(folder: RunFolder, ranks: int) -> None:
    """Write the records of ranks on nodes n1, n2, ..., four on each: finished, silent, at work, at work."""
    for number in range(ranks):
        begin = datetime.now(UTC) - timedelta(seconds=[500, 500, 50, 40][number % 4])
        times = {"working_at": begin.isoformat(), "updated_at": (begin + timedelta(seconds=10)).isoformat()}
        record = make_record(
            number,
            ranks,
            host=f"n{number // 4 + 1}",
            state="running" if number % 4 else "finished",
            galaxies=50,
            **times,
        )
        folder.write_json(folder.path("records", f"{number}.json"), record)


def table_of(state: RunStatus, every_rank: bool = False) -> list[list[str]]:
    console = Console(width=140, highlight=False)
    with console.capture() as captured:
        console.print(render_status(state, RemoteStatus(), every_rank))
    lines = captured.get().splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


def test_many_ranks_are_shown_by_node(planned):
    many_ranks(planned, 36)
    state = run_status(planned)
    assert len(table_of(state, every_rank=True)) == 36
    rows = table_of(state)
    assert [row[0] for row in rows] == [f"n{number}" for number in range(1, 10)]
    assert all(row[1:6] == ["2", "1", "1", "200", "10"] and row[6] in ("40 s ago", "41 s ago") for row in rows)
    assert "36 ranks by node; --ranks shows each of them" in lines_of(state)


def test_a_few_ranks_are_shown_one_by_one(planned):
    many_ranks(planned, 32)
    assert len(table_of(run_status(planned))) == 32


def test_a_rank_that_was_started_again_elsewhere_counts_there(planned):
    many_ranks(planned, 4)
    planned.write_json(planned.path("records", "3-2.json"), make_record(3, 4, attempt=2, host="n2", state="finished"))
    nodes = {node.node: node for node in node_statuses(run_status(planned).ranks)}
    assert (nodes["n1"].running, nodes["n1"].silent, nodes["n1"].ended, nodes["n1"].galaxies) == (1, 1, 1, 200)
    assert (nodes["n2"].running, nodes["n2"].ended, nodes["n2"].heartbeat_age) == (0, 1, None)


def test_the_status_as_json(planned, capsys):
    item = planned.plan().items[-1]
    planned.write_failure(item, 0, "the disk is broken")
    planned.write_json(planned.path("records", "0.json"), make_record(0, 1, host="n1", state="running", galaxies=50))
    begin = datetime.now(UTC) - timedelta(seconds=30)
    times = {"working_at": begin.isoformat(), "updated_at": (begin + timedelta(seconds=10)).isoformat()}
    change_record(planned, "0", items=1, **times)
    lock = {"host": "n1", "pid": 7, "born": "1", "started_at": "2026-01-01T00:00:00+00:00"}
    planned.write_json(planned.launcher_path, lock)
    assert print_status_document(planned) == 3
    document = json.loads(capsys.readouterr().out)
    ages = [document["nodes"][0].pop("heartbeat_age"), document["ranks"][0].pop("silent_seconds")]
    assert ages == [pytest.approx(20, abs=10)] * 2
    assert document == {
        "format": "cosmicai-status/1", "run": planned.uri, "complete": False, "next_step": None,
        "galaxies": {"planned": 2000, "done": 0, "missing": 2000, "failed": item.galaxies},
        "galaxies_per_second": 5.0, "seconds_left": 400.0, "ranks_at_work": 1,
        "launcher": {"host": "n1", "pid": 7, "started_at": "2026-01-01T00:00:00+00:00", "state": "on another machine"},
        "working": [], "ended": [],
        "nodes": [
            {"node": "n1", "running": 1, "silent": 0, "ended": 0, "galaxies": 50, "galaxies_per_second": 5.0},
        ],
        "ranks": [
            {"rank": 0, "attempt": 1, "state": "running", "host": "n1", "items": 1, "galaxies": 50,
             "galaxies_per_second": 5.0, "is_at_work": True},
        ],
        "failures": [{"item": item.name, "reason": "the disk is broken", "rank": 0, "count": 1}],
        "problems": [], "usage": None,
    }  # fmt: skip


def test_a_run_without_a_plan_as_json():
    document = status_document(UnplannedRun("run", "the first of its ranks writes the plan"), RemoteStatus(("job 1",)))
    assert json.loads(encode_document(document)) == {
        "format": "cosmicai-status/1", "run": "run", "complete": False,
        "next_step": "the first of its ranks writes the plan", "galaxies": None, "galaxies_per_second": 0.0,
        "seconds_left": None, "ranks_at_work": 0, "launcher": None, "working": ["job 1"], "ended": [], "nodes": [],
        "ranks": [], "failures": [], "problems": [], "usage": None,
    }  # fmt: skip


def test_options_that_contradict_each_other(planned):
    done = run("status", "--json", "--watch", planned.uri, module="launch")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("launch: --json is for programs and prints all ranks once; leave out --watch and --ranks\n")
    done = run("status", "--metrics", "run.txt", planned.uri, module="launch")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "launch: --metrics run.txt: node_exporter reads files that end in .prom; choose such a name\n"
    )


def test_the_status_of_ended_jobs_has_their_usage(planned, monkeypatch):
    usage = sum_usage("records", use_of_records([make_record(job="7", threads=2)], None))
    assert usage is not None
    state, remote = run_status(planned), RemoteStatus(usage=usage)
    console = Console(width=200, highlight=False)
    with console.capture() as captured:
        console.print(render_status(state, remote))
    assert "\n".join(usage.lines()) in captured.get()
    assert json.loads(encode_document(status_document(state, remote)))["usage"] == {
        "source": "records", "executions": 1, "cores_percent": usage.cores_percent, "cores_per_task": 0.0,
        "requested_cores_per_task": 2, "memory_percent": None, "memory_mb": usage.memory_mb,
        "requested_memory_mb": None, "time_percent": None, "elapsed_seconds": usage.elapsed_seconds,
        "limit_seconds": None, "gpus": 0, "gpu_percent": None, "request": list(usage.request),
    }  # fmt: skip
