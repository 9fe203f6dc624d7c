"""Estimates of what a run would take, before it starts: measured here, on galaxies of the survey."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from ..engines.base import split_rows
from ..engines.registry import open_engine
from ..ranks.cores import available_cores
from ..ranks.memory import available_memory_mb, memory_of_ranks_mb
from ..runs.precision import sample_galaxies
from ..runs.store import RunFolder
from ..surveys.survey import Survey
from ..worker.views import predict_views
from .base import RankRequest
from .local.resources import local_ranks

MEASURED_GALAXIES = 1024  # of the survey
MIN_SECONDS = 1.0  # of measurement


# Rate of several times as many ranks as cores, relative to one rank per core: measured were 0.74 to 0.89, see "Ranks"
# in docs/performance.md.
OVERSUBSCRIBED = 0.8


@dataclass(frozen=True)
class Estimate:
    """What a run would take: `galaxies` done by `ranks` ranks in `seconds`.

    `galaxies_per_second` is the rate of all ranks together, `speed_up` times that of a rank alone. `memory_mb` is the
    memory of each node, or of each rank of a platform that has no nodes; None if it is unknown.
    """

    galaxies: int
    ranks: int
    galaxies_per_second: float
    seconds: float
    memory_mb: float | None = None
    speed_up: float = 1.0


def estimate_run(run: RunFolder, ranks: int, threads: int, ranks_per_node: int | None = None) -> Estimate:
    """Estimate a planned run by measuring one rank with this many threads on this machine.

    Ranks on nodes like this machine, `ranks_per_node` on each, share its cores; elsewhere each has its own. Raises
    InputError if the engine cannot run here.
    """
    plan = run.plan()
    rooms = None
    if ranks_per_node is not None and plan.device == "cpu":
        rooms = ranks // ranks_per_node * max(1, available_cores() // threads)
    speed_up = compute_speed_up(ranks, len(plan.items), rooms)
    rate = measure_rate(run, threads) * speed_up
    memory_mb = None if ranks_per_node is None else memory_of_ranks_mb(plan.engine, ranks_per_node)
    return Estimate(plan.galaxies, ranks, rate, plan.galaxies / rate, memory_mb, speed_up)


def compute_speed_up(ranks: int, items: int, rooms: int | None) -> float:
    """Return how many times as fast as one rank alone all ranks are.

    Ranks without a work item do nothing. `rooms` is for how many ranks there are cores; None if each has its own.
    """
    busy = min(ranks, items)
    return float(busy) if rooms is None or busy <= rooms else rooms * OVERSUBSCRIBED


def describe_idle_ranks(ranks: int, galaxies: int, batch_size: int, cores: int | None = None) -> str | None:
    """Return a warning if ranks would have less than half a batch of galaxies each, with the sensible number.

    That is a batch for each, and where they share `cores` at most one for each of these.
    """
    if ranks == 1 or 2 * galaxies >= ranks * batch_size:
        return None
    return (
        f"{ranks:,} ranks are too many for {galaxies:,} galaxies: each starts and loads the network for "
        f"{galaxies / ranks:,.0f} of them, less than a batch of {batch_size:,}; use "
        f"{max(1, min(round(galaxies / batch_size), cores or ranks)):,}"
    )


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
        own, gpu = variables.get("COSMICAI_CORES"), variables.get("CUDA_VISIBLE_DEVICES")
        threads = "1 thread" if rank.threads == 1 else f"{rank.threads} threads"
        where = [threads, f"cores {own}" if own else "", f"GPU {gpu}" if request.gpus else ""]
        yield f"rank {rank.rank} of each node: " + ", ".join(part for part in where if part)
    found = estimate_run(run, request.ranks, rank.threads, per_node)
    yield (
        f"about {timedelta(seconds=round(found.seconds))} at {found.galaxies_per_second:,.0f} galaxies/s, "
        f"{found.speed_up:g} times what one such rank alone was measured"
    )
    if not on_gpus and per_node > (cores := available_cores()):
        yield (
            f"WARNING: {per_node} ranks share {cores} core{'' if cores == 1 else 's'} of each node, which makes them "
            f"slower together than {cores}; use --procs {cores * request.nodes}"
        )
    free = available_memory_mb()
    if found.memory_mb is not None and free is not None:
        yield f"about {found.memory_mb:,.0f} MB of memory of each node; {free:,.0f} MB are free on this one"
