"""The one mapping from environment variables to rank and world size, for every launcher."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..errors import InputError
from .cores import available_cores

Environment = Mapping[str, str]

CONTAINER_CLUSTERS = {"KUBERNETES_SERVICE_HOST": "Kubernetes", "ECS_CONTAINER_METADATA_URI_V4": "Amazon ECS"}
SITE_NAME = "COSMICAI_SITE_NAME"  # of the profile with which a SLURM job was submitted
RENDEZVOUS = "COSMICAI_RENDEZVOUS"  # HOST:PORT of the server through which ranks find each other
MAX_RANKS = 1_000_000  # of one run; a larger number is a mistake, and would be paid for in memory
MAX_THREADS = 4096  # of one rank; likewise


@dataclass(frozen=True)
class Rank:
    """The place of one process in a run: a number below `world_size`, and one below `local_size` on its machine.

    `platform` is the launcher that started it: alone, local, torchrun, mpi, slurm, slurm-array or lambda. `threads` is
    the number of cores for this rank alone. `job` is the platform's identifier of the job (SLURM: `JOB` or `JOB_TASK`),
    `restarts` how often SLURM has requeued it. `site` is the name of the site profile with which the launcher submitted
    the job, `cluster` the name that the cluster gives itself; both are None outside of clusters. `submission`
    identifies the ranks that share a plan without communicating; None if the ranks communicate or are supervised.
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
    site: str | None = None
    cluster: str | None = None


def rank_from_environment(environment: Environment = os.environ) -> Rank:
    """Return this process's place among all ranks that were started with it.

    The innermost launcher decides, in this order: `python -m launch`, torchrun, mpirun, srun, a SLURM array, Lambda,
    none. COSMICAI_WORLD_SIZE is the number of ranks that the user or a launcher has requested, COSMICAI_THREADS the
    number of threads per rank. Raises InputError if a variable is missing or is not a sensible number, if there are
    more than MAX_RANKS ranks or MAX_THREADS threads, or if the number of ranks differs from the requested one.
    """
    rank = next(found for read in _LAUNCHERS if (found := read(environment)))
    if "SLURM_JOB_ID" in environment:
        restarts = _read_integer(environment, "SLURM_RESTART_COUNT", 0)
        rank = replace(rank, restarts=restarts, site=environment.get(SITE_NAME) or None)
    rank = replace(rank, cluster=_find_cluster(environment))
    requested = _read_size(environment, "COSMICAI_WORLD_SIZE", rank.world_size)
    if requested != rank.world_size:
        actual = "that it is alone" if rank.world_size == 1 else f"{rank.world_size} ({rank.platform})"
        raise InputError(
            f"{requested} ranks were requested (COSMICAI_WORLD_SIZE) and this rank finds {actual}: its launcher's "
            "variables do not reach it; start it with srun, mpirun, torchrun or `python -m launch`, and let a "
            "container pass SLURM_*, PMI*, PMIX_*, OMPI_* and MASTER_*"
        )
    if not 0 <= rank.rank < rank.world_size or rank.threads < 1:
        raise InputError(
            f"the environment describes rank {rank.rank} of {rank.world_size} with {rank.threads} threads; "
            "expected a rank from 0 to world size - 1 and at least one thread"
        )
    return rank


def describe_ignored(rank: Rank, environment: Environment = os.environ) -> list[str]:
    """Return a sentence on variables of torch.distributed that have no effect on this rank, if there are any."""
    names = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name in environment]
    connects = rank.platform == "torchrun" or (rank.platform == "slurm" and rank.world_size > 1)
    if connects or not names or rank.platform == "local" or rank.rank > 0:
        return []
    return [
        f"{', '.join(names)} in the environment {'is' if len(names) == 1 else 'are'} ignored: torchrun did not "
        f"start this process, which is rank {rank.rank} of {rank.world_size} ({rank.platform})"
    ]


def environment_for(rank: Rank) -> dict[str, str]:
    """Return the variables that describe a rank of `python -m launch`, the inverse of `rank_from_environment`."""
    return {
        "COSMICAI_RANK": str(rank.rank),
        "COSMICAI_WORLD_SIZE": str(rank.world_size),
        "COSMICAI_THREADS": str(rank.threads),
        "COSMICAI_LOCAL_RANK": str(rank.local_rank),
        "COSMICAI_LOCAL_SIZE": str(rank.local_size),
    } | ({"COSMICAI_JOB": rank.job} if rank.job else {})


def _from_launch(environment: Environment) -> Rank | None:
    if "COSMICAI_RANK" not in environment:
        return None
    rank, world_size = _read_integer(environment, "COSMICAI_RANK"), _read_size(environment, "COSMICAI_WORLD_SIZE")
    local_rank = _read_integer(environment, "COSMICAI_LOCAL_RANK", rank)
    local_size = _read_size(environment, "COSMICAI_LOCAL_SIZE", world_size)
    threads = _threads_per_rank(environment, local_size)
    return Rank(rank, world_size, "local", threads, local_rank, local_size, environment.get("COSMICAI_JOB"))


