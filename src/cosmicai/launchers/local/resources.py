"""How the cores, GPUs and memory of this machine are divided among the ranks that run on it."""

from __future__ import annotations

import os
from dataclasses import replace

from ...engines.registry import count_visible_gpus
from ...errors import InputError
from ...ranks.cores import allowed_cores, available_cores
from ...ranks.environment import Rank, environment_for
from ...ranks.gpus import VISIBLE, gpu_names
from ...ranks.memory import available_memory_mb, memory_of_ranks_mb
from ...runs.plan import Plan
from ..base import RankRequest


def resolve_device(request: RankRequest, plan: Plan) -> RankRequest:
    """Return the request with one rank per visible GPU if the plan is for GPUs and no number of ranks is requested.

    Raises InputError if the plan is for the other kind of device.
    """
    on_gpus = plan.device == "cuda"
    if on_gpus and request.procs is None and request.gpus is None:
        return replace(request, gpus=count_visible_gpus())
    if on_gpus != (request.gpus is not None):
        raise InputError(f"the run's plan is for {plan.device}; use --{'gpus' if on_gpus else 'procs'}")
    return request


def require_gpus(requested: int) -> None:
    """Raise InputError if fewer GPUs than requested are visible on this machine."""
    visible = count_visible_gpus()
    if requested > visible:
        raise InputError(
            f"--gpus {requested}: this machine shows {visible or 'no'} GPU{'' if visible == 1 else 's'}; "
            + (f"use --gpus {visible}, or " if visible else "")
            + f"run on its {available_cores()} CPU cores with --procs N"
        )


def require_memory(request: RankRequest, plan: Plan) -> None:
    """Raise InputError if the ranks of a plan would need more memory than is free on this machine.

    What ranks need is known for the engines for which it was measured; ranks of others are not refused, nor are those
    on several nodes. Raises InputError also if the plan is for another kind of device.
    """
    request = resolve_device(request, plan)
    needed, free = memory_of_ranks_mb(plan.engine, request.ranks), available_memory_mb()
    if request.nodes > 1 or needed is None or free is None or needed <= free:
        return
    fitting = max((n for n in range(1, request.ranks) if (memory_of_ranks_mb(plan.engine, n) or 0) <= free), default=0)
    cores = available_cores()
    raise InputError(
        (f"this machine has {cores} cores for {request.ranks} ranks, and " if request.ranks > cores else "")
        + f"{request.ranks} ranks need about {needed:,.0f} MB and {free:,.0f} MB are free on this machine; "
        + (f"use --procs {min(fitting, cores)}" if fitting else "free some memory")
    )


def local_ranks(request: RankRequest, job: str) -> list[tuple[Rank, dict[str, str]]]:
    """Return the ranks of this machine, each with the environment variables that give it its place, cores and GPU.

    All ranks get the same number of cores, and cores of their own where there are enough for all.
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
