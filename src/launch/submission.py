"""What was submitted to SLURM for a run, and what SLURM says of it: the run folder is all that need be kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import asdict, dataclass, field
from typing import Any

from cosmicai import storage
from cosmicai.errors import InputError
from cosmicai.ranks.squeue import ANSWER, queued
from cosmicai.run.folder import RunFolder

from .claim import current_launcher, is_dead
from .request import Batch, Request


@dataclass(frozen=True)
class Submission:
    """Jobs that work on a run as one: their SLURM numbers, what was asked for, and the worker's command line."""

    name: str
    folder: str  # of logs and what submitit needs
    options: dict[str, Any]
    worker: tuple[str, ...]
    submitted_at: str
    jobs: tuple[str, ...] = ()

    def asked(self) -> tuple[Request, Batch]:
        """What was asked for, to ask for it again."""
        return Request(**self.options["request"]), Batch(**self.options["batch"])

    def save(self, run: RunFolder) -> None:
        """Writes it into the run folder."""
        run.write_json(run.submission_path(self.name), asdict(self))


def submissions(run: RunFolder) -> list[Submission]:
    """All submissions of a run, oldest first."""
    found = [json.loads(data) for path in run.submission_paths() if (data := storage.read_if_there(path))]
    return [
        Submission(**one | {"worker": tuple(one["worker"]), "jobs": tuple(one["jobs"])})
        for one in sorted(found, key=lambda one: one["submitted_at"])
    ]


def jobs_of(run: RunFolder) -> list[str]:
    """SLURM's numbers of all jobs that were submitted for a run or have worked on it, without those of array tasks."""
    told = [str(record["job"]).partition("_")[0] for record in run.records().values()]
    known = {job for submission in submissions(run) for job in submission.jobs}
    return sorted(known.union(job for job in told if job.isdecimal()), key=int)


@dataclass
class Cancelled:
    """What was stopped: SLURM's jobs, and the process of a launcher."""

    jobs: list[str] = field(default_factory=list)
    process: int | None = None


def cancel(run: RunFolder) -> Cancelled:
    """Stops all that is at work on a run; what is done remains, and the run can be resumed.

    Raises InputError if SLURM does not cancel a job, or a launcher is at work on another machine.
    """
    jobs = queued(jobs_of(run))
    if jobs is None:
        raise InputError(f"squeue does not answer here; stop the jobs {', '.join(jobs_of(run))} where it does")
    stopped = Cancelled(sorted({job.number.partition("_")[0] for job in jobs}, key=int))
    if stopped.jobs:
        # Without it only the steps get SIGTERM, and a batch script would not end its worker in order.
        done = subprocess.run(["scancel", "--full", *stopped.jobs], capture_output=True, text=True, timeout=ANSWER)
        if done.returncode:
            raise InputError(f"scancel {' '.join(stopped.jobs)}: {done.stderr.strip()}")
    launcher = current_launcher(run)
    if launcher is not None:
        dead = is_dead(launcher)
        if dead is None:
            raise InputError(f"process {launcher['pid']} on {launcher['host']} is at work on {run.uri}; stop it there")
        if not dead:
            os.kill(launcher["pid"], signal.SIGTERM)
            stopped.process = launcher["pid"]
    return stopped
