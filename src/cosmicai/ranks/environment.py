"""Who am I: the one mapping from environment variables to rank and world size."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..errors import InputError
from .cores import available_cores

Environment = Mapping[str, str]

RENDEZVOUS = "COSMICAI_RENDEZVOUS"  # HOST:PORT of the server through which ranks find each other


@dataclass(frozen=True)
class Rank:
    """One worker among `world_size`, and among the `local_size` of its machine.

    `threads` are the cores that are its own. `platform` names who started it: alone, local, torchrun, mpi, slurm,
    slurm-array or lambda; `job` is the platform's name of what it started (SLURM's `JOB` or `JOB_TASK`), `restarts`
    how often SLURM has requeued that. `submission` is common to all ranks that share a plan without talking.
    """

    rank: int = 0
    world_size: int = 1
    platform: str = "alone"
    threads: int = 1
    local_rank: int = 0
    local_size: int = 1
    job: str | None = None
    restarts: int = 0
    submission: str | None = None


def rank_from_environment(environment: Environment = os.environ) -> Rank:
    """This process's place among all that were started with it.

    The innermost launcher decides: ours, torchrun, mpirun, srun, a SLURM array, Lambda, none. COSMICAI_WORLD_SIZE is
    how many ranks the user or a launcher asked for, COSMICAI_THREADS how many threads each gets. Raises InputError if a
    variable is missing or no sensible number, or if another number of ranks was started than was asked for.
    """
    rank = next(found for read in _PLATFORMS if (found := read(environment)))
    if "SLURM_JOB_ID" in environment:
        rank = replace(rank, restarts=_whole(environment, "SLURM_RESTART_COUNT", 0))
    asked = _whole(environment, "COSMICAI_WORLD_SIZE", rank.world_size)
    if asked != rank.world_size:
        alone = "finds itself alone" if rank.world_size == 1 else f"finds {rank.world_size} ({rank.platform})"
        raise InputError(
            f"{asked} ranks were asked for (COSMICAI_WORLD_SIZE) and this one {alone}: its launcher's variables do not "
            "reach it; start it with srun, mpirun, torchrun or `python -m launch`, and let a container pass SLURM_*, "
            "PMI*, PMIX_*, OMPI_* and MASTER_*"
        )
    if not 0 <= rank.rank < rank.world_size or rank.threads < 1:
        raise InputError(f"the environment says rank {rank.rank} of {rank.world_size} with {rank.threads} threads")
    return rank


def environment_for(rank: Rank) -> dict[str, str]:
    """The variables from which `rank_from_environment` gives a rank of ours back."""
    return {
        "COSMICAI_RANK": str(rank.rank),
        "COSMICAI_WORLD_SIZE": str(rank.world_size),
        "COSMICAI_THREADS": str(rank.threads),
        "COSMICAI_LOCAL_RANK": str(rank.local_rank),
        "COSMICAI_LOCAL_SIZE": str(rank.local_size),
    } | ({"COSMICAI_JOB": rank.job} if rank.job else {})


def _ours(environment: Environment) -> Rank | None:
    if "COSMICAI_RANK" not in environment:
        return None
    rank, world_size = (_whole(environment, f"COSMICAI_{name}") for name in ("RANK", "WORLD_SIZE"))
    local_rank = _whole(environment, "COSMICAI_LOCAL_RANK", rank)
    local_size = _whole(environment, "COSMICAI_LOCAL_SIZE", world_size)
    threads = _threads(environment, local_size)
    return Rank(rank, world_size, "local", threads, local_rank, local_size, environment.get("COSMICAI_JOB"))


def _torchrun(environment: Environment) -> Rank | None:
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return _started(environment, "torchrun", names, environment["TORCHELASTIC_RUN_ID"])


def _open_mpi(environment: Environment) -> Rank | None:
    if "OMPI_COMM_WORLD_RANK" not in environment:
        return None
    names = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
    return _started(environment, "mpi", names, _slurm_job(environment) or environment.get("PMIX_NAMESPACE"))


def _pmi(environment: Environment) -> Rank | None:
    """MPICH's mpiexec, and `srun --mpi=pmi2`, which says the place on the machine in SLURM's own words."""
    if "PMI_RANK" not in environment:
        return None
    # A batch script has a SLURM_LOCALID of its own, which mpiexec hands on to all its ranks.
    if "SLURM_LOCALID" in environment and "MPI_LOCALRANKID" not in environment:
        return _step(environment, "mpi", "PMI_RANK", "PMI_SIZE")
    names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    return _started(environment, "mpi", names, _slurm_job(environment))


def _pmix(environment: Environment) -> Rank | None:
    """`srun --mpi=pmix`; PMIx itself has no variable for the number of ranks."""
    if "PMIX_RANK" not in environment or "SLURM_STEP_ID" not in environment:
        return None
    return _step(environment, "mpi", "PMIX_RANK", "SLURM_STEP_NUM_TASKS")


def _slurm(environment: Environment) -> Rank | None:
    """A task of srun, of the batch script, or of an array, whose tasks may be several steps' ranks each."""
    if "SLURM_JOB_ID" not in environment:
        return None
    if "SLURM_STEP_ID" in environment:
        return _step(environment, "slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    job = _slurm_job(environment)
    if (tasks := _whole(environment, "SLURM_NTASKS", 1)) > 1:
        raise InputError(
            f"job {job} has {tasks} tasks and this process was started without srun, so it is alone; "
            "start it with `srun python -m cosmicai work RUN`"
        )
    return _in_array(environment, Rank(0, 1, "slurm", _threads(environment, 1), 0, 1, job))


def _step(environment: Environment, platform: str, rank: str, world_size: str) -> Rank:
    """A task of srun, whichever variables say its number and how many there are."""
    names = (rank, world_size, "SLURM_LOCALID", "")
    return _in_array(environment, _started(environment, platform, names, _slurm_job(environment)))


def _slurm_job(environment: Environment) -> str | None:
    if "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment.get('SLURM_ARRAY_JOB_ID')}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def _in_array(environment: Environment, rank: Rank) -> Rank:
    """A rank of an array's task as one of all ranks of the array, and as it is without an array.

    Of `--array=0,3,7-9` a task does not learn which others there are, so that its ranks are those of 0-9, of which some
    never come. COSMICAI_ARRAYS (`FIRST/ALL`) says how many tasks the arrays before this one have, and all together; one
    of them may be of a single task, which is no array to SLURM.
    """
    submission = environment.get("COSMICAI_SUBMISSION")
    place, places = 0, 1
    if "SLURM_ARRAY_TASK_ID" in environment:
        submission = submission or environment.get("SLURM_ARRAY_JOB_ID")
        task, first, last, count = (
            _whole(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "MAX", "COUNT")
        )
        step = _whole(environment, "SLURM_ARRAY_TASK_STEP", 1)
        if (last - first) // step + 1 != count:
            step = 1
        place, places = (task - first) // step, (last - first) // step + 1
    elif "COSMICAI_ARRAYS" not in environment:
        return replace(rank, submission=submission or environment["SLURM_JOB_ID"])
    if "COSMICAI_ARRAYS" in environment:
        found = re.fullmatch("([0-9]+)/([0-9]+)", environment["COSMICAI_ARRAYS"])
        if not found:
            told = f"the environment has COSMICAI_ARRAYS={environment['COSMICAI_ARRAYS']}"
            raise InputError(f"{told}; expected FIRST/ALL, such as 1000/5000, as the launcher sets it")
        place, places = place + int(found[1]), int(found[2])
    return replace(
        rank, rank=place * rank.world_size + rank.rank, world_size=places * rank.world_size, platform="slurm-array",
        submission=submission,
    )  # fmt: skip


def _lambda(environment: Environment) -> Rank | None:
    """Which of the invocations this is, the event tells, not the environment."""
    if "AWS_LAMBDA_FUNCTION_NAME" not in environment:
        return None
    return Rank(platform="lambda", threads=_threads(environment, 1), job=environment["AWS_LAMBDA_FUNCTION_NAME"])


def _alone(environment: Environment) -> Rank:
    return Rank(threads=_threads(environment, 1))


_PLATFORMS: tuple[Callable[[Environment], Rank | None], ...] = (
    _ours, _torchrun, _open_mpi, _pmi, _pmix, _slurm, _lambda, _alone,
)  # fmt: skip


def _started(environment: Environment, platform: str, names: tuple[str, ...], job: str | None) -> Rank:
    """A rank from the names of its four numbers; where one has none, the tasks of this machine are SLURM's to know."""
    rank, world_size, local_rank = (_whole(environment, name) for name in names[:3])
    local_size = _whole(environment, names[3]) if names[3] else _tasks_here(environment, world_size)
    return Rank(rank, world_size, platform, _threads(environment, local_size), local_rank, local_size, job)


def _tasks_here(environment: Environment, world_size: int) -> int:
    """Tasks of this step on this node, from SLURM's compressed list (`2(x3),1`: two on each of three nodes, then one).

    SLURM_NODEID counts the step's nodes as the list does.
    """
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE", str(world_size))
    counts: list[int] = []
    for part in listed.split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        counts += [int(tasks)] * int(times or 1)
    return counts[_whole(environment, "SLURM_NODEID", 0) % len(counts)]


def _threads(environment: Environment, local_size: int) -> int:
    """Cores of a rank: what it is bound to, but no more than its share of the machine."""
    if "COSMICAI_THREADS" in environment:
        return _whole(environment, "COSMICAI_THREADS")
    if "SLURM_STEP_ID" in environment and "SLURM_CPUS_PER_TASK" in environment:
        share = _whole(environment, "SLURM_CPUS_PER_TASK")
    else:
        share = _whole(environment, "SLURM_CPUS_ON_NODE", os.cpu_count() or 1) // max(1, local_size)
    return max(1, min(share, available_cores()))


def _whole(environment: Environment, name: str, default: int | None = None) -> int:
    """A variable that is a whole number. Raises InputError if it is none, or not set and without a default."""
    value = environment.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(value or "")
    except ValueError:
        raise InputError(
            f"the environment has {name}={value or ''}; expected a whole number, as the launcher sets it"
        ) from None
