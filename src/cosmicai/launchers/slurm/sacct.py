"""Reads `sacct`, the command that reports what SLURM's accounting knows of jobs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from msgspec import structs

from ... import storage
from .commands import SlurmFailure, call_slurm

SACCT_TIMEOUT = 30.0  # seconds
FIELDS = (
    "JobID", "State", "ExitCode", "Start", "End", "ElapsedRaw", "MaxRSS", "ConsumedEnergyRaw", "NodeList", "AllocCPUS",
    "AllocTRES", "TotalCPU", "Timelimit", "ReqMem", "NTasks",
)  # fmt: skip
KINDS = {
    "COMPLETED": "completed", "FAILED": "failed", "CANCELLED": "cancelled", "REVOKED": "cancelled",
    "OUT_OF_MEMORY": "out_of_memory", "TIMEOUT": "timed_out", "DEADLINE": "timed_out", "NODE_FAIL": "node_failed",
    "BOOT_FAIL": "node_failed", "PREEMPTED": "preempted", "REQUEUED": "requeued", "RUNNING": "running",
    "PENDING": "pending",
}  # fmt: skip


class JobExecution(msgspec.Struct, frozen=True):
    """One execution of a job (`123`) or of an array's task (`123_4`), which SLURM may have requeued for another.

    `attempt` counts from 1 in order of start. `state` is SLURM's word; a job that failed after one of its steps ran out
    of memory is OUT_OF_MEMORY, which SLURM says of the step alone. Times are ISO 8601 in UTC; an execution that never
    started has no start. `max_rss_mb` is that of the largest task of all steps, in MB (2^20 bytes), and `node_rss_mb`
    that of all tasks of a step on one node, if all were as large as the largest. `requested_mb` is the memory of each
    node, `tasks` the largest number of tasks of a step, and `limit_seconds` the time limit. None is unknown to SLURM.
    """

    job: str
    attempt: int
    state: str
    exit_code: int
    signal: int
    started_at: str | None
    ended_at: str | None
    elapsed_seconds: int
    max_rss_mb: float | None
    energy_joules: int | None
    nodes: str
    cores: int
    gpus: int
    cpu_seconds: float | None = None
    limit_seconds: float | None = None
    node_rss_mb: float | None = None
    requested_mb: float | None = None
    tasks: int = 1

    @property
    def kind(self) -> str:
        """The state as `JobAccount` counts it; an unknown one is running until it has ended, and failed then."""
        return KINDS.get(self.state, "running" if self.ended_at is None else "failed")


def read_sacct(jobs: Sequence[str], timeout: float = SACCT_TIMEOUT) -> list[JobExecution] | None:
    """Return all executions of some jobs and arrays, by one call of sacct; a job unknown to it (yet) has none.

    None if sacct is not installed, fails, or takes more than `timeout` seconds.
    """
    if not jobs:
        return []  # sacct would report all jobs since midnight
    command = ["sacct", "--parsable2", "--noheader", "--duplicates", f"--format={','.join(FIELDS)}"]
    # By default times are local and have no offset, and long lists of array tasks are abridged.
    variables = {"TZ": "UTC", "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}
    try:
        # Once, since an answer that takes long is one of a database that has too much to do.
        return parse_sacct(
            call_slurm([*command, f"--jobs={','.join(jobs)}"], attempts=1, timeout=timeout, variables=variables)
        )
    except (SlurmFailure, ValueError):
        return None


def parse_sacct(text: str) -> list[JobExecution]:
    """Return the executions that sacct printed, by job and attempt; array tasks that wait together are separated.

    Raises ValueError if a number cannot be read.
    """
    rows: list[list[dict[str, str]]] = []  # an execution and its steps, which follow it and do not name the attempt
    for values in (line.split("|") for line in text.splitlines()):
        if len(values) == len(FIELDS) and values[0][:1].isdigit():
            row = dict(zip(FIELDS, values, strict=True))
            if "." not in row["JobID"]:
                rows.append([row])
            elif rows:
                rows[-1].append(row)
    printed = [_parse_execution(*row) for row in rows]
    # For a while a list of waiting tasks still holds some that have been started.
    named, attempts = {execution.job for execution in printed}, Counter[str]()
    separate = [
        structs.replace(execution, job=job)
        for execution in printed
        for job in expand_list(execution.job)
        if job == execution.job or job not in named
    ]
    executions = []
    for execution in sorted(separate, key=lambda execution: execution.started_at or "later"):
        attempts[execution.job] += 1
        executions.append(structs.replace(execution, attempt=attempts[execution.job]))
    return sorted(executions, key=lambda execution: (storage.natural_key(execution.job), execution.attempt))


def split_nodes(text: str) -> list[str]:
    """Return the names of nodes in SLURM's notation: `n[01-02,7],m3` is n01, n02, n7, m3."""
    return [node for part in re.findall(r"(?:\[[^]]*\]|[^,[])+", text) for node in expand_list(part)]


