"""What SLURM's accounting knows of a run's jobs: a courtesy where `sacct` answers, which never decides anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ... import storage
from ...errors import StorageError
from ...runs.store import RunFolder

TIMEOUT = 30.0  # seconds that sacct gets to answer
ASK_EVERY = 60.0  # seconds: sacct asks the cluster's one database, which it can bring to its knees
FIELDS = (
    "JobID", "State", "ExitCode", "Start", "End", "ElapsedRaw", "MaxRSS", "ConsumedEnergyRaw", "NodeList", "AllocCPUS",
    "AllocTRES",
)  # fmt: skip
KINDS = {
    "COMPLETED": "completed", "FAILED": "failed", "CANCELLED": "cancelled", "REVOKED": "cancelled",
    "OUT_OF_MEMORY": "out_of_memory", "TIMEOUT": "timed_out", "DEADLINE": "timed_out", "NODE_FAIL": "node_failed",
    "BOOT_FAIL": "node_failed", "PREEMPTED": "preempted", "REQUEUED": "requeued", "RUNNING": "running",
    "PENDING": "pending",
}  # fmt: skip
IN_RECORDS = ("elapsed_seconds", "max_rss_mb", "state", "exit_code", "signal", "energy_joules")


@dataclass(frozen=True)
class Execution:
    """One execution of a job (`123`) or of an array's task (`123_4`), which SLURM may have requeued for another.

    `attempt` counts from 1 in order of start. `state` is SLURM's word; a job that failed after one of its steps ran out
    of memory is OUT_OF_MEMORY, which SLURM says of the step alone. Times are ISO 8601 in UTC; what never started has
    no start. `max_rss_mb` is that of the largest step, in MB (2^20 bytes). None is what SLURM does not know.
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

    @property
    def kind(self) -> str:
        """The state as `account_of` counts it; one that it does not know is running until it has ended."""
        return KINDS.get(self.state, "running" if self.ended_at is None else "failed")


