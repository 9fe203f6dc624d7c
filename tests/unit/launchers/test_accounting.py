"""SLURM's account of a run's jobs. The texts are what sacct of SLURM 22.05 printed for real jobs."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from cosmicai.errors import StorageError
from cosmicai.launchers.slurm.accounting import JobAccount, sum_executions, update_account
from cosmicai.launchers.slurm.sacct import FIELDS, JobExecution, parse_sacct, read_sacct
from cosmicai.runs.store import RunFolder
from support.helpers import make_record, make_summary

DONE = """\
1|COMPLETED|0:0|2026-11-21T11:05:34|2026-11-21T11:05:37|3||0|n1|1|billing=1,cpu=1,node=1||||
1.batch|COMPLETED|0:0|2026-11-21T11:05:34|2026-11-21T11:05:37|3|10576K|0|n1|1|cpu=1,mem=0,node=1||||
1.0|COMPLETED|0:0|2026-11-21T11:05:34|2026-11-21T11:05:37|3|218220K|0|n1|1|cpu=1,mem=0,node=1||||
"""
ON_A_GPU = """\
2|COMPLETED|0:0|2026-11-21T11:05:34|2026-11-21T11:05:36|2|||n1|2|billing=2,cpu=2,gres/gpu=1,node=1||||
2.batch|COMPLETED|0:0|2026-11-21T11:05:34|2026-11-21T11:05:36|2|3208K|0|n1|2|cpu=2,gres/gpu=1,mem=0,node=1||||
"""
EXIT_7 = """\
3|FAILED|7:0|2026-11-21T11:05:34|2026-11-21T11:05:34|0|||n1|1|billing=1,cpu=1,node=1||||
3.batch|FAILED|7:0|2026-11-21T11:05:34|2026-11-21T11:05:34|0||0|n1|1|cpu=1,mem=0,node=1||||
"""
SIGNAL_9 = """\
4|FAILED|0:9|2026-11-21T11:05:34|2026-11-21T11:05:34|0|||n2|1|billing=1,cpu=1,node=1||||
4.batch|CANCELLED|0:9|2026-11-21T11:05:34|2026-11-21T11:05:34|0||0|n2|1|cpu=1,mem=0,node=1||||
"""
ARRAY = """\
5_0|COMPLETED|0:0|2026-11-21T11:05:34|2026-11-21T11:05:36|2||0|n2|1|billing=1,cpu=1,node=1||||
5_0.batch|COMPLETED|0:0|2026-11-21T11:05:34|2026-11-21T11:05:36|2|10720K|0|n2|1|cpu=1,mem=0,node=1||||
5_0.0|COMPLETED|0:0|2026-11-21T11:05:34|2026-11-21T11:05:36|2|1644K|0|n2|1|cpu=1,mem=0,node=1||||
5_1|FAILED|1:0|2026-11-21T11:05:34|2026-11-21T11:05:36|2||0|n2|1|billing=1,cpu=1,node=1||||
5_1.batch|FAILED|1:0|2026-11-21T11:05:34|2026-11-21T11:05:36|2|10716K|0|n2|1|cpu=1,mem=0,node=1||||
5_1.0|COMPLETED|0:0|2026-11-21T11:05:34|2026-11-21T11:05:36|2|1668K|0|n2|1|cpu=1,mem=0,node=1||||
"""
RUNNING = """\
6|RUNNING|0:0|2026-11-21T11:05:34|Unknown|10|||n1|1|billing=1,cpu=1,node=1||||
6.batch|RUNNING|0:0|2026-11-21T11:05:34|Unknown|10||0|n1|1|cpu=1,mem=0,node=1||||
6.0|RUNNING|0:0|2026-11-21T11:05:34|Unknown|10||0|n1|1|cpu=1,mem=0,node=1||||
"""
TIMEOUT = """\
6|TIMEOUT|0:0|2026-11-21T11:05:34|2026-11-21T11:06:40|66|||n1|1|billing=1,cpu=1,node=1||||
6.batch|CANCELLED|0:15|2026-11-21T11:05:34|2026-11-21T11:06:40|66|10680K|0|n1|1|cpu=1,mem=0,node=1||||
6.0|CANCELLED|0:15|2026-11-21T11:05:34|2026-11-21T11:06:40|66|1684K|0|n1|1|cpu=1,mem=0,node=1||||
"""
CANCELLED = """\
7|CANCELLED by 0|0:0|2026-11-21T11:05:34|2026-11-21T11:05:40|6|||n2|1|billing=1,cpu=1,node=1||||
7.batch|CANCELLED|0:15|2026-11-21T11:05:34|2026-11-21T11:05:40|6|3092K|0|n2|1|cpu=1,mem=0,node=1||||
"""
CANCELLED_IN_QUEUE = "11|CANCELLED by 0|0:0|2026-11-21T11:05:40|2026-11-21T11:05:40|0||0|None assigned|0|||||\n"
ARRAY_BEGINS = """\
12_3|RUNNING|0:0|2026-11-21T11:06:48|Unknown|6|||n1|1|billing=1,cpu=1,node=1||||
12_3.batch|RUNNING|0:0|2026-11-21T11:06:48|Unknown|6||0|n1|1|cpu=1,mem=0,node=1||||
12_[3-99:3%4]|PENDING|0:0|Unknown|Unknown|0||0|None assigned|1|||||
"""
ARRAY_CANCELLED = "12_[21-99:3%4]|CANCELLED by 0|0:0|None|2026-11-21T11:07:32|0||0|None assigned|1|||||\n"
JUST_REQUEUED = """\
19|REQUEUED|0:0|2026-11-21T11:07:47|2026-11-21T11:07:50|3|||n1|1|billing=1,cpu=1,mem=500M,node=1||||
19.batch|CANCELLED|0:15|2026-11-21T11:07:47|2026-11-21T11:07:50|3|117360K|0|n1|1|cpu=1,mem=500M,node=1||||
"""
ARRAY_REQUEUED = """\
20_0|COMPLETED|0:0|2026-11-21T11:07:47|2026-11-21T11:07:55|8|||n1|1|billing=1,cpu=1,mem=500M,node=1||||
20_0.batch|COMPLETED|0:0|2026-11-21T11:07:47|2026-11-21T11:07:55|8|3308K|0|n1|1|cpu=1,mem=500M,node=1||||
20_1|REQUEUED|0:0|2026-11-21T11:07:47|2026-11-21T11:07:51|4|||n1|1|billing=1,cpu=1,mem=500M,node=1||||
20_1.batch|CANCELLED|0:15|2026-11-21T11:07:47|2026-11-21T11:07:51|4|3284K|0|n1|1|cpu=1,mem=500M,node=1||||
19|FAILED|1:0|2026-11-21T11:07:56|2026-11-21T11:07:56|0|||n1|1|billing=1,cpu=1,mem=500M,node=1||||
19.batch|FAILED|1:0|2026-11-21T11:07:56|2026-11-21T11:07:56|0||0|n1|1|cpu=1,mem=500M,node=1||||
20_1|COMPLETED|0:0|2026-11-21T11:07:58|2026-11-21T11:08:06|8|||n1|1|billing=1,cpu=1,mem=500M,node=1||||
20_1.batch|COMPLETED|0:0|2026-11-21T11:07:58|2026-11-21T11:08:06|8|3276K|0|n1|1|cpu=1,mem=500M,node=1||||
"""
NODE_FAILED = """\
25|NODE_FAIL|0:0|2026-11-21T11:14:24|2026-11-21T11:14:28|4||0|n2|1|billing=1,cpu=1,mem=500M,node=1||||
25.batch|CANCELLED||2026-11-21T11:14:24|2026-11-21T11:14:28|4||0|n2|1|cpu=1,mem=500M,node=1||||
"""
NODE_CAME_BACK = f"""{NODE_FAILED}\
25|PENDING|0:0|Unknown|Unknown|0||0|None assigned|1|billing=1,cpu=1,mem=500M,node=1||||
"""
PREEMPTED = """\
26|PREEMPTED|0:0|2026-11-21T11:14:46|2026-11-21T11:14:49|3|||n2|4|billing=4,cpu=4,mem=2000M,node=1||||
26.batch|CANCELLED|0:15|2026-11-21T11:14:46|2026-11-21T11:14:49|3|3160K|0|n2|4|cpu=4,mem=2000M,node=1||||
"""
OUT_OF_MEMORY = """\
30|OUT_OF_MEMORY|0:125|2026-11-21T11:17:07|2026-11-21T11:17:08|1|||n1|1|billing=1,cpu=1,mem=50M,node=1||||
30.batch|OUT_OF_MEMORY|0:125|2026-11-21T11:17:07|2026-11-21T11:17:08|1||0|n1|1|cpu=1,mem=50M,node=1||||
"""
STEP_KILLED = """\
31|FAILED|1:0|2026-11-21T11:17:07|2026-11-21T11:17:08|1||0|n1|1|billing=1,cpu=1,mem=50M,node=1||||
31.batch|FAILED|1:0|2026-11-21T11:17:07|2026-11-21T11:17:08|1||0|n1|1|cpu=1,mem=50M,node=1||||
31.0|OUT_OF_MEMORY|0:125|2026-11-21T11:17:07|2026-11-21T11:17:08|1||0|n1|1|cpu=1,mem=50M,node=1||||
"""
TWO_NODES = """\
33|COMPLETED|0:0|2026-11-21T11:19:23|2026-11-21T11:19:27|4||0|n[1-2]|4|billing=4,cpu=4,mem=2000M,node=2||||
33.batch|COMPLETED|0:0|2026-11-21T11:19:23|2026-11-21T11:19:27|4|10872K|0|n1|3|cpu=3,mem=1500M,node=1||||
33.0|COMPLETED|0:0|2026-11-21T11:19:23|2026-11-21T11:19:27|4|1700K|0|n[1-2]|4|cpu=4,mem=2000M,node=2||||
"""
SUSPENDED = """\
34|SUSPENDED|0:0|2026-11-21T11:19:23|Unknown|3|||n1|1|billing=1,cpu=1,mem=500M,node=1||||
34.batch|SUSPENDED|0:0|2026-11-21T11:19:23|Unknown|3||0|n1|1|cpu=1,mem=500M,node=1||||
"""
REQUEUED_THEN_CANCELLED = """\
35|REQUEUED|0:0|2026-11-21T11:19:23|2026-11-21T11:19:26|3|||n2|1|billing=1,cpu=1,mem=500M,node=1||||
35.batch|CANCELLED|0:15|2026-11-21T11:19:23|2026-11-21T11:19:26|3|3092K|0|n2|1|cpu=1,mem=500M,node=1||||
35|CANCELLED by 0|0:0|None|2026-11-21T11:19:29|0||0|None assigned|1|||||
"""
TWO_PARTS = """\
36+0|COMPLETED|0:0|2026-11-21T11:19:26|2026-11-21T11:19:27|1||0|n1|1|billing=1,cpu=1,mem=500M,node=1||||
36+0.batch|COMPLETED|0:0|2026-11-21T11:19:26|2026-11-21T11:19:27|1|13728K|0|n1|1|cpu=1,mem=500M,node=1||||
36+1|COMPLETED|0:0|2026-11-21T11:19:26|2026-11-21T11:19:27|1||0|n2|1|billing=1,cpu=1,mem=500M,node=1||||
36+1.0|COMPLETED|0:0|2026-11-21T11:19:26|2026-11-21T11:19:27|1|1712K|0|n2|1|cpu=1,mem=500M,node=1||||
"""


@pytest.mark.parametrize(
    ("text", "execution", "kind"),
    [
        (DONE, ("1", "COMPLETED", 0, 0, "11:05:34", "11:05:37", 3, 218220, "n1", 1, 0), "completed"),
        (ON_A_GPU, ("2", "COMPLETED", 0, 0, "11:05:34", "11:05:36", 2, 3208, "n1", 2, 1), "completed"),
        (EXIT_7, ("3", "FAILED", 7, 0, "11:05:34", "11:05:34", 0, None, "n1", 1, 0), "failed"),
        (SIGNAL_9, ("4", "FAILED", 0, 9, "11:05:34", "11:05:34", 0, None, "n2", 1, 0), "failed"),
        (RUNNING, ("6", "RUNNING", 0, 0, "11:05:34", None, 10, None, "n1", 1, 0), "running"),
        (TIMEOUT, ("6", "TIMEOUT", 0, 0, "11:05:34", "11:06:40", 66, 10680, "n1", 1, 0), "timed_out"),
        (CANCELLED, ("7", "CANCELLED", 0, 0, "11:05:34", "11:05:40", 6, 3092, "n2", 1, 0), "cancelled"),
        (CANCELLED_IN_QUEUE, ("11", "CANCELLED", 0, 0, None, "11:05:40", 0, None, "", 0, 0), "cancelled"),
        (JUST_REQUEUED, ("19", "REQUEUED", 0, 0, "11:07:47", "11:07:50", 3, 117360, "n1", 1, 0), "requeued"),
        (NODE_FAILED, ("25", "NODE_FAIL", 0, 0, "11:14:24", "11:14:28", 4, None, "n2", 1, 0), "node_failed"),
        (PREEMPTED, ("26", "PREEMPTED", 0, 0, "11:14:46", "11:14:49", 3, 3160, "n2", 4, 0), "preempted"),
        (OUT_OF_MEMORY, ("30", "OUT_OF_MEMORY", 0, 125, "11:17:07", "11:17:08", 1, None, "n1", 1, 0), "out_of_memory"),
        (STEP_KILLED, ("31", "OUT_OF_MEMORY", 1, 0, "11:17:07", "11:17:08", 1, None, "n1", 1, 0), "out_of_memory"),
        (TWO_NODES, ("33", "COMPLETED", 0, 0, "11:19:23", "11:19:27", 4, 10872, "n[1-2]", 4, 0), "completed"),
        (SUSPENDED, ("34", "SUSPENDED", 0, 0, "11:19:23", None, 3, None, "n1", 1, 0), "running"),
    ],
)  # fmt: skip
def test_every_state(text, execution, kind):
    job, state, code, signal, begun, ended, seconds, kilobytes, *allocated = execution
    [found] = parse_sacct(text)
    start, end = (time and f"2026-11-21T{time}+00:00" for time in (begun, ended))
    memory = kilobytes and kilobytes / 1024
    own = structs.replace(found, node_rss_mb=None, requested_mb=None)  # which test_usage.py is about
    assert own == JobExecution(job, 1, state, code, signal, start, end, seconds, memory, None, *allocated)
    assert found.kind == kind
    assert sum_executions([found]).final == (kind not in ("running", "requeued"))


def summed(text: str, *names: str) -> list[Any]:
    result = sum_executions(parse_sacct(text))
    return [getattr(result, name) for name in names]


def attempts(text: str) -> list[tuple[str, int, str]]:
    return [(one.job, one.attempt, one.state) for one in parse_sacct(text)]


def test_nothing_is_nothing():
    assert parse_sacct("") == []
    assert sum_executions([]) == JobAccount(
        tasks=0, executions=0, completed=0, failed=0, cancelled=0, out_of_memory=0, timed_out=0, node_failed=0,
        preempted=0, requeued=0, running=0, pending=0, wall_seconds=None, core_seconds=0, gpu_seconds=0,
        max_rss_mb=None, energy_joules=None, nodes=(), final=False,
    )  # fmt: skip


def test_what_is_no_row_is_passed_over():
    assert parse_sacct(f"welcome to the cluster\n1.0{'|' * (len(FIELDS) - 1)}\n\n{DONE}") == parse_sacct(DONE)
    assert parse_sacct("|".join(FIELDS)) == []
    with pytest.raises(ValueError, match="invalid literal for int"):
        parse_sacct(DONE.replace("|3|", "|x|"))


def test_a_step_without_memory_that_was_survived():
    [found] = parse_sacct(STEP_KILLED.replace("FAILED|1:0", "COMPLETED|0:0"))
    assert (found.state, found.exit_code) == ("COMPLETED", 0)


@pytest.mark.parametrize(
    ("printed", "megabytes"),
    [
        ("", None),
        ("0", None),
        ("223457280", 213.10546875),
        ("218220K", 213.10546875),
        ("213.11M", 213.11),
        ("2G", 2048),
    ],
)
def test_memory_in_every_unit(printed, megabytes):
    [found] = parse_sacct(DONE.replace("218220K", printed).replace("10576K", ""))
    assert found.max_rss_mb == megabytes


@pytest.mark.parametrize(("printed", "joules"), [("", None), ("0", None), ("5123", 5123), (str(2**64 - 2), None)])
def test_energy_is_unknown_where_nothing_is_measured(printed, joules):
    [found] = parse_sacct(DONE.replace("|3||0|", f"|3||{printed}|"))
    assert found.energy_joules == joules


@pytest.mark.parametrize(
    ("printed", "gpus"),
    [("gres/gpu=1", 1), ("gres/gpu:a100=2", 2), ("gres/gpu:a100=2,gres/gpu:h100=1,gres/gpu=3", 3), ("mem=1G", 0)],
)
def test_gpus_with_and_without_their_kind(printed, gpus):
    assert parse_sacct(ON_A_GPU.replace("gres/gpu=1", printed))[0].gpus == gpus


def test_executions_of_a_job_are_counted_in_order_of_start():
    text = JUST_REQUEUED + ARRAY_REQUEUED
    expected = [
        ("19", 1, "REQUEUED"), ("19", 2, "FAILED"), ("20_0", 1, "COMPLETED"), ("20_1", 1, "REQUEUED"),
        ("20_1", 2, "COMPLETED"),
    ]  # fmt: skip
    assert attempts(text) == expected
    first, second = ARRAY_REQUEUED.index("20_1|REQ"), ARRAY_REQUEUED.index("19|")
    swapped = ARRAY_REQUEUED[second:] + ARRAY_REQUEUED[first:second] + JUST_REQUEUED + ARRAY_REQUEUED[:first]
    assert parse_sacct(swapped) == parse_sacct(text), "in whatever order they are printed"
    sizes = [one.max_rss_mb for one in parse_sacct(text)]
    assert sizes == [117360 / 1024, None, 3308 / 1024, 3284 / 1024, 3276 / 1024], "each with its own steps"
    assert attempts(REQUEUED_THEN_CANCELLED) == [("35", 1, "REQUEUED"), ("35", 2, "CANCELLED")]
    assert attempts(NODE_CAME_BACK) == [("25", 1, "NODE_FAIL"), ("25", 2, "PENDING")]
    assert attempts(TWO_PARTS) == [("36+0", 1, "COMPLETED"), ("36+1", 1, "COMPLETED")]


def test_array_tasks_that_wait_are_listed_one_by_one():
    found = parse_sacct(ARRAY_BEGINS)
    assert [(one.job, one.state) for one in found] == [
        ("12_3", "RUNNING"), *((f"12_{task}", "PENDING") for task in range(6, 100, 3)),
    ]  # fmt: skip
    assert found[-1] == JobExecution("12_99", 1, "PENDING", 0, 0, None, None, 0, None, None, "", 1, 0)
    assert summed(ARRAY_BEGINS, "tasks", "running", "pending", "final") == [33, 1, 32, False]
    assert summed(ARRAY_CANCELLED, "tasks", "cancelled", "wall_seconds", "final") == [27, 27, None, True]
    some = ARRAY_CANCELLED.replace("21-99:3%4", "1,5,9-11")
    assert [one.job for one in parse_sacct(some)] == ["12_1", "12_5", "12_9", "12_10", "12_11"]


def test_the_account_of_a_run():
    text = DONE + ON_A_GPU + EXIT_7 + ARRAY + TIMEOUT + CANCELLED + CANCELLED_IN_QUEUE + JUST_REQUEUED
    text += ARRAY_REQUEUED + NODE_FAILED + PREEMPTED + STEP_KILLED + TWO_NODES
    assert sum_executions(parse_sacct(text)) == JobAccount(
        tasks=15, executions=17,
        completed=6, failed=3, cancelled=2, out_of_memory=1, timed_out=1, node_failed=1,
        preempted=1, requeued=2, running=0, pending=0,
        wall_seconds=833.0,  # 11:05:34 ... 11:19:27
        core_seconds=3 + 2 * 2 + 0 + 2 + 2 + 66 + 6 + 0 + 3 + 8 + 4 + 0 + 8 + 4 + 3 * 4 + 1 + 4 * 4,
        gpu_seconds=2, max_rss_mb=218220 / 1024, energy_joules=None, nodes=("n1", "n2"), final=True,
    )  # fmt: skip


def test_the_wall_time_is_from_the_first_start_to_the_last_end():
    assert summed(ARRAY + TIMEOUT, "wall_seconds") == [66.0]
    assert summed(RUNNING, "wall_seconds", "core_seconds") == [None, 10]
    assert summed(RUNNING + CANCELLED, "wall_seconds") == [6.0]
    assert summed(REQUEUED_THEN_CANCELLED, "wall_seconds") == [3.0], "not to when it was cancelled in the queue"
    assert summed(JUST_REQUEUED + ARRAY_REQUEUED, "wall_seconds") == [19.0]


def test_energy_adds_up_what_is_known():
    measured = DONE.replace("|3||0|", "|3||500|")
    assert summed(measured + measured.replace("1|", "2|", 1) + EXIT_7, "energy_joules") == [1000]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [("n[1-2]", ["n1", "n2"]), ("n2,n10", ["n2", "n10"]), ("g[08-10,12]", ["g08", "g09", "g10", "g12"]),
     ("a[1-2],b3,r[1-2]c[0-1]", ["a1", "a2", "b3", "r1c0", "r1c1", "r2c0", "r2c1"])],
)  # fmt: skip
def test_nodes_by_name(nodes, expected):
    assert summed(TWO_NODES.replace("|n[1-2]|", f"|{nodes}|"), "nodes") == [tuple(expected)]


def test_a_state_of_a_later_slurm():
    [done], [running] = parse_sacct(DONE), parse_sacct(RUNNING)
    assert (structs.replace(done, state="NEW").kind, structs.replace(running, state="NEW").kind) == (
        "failed",
        "running",
    )


class FakeSacct:
    """A program `sacct` that comes first on PATH, what it answers, and how it was called."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        self.set_command(f"cat {folder}/answer")
        self.set_answer("")
        patch.setenv("PATH", str(folder), prepend=os.pathsep)

    def set_command(self, command: str) -> None:
        log = f'echo "$TZ $SLURM_TIME_FORMAT $SLURM_BITSTR_LEN $*" >> {self._folder}/calls'
        (self._folder / "sacct").write_text(f"#!/bin/sh\n{log}\n{command}\n")
        (self._folder / "sacct").chmod(0o755)

    def set_answer(self, text: str) -> None:
        (self._folder / "answer").write_text(text)

    def calls(self) -> list[str]:
        """The calls since the last call of this method."""
        log = self._folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSacct:
    return FakeSacct(tmp_path / "bin", monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def plain(record: Any) -> Any:
    """A record as it is read from JSON."""
    return json.loads(msgspec.json.encode(record))


def clock(seconds: float) -> Any:
    """A clock that shows so many seconds after 11:20."""
    return lambda: 1795260000.0 + seconds  # 2026-11-21T11:20:00+00:00


def test_one_call_asks_about_all_jobs(sacct):
    sacct.set_answer(DONE + ARRAY)
    assert read_sacct(["1", "5"]) == parse_sacct(DONE + ARRAY)
    assert sacct.calls() == [
        "UTC standard 0 --parsable2 --noheader --duplicates --format=JobID,State,ExitCode,Start,End,ElapsedRaw,MaxRSS,"
        "ConsumedEnergyRaw,NodeList,AllocCPUS,AllocTRES,TotalCPU,Timelimit,ReqMem,NTasks --jobs=1,5"
    ]
    assert read_sacct([]) == [] and sacct.calls() == [], "without jobs it would list all of today's"


@pytest.mark.parametrize(
    "command",
    [
        "echo 'Slurm accounting storage is disabled' >&2; exit 1",  # as it is where there is no database
        f"echo '{RUNNING}'; exit 1",
        "kill -9 $$",
        "echo '1|||||x|||||||||'",
    ],
)
def test_a_sacct_that_fails_or_prints_something_else(sacct, command):
    sacct.set_command(command)
    assert read_sacct(["1"]) is None
    assert len(sacct.calls()) == 1


def test_lines_that_are_no_jobs_are_left_out(sacct):
    sacct.set_command(rf"printf '\377 welcome\n'; echo '{DONE.strip()}'")
    assert read_sacct(["1"]) == parse_sacct(DONE)


def test_a_sacct_that_hangs(sacct):
    sacct.set_command("exec sleep 60")
    assert read_sacct(["1"], timeout=0.1) is None
    assert len(sacct.calls()) == 1


def test_no_sacct(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_sacct(["1"]) is None
    assert update_account(folder, ["1"]) is None
    assert not Path(folder.uri).exists()


def test_what_was_requested_elsewhere_is_known_without_sacct(folder, sacct, tmp_path, monkeypatch):
    sacct.set_answer(DONE)
    update_account(folder, ["1"], clock(0))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert update_account(folder, ["1"], clock(3600)) == sum_executions(parse_sacct(DONE))


def test_sacct_is_called_once_a_minute_until_the_account_is_final(folder, sacct):
    sacct.set_answer(RUNNING)
    running = update_account(folder, ["6"], clock(0))
    assert running == sum_executions(parse_sacct(RUNNING)) and not running.final
    assert len(sacct.calls()) == 1
    sacct.set_answer(TIMEOUT)
    assert update_account(folder, ["6"], clock(59.9)) == running and sacct.calls() == []
    over = update_account(folder, ["6"], clock(60))
    assert over == sum_executions(parse_sacct(TIMEOUT)) and over.final
    assert len(sacct.calls()) == 1
    assert read(folder.accounting_path) == {
        "jobs": ["6"], "executions": [plain(one) for one in parse_sacct(TIMEOUT)], "account": plain(over),
        "asked_at": "2026-11-21T11:21:00+00:00",
    }  # fmt: skip
    sacct.set_answer(DONE)
    assert update_account(folder, ["6", "6"], clock(86400)) == over and sacct.calls() == [], "it is not called again"


def test_more_jobs_are_requested_when_the_minute_is_over(folder, sacct):
    sacct.set_answer(DONE)
    first = update_account(folder, ["1"], clock(0))
    assert first is not None and first.final
    sacct.set_answer(DONE + CANCELLED)
    assert update_account(folder, ["7", "1"], clock(30)) == structs.replace(first, final=False)
    assert len(sacct.calls()) == 1
    assert update_account(folder, ["7", "1"], clock(60)) == sum_executions(parse_sacct(DONE + CANCELLED))
    assert sacct.calls()[0].endswith("--jobs=1,7")


def test_sacct_is_not_called_without_jobs(folder, sacct):
    assert update_account(folder, [], clock(0)) is None and sacct.calls() == []
    assert not Path(folder.uri).exists()
    sacct.set_answer(DONE)
    found = update_account(folder, ["1"], clock(0))
    assert update_account(folder, [], clock(60)) == found and len(sacct.calls()) == 1


def test_a_sacct_that_fails_is_called_once_a_minute_too(folder, sacct):
    sacct.set_command("exit 1")
    assert update_account(folder, ["1"], clock(0)) is None
    assert update_account(folder, ["1"], clock(30)) is None
    assert len(sacct.calls()) == 1
    assert read(folder.accounting_path) == {
        "jobs": [], "executions": [], "account": None, "asked_at": "2026-11-21T11:20:00+00:00"
    }  # fmt: skip
    sacct.set_command(f"echo '{RUNNING}'")
    running = update_account(folder, ["6"], clock(60))
    assert running is not None
    sacct.set_command("exit 1")
    assert update_account(folder, ["6"], clock(120)) == running, "what was known remains"
    assert update_account(folder, ["6"], clock(150)) == running
    assert len(sacct.calls()) == 2


def test_a_clock_that_was_ahead_does_not_silence_us(folder, sacct):
    sacct.set_answer(RUNNING)
    update_account(folder, ["6"], clock(3600))
    update_account(folder, ["6"], clock(0))
    assert len(sacct.calls()) == 2


@pytest.mark.parametrize("jobs", [["1", "5"], ["1", "36"]])
def test_it_is_not_over_while_a_job_is_not_known(folder, sacct, jobs):
    sacct.set_answer(DONE)
    found = update_account(folder, jobs, clock(0))
    assert found == structs.replace(sum_executions(parse_sacct(DONE)), final=False)
    sacct.set_answer(DONE + ARRAY + TWO_PARTS)
    found = update_account(folder, jobs, clock(60))
    assert found is not None and found.final, "an array is known by its tasks, a job of parts by these"


def test_it_is_not_over_when_nothing_is_known(folder, sacct):
    for minute in range(3):
        assert update_account(folder, ["1"], clock(60 * minute)) is None
        assert len(sacct.calls()) == 1


@pytest.mark.parametrize("lost", [NODE_FAILED, PREEMPTED])
def test_what_lost_its_node_may_come_back_within_a_minute(folder, sacct, lost):
    sacct.set_answer(lost)
    finals = []
    for minute in range(2):
        found = update_account(folder, [lost[:2]], clock(60 * minute))
        finals.append(found and found.final)
    assert finals == [False, True]


def test_what_came_back_is_followed(folder, sacct):
    sacct.set_answer(NODE_FAILED)
    update_account(folder, ["25"], clock(0))
    sacct.set_answer(NODE_CAME_BACK)
    found = update_account(folder, ["25"], clock(60))
    assert found is not None and (found.executions, found.pending, found.final) == (2, 1, False)


def test_records_get_what_slurm_saw_of_their_execution(folder, sacct):
    records = {
        "0": make_record(0, job="20_0", restarts=0), "1": make_record(1, job="20_1", restarts=0),
        "1-2": make_record(1, attempt=2, job="20_1", restarts=1), "2": make_record(2, job="20_1", restarts=2),
        "3": make_record(3, job="6", restarts=0), "4": make_record(4, job=None, restarts=None),
        "5": make_record(5, job=None, restarts=0), "6": make_record(6, job="20_1", restarts=None),
        "7": make_record(7, job="20_1", restarts=None),
    }  # fmt: skip
    for name, record in records.items():
        absent = {"4": ("job", "restarts"), "6": ("restarts",)}.get(name, ())  # as an earlier version wrote them
        values = {key: value for key, value in msgspec.to_builtins(record).items() if key not in absent}
        folder.write_json(folder.path("records", f"{name}.json"), values)
    sacct.set_answer(ARRAY_REQUEUED + RUNNING)
    update_account(folder, ["20", "6"], clock(0))
    seen = {
        "0": {"elapsed_seconds": 8, "max_rss_mb": 3308 / 1024, "state": "COMPLETED"},
        "1": {"elapsed_seconds": 4, "max_rss_mb": 3284 / 1024, "state": "REQUEUED"},
        "1-2": {"elapsed_seconds": 8, "max_rss_mb": 3276 / 1024, "state": "COMPLETED"},
    }
    more = {"exit_code": 0, "signal": 0, "energy_joules": None}
    assert folder.records() == {
        name: structs.replace(record, slurm=seen[name] | more) if name in seen else record
        for name, record in records.items()
    }
    before = {path: path.stat().st_ino for path in Path(folder.path("records")).iterdir()}
    update_account(folder, ["20", "6"], clock(60))
    assert {path: path.stat().st_ino for path in Path(folder.path("records")).iterdir()} == before, "written once"


def test_the_summary_gets_the_account(folder, sacct):
    sacct.set_answer(RUNNING)
    update_account(folder, ["6"], clock(0))
    assert not Path(folder.summary_path).exists(), "it makes none"
    summary = json.loads(msgspec.json.encode(make_summary(complete=False)))
    folder.write_json(folder.summary_path, summary)
    running = update_account(folder, ["6"], clock(30))
    assert read(folder.summary_path) == summary | {"slurm": plain(running)}
    sacct.set_answer(TIMEOUT)
    over = update_account(folder, ["6"], clock(60))
    assert over != running and read(folder.summary_path) == summary | {"slurm": plain(over)}
    folder.write_json(folder.summary_path, summary)  # anew, by a resume
    update_account(folder, ["6"], clock(3600))
    assert read(folder.summary_path) == summary | {"slurm": plain(over)}
    before = Path(folder.summary_path).stat().st_ino
    update_account(folder, ["6"], clock(7200))
    assert Path(folder.summary_path).stat().st_ino == before
    assert len(sacct.calls()) == 2


def test_sacct_is_not_called_for_a_folder_that_cannot_be_written_to(folder, sacct, monkeypatch):
    def refuse(*_: Any) -> None:
        raise StorageError("permission denied")

    sacct.set_answer(RUNNING)
    running = update_account(folder, ["6"], clock(0))
    folder.write_json(folder.summary_path, make_summary())
    monkeypatch.setattr(RunFolder, "write_json", refuse)
    assert update_account(folder, ["6"], clock(3600)) == running
    assert len(sacct.calls()) == 1
    assert update_account(RunFolder(f"{folder.uri}-2"), ["6"], clock(0)) is None and sacct.calls() == []


def test_a_damaged_memory_is_forgotten(folder, sacct):
    Path(folder.uri).mkdir()
    Path(folder.accounting_path).write_text("{")
    sacct.set_answer(DONE)
    assert update_account(folder, ["1"], clock(0)) == sum_executions(parse_sacct(DONE))