def _from_torchrun(environment: Environment) -> Rank | None:
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return _read_rank(environment, "torchrun", names, environment["TORCHELASTIC_RUN_ID"])


def _from_open_mpi(environment: Environment) -> Rank | None:
    if "OMPI_COMM_WORLD_RANK" not in environment:
        return None
    names = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
    return _read_rank(environment, "mpi", names, _slurm_job(environment) or environment.get("PMIX_NAMESPACE"))


def _from_pmi(environment: Environment) -> Rank | None:
    """Read the variables of MPICH's mpiexec, or of `srun --mpi=pmi2`, whose local rank only SLURM's variables hold."""
    if "PMI_RANK" not in environment:
        return None
    # A batch script has a SLURM_LOCALID of its own, which mpiexec passes on to all its ranks.
    if "SLURM_LOCALID" in environment and "MPI_LOCALRANKID" not in environment:
        return _read_step(environment, "mpi", "PMI_RANK", "PMI_SIZE")
    names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    return _read_rank(environment, "mpi", names, _slurm_job(environment))


def _from_pmix(environment: Environment) -> Rank | None:
    """Read the variables of `srun --mpi=pmix`; PMIx itself has none for the number of ranks."""
    if "PMIX_RANK" not in environment or "SLURM_STEP_ID" not in environment:
        return None
    return _read_step(environment, "mpi", "PMIX_RANK", "SLURM_STEP_NUM_TASKS")


