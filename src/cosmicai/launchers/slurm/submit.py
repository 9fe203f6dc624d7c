"""Submits ranks as tasks of SLURM jobs, with submitit: one job of several nodes, or an array of independent tasks."""

from __future__ import annotations

import os
import secrets
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from msgspec import structs
from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmExecutor

from ... import storage
from ...errors import InputError, describe_os_errors
from ...runs.store import RunFolder
from ...storage.s3 import is_s3
from ..base import RankRequest, SlurmRequest
from ..submission import SlurmSubmission, SubmittedRequest
from .allocation import SlurmAllocation
from .commands import SlurmFailure, call_slurm, inherited_options, read_job_number
from .queue import cancel_waiting, list_jobs, name_jobs

ROOT = Path(__file__).parents[4]
CONTAINER = ROOT / "slurm" / "container.sh"
GRACE = 30.0  # seconds for a worker to drop its item
# Words of a site's refusal, and the option that answers it.
DEMANDS = {
    "mem-per-cpu": "--mem-per-cpu, or memory_per_core = true in the site's file",
    "qos": "--qos, or qos in the site's file",
    "constraint": "--constraint, or constraint in the site's file",
    "reservation": "--reservation, or reservation in the site's file",
}
TASK = "task.pkl"  # what each task of a submission runs


class WorkerTask:
    """What each task of a job runs: the worker, in its container where there is an image.

    It is all that submitit pickles. When SLURM signals the end of the time, the worker drops its item and the job
    continues later. Once the run in the folder `run` is complete, waiting jobs with the name `not_needed` are
    cancelled.
    """

    def __init__(self, command: tuple[str, ...], run: str, not_needed: str | None) -> None:
        self.command, self.run, self.not_needed = command, run, not_needed

    def __call__(self) -> None:
        """Run the worker and exit with its code."""
        self._process = subprocess.Popen(self.command)
        code = self._process.wait()
        if self.not_needed and RunFolder(self.run).complete_summary():
            cancel_waiting(self.not_needed)
        sys.exit(code)

    def checkpoint(self) -> DelayedSubmission:
        """Terminate the worker, so that the job can be requeued."""
        self._process.send_signal(signal.SIGTERM)
        # A signal handler calls this during `wait`, which cannot be called a second time meanwhile.
        select.select([os.pidfd_open(self._process.pid)], [], [], GRACE)
        return DelayedSubmission(WorkerTask(self.command, self.run, self.not_needed))


def submit_jobs(
    run: RunFolder, ranks: RankRequest, slurm: SlurmRequest, allocation: SlurmAllocation, worker: tuple[str, ...]
) -> SlurmSubmission:
    """Submit the jobs, whose ranks run `cosmicai WORKER` and need no launcher any more, and return at once.

    Raises InputError if SLURM is not installed here or refuses, or if it is unknown whether it took a job.
    """
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    folder = _folder(run, name, allocation)
    requested = SubmittedRequest(ranks, slurm)
    submission = SlurmSubmission(name, str(folder), requested, worker, datetime.now(UTC).isoformat())
    # The launcher's own interpreter is not in the image.
    program = ("cosmicai",) if slurm.image else (sys.executable, "-m", "cosmicai")
    scripts = list(_scripts(folder, allocation, name, slurm))
    with describe_os_errors(str(folder), "write"):
        folder.mkdir(parents=True)
        not_needed = name_jobs(name) if len(allocation.kinds) > 1 else None
        task = DelayedSubmission(WorkerTask((str(CONTAINER), *program, *worker), run.uri, not_needed))
        task.set_timeout(allocation.arrays[0].parameters.time, slurm.requeues)
        task.dump(folder / TASK)
        for script in scripts:
            script.path.write_text(script.text)
    submission.save(run)  # first, so that jobs are found by their name whatever happens now
    for script in scripts:
        try:
            job = _sbatch(script, known=submission.jobs)
        except SlurmFailure as failure:
            if failure.may_have_passed:
                raise InputError(
                    f"it is unknown whether SLURM has the job {script.job_name} ({failure}); look for it with "
                    f"`python -m launch status {run.uri}`, which knows its name, or `squeue --me --all --name "
                    f"{script.job_name}`, and submit again once you know that it is not there"
                ) from None
            if not submission.jobs:
                storage.remove(run.submission_path(name))
                _remove(folder)
            raise InputError(f"sbatch refused: {failure}{_advise(str(failure))}") from None
        submission = structs.replace(submission, jobs=(*submission.jobs, job))
        submission.save(run)
    return submission


