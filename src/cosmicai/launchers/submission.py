"""What was submitted to SLURM or to the cloud for a run: the run folder is all that need be kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import storage
from ..errors import InputError
from ..runs.store import RunFolder
from .lock import current_launcher, is_dead
from .request import Batch, Request
from .slurm.queue import ANSWER, queued


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


@dataclass(frozen=True)
class CloudRun:
    """A run in the cloud, as the cloud.json of its folder here says: its address on S3, the stack and how to reach it,
    its executions (ARNs, oldest first) and what they were started with."""

    run: str
    stack: str
    region: str
    profile: str | None
    endpoint_url: str | None
    executions: tuple[str, ...]
    payload: dict[str, Any]
    submitted_at: str

    @property
    def execution(self) -> str | None:
        """The newest one."""
        return self.executions[-1] if self.executions else None

    def to_json(self) -> bytes:
        """As it is written."""
        return (json.dumps(asdict(self) | {"execution": self.execution}, indent=1) + "\n").encode()


def cloud_run(run: RunFolder) -> CloudRun | None:
    """The run in the cloud that a folder is for; None if there is none. Raises InputError if its file is damaged."""
    data = storage.read_if_there(run.cloud_path)
    if data is None:
        return None
    try:
        told = json.loads(data)
        del told["execution"]
        return CloudRun(**told | {"executions": tuple(told["executions"])})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{run.cloud_path} is damaged ({error!r}); put back what `python -m launch` wrote") from None


@dataclass
class Cancelled:
    """What was stopped: SLURM's jobs, the process of a launcher, and an execution in the cloud."""

    jobs: list[str] = field(default_factory=list)
    process: int | None = None
    execution: str | None = None


def cancel(run: RunFolder) -> Cancelled:
    """Stops all that is at work on a run; what is done remains, and the run can be resumed.

    Raises InputError if SLURM or AWS does not stop it, or a launcher is at work on another machine.
    """
    if submitted := cloud_run(run):
        from .aws.launcher import stop

        return Cancelled(execution=stop(submitted))
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
