"""What a run would take, said before it begins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from ..engines.base import pieces
from ..engines.registry import open_engine
from ..ranks.memory import available_memory_mb, memory_of_ranks_mb
from ..runs.precision import sample
from ..runs.store import RunFolder
from ..surveys.survey import Survey
from .request import Request, ranks_of

MEASURED = 1024  # galaxies of the survey
LEAST_SECONDS = 1.0  # of measurement


def estimate(run: RunFolder, request: Request) -> Iterator[str]:
    """Lines that tell plan, ranks, time and memory; the time from a short measurement of one rank's engine here.

    Raises InputError if the engine cannot run here.
    """
    plan = run.plan()
    galaxies = plan.galaxies
    yield f"{galaxies:,} galaxies of {plan.survey} in {len(plan.shards):,} shards"
    largest = max(item.galaxies for item in plan.items)
    yield f"{len(plan.items):,} work items, the largest of {largest:,} galaxies, schedule {request.schedule}"
    yield f"engine {plan.engine}, {plan.precision}, batches of {plan.batch_size}, weights {plan.weights}"
    on_gpus, per_node = bool(request.gpus), request.per_node
    one = replace(request, nodes=1, gpus=per_node if on_gpus else None, procs=None if on_gpus else per_node)
    for rank, variables in ranks_of(one, "dry run"):
        cores, gpu = variables.get("COSMICAI_CORES"), variables.get("CUDA_VISIBLE_DEVICES")
        where = [f"{rank.threads} threads", f"cores {cores}" if cores else "", f"GPU {gpu}" if request.gpus else ""]
        yield f"rank {rank.rank} of each node: " + ", ".join(part for part in where if part)
    rate = engine_rate(run, rank.threads) * request.ranks
    time_needed = timedelta(seconds=round(galaxies / rate))
    yield f"about {time_needed} at {rate:,.0f} galaxies/s, {request.ranks} times what one such rank alone was measured"
    needed, free = memory_of_ranks_mb(plan.engine, per_node), available_memory_mb()
    if needed is not None and free is not None:
        yield f"about {needed:,.0f} MB of memory of each node; {free:,.0f} MB are free on this one"


def engine_rate(run: RunFolder, threads: int) -> float:
    """Galaxies per second of the plan's engine on this machine, on galaxies of the survey in memory."""
    plan = run.plan()
    galaxies = sample(Survey(plan.survey, plan.shards), MEASURED)
    if not len(galaxies):
        return float("nan")
    quantized = run.read_quantized(plan.quantized) if plan.quantized else None
    engine = open_engine(plan.choice, plan.weights_file, threads, quantized)
    batches = pieces(len(galaxies), plan.batch_size)
    engine.predict(galaxies.image[batches[0]], galaxies.magnitude[batches[0]])  # warms up
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < LEAST_SECONDS:
        for rows in batches:
            done += len(engine.predict(galaxies.image[rows], galaxies.magnitude[rows]))
    return done / (time.perf_counter() - begin)
