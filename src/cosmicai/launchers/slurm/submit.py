"""Submits ranks as tasks of SLURM jobs, with submitit: one job of several nodes, or an array of independent tasks."""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import submitit
from msgspec import structs
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmExecutor

from ...errors import InputError, describe_os_errors
from ...runs.store import RunFolder
from ...storage.s3 import is_s3
from ..base import RankRequest, SlurmRequest
from ..submission import SlurmSubmission, SubmittedRequest
from .allocation import SlurmAllocation

ROOT = Path(__file__).parents[4]
CONTAINER = ROOT / "slurm" / "container.sh"
GRACE = 30.0  # seconds for a worker to drop its item


class WorkerTask:
    """What each task of a job runs: the worker, in its container where there is an image.

    It is all that submitit pickles. When SLURM signals the end of the time, the worker drops its item and the job
    continues later.
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        self.command = command

    def __call__(self) -> None:
        """Run the worker and exit with its code."""
        self._process = subprocess.Popen(self.command)
        sys.exit(self._process.wait())

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Terminate the worker, so that the job can be requeued."""
        self._process.send_signal(signal.SIGTERM)
        # A signal handler calls this during `wait`, which cannot be called a second time meanwhile.
        select.select([os.pidfd_open(self._process.pid)], [], [], GRACE)
        return submitit.helpers.DelayedSubmission(WorkerTask(self.command))


def submit_jobs(
    run: RunFolder, ranks: RankRequest, slurm: SlurmRequest, allocation: SlurmAllocation, worker: tuple[str, ...]
) -> SlurmSubmission:
    """Submit the jobs, whose ranks run `cosmicai WORKER` and need no launcher any more, and return at once.

    Raises InputError if SLURM is not installed here or refuses.
    """
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    folder = _folder(run, name, allocation)
    requested = SubmittedRequest(ranks, slurm)
    submission = SlurmSubmission(name, str(folder), requested, worker, datetime.now(UTC).isoformat())
    # The launcher's own interpreter is not in the image.
    program = ("cosmicai",) if slurm.image else (sys.executable, "-m", "cosmicai")
    command = (str(CONTAINER), *program, *worker)
    with describe_os_errors(str(folder), "write"):
        folder.mkdir(parents=True)
    for executor, size in _executors(folder, allocation, name, slurm):
        try:
            with redirect_stderr(StringIO()):  # the error has what sbatch prints
                [first, *_] = executor.submit_array([WorkerTask(command) for _ in range(size)])
        except FailedJobError as error:
            if not submission.jobs:
                shutil.rmtree(folder)
            raise InputError(f"sbatch refused: {_sbatch_message(str(error))}") from None
        submission = structs.replace(submission, jobs=(*submission.jobs, first.job_id.partition("_")[0]))
        submission.save(run)
    return submission


def sbatch_texts(run: RunFolder, slurm: SlurmRequest, allocation: SlurmAllocation) -> Iterator[str]:
    """Yield the script of each sbatch that `submit_jobs` would call. Raises InputError if SLURM is not installed."""
    name = "DRY-RUN"
    for executor, size in _executors(_folder(run, name, allocation), allocation, name, slurm):
        if size > 1:
            executor.parameters["map_count"] = size
        yield executor._make_submission_file_text(executor._submitit_command_str, "")


def _executors(
    folder: Path, allocation: SlurmAllocation, name: str, slurm: SlurmRequest
) -> Iterator[tuple[SlurmExecutor, int]]:
    """Yield an executor for each array, and its number of tasks; a single job is an array of one."""
    if not CONTAINER.exists():
        raise InputError(f"{CONTAINER} is missing; install the project from its checkout (make install)")
    # A rank that does not see SLURM's variables would take itself for the only one.
    variables = [f"export COSMICAI_SUBMISSION={name}", f"export COSMICAI_WORLD_SIZE={allocation.ranks}"]
    first = 0
    for size in allocation.arrays:
        try:
            executor = SlurmExecutor(folder, max_num_timeout=slurm.requeues)
        except RuntimeError:
            raise InputError("there is no srun here; --slurm is for a machine from which jobs are submitted") from None
        several = len(allocation.arrays) > 1
        place = [f"export COSMICAI_ARRAYS={first}/{sum(allocation.arrays)}"] if several else []
        executor.update_parameters(**allocation.parameters.given(), setup=[*allocation.setup, *variables, *place])
        yield executor, size
        first += size


def _folder(run: RunFolder, name: str, allocation: SlurmAllocation) -> Path:
    """Return the folder for submitit's files and the output of the jobs.

    It is in the run folder or, if that is on S3, on the site's scratch.
    """
    if is_s3(run.uri):
        return Path(allocation.scratch, "cosmicai-submissions", name)
    return Path(run.submission_folder(name))


def _sbatch_message(text: str) -> str:
    """Return what sbatch printed, from the text of submitit's error."""
    lines = [line.removeprefix("sbatch: error: ") for line in text.splitlines() if line.startswith("sbatch: error: ")]
    return "; ".join(lines) or text.strip().splitlines()[-1]
