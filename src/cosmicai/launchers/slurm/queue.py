"""The jobs of a run, and how they stand in SLURM's queue."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from dataclasses import dataclass

from ...errors import InputError
from ...runs.store import RunFolder, ignore
from ..submission import read_submissions

CONTROLLER_TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class QueuedJob:
    """A job, or a task of an array, in SLURM's queue: its number, its state in SLURM's words, and why it waits."""

    number: str
    state: str
    reason: str


def job_numbers(run: RunFolder) -> list[str]:
    """Return the numbers of all jobs that were submitted for a run or have worked on it, without those of tasks."""
    recorded = [str(record.job).partition("_")[0] for record in run.records(ignore).values()]
    submitted = {job for submission in read_submissions(run) for job in submission.jobs}
    return sorted(submitted.union(job for job in recorded if job.isdecimal()), key=int)


def list_jobs(jobs: Collection[str]) -> list[QueuedJob] | None:
    """Return those of some jobs and arrays that are waiting or running.

    None if SLURM is not installed here or does not answer.
    """
    if not jobs:
        return []
    try:
        # All of the user's jobs, since squeue fails for a number that the controller has forgotten.
        command = ["squeue", "--me", "--noheader", "--format=%i|%T|%r"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=CONTROLLER_TIMEOUT)
    except (OSError, subprocess.SubprocessError):
        return None
    found = [QueuedJob(*line.split("|", 2)) for line in answer.stdout.splitlines()]
    return [job for job in found if job.number.partition("_")[0] in jobs and job.state != "COMPLETING"]


def cancel_jobs(jobs: Collection[str]) -> None:
    """Cancel jobs, whose workers end in order. Raises InputError if SLURM refuses."""
    # Without --full only the steps get SIGTERM, and a batch script would not end its worker in order.
    done = subprocess.run(["scancel", "--full", *jobs], capture_output=True, text=True, timeout=CONTROLLER_TIMEOUT)
    if done.returncode:
        raise InputError(f"scancel {' '.join(jobs)}: {done.stderr.strip()}")