def expand_list(text: str) -> list[str]:
    """Expand SLURM's notation for many names: `n[01-02,7]` is n01, n02, n7, and `12_[0-9:3%4]` 12_0, 12_3 ..."""
    before, bracket, rest = text.partition("[")
    if not bracket:
        return [text]
    inside, _, after = rest.partition("]")
    numbers = []
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", inside.partition("%")[0]):
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1, int(step or 1))]
    return [before + number + tail for number in numbers for tail in expand_list(after)]


def _parse_execution(row: dict[str, str], *steps: dict[str, str]) -> JobExecution:
    state = row["State"].partition(" ")[0]  # "CANCELLED by 0"
    if state == "FAILED" and any(step["State"] == "OUT_OF_MEMORY" for step in steps):
        state = "OUT_OF_MEMORY"
    code, _, signal = row["ExitCode"].partition(":")
    nodes = row["NodeList"] if row["NodeList"] != "None assigned" else ""
    resources = dict(part.partition("=")[::2] for part in row["AllocTRES"].split(","))
    typed_gpus = sum(int(count) for name, count in resources.items() if name.startswith("gres/gpu:"))
    energy = int(row["ConsumedEnergyRaw"] or 0)
    sizes = [(size, int(step["NTasks"] or 1)) for step in steps if (size := _parse_megabytes(step["MaxRSS"]))]
    hosts, cores = len(split_nodes(nodes)) or 1, int(row["AllocCPUS"] or 0)
    return JobExecution(
        job=row["JobID"], attempt=1, state=state, exit_code=int(code or 0), signal=int(signal or 0),
        started_at=_parse_time(row["Start"]) if nodes else None,  # cancelled in the queue: "started" when cancelled
        ended_at=_parse_time(row["End"]), elapsed_seconds=int(row["ElapsedRaw"] or 0),
        max_rss_mb=max((size for size, _ in sizes), default=None),
        energy_joules=energy if 0 < energy < 2**63 else None,  # 0 and "no value" are where nothing is measured
        nodes=nodes, cores=cores, gpus=int(resources.get("gres/gpu", typed_gpus)),
        cpu_seconds=_parse_duration(row["TotalCPU"]), limit_seconds=_parse_duration(row["Timelimit"]),
        node_rss_mb=max((size * -(-tasks // hosts) for size, tasks in sizes), default=None),
        requested_mb=_parse_requested(resources.get("mem") or row["ReqMem"], hosts, cores),
        tasks=max((int(step["NTasks"] or 1) for step in steps), default=1),
    )  # fmt: skip


def _parse_time(text: str) -> str | None:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).isoformat() if text[:1].isdigit() else None


def _parse_duration(text: str) -> float | None:
    """Return the seconds of `1-02:03:04`, `02:03:04` or `03:04.567`; None for words such as UNLIMITED."""
    if not (found := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)", text)):
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _parse_requested(text: str, nodes: int, cores: int) -> float | None:
    """Return the MB per node of memory that was requested; SLURM before 21.08 ends it with n (per node) or c (core)."""
    size = _parse_megabytes(text.rstrip("nc"))
    if size is None or text.endswith("n"):
        return size
    return size * (cores if text.endswith("c") else 1) / nodes


def _parse_megabytes(text: str) -> float | None:
    """Return MB from `218220K`, `213.11M` or plain bytes; None for 0, which was not sampled."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in tuple("KMGTP") else (text, "")
    return float(number) * 1024.0 ** (" KMGTP".index(unit or " ") - 2) or None if number else None