def sbatch_texts(run: RunFolder, slurm: SlurmRequest, allocation: SlurmAllocation) -> Iterator[str]:
    """Yield the script of each sbatch that `submit_jobs` would call. Raises InputError if SLURM is not installed."""
    name = "DRY-RUN"
    for script in _scripts(_folder(run, name, allocation), allocation, name, slurm):
        yield script.text


def environment_notices(environment: Mapping[str, str], text: str) -> list[str]:
    """Return what the variables SBATCH_* of an environment change in a job with this script, and what they do not."""
    applied, ignored = inherited_options(environment, requested_options(text))
    notices = [f"{name}={value} in the environment applies to the jobs too" for name, value in applied.items()]
    for name, option in ignored.items():
        reason = f"the jobs have {option}" if option else "the options of the launcher decide that"
        notices.append(f"{name}={environment[name]} in the environment is ignored: {reason}")
    return notices


@dataclass(frozen=True)
class _Script:
    """The script of a job or an array: what sbatch is given."""

    path: Path
    text: str
    job_name: str


def _scripts(folder: Path, allocation: SlurmAllocation, name: str, slurm: SlurmRequest) -> Iterator[_Script]:
    """Yield the script of each array; a single job is an array of one."""
    if not CONTAINER.exists():
        raise InputError(f"{CONTAINER} is missing; install the project from its checkout (make install)")
    job_name = name_jobs(name)
    first = 0
    tasks = sum(array.tasks for array in allocation.arrays)
    for number, array in enumerate(allocation.arrays):
        try:
            executor = SlurmExecutor(folder, max_num_timeout=slurm.requeues)
        except RuntimeError:
            raise InputError("there is no srun here; --slurm is for a machine from which jobs are submitted") from None
        place = [f"export COSMICAI_ARRAYS={first}/{tasks}"] if len(allocation.arrays) > 1 else []
        setup = [
            *allocation.setup,
            # A rank that does not see SLURM's variables would take itself for the only one.
            f"export COSMICAI_SUBMISSION={name}",
            f"export COSMICAI_WORLD_SIZE={allocation.ranks}",
            *place,
            # submitit looks for a task by the number of its job, which has its own countdown once it was requeued.
            f'task={shlex.quote(str(folder))}/"${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_}}'
            '${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}_submitted.pkl"',
            f'[ -e "$task" ] || cp {shlex.quote(str(folder / TASK))} "$task"',
        ]
        executor.update_parameters(**array.parameters.given(), job_name=job_name, setup=setup)
        if array.tasks > 1:
            executor.parameters["map_count"] = array.tasks
        text = executor._make_submission_file_text(executor._submitit_command_str, "")
        yield _Script(folder / f"{number}_submission.sh", text, job_name)
        first += array.tasks


def _sbatch(script: _Script, known: Collection[str]) -> str:
    """Submit a job and return its number.

    What the script requests is on the command line too, where it precedes the variables of the user's environment. If
    sbatch does not say in the end which number the job has, it is looked for by its name. Raises SlurmFailure.
    """
    options = requested_options(script.text)
    applied, _ = inherited_options(os.environ, options)
    try:
        answer = call_slurm(["sbatch", "--parsable", *options, str(script.path)], attempts=1, variables=applied)
        if number := read_job_number(answer):
            return number
        failure = SlurmFailure(f"sbatch answered {answer.strip()!r}", may_have_passed=True)
    except SlurmFailure as raised:
        failure = raised
    if found := {job.job for job in list_jobs((), [script.job_name]) or []} - set(known):
        return max(found, key=int)
    raise failure


def _remove(folder: Path) -> None:
    """Remove the folder of a submission, and the folders above it that were made for it and are empty."""
    shutil.rmtree(folder)
    with suppress(OSError):  # which says that one is not empty
        folder.parent.rmdir()
        folder.parent.parent.rmdir()


def _advise(text: str) -> str:
    """Return the option by which the user can do what a site's sbatch demands; empty if that is unknown."""
    return next((f"; use {option}" for word, option in DEMANDS.items() if word in text.lower()), "")


def requested_options(text: str) -> list[str]:
    """Return the options of sbatch that a script has in its #SBATCH lines."""
    lines = (line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH "))
    return [option for line in lines for option in shlex.split(line)]


def _folder(run: RunFolder, name: str, allocation: SlurmAllocation) -> Path:
    """Return the folder for submitit's files and the output of the jobs.

    It is in the run folder or, if that is on S3, on the site's scratch.
    """
    if is_s3(run.uri):
        return Path(allocation.scratch, "cosmicai-submissions", name)
    return Path(run.submission_folder(name))
