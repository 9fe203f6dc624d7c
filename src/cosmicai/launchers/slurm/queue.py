"""The jobs of a run, and how they stand in SLURM's queue."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from ...errors import InputError
from ...runs.store import RunFolder, ignore
from ..submission import read_submissions
from .commands import SlurmFailure, call_slurm

LINE = re.compile(r"(\d+(?:[_+]\S+)?)\|([A-Z_]+)\|([^|]*)\|(.*)")


@dataclass(frozen=True)
class QueuedJob:
    """A job, or a task of an array, in SLURM's queue.

    `number` is `12` or `12_3`, `state` is SLURM's word, and `reason` is why the job waits.
    """

    number: str
    state: str
    name: str
    reason: str

    @property
    def job(self) -> str:
        """The number of the job or of the whole array."""
        return re.split("[_+]", self.number)[0]


def job_numbers(run: RunFolder) -> list[str]:
    """Return the numbers of all jobs that were submitted for a run or have worked on it, without those of tasks."""
    recorded = [str(record.job).partition("_")[0] for record in run.records(ignore).values()]
    submitted = {job for submission in read_submissions(run) for job in submission.jobs}
    return sorted(submitted.union(job for job in recorded if job.isdecimal()), key=int)


def name_jobs(submission: str) -> str:
    """Return the name of the jobs of a submission, by which they are found if their numbers did not arrive."""
    return f"cosmicai-{submission}"


def list_run_jobs(run: RunFolder) -> list[QueuedJob] | None:
    """Return the jobs and tasks that are waiting for a run or working on it.

    None if SLURM is not installed here or does not answer.
    """
    numbers, names = job_numbers(run), [name_jobs(submission.name) for submission in read_submissions(run)]
    return list_jobs(numbers, names)


def list_jobs(numbers: Collection[str], names: Collection[str] = ()) -> list[QueuedJob] | None:
    """Return the waiting and running jobs that have one of these numbers or names; None if SLURM does not answer."""
    if not numbers and not names:
        return []
    try:
        # All of the user's jobs, since squeue fails for a number that the controller has forgotten, and also those in
        # hidden partitions. Lines that a site adds have another form.
        answer = call_slurm(["squeue", "--me", "--all", "--noheader", "--format=%i|%T|%j|%r"])
    except SlurmFailure:
        return None
    found = [QueuedJob(*line.groups()) for text in answer.splitlines() if (line := LINE.fullmatch(text.strip()))]
    return [job for job in found if (job.job in numbers or job.name in names) and job.state != "COMPLETING"]


def cancel_jobs(jobs: Collection[str]) -> None:
    """Cancel jobs, whose workers end in order. Raises InputError if SLURM refuses."""
    # Without --full only the steps get SIGTERM, and a batch script would not end its worker in order.
    try:
        call_slurm(["scancel", "--full", *jobs])
    except SlurmFailure as failure:
        raise InputError(f"scancel {' '.join(jobs)}: {failure}") from None


def cancel_waiting(name: str) -> None:
    """Cancel the jobs with this name that have not started; if SLURM refuses, they start and find nothing to do."""
    with suppress(SlurmFailure):
        call_slurm(["scancel", "--me", "--state=PENDING", f"--name={name}"])
