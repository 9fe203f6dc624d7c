"""Estimates of what a run would take, before it starts: measured here, on galaxies of the survey."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from ..engines.base import split_rows
from ..engines.registry import open_engine
from ..ranks.memory import available_memory_mb, memory_of_ranks_mb
from ..runs.precision import sample_galaxies
from ..runs.store import RunFolder
from ..surveys.survey import Survey
from ..worker.views import predict_views
from .base import RankRequest
from .local.resources import local_ranks

MEASURED_GALAXIES = 1024  # of the survey
MIN_SECONDS = 1.0  # of measurement


@dataclass(frozen=True)
class Estimate:
    """What a run would take: `galaxies` done by `ranks` ranks in `seconds`.

    `galaxies_per_second` is the rate of all ranks together. `memory_mb` is the memory of each node, or of each rank of
    a platform that has no nodes; None if it is unknown.
    """

    galaxies: int
    ranks: int
    galaxies_per_second: float
    seconds: float
    memory_mb: float | None = None


def estimate_run(run: RunFolder, ranks: int, threads: int, ranks_per_node: int | None = None) -> Estimate:
    """Estimate a planned run by measuring one rank with this many threads on this machine.

    Raises InputError if the engine cannot run here.
    """
    plan = run.plan()
    rate = measure_rate(run, threads) * ranks
    memory_mb = None if ranks_per_node is None else memory_of_ranks_mb(plan.engine, ranks_per_node)
    return Estimate(plan.galaxies, ranks, rate, plan.galaxies / rate, memory_mb)


def measure_rate(run: RunFolder, threads: int) -> float:
    """Return galaxies per second, in all views, of the plan's engine here, on galaxies of the survey in memory."""
    plan = run.plan()
    galaxies = sample_galaxies(Survey(plan.survey, plan.shards), MEASURED_GALAXIES)
    if not len(galaxies):
        return float("nan")
    quantized = run.read_quantized(plan.quantized) if plan.quantized else None
    engine = open_engine(plan.choice, plan.weights_file, threads, quantized)
    batches = split_rows(len(galaxies), plan.batch_size)
    engine.predict(galaxies.image[batches[0]], galaxies.magnitude[batches[0]])  # warms up
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < MIN_SECONDS:
        for rows in batches:
            done += len(predict_views(engine, galaxies.image[rows], galaxies.magnitude[rows], plan.views)[0])
    return done / (time.perf_counter() - begin)


def estimate_local_run(run: RunFolder, request: RankRequest) -> Iterator[str]:
    """Yield lines on plan, ranks, time and memory of a planned run on this machine, or on several such as this one.

    Raises InputError if the engine cannot run here.
    """
    plan = run.plan()
    yield f"{plan.galaxies:,} galaxies of {plan.survey} in {len(plan.shards):,} shards"
    largest = max(item.galaxies for item in plan.items)
    yield f"{len(plan.items):,} work items, the largest of {largest:,} galaxies, schedule {request.schedule}"
    yield f"engine {plan.engine}, {plan.precision}, batches of {plan.batch_size}, weights {plan.weights}"
    if plan.views > 1:
        yield f"{plan.views} views of each cutout, so that a galaxy takes {plan.views} times as long"
    on_gpus, per_node = bool(request.gpus), request.per_node
    node = replace(request, nodes=1, gpus=per_node if on_gpus else None, procs=None if on_gpus else per_node)
    for rank, variables in local_ranks(node, "dry run"):
        cores, gpu = variables.get("COSMICAI_CORES"), variables.get("CUDA_VISIBLE_DEVICES")
        threads = "1 thread" if rank.threads == 1 else f"{rank.threads} threads"
        where = [threads, f"cores {cores}" if cores else "", f"GPU {gpu}" if request.gpus else ""]
        yield f"rank {rank.rank} of each node: " + ", ".join(part for part in where if part)
    found = estimate_run(run, request.ranks, rank.threads, per_node)
    yield (
        f"about {timedelta(seconds=round(found.seconds))} at {found.galaxies_per_second:,.0f} galaxies/s, "
        f"{found.ranks} times what one such rank alone was measured"
    )
    free = available_memory_mb()
    if found.memory_mb is not None and free is not None:
        yield f"about {found.memory_mb:,.0f} MB of memory of each node; {free:,.0f} MB are free on this one"