def read_sacct(jobs: Sequence[str], timeout: float = TIMEOUT) -> list[Execution] | None:
    """All executions of some jobs and arrays, by one call of sacct; None if it is not there, fails, or takes more than
    `timeout` seconds. A job that the accounting does not know (yet) has no execution."""
    if not jobs:
        return []  # sacct would tell of all jobs since midnight
    command = ["sacct", "--parsable2", "--noheader", "--duplicates", f"--format={','.join(FIELDS)}"]
    # Times are local and without an offset, and SLURM abridges long lists of array tasks, if not told otherwise.
    environment = os.environ | {"TZ": "UTC", "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}
    try:
        done = subprocess.run(
            [*command, f"--jobs={','.join(jobs)}"], env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, check=True, timeout=timeout,
        )  # fmt: skip
        return parse_sacct(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def parse_sacct(text: str) -> list[Execution]:
    """The executions that sacct printed, by job and attempt; array tasks that wait together are told one by one.

    Raises ValueError if a number is none.
    """
    rows: list[list[dict[str, str]]] = []  # an execution and its steps, which follow it and do not name the attempt
    for values in (line.split("|") for line in text.splitlines()):
        if len(values) == len(FIELDS) and values[0][:1].isdigit():
            row = dict(zip(FIELDS, values, strict=True))
            if "." not in row["JobID"]:
                rows.append([row])
            elif rows:
                rows[-1].append(row)
    told = [_execution(*row) for row in rows]
    # For a while a list of waiting tasks still holds some that have been started.
    named, attempts = {one.job for one in told}, Counter[str]()
    each = [replace(one, job=job) for one in told for job in _expand(one.job) if job == one.job or job not in named]
    executions = []
    for one in sorted(each, key=lambda one: one.started_at or "later"):
        attempts[one.job] += 1
        executions.append(replace(one, attempt=attempts[one.job]))
    return sorted(executions, key=lambda one: (storage.natural_key(one.job), one.attempt))


def account_of(executions: Sequence[Execution]) -> dict[str, Any]:
    """How the jobs went, in sum: how many executions of each kind, times in seconds, and what they used.

    `wall_seconds` is from the first start to the last end, with all waiting between; None while none has ended.
    `energy_joules` adds up what is known. `final` says that no execution is running or pending, nor about to be.
    """
    begun = [datetime.fromisoformat(one.started_at) for one in executions if one.started_at]
    # What was cancelled in the queue ended, perhaps days later, without a start.
    ended = [datetime.fromisoformat(one.ended_at) for one in executions if one.started_at and one.ended_at]
    kinds = Counter(one.kind for one in executions)
    resident = [one.max_rss_mb for one in executions if one.max_rss_mb is not None]
    energy = [one.energy_joules for one in executions if one.energy_joules is not None]
    # Some seconds pass between the end of an execution that SLURM requeues and the first word of the next.
    waiting = kinds["running"] or kinds["pending"] or "requeued" in _last_kinds(executions)
    return {
        "tasks": len({one.job for one in executions}),
        "executions": len(executions),
        **{kind: kinds[kind] for kind in dict.fromkeys(KINDS.values())},
        "wall_seconds": (max(ended) - min(begun)).total_seconds() if ended else None,
        "core_seconds": sum(one.elapsed_seconds * one.cores for one in executions),
        "gpu_seconds": sum(one.elapsed_seconds * one.gpus for one in executions),
        "max_rss_mb": max(resident, default=None),
        "energy_joules": sum(energy) if energy else None,
        "nodes": sorted({node for one in executions for node in _nodes(one.nodes)}, key=storage.natural_key),
        "final": bool(executions) and not waiting,
    }


def account(run: RunFolder, jobs: Sequence[str], now: Callable[[], float] = time.time) -> dict[str, Any] | None:
    """The account of a run's jobs, asked for at most once a minute and not again once it is final; None if unknown.

    It is remembered in accounting.json, and goes into summary.json and the records of executions that have ended.
    `now` gives seconds since 1970. Raises nothing that a disk or sacct can cause: a folder that cannot be written to is
    not asked about.
    """
    wanted = sorted(set(jobs))
    known = _remembered(run)
    with suppress(StorageError):
        if wanted and shutil.which("sacct") and _is_due(known, wanted, now()):
            known = _ask(run, wanted, known, now())
    told: dict[str, Any] | None = known.get("account")
    if told is not None and wanted and known["jobs"] != wanted:
        told = told | {"final": False}
    with suppress(StorageError):
        summary = run.summary() if told is not None else None
        if summary is not None and summary.get("slurm") != told:  # also one that was written since we asked
            run.write_json(run.summary_path, summary | {"slurm": told})
    return told


def _remembered(run: RunFolder) -> dict[str, Any]:
    try:
        return dict(json.loads(storage.read_if_there(run.accounting_path) or b"{}"))
    except (StorageError, ValueError):
        return {}


def _is_due(known: dict[str, Any], wanted: list[str], now: float) -> bool:
    if not known:
        return True
    if known["jobs"] == wanted and known["account"] and known["account"]["final"]:
        return False
    age = now - datetime.fromisoformat(known["asked_at"]).timestamp()
    return not 0 <= age < ASK_EVERY  # a clock that is ahead of ours must not silence us


def _ask(run: RunFolder, wanted: list[str], known: dict[str, Any], now: float) -> dict[str, Any]:
    """What is known after asking sacct. Raises StorageError if it cannot be written down."""
    known = {"jobs": [], "executions": [], "account": None} | known
    known["asked_at"] = datetime.fromtimestamp(now, UTC).isoformat()
    run.write_json(run.accounting_path, known)  # before asking, which may take long or fail
    if not (executions := read_sacct(wanted)):
        return known
    rows = [asdict(one) for one in executions]
    result = account_of(executions)
    # A new job comes late to the accounting, and one that lost its node may come back: a minute later it has.
    seen = {re.split(r"[_+]", one.job)[0] for one in executions} | {one.job for one in executions}
    lost = _last_kinds(executions) & {"preempted", "node_failed"}
    result["final"] = result["final"] and seen.issuperset(wanted) and not (lost and rows != known["executions"])
    known |= {"jobs": wanted, "executions": rows, "account": result}
    run.write_json(run.accounting_path, known)
    with suppress(StorageError):
        _tell_records(run, executions)
    return known


def _tell_records(run: RunFolder, executions: Sequence[Execution]) -> None:
    """Adds to each record how SLURM saw its execution, once that has ended and nobody else writes the record."""
    ended = {(one.job, one.attempt): one for one in executions if one.ended_at}
    for name, record in run.records().items():
        if record.get("job") is None or record.get("restarts") is None:
            continue
        if one := ended.get((record["job"], record["restarts"] + 1)):
            slurm = {key: getattr(one, key) for key in IN_RECORDS}
            if record.get("slurm") != slurm:
                run.write_json(run.path("records", f"{name}.json"), record | {"slurm": slurm})


def _last_kinds(executions: Sequence[Execution]) -> set[str]:
    """How the last attempts of all jobs stand."""
    return set({one.job: one.kind for one in sorted(executions, key=lambda one: one.attempt)}.values())


def _execution(told: dict[str, str], *steps: dict[str, str]) -> Execution:
    state = told["State"].partition(" ")[0]  # "CANCELLED by 0"
    if state == "FAILED" and any(step["State"] == "OUT_OF_MEMORY" for step in steps):
        state = "OUT_OF_MEMORY"
    code, _, signal = told["ExitCode"].partition(":")
    nodes = told["NodeList"] if told["NodeList"] != "None assigned" else ""
    tres = dict(part.partition("=")[::2] for part in told["AllocTRES"].split(","))
    typed = sum(int(count) for name, count in tres.items() if name.startswith("gres/gpu:"))
    energy = int(told["ConsumedEnergyRaw"] or 0)
    return Execution(
        job=told["JobID"], attempt=1, state=state, exit_code=int(code or 0), signal=int(signal or 0),
        started_at=_time(told["Start"]) if nodes else None,  # cancelled in the queue: "started" when it was cancelled
        ended_at=_time(told["End"]), elapsed_seconds=int(told["ElapsedRaw"] or 0),
        max_rss_mb=max((size for step in steps if (size := _megabytes(step["MaxRSS"])) is not None), default=None),
        energy_joules=energy if 0 < energy < 2**63 else None,  # 0 and "no value" are where nothing is measured
        nodes=nodes, cores=int(told["AllocCPUS"] or 0), gpus=int(tres.get("gres/gpu", typed)),
    )  # fmt: skip


def _time(text: str) -> str | None:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).isoformat() if text[:1].isdigit() else None


def _megabytes(text: str) -> float | None:
    """MB of `218220K`, `213.11M` or plain bytes; none of 0, which was not sampled."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in tuple("KMGTP") else (text, "")
    return float(number) * 1024.0 ** (" KMGTP".index(unit or " ") - 2) or None if number else None


def _nodes(text: str) -> list[str]:
    return [node for part in re.findall(r"(?:\[[^]]*\]|[^,[])+", text) for node in _expand(part)]


def _expand(text: str) -> list[str]:
    """SLURM's short for many: `n[01-02,7]` is n01, n02, n7, and `12_[0-9:3%4]` is 12_0, 12_3, 12_6, 12_9."""
    before, bracket, rest = text.partition("[")
    if not bracket:
        return [text]
    inside, _, after = rest.partition("]")
    numbers = []
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", inside.partition("%")[0]):
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1, int(step or 1))]
    return [before + number + tail for number in numbers for tail in _expand(after)]