def _from_slurm(environment: Environment) -> Rank | None:
    """Read the variables of a task of srun, of a batch script, or of an array task, which may run steps of its own."""
    if "SLURM_JOB_ID" not in environment:
        return None
    job = _slurm_job(environment)
    is_shell = "SLURM_PTY_PORT" in environment  # of `srun --pty`, where only one of the tasks has a shell
    if "SLURM_STEP_ID" in environment and not is_shell:
        return _read_step(environment, "slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    counter = "SLURM_STEP_NUM_TASKS" if is_shell else "SLURM_NTASKS"
    if (tasks := _read_size(environment, counter, 1)) > 1:
        raise InputError(
            f"job {job} has {tasks} tasks and this process was started without srun, so it could be one of {tasks} "
            "ranks or alone; start ranks on this machine with `python -m launch --procs N`, those of the job with "
            f"`srun python -m cosmicai work RUN`, or go on alone with `env -u {counter}` in front of the command"
        )
    return _place_in_array(environment, Rank(0, 1, "slurm", _threads_per_rank(environment, 1), 0, 1, job))


def _from_lambda(environment: Environment) -> Rank | None:
    """Read the variables of AWS Lambda; the rank and world size are in the event of the invocation instead."""
    if "AWS_LAMBDA_FUNCTION_NAME" not in environment:
        return None
    threads = _threads_per_rank(environment, 1)
    return Rank(platform="lambda", threads=threads, job=environment["AWS_LAMBDA_FUNCTION_NAME"])


def _without_launcher(environment: Environment) -> Rank:
    return Rank(threads=_threads_per_rank(environment, 1))


_LAUNCHERS: tuple[Callable[[Environment], Rank | None], ...] = (
    _from_launch, _from_torchrun, _from_open_mpi, _from_pmi, _from_pmix, _from_slurm, _from_lambda, _without_launcher,
)  # fmt: skip


def _read_rank(environment: Environment, platform: str, names: tuple[str, ...], job: str | None) -> Rank:
    """Read rank, world size, local rank and local size from variables of these names.

    Without a name for the local size, it is the number of tasks that SLURM has put on this node.
    """
    rank, world_size = _read_integer(environment, names[0]), _read_size(environment, names[1])
    local_rank = _read_integer(environment, names[2])
    local_size = _read_size(environment, names[3]) if names[3] else _tasks_on_node(environment, world_size)
    return Rank(rank, world_size, platform, _threads_per_rank(environment, local_size), local_rank, local_size, job)


def _read_step(environment: Environment, platform: str, rank: str, world_size: str) -> Rank:
    """Read a task of srun; `rank` and `world_size` are the names of the variables that hold them."""
    names = (rank, world_size, "SLURM_LOCALID", "")
    return _place_in_array(environment, _read_rank(environment, platform, names, _slurm_job(environment)))


def _slurm_job(environment: Environment) -> str | None:
    if "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment.get('SLURM_ARRAY_JOB_ID')}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def _place_in_array(environment: Environment, rank: Rank) -> Rank:
    """Return a rank of one array task as one of all ranks of the array; without an array, the rank itself.

    A task of `--array=0,3,7-9` does not learn which other tasks exist, so the ranks are those of 0-9, some of which
    never start. COSMICAI_ARRAYS (`FIRST/ALL`) is the number of tasks of the arrays submitted before this one and of all
    arrays together; an array of one task is not an array to SLURM.
    """
    submission = environment.get("COSMICAI_SUBMISSION")
    place, places = 0, 1
    if "SLURM_ARRAY_TASK_ID" in environment:
        submission = submission or environment.get("SLURM_ARRAY_JOB_ID")
        task, first, last, count = (
            _read_integer(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "MAX", "COUNT")
        )
        step = max(1, _read_integer(environment, "SLURM_ARRAY_TASK_STEP", 1))
        if (last - first) // step + 1 != count:
            step = 1
        place, places = (task - first) // step, (last - first) // step + 1
    elif "COSMICAI_ARRAYS" not in environment:
        return replace(rank, submission=submission or environment["SLURM_JOB_ID"])
    if "COSMICAI_ARRAYS" in environment:
        match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", environment["COSMICAI_ARRAYS"])
        if not match:
            raise InputError(
                f"the environment has COSMICAI_ARRAYS={environment['COSMICAI_ARRAYS']}; expected FIRST/ALL, such as "
                "1000/5000, as the launcher sets it"
            )
        place, places = place + int(match[1]), int(match[2])
    world_size = places * rank.world_size
    decisive = "COSMICAI_ARRAYS" if "COSMICAI_ARRAYS" in environment else "SLURM_ARRAY_TASK_MAX"
    _require_size(environment, decisive, world_size)
    return replace(
        rank, rank=place * rank.world_size + rank.rank, world_size=world_size, platform="slurm-array",
        submission=submission,
    )  # fmt: skip


def _find_cluster(environment: Environment) -> str | None:
    """Return the name of the cluster of this process, the kind of one without a name, or None outside of clusters."""
    if "SLURM_JOB_ID" in environment:
        return environment.get("SLURM_CLUSTER_NAME") or None
    return next((kind for variable, kind in CONTAINER_CLUSTERS.items() if variable in environment), None)


def _tasks_on_node(environment: Environment, world_size: int) -> int:
    """Return the number of tasks of this step on this node, from SLURM's compressed list.

    `2(x3),1` means two on each of three nodes, then one; SLURM_NODEID numbers the step's nodes in this order.
    """
    listed = environment.get("SLURM_STEP_TASKS_PER_NODE", str(world_size))
    groups = [re.fullmatch(r"([0-9]{1,9})(?:\(x([1-9][0-9]{0,8})\))?", part) for part in listed.split(",")]
    counts = [(int(group[1]), int(group[2] or 1)) for group in groups if group]
    if len(counts) < len(groups):
        raise InputError(
            f"the environment has SLURM_STEP_TASKS_PER_NODE={listed}; expected a list such as 2(x3),1, as SLURM sets it"
        )
    node = _read_integer(environment, "SLURM_NODEID", 0) % sum(nodes for _, nodes in counts)
    ends = itertools.accumulate(nodes for _, nodes in counts)
    return next(tasks for (tasks, _), end in zip(counts, ends, strict=True) if node < end)


def _threads_per_rank(environment: Environment, local_size: int) -> int:
    """Return the number of cores for one rank: those it is bound to, at most its share of the machine."""
    if "COSMICAI_THREADS" in environment:
        threads = _read_integer(environment, "COSMICAI_THREADS")
        if threads > MAX_THREADS:
            raise InputError(
                f"the environment has COSMICAI_THREADS={threads}; expected at most {MAX_THREADS}, the number of cores "
                "for this rank"
            )
        return threads
    if "SLURM_STEP_ID" in environment and "SLURM_CPUS_PER_TASK" in environment:
        share = _read_integer(environment, "SLURM_CPUS_PER_TASK")
    else:
        share = _read_integer(environment, "SLURM_CPUS_ON_NODE", os.cpu_count() or 1) // max(1, local_size)
    return max(1, min(share, available_cores()))


def _read_size(environment: Environment, name: str, default: int | None = None) -> int:
    """Return a number of ranks. Raises InputError as `_read_integer` does, and if it is larger than MAX_RANKS."""
    size = _read_integer(environment, name, default)
    _require_size(environment, name, size)
    return size


def _require_size(environment: Environment, name: str, size: int) -> None:
    if size > MAX_RANKS:
        raise InputError(
            f"the environment has {name}={environment.get(name)}, which makes {size} ranks; expected at most "
            f"{MAX_RANKS}, correct the variable or start fewer ranks"
        )


def _read_integer(environment: Environment, name: str, default: int | None = None) -> int:
    """Return a whole number. Raises InputError if the variable holds anything else, or is missing without default."""
    value = environment.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(value or "")
    except ValueError:
        raise InputError(
            f"the environment has {name}={value or ''}; expected a whole number, as the launcher sets it"
        ) from None
