"""A run by a SLURM array that is submitted, awaited and measured."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from ..errors import InputError
from ..launchers.slurm.commands import SlurmFailure, call_slurm, inherited_options, read_job_number
from ..launchers.slurm.queue import list_jobs
from ..measurement.subprocesses import last_line
from ..runs.record import Record
from ..runs.store import RunFolder

ROOT = Path(__file__).parents[3]
SCRIPT = "jobs/infer_array.sh"
MEMORY_MB = 1000  # per core of a task, as in the script
POLL_INTERVAL, QUEUE_INTERVAL = 0.2, 2.0  # seconds between checks of the run folder, and requests to SLURM's controller


@dataclass(frozen=True)
class TaskTiming:
    """When a task ran, from its record.

    The batch script started its process at `started_at`; it read its first galaxies at `working_at` and wrote its
    record for the last time at `ended_at`.
    """

    job: str
    started_at: datetime
    working_at: datetime
    ended_at: datetime
    items: int

    @property
    def overhead_seconds(self) -> float:
        """Seconds from the start of the process to the first galaxies: imports, plan, engine."""
        return (self.working_at - self.started_at).total_seconds()


@dataclass(frozen=True)
class ArrayRun:
    """A complete run by one array: seconds of sbatch, seconds from its call to the complete summary, and its tasks."""

    sbatch_seconds: float
    chain_seconds: float
    submitted_at: datetime
    tasks: tuple[TaskTiming, ...]
    catalogue_sha256: str
    machines: tuple[str, ...]

    @property
    def working_tasks(self) -> list[TaskTiming]:
        """The tasks that had work to do."""
        return [task for task in self.tasks if task.items]


def run_array(survey: str, weights: str, out: str, tasks: int, cores: int, *options: str) -> ArrayRun:
    """Submit a run as an array, wait for it and measure it; `options` are those of `cosmicai infer`.

    Cancels the array if it is interrupted. Raises InputError if sbatch refuses, the run is not completed, or a task
    left no record.
    """
    run = RunFolder(out)
    logs = Path(f"{out}.logs")
    logs.mkdir(parents=True)
    command = [
        "sbatch", "--parsable", f"--array=0-{tasks - 1}", f"--cpus-per-task={cores}", f"--mem={MEMORY_MB * cores}M",
        f"--output={logs}/slurm-%A_%a.out", str(ROOT / SCRIPT), survey, run.uri, weights,
    ]  # fmt: skip
    variables = {
        "COSMICAI_ROOT": str(ROOT),
        "COSMICAI_INFER_OPTIONS": " ".join(options),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    begin = time.time()
    try:
        applied, _ = inherited_options(os.environ, command[1:])  # the account and the partition, for instance
        answer = call_slurm(command, attempts=1, variables=applied | variables)
    except SlurmFailure as failure:
        raise InputError(f"sbatch refused: {failure}") from None
    sbatch_seconds = time.time() - begin
    if not (job := read_job_number(answer)):
        raise InputError(f"sbatch answered {answer.strip()!r}; expected the number of a job")
    completed_at = _wait_for_array(job, run)
    records = list(run.records().values())
    summary = run.summary()
    missing = tasks - len({record.job for record in records})
    if completed_at is None or summary is None or missing:
        problem = f"{missing} of {tasks} tasks left no record" if missing else "the run is not complete"
        raise InputError(f"array {job}: {problem}; {_quote_log(logs, {str(record.job) for record in records})}")
    return ArrayRun(
        sbatch_seconds, completed_at - begin, datetime.fromtimestamp(begin).astimezone(), read_tasks(records),
        summary.catalogue_sha256, summary.machines,
    )  # fmt: skip


def read_tasks(records: Iterable[Record]) -> tuple[TaskTiming, ...]:
    """Return the timings of the tasks that wrote these records."""
    timings = []
    for record in records:
        started, working, ended = (
            datetime.fromisoformat(text) for text in (record.started_at, record.working_at, record.updated_at)
        )
        # The record was created when the process had this age.
        started -= timedelta(seconds=record.seconds.start)
        timings.append(TaskTiming(str(record.job), started, working, ended, record.items))
    return tuple(timings)


def _wait_for_array(job: str, run: RunFolder) -> float | None:
    """Wait until an array has left the queue, and return when its run was complete in seconds since 1970, or None.

    The array is cancelled if anything is raised.
    """
    completed_at, requested_at = None, time.monotonic()
    try:
        while True:
            time.sleep(POLL_INTERVAL)
            completed_at = completed_at or _completion_time(run)  # the first, since a later task may write it again
            if time.monotonic() - requested_at >= QUEUE_INTERVAL:
                if list_jobs([job]) == []:
                    return completed_at or _completion_time(run)
                requested_at = time.monotonic()
    except BaseException:
        with suppress(SlurmFailure):
            call_slurm(["scancel", job])
        raise


def _completion_time(run: RunFolder) -> float | None:
    """Return when the summary was written, in seconds since 1970, or None unless it exists and is complete."""
    return Path(run.summary_path).stat().st_ctime if run.complete_summary() else None


def _quote_log(logs: Path, recorded: set[str]) -> str:
    """Return the last line of a task's log, if possible of one without a record."""
    files = sorted(logs.glob("slurm-*.out"), key=lambda file: (file.stem.removeprefix("slurm-") in recorded, file.name))
    return f"{files[0].name} ends with: {last_line(files[0].read_text(errors='replace'))}" if files else "none started"
