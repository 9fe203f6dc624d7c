"""Ranks as tasks of SLURM jobs, through submitit: one job of several nodes, or an array of independent tasks."""

from __future__ import annotations

import os
import secrets
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmExecutor

from ...errors import InputError, explained
from ...runs.record import git_commit
from ...runs.store import RunFolder
from ...storage.s3 import is_s3
from ..request import Batch, Request
from ..submission import Submission
from .sif import inspected
from .site import Site, load_site, seconds_of

ROOT = Path(__file__).parents[4]
CONTAINER = ROOT / "slurm" / "container.sh"
GRACE = 30.0  # seconds for a worker to drop its item
SIGNAL_EARLY = 60  # seconds before the end of a job's time
MEMORY_MB = {"cpu": 1000, "cuda": 6000}  # of a rank: measured were 200 to 600 MB on CPUs
FIRST_MEMORY_MB = 500  # of a node's first rank in addition: it may be the one that makes the catalogue
CORES = 4  # of a rank, where a node has so many for each


class Worker:
    """What each task of a job runs: the worker, in its container where there is an image.

    It is all that submitit pickles. On SLURM's signal the worker drops its item and the job goes on later.
    """

    def __init__(self, command: tuple[str, ...]) -> None:
        self.command = command

    def __call__(self) -> None:
        """Runs it and ends with its exit code."""
        self._process = subprocess.Popen(self.command)
        sys.exit(self._process.wait())

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Ends it, so that the job can be requeued."""
        self._process.send_signal(signal.SIGTERM)
        # A signal handler calls this while the process is waited for, and one cannot do that twice at a time.
        select.select([os.pidfd_open(self._process.pid)], [], [], GRACE)
        return submitit.helpers.DelayedSubmission(Worker(self.command))


@dataclass(frozen=True)
class Granted:
    """A request as a site grants it: sbatch's parameters, the setup of its script, tasks of each array; and of all
    jobs together the ranks, cores, GPUs, seconds at most, and price of an hour if that is known. `scratch` is a folder
    that all nodes see, `notices` is what the user should know."""

    parameters: dict[str, Any]
    setup: tuple[str, ...]
    arrays: tuple[int, ...]
    ranks: int
    cores: int
    gpus: int
    seconds: int
    service_units_per_hour: float | None
    computes_on_gpus: bool
    scratch: str
    notices: tuple[str, ...] = ()


def granted(request: Request, batch: Batch, environment: Mapping[str, str]) -> Granted:
    """Fits a request into a site. Raises InputError if the site does not grant it, with the limit that it breaks."""
    site = load_site(batch.site, environment)
    site.require_account(batch.account)
    if batch.image is not None and not Path(batch.image).exists():
        raise InputError(f"--image {batch.image} does not exist; build it with containers/sif.sh or leave --image out")
    inside = inspected(batch.image) if batch.image else None
    seconds, hours = seconds_of(batch.time), seconds_of(batch.time) / 3600
    per_node, on_gpus = request.per_node, bool(request.gpus)
    gres = site.gres(batch.gpu_kind, per_node) if on_gpus else None
    compute = on_gpus and site.gpu(batch.gpu_kind).computes
    if compute and inside and inside.variant == "cpu":
        raise InputError(
            f"--image {batch.image} was built without CUDA and --gpus {request.gpus} asks for GPUs; build another with "
            "containers/build.sh --variant cuda, or use --procs"
        )
    cores, tasks = _cores(site, batch, request), batch.tasks or 1
    memory = batch.memory_mb or FIRST_MEMORY_MB + MEMORY_MB["cuda" if compute else "cpu"] * per_node
    partition = site.partition(
        batch.partition, nodes=request.nodes, cores_per_node=cores * per_node, memory_mb_per_node=memory,
        gpus=request.gpus or 0, hours=hours, kind=batch.gpu_kind,
    )  # fmt: skip
    all_cores, all_gpus = cores * request.ranks * tasks, (request.gpus or 0) * tasks
    parameters = {
        "job_name": "cosmicai", "partition": partition.name, "account": batch.account, "nodes": request.nodes,
        "ntasks_per_node": per_node, "cpus_per_task": cores, "mem": f"{memory}M", "gres": gres,
        "time": -(-seconds // 60), "signal_delay_s": SIGNAL_EARLY, "array_parallelism": tasks, "stderr_to_stdout": True,
        # Since 22.05 srun does not take the cores of a task from sbatch; a worker that finds PMIx's variables would
        # take itself for one of MPI.
        "srun_args": ["--mpi=none", f"--cpus-per-task={cores}"], "additional_parameters": {"requeue": True},
    }  # fmt: skip
    modules = [f"module load {shlex.quote(module)}" for module in site.modules] if batch.image else []
    image = str(Path(batch.image).absolute()) if batch.image else ""
    return Granted(
        {name: value for name, value in parameters.items() if value is not None},
        (*modules, f"export COSMICAI_IMAGE={shlex.quote(image)}"),
        tuple(site.array_sizes(tasks)), request.ranks * tasks, all_cores, all_gpus, seconds,
        site.service_units(all_cores, all_gpus, batch.gpu_kind, 1.0, memory_mb=memory * request.nodes * tasks), compute,
        site.scratch, tuple(inside.notices(git_commit())) if inside else (),
    )  # fmt: skip


def launch(run: RunFolder, request: Request, batch: Batch, job: Granted, worker: tuple[str, ...]) -> Submission:
    """Submits the jobs, whose ranks run `cosmicai WORKER`, and returns at once; they need nobody who waits for them.

    Raises InputError if SLURM is not here or refuses.
    """
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    folder = _folder(run, name, job)
    options = {"request": asdict(request), "batch": asdict(batch)}
    submission = Submission(name, str(folder), options, worker, datetime.now(UTC).isoformat())
    # The launcher's own interpreter is not in the image.
    program = ("cosmicai",) if batch.image else (sys.executable, "-m", "cosmicai")
    command = (str(CONTAINER), *program, *worker)
    with explained(str(folder), "write"):
        folder.mkdir(parents=True)
    for executor, size in _executors(folder, job, name, batch):
        try:
            with redirect_stderr(StringIO()):  # what sbatch says is in the error too
                [first, *_] = executor.submit_array([Worker(command) for _ in range(size)])
        except FailedJobError as error:
            if not submission.jobs:
                shutil.rmtree(folder)
            raise InputError(f"sbatch refused: {_sentence(str(error))}") from None
        submission = replace(submission, jobs=(*submission.jobs, first.job_id.partition("_")[0]))
        submission.save(run)
    return submission


def sbatch_texts(run: RunFolder, batch: Batch, job: Granted) -> Iterator[str]:
    """The script of each sbatch that `launch` would call. Raises InputError if SLURM is not here."""
    name = "DRY-RUN"
    for executor, size in _executors(_folder(run, name, job), job, name, batch):
        if size > 1:
            executor.parameters["map_count"] = size
        yield executor._make_submission_file_text(executor._submitit_command_str, "")


def _executors(folder: Path, job: Granted, name: str, batch: Batch) -> Iterator[tuple[SlurmExecutor, int]]:
    """An executor for each array, and its number of tasks; a single job is an array of one."""
    if not CONTAINER.exists():
        raise InputError(f"{CONTAINER} is missing; install the project from its checkout (make install)")
    # A rank that does not see SLURM's variables would take itself for the only one.
    own = [f"export COSMICAI_SUBMISSION={name}", f"export COSMICAI_WORLD_SIZE={job.ranks}"]
    first = 0
    for size in job.arrays:
        try:
            executor = SlurmExecutor(folder, max_num_timeout=batch.requeues)
        except RuntimeError:
            raise InputError("there is no srun here; --slurm is for a machine from which jobs are submitted") from None
        arrays = [f"export COSMICAI_ARRAYS={first}/{sum(job.arrays)}"] if len(job.arrays) > 1 else []
        executor.update_parameters(**job.parameters, setup=[*job.setup, *own, *arrays])
        yield executor, size
        first += size


def _folder(run: RunFolder, name: str, job: Granted) -> Path:
    """For what the jobs print and submitit needs: in the run folder or, if that is on S3, on the site's scratch."""
    return Path(job.scratch, "cosmicai-submissions", name) if is_s3(run.uri) else Path(run.submission_folder(name))


def _cores(site: Site, batch: Batch, request: Request) -> int:
    if batch.cores is not None:
        return batch.cores
    smallest = min((p.cores_per_node for p in site.partitions if p.cores_per_node), default=CORES)
    return max(1, min(CORES, smallest // request.per_node))


def _sentence(text: str) -> str:
    """What sbatch itself said, of an error in which submitit wraps it."""
    lines = [line.removeprefix("sbatch: error: ") for line in text.splitlines() if line.startswith("sbatch: error: ")]
    return "; ".join(lines) or text.strip().splitlines()[-1]
