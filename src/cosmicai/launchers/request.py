"""What is asked of a launcher, and how a machine is divided among its ranks."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace

from ..engines.registry import visible_gpus
from ..errors import InputError
from ..ranks.cores import allowed_cores, available_cores
from ..ranks.environment import Rank, environment_for
from ..ranks.gpus import VISIBLE, gpu_names
from ..ranks.memory import available_memory_mb, memory_of_ranks_mb
from ..runs.plan import Plan


@dataclass(frozen=True)
class Request:
    """How many ranks of which kind, and what becomes of those that die.

    `procs` are ranks on CPUs, `gpus` ranks with a GPU each, of which one at most is given, for all `nodes` together;
    without both it is one rank for each node, or on GPUs one for each GPU. `rank_timeout` in seconds.
    """

    procs: int | None = None
    gpus: int | None = None
    nodes: int = 1
    schedule: str = "dynamic"
    max_restarts: int = 3
    rank_timeout: float = 300.0

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.gpus or self.procs or self.nodes

    @property
    def per_node(self) -> int:
        """Those of one node. Raises InputError if the nodes would not all have the same number."""
        if self.ranks % self.nodes:
            option = "gpus" if self.gpus else "procs"
            raise InputError(
                f"--{option} {self.ranks} is for all nodes together and cannot be shared evenly by --nodes {self.nodes}"
            )
        return self.ranks // self.nodes


@dataclass(frozen=True)
class Batch:
    """What is asked of SLURM. `cores` of each rank, `time` of each job in SLURM's notation, `tasks` of an array, each
    of which is as many nodes and ranks as the request says; `requeues` after the end of the time."""

    site: str | None = None
    account: str | None = None
    partition: str | None = None
    time: str = "1:00:00"
    gpu_kind: str | None = None
    cores: int | None = None
    memory_mb: int | None = None
    tasks: int | None = None
    image: str | None = None
    requeues: int = 10


@dataclass(frozen=True)
class CloudRequest:
    """What is asked of the cloud. `memory` of each rank in MB, `partition_mb` is the size into which a local survey is
    cut, `concurrency` ranks at most are at work, `tolerate` percent of the galaxies may be missing,
    with `fmi` the ranks talk to each other."""

    stack: str = "cosmicai"
    partition_mb: float | None = None
    memory: int | None = None
    concurrency: int | None = None
    tolerate: float | None = None
    fmi: bool = False
    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    detach: bool = False


def settled(request: Request, plan: Plan) -> Request:
    """The request for a plan. Raises InputError if the plan is for the other kind of device."""
    on_gpus = plan.device == "cuda"
    if on_gpus and request.procs is None and request.gpus is None:
        return replace(request, gpus=visible_gpus())
    if on_gpus != (request.gpus is not None):
        raise InputError(f"the run's plan is for {plan.device}; use --{'gpus' if on_gpus else 'procs'}")
    return request


def require_gpus(asked: int) -> None:
    """Raises InputError if this machine does not show so many GPUs to us."""
    there = visible_gpus()
    if asked > there:
        raise InputError(
            f"--gpus {asked}: this machine shows {there or 'no'} GPU{'' if there == 1 else 's'}; "
            + (f"use --gpus {there}, or " if there else "")
            + f"run on its {available_cores()} CPU cores with --procs N"
        )


def require_room(request: Request, plan: Plan, mpi: bool) -> None:
    """Raises InputError if the ranks cannot run here: for the plan's device, without mpirun, or since so many on CPUs
    would not fit into the memory that is free, by what they were measured to need; of an engine that was not measured
    it says nothing."""
    request = settled(request, plan)
    if mpi:
        find_mpirun()
    needed, free = memory_of_ranks_mb(plan.engine, request.ranks), available_memory_mb()
    if request.nodes > 1 or needed is None or free is None or needed <= free:
        return
    fitting = max((n for n in range(1, request.ranks) if (memory_of_ranks_mb(plan.engine, n) or 0) <= free), default=0)
    raise InputError(
        f"{request.ranks} ranks need about {needed:,.0f} MB and {free:,.0f} MB are free on this machine; "
        + (f"use --procs {fitting}" if fitting else "free some memory")
    )


def find_mpirun() -> str:
    """The program that starts MPI's ranks. Raises InputError if there is none."""
    mpirun = shutil.which("mpirun") or shutil.which("mpiexec")
    if mpirun is None:
        raise InputError(
            "there is no mpirun here; install Open MPI (on Debian: apt-get install openmpi-bin) or load the cluster's "
            "module, or leave --mpi out"
        )
    return mpirun


def ranks_of(request: Request, job: str) -> list[tuple[Rank, dict[str, str]]]:
    """The ranks of this machine, and the variables by which each knows its place, its cores and its GPU.

    Every rank gets the same number of cores, and where there are enough for all, cores that are its own.
    """
    cores, count = allowed_cores(), request.ranks
    threads, names = max(1, available_cores() // count), gpu_names(os.environ)
    found = []
    for number in range(count):
        rank = Rank(number, count, "local", threads, number, count, job)
        variables = environment_for(rank)
        if threads * count <= len(cores):
            own = cores[number * threads : (number + 1) * threads]
            variables["COSMICAI_CORES"] = ",".join(map(str, own))
        if request.gpus and names:
            variables[VISIBLE] = names[number]
        found.append((rank, variables))
    return found
