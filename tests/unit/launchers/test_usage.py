"""How much of what was requested of SLURM the jobs of a run used. Lines of sacct are those of SLURM 22.05."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from cosmicai.launchers.base import RemoteStatus, SlurmRequest
from cosmicai.launchers.slurm import commands
from cosmicai.launchers.slurm.launcher import SlurmLauncher
from cosmicai.launchers.slurm.sacct import parse_sacct
from cosmicai.launchers.slurm.usage import JobUsage, JobUse, sum_usage, use_of_executions, use_of_records
from cosmicai.ranks.nvml import GpuUse
from cosmicai.runs.record import PhaseSeconds, Record
from cosmicai.runs.store import RunFolder
from support.helpers import make_record

TWO_TASKS = """\
1|COMPLETED|0:0|2026-12-01T13:55:07|2026-12-01T13:55:20|13||0|n1|4|billing=4,cpu=4,mem=700M,node=1|00:08.582|00:10:00|700M|
1.batch|COMPLETED|0:0|2026-12-01T13:55:07|2026-12-01T13:55:20|13|10948K|0|n1|4|cpu=4,mem=700M,node=1|00:00.016|||1
1.0|COMPLETED|0:0|2026-12-01T13:55:07|2026-12-01T13:55:20|13|72340K|0|n1|4|cpu=4,mem=700M,node=1|00:08.565|||2
"""
ARRAY_ON_GPUS = """\
2_0|COMPLETED|0:0|2026-12-01T13:55:07|2026-12-01T13:55:10|3|||n2|1|billing=1,cpu=1,gres/gpu=1,mem=300M,node=1|00:00.004|00:02:00|300M|
2_0.batch|COMPLETED|0:0|2026-12-01T13:55:07|2026-12-01T13:55:10|3|3152K|0|n2|1|cpu=1,gres/gpu=1,mem=300M,node=1|00:00.004|||1
2_1|COMPLETED|0:0|2026-12-01T13:55:07|2026-12-01T13:55:10|3|||n2|1|billing=1,cpu=1,gres/gpu=1,mem=300M,node=1|00:00.003|00:02:00|300M|
2_1.batch|COMPLETED|0:0|2026-12-01T13:55:07|2026-12-01T13:55:10|3|2932K|0|n2|1|cpu=1,gres/gpu=1,mem=300M,node=1|00:00.003|||1
"""


def test_what_sacct_says_of_an_execution():
    [use] = use_of_executions(parse_sacct(TWO_TASKS))
    assert use == JobUse(
        cores=4, tasks=2, nodes=1, gpus=0, elapsed_seconds=13.0, cpu_seconds=8.582, limit_seconds=600.0,
        memory_mb=2 * 72340 / 1024, requested_mb=700.0,
    )  # fmt: skip
    assert [(use.gpus, use.cpu_seconds, use.memory_mb) for use in use_of_executions(parse_sacct(ARRAY_ON_GPUS))] == [
        (1, 0.004, 3152 / 1024), (1, 0.003, 2932 / 1024),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("printed", "seconds"),
    [("00:08.582", 8.582), ("01:02:03", 3723.0), ("2-00:00:01", 172801.0), ("UNLIMITED", None),
     ("Partition_Limit", None), ("", None)],
)  # fmt: skip
def test_durations_of_sacct(printed, seconds):
    [found] = parse_sacct(TWO_TASKS.replace("|00:10:00|", f"|{printed}|"))
    assert found.limit_seconds == seconds


@pytest.mark.parametrize(
    ("resources", "requested", "megabytes"),
    [("mem=4G,node=2", "2G", 2048.0), ("cpu=4", "1500Mn", 1500.0), ("cpu=4", "500Mc", 1000.0),
     ("cpu=4", "3000M", 1500.0), ("cpu=4", "0n", None), ("cpu=4", "", None)],
)  # fmt: skip
def test_requested_memory_is_that_of_a_node(resources, requested, megabytes):
    first = TWO_TASKS.splitlines()[0].replace("|n1|", "|n[1-2]|")
    [found] = parse_sacct(
        first.replace("billing=4,cpu=4,mem=700M,node=1", resources).replace("|700M|", f"|{requested}|")
    )
    assert found.requested_mb == megabytes


def test_memory_of_a_node_is_that_of_its_share_of_the_tasks():
    two_nodes = TWO_TASKS.replace("|n1|", "|n[1-2]|")
    [found] = parse_sacct(two_nodes.replace("|||2\n", "|||3\n"))
    assert (found.tasks, found.node_rss_mb) == (3, 2 * 72340 / 1024)


def test_what_runs_or_never_ran_does_not_count():
    waiting = "3|PENDING|0:0|Unknown|Unknown|0||0|None assigned|1|cpu=1|00:00:00|00:02:00|300M|\n"
    running = "4|RUNNING|0:0|2026-12-01T13:55:07|Unknown|9||0|n1|1|cpu=1|00:00:00|00:02:00|300M|\n"
    assert use_of_executions(parse_sacct(waiting + running)) == []
    assert sum_usage("sacct", []) is None


def test_what_ran_out_of_memory_used_all_of_it():
    [use] = use_of_executions(parse_sacct(TWO_TASKS.replace("COMPLETED", "OUT_OF_MEMORY")))
    assert (use.memory_mb, use.requested_mb) == (700.0, 700.0)
    usage = sum_usage("sacct", [use])
    assert usage is not None and "--mem=900M" in usage.request


def test_the_usage_of_a_run():
    usage = sum_usage("sacct", use_of_executions(parse_sacct(TWO_TASKS)))
    assert usage == JobUsage(
        source="sacct", executions=1, cores_percent=16.5, cores_per_task=0.33, requested_cores_per_task=2,
        memory_percent=20.2, memory_mb=141.3, requested_memory_mb=700.0, time_percent=2.2, elapsed_seconds=13.0,
        limit_seconds=600.0, gpus=0, gpu_percent=None,
        request=("--cpus-per-task=1", "--mem=200M", "--time=0:05:00"),
    )  # fmt: skip
    assert usage.lines() == (
        "used of what was requested, by SLURM's accounting of 1 execution of a job:",
        "  cores: 16%, the busiest task used 0.33 of 2",
        "  memory: 20%, 141 of 700 MB on the node that used most",
        "  time: 2%, the longest job took 0:00:13 of 0:10:00",
        "request next time: --cpus-per-task=1 --mem=200M --time=0:05:00",
        "  cores of the busiest task rounded up, a quarter more memory than was used, half more time",
        "  jobs of less than 5 minutes say little of longer ones",
    )


def use(**changes: Any) -> JobUse:
    """An array task that used 1.9 of its 4 cores for 13 minutes and 20 seconds."""
    values = {
        "cores": 4, "tasks": 1, "nodes": 1, "gpus": 0, "elapsed_seconds": 800.0, "cpu_seconds": 1520.0,
        "limit_seconds": 3600.0, "memory_mb": 1150.0, "requested_mb": 2000.0,
    }  # fmt: skip
    return JobUse(**values | changes)


def test_the_task_that_needs_most_decides_what_to_request():
    idle = use(elapsed_seconds=400.0, cpu_seconds=80.0, memory_mb=300.0)
    usage = sum_usage("sacct", [use(), idle])
    assert usage is not None
    assert usage.request == ("--cpus-per-task=2", "--mem=1500M", "--time=0:20:00")
    assert (usage.cores_percent, usage.cores_per_task) == (round(100 * 1600 / 4800, 1), 1.9)
    assert (usage.memory_percent, usage.time_percent) == (57.5, 22.2)
    assert usage.lines()[-1] == (
        "  cores of the busiest task rounded up, a quarter more memory than was used, half more time"
    )


@pytest.mark.parametrize(
    ("changes", "by_core", "request_"),
    [
        ({"cpu_seconds": 3400.0}, False, "--cpus-per-task=4 --mem=1500M --time=0:20:00"),  # never more than there were
        ({"cpu_seconds": None}, False, "--cpus-per-task=4 --mem=1500M --time=0:20:00"),
        ({"memory_mb": None}, False, "--cpus-per-task=2 --time=0:20:00"),
        ({}, True, "--cpus-per-task=2 --mem-per-cpu=800M --time=0:20:00"),  # 1500 MB on 2 cores
        ({"tasks": 4, "nodes": 2, "cores": 16}, True, "--cpus-per-task=1 --mem-per-cpu=800M --time=0:20:00"),
        ({"elapsed_seconds": 100_000.0, "cpu_seconds": 1e5}, False, "--cpus-per-task=1 --mem=1500M --time=41:40:00"),
    ],
)
def test_what_to_request_next_time(changes, by_core, request_):
    usage = sum_usage("sacct", [use(**changes)], mem_per_cpu=by_core)
    assert usage is not None and " ".join(usage.request) == request_


def test_unknown_requests_have_no_percentage():
    usage = sum_usage("records", [use(limit_seconds=None, requested_mb=None, cpu_seconds=None)])
    assert usage is not None
    assert usage.lines()[:3] == (
        "used of what was requested, by the records of the ranks of 1 execution of a job:",
        "  memory: unknown, 1,150 MB on the node that used most",
        "  time: unknown, the longest job took 0:13:20",
    )


def test_what_records_do_not_count_is_added():
    usage = sum_usage("records", [use()])
    assert usage is not None
    assert usage.request == ("--cpus-per-task=2", "--mem=2000M", "--time=0:20:00")
    assert usage.lines()[-1] == "  and 500 MB to make the catalogue, which no record counts"


def rank(number: int, job: str | None, host: str = "n1", **changes: Any) -> Record:
    """The record of a rank with 2 cores that worked for 100 s after a start of 5 s."""
    begin = datetime(2026, 12, 1, 12, tzinfo=UTC)
    values = {
        "job": job, "restarts": 0, "host": host, "threads": 2, "cpu_seconds": 150.0, "peak_rss_mb": 400.0,
        "started_at": begin.isoformat(), "updated_at": (begin + timedelta(seconds=100)).isoformat(),
        "seconds": PhaseSeconds(start=5.0, load=0.0, read=0.0, predict=0.0, write=0.0),
    }  # fmt: skip
    return structs.replace(make_record(number, 4), **values | changes)


def test_what_records_say_of_jobs():
    records = [rank(0, "7"), rank(1, "7"), rank(2, "7", "n2", peak_rss_mb=500.0), rank(3, None), rank(4, "vm-12")]
    [found] = use_of_records(records, SlurmRequest(time="10:00", memory_mb=1600))
    assert found == JobUse(
        cores=6, tasks=3, nodes=2, gpus=0, elapsed_seconds=105.0, cpu_seconds=450.0, limit_seconds=600.0,
        memory_mb=800.0, requested_mb=1600.0,
    )  # fmt: skip
    [by_core] = use_of_records(records, SlurmRequest(mem_per_cpu=300))
    assert by_core.requested_mb == 900.0
    [unknown] = use_of_records(records, None)
    assert (unknown.limit_seconds, unknown.requested_mb) == (None, None)


def test_every_execution_of_a_job_counts():
    records = [rank(0, "8_0"), rank(1, "8_1"), rank(1, "8_1", restarts=1, attempt=2)]
    assert [use.tasks for use in use_of_records(records, None)] == [1, 1, 1]


class Slurm:
    """Programs squeue and sacct that are all that is on PATH; they print what was written, or fail for None."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        patch.setenv("PATH", str(folder))
        patch.setattr(commands, "PAUSE", 0.0)

    def write(self, **printed: str | None) -> None:
        for name, text in printed.items():
            lines = "exit 1" if text is None else "\n".join(f"echo '{line}'" for line in text.splitlines())
            (self.folder / name).write_text(f"#!/bin/sh\n{lines}\n")
            (self.folder / name).chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of a run of which rank 0 has worked in job 1."""
    folder = RunFolder(str(tmp_path / "run"))
    folder.write_json(folder.path("records", "0.json"), rank(0, "1", state="finished"))
    return folder


def test_the_usage_is_known_once_no_job_is_in_the_queue(slurm, folder):
    slurm.write(squeue="1|RUNNING|a name|None", sacct=None)
    running = SlurmLauncher().status(folder)
    assert (running.working, running.usage) == (("job 1: RUNNING",), None)
    slurm.write(squeue="")
    ended = SlurmLauncher().status(folder)
    assert ended.working == () and ended.usage is not None and ended.usage.source == "records"


def test_the_accounting_comes_before_the_records(slurm, folder):
    slurm.write(squeue="", sacct=TWO_TASKS)
    usage = SlurmLauncher().status(folder).usage
    assert usage is not None
    assert (usage.source, usage.cores_percent, usage.memory_mb) == ("sacct", 16.5, 400.0), "the rank's own peak"


def test_a_queue_that_does_not_answer_may_have_jobs(slurm, folder):
    slurm.write(squeue=None, sacct=None)
    unknown = SlurmLauncher().status(folder)
    assert unknown.working == ("squeue does not answer; jobs may wait for the run or work on it",)
    assert unknown.usage is None


def test_a_copy_of_the_folder_has_the_usage_unless_ranks_are_at_work(slurm, folder):
    copied = SlurmLauncher().status(folder)
    assert copied.working == () and copied.usage is not None
    now = datetime.now(UTC).isoformat()
    folder.write_json(folder.path("records", "1.json"), rank(1, "1", state="running", updated_at=now))
    assert SlurmLauncher().status(folder).usage is None


def test_a_run_without_jobs_has_no_usage(slurm, tmp_path):
    local = RunFolder(str(tmp_path / "run"))
    local.write_json(local.path("records", "0.json"), rank(0, "vm-123", state="finished"))
    assert SlurmLauncher().status(local) == RemoteStatus()


def test_a_peak_that_sacct_missed_is_in_the_records():
    sampled = use_of_executions(parse_sacct(ARRAY_ON_GPUS))
    usage = sum_usage("sacct", sampled, [rank(0, "2_0"), rank(1, "2_1", peak_rss_mb=200.0)])
    assert usage is not None and (usage.memory_mb, usage.memory_percent) == (400.0, 133.3)


def test_gpus_were_as_busy_as_the_ranks_measured():
    gpus = (
        GpuUse(samples=101, seconds=100.0, utilization_percent=80.0),
        GpuUse(samples=301, seconds=300.0, utilization_percent=40.0),
        GpuUse(samples=101, seconds=100.0, memory_mb=900.0),  # a slice, whose utilization is unknown
    )
    records = [rank(number, "9", device="cuda", gpu=gpu) for number, gpu in enumerate(gpus)]
    usage = sum_usage("records", use_of_records(records, None), records)
    assert usage is not None and (usage.gpus, usage.gpu_percent) == (3, 50.0)
    assert "  GPUs: busy 50% of the time" in usage.lines()
    unknown = sum_usage("records", use_of_records(records[2:], None), records[2:])
    assert unknown is not None and "  GPUs: unknown how long they were busy" in unknown.lines()
