"""What a run in the cloud would take and cost, said before it begins."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Any

from ... import storage
from ...console import notify
from ...engines.base import calls_at_once
from ...measurement.subprocesses import child_json
from ...ranks.cores import available_cores
from ...runs.cost import FREE_EPHEMERAL_MB, cost_of_run
from ...runs.create import begin
from ...runs.plan import Plan
from ...runs.record import cpu_model
from ...runs.schedule import cut
from ...runs.store import RunFolder
from ...surveys.survey import PUBLISHED_BYTES_PER_GALAXY, ShardEntry, Survey, galaxies_per_partition
from ...worker.prefetch import fetched_rows
from ..estimate import engine_rate
from ..request import CloudRequest
from .stack import Stack
from .stage import opened, prepare, require_local
from .transfer import missing

MB_PER_PROCESSOR = 1769  # of a function's memory, says AWS
PLANNER_MB = 3008  # of the functions that plan and summarize


@dataclass(frozen=True)
class Speed:
    """Of one rank: seconds from the start of its process to its first redshifts, and galaxies per second after that."""

    start_seconds: float
    galaxies_per_second: float


@dataclass(frozen=True)
class Estimate:
    """What a run would take: its ranks, how many of them are at work at a time, seconds of the longest one and of all
    together, and what `cost_of_run` says of their invocations."""

    ranks: int
    at_once: int
    longest_seconds: float
    seconds: float
    cost: dict[str, Any]


def estimate(
    named: str, region: str, stack: Stack, run: RunFolder, request: CloudRequest, options: dict[str, Any]
) -> Iterator[str]:
    """Lines about a run on the survey that is `named` so: galaxies, what would be uploaded, ranks, requests, time and
    price. Nothing is written to S3. Raises InputError if survey, weights or options cannot be used.
    """
    stack = Stack(stack.name, stack.outputs | {"MemoryMB": str(request.memory or stack.memory_mb)})
    with TemporaryDirectory(prefix="cosmicai-dry-run-") as temporary:
        limit = options["limit_files"]
        if request.partition_mb is None:
            survey = opened(named, temporary, request, limit, temporary)
            shards, uploads = survey.shards, prepare(stack, run, named, survey, request, options).uploads
            left = sum(file.bytes for file in missing(uploads))
        else:
            survey = opened(named, temporary, replace(request, partition_mb=None), None, temporary)
            require_local(survey, request.partition_mb)
            shards, uploads = would_be_cut(survey, request.partition_mb)[:limit], []
            left = sum(shard.bytes for shard in shards)
        total = max(left, sum(file.bytes for file in uploads))
        begun = begin(
            survey, options["weights"], storage.join(temporary, "run"), engine="openvino",
            precision=options["precision"], batch_size=options["batch_size"],
            accept_precision_loss=options["accept_precision_loss"], tell=notify,
        )  # fmt: skip
        speed = measured(begun, stack.memory_mb)
        concurrency = request.concurrency or stack.max_concurrency
        found = estimated(shards, begun.plan(), speed, stack, region, concurrency)
    yield f"{sum(shard.galaxies for shard in shards):,} galaxies of {survey.uri} in {len(shards):,} partitions"
    yield f"{left / 2**20:,.1f} of {total / 2**20:,.1f} MB to upload to s3://{stack.bucket}"
    yield from _lines(found, speed, stack)


def would_be_cut(survey: Survey, partition_mb: float) -> tuple[ShardEntry, ...]:
    """The partitions into which a survey would be cut, with about the bytes that they would have."""
    size = galaxies_per_partition(partition_mb)
    counts = [min(size, survey.galaxies - start) for start in range(0, survey.galaxies, size)]
    return tuple(ShardEntry("", count, count * PUBLISHED_BYTES_PER_GALAXY) for count in counts)


def processors(memory_mb: int) -> float:
    """How many processors Lambda gives a function of so much memory."""
    return memory_mb / MB_PER_PROCESSOR


def measured(run: RunFolder, memory_mb: int) -> Speed:
    """How fast a rank with so much memory would be if it had this machine's processors, by a process that is started
    here with nothing cached, and by the engine with the threads that go with the memory."""
    share = processors(memory_mb)
    threads = min(math.ceil(share), available_cores())
    with TemporaryDirectory(prefix="cosmicai-dry-run-") as empty:
        start = child_json("cosmicai.measurement.first_prediction", run.uri, COSMICAI_CACHE=empty)["first_prediction"]
    return Speed(start / min(1.0, share), engine_rate(run, threads) * share / threads)


def estimated(
    shards: Sequence[ShardEntry], plan: Plan, speed: Speed, stack: Stack, region: str, concurrency: int
) -> Estimate:
    """What a run with a rank for each of these shards would take, in batches as those of the plan.

    Only the first of the ranks that work one after the other in the same place has to start; reading and writing, which
    go on beside predicting, take no time here.
    """
    items = [0] * len(shards)
    for item in cut(shards, plan.batch_size, plan.inner_batch):
        items[item.shard] += 1
    threads = math.ceil(processors(stack.memory_mb))
    piece = fetched_rows(plan, calls_at_once(plan.choice, threads, plan.batch_size)[0])
    ends = [0.0] * min(concurrency, len(shards))
    ranks = []
    for number, shard in enumerate(shards):
        seconds = shard.galaxies / speed.galaxies_per_second + (number < len(ends)) * speed.start_seconds
        heapq.heapreplace(ends, ends[0] + seconds)
        requests = requests_of_rank(math.ceil(shard.galaxies / piece), items[number])
        ranks.append(_note("infer", number, stack.memory_mb, stack.ephemeral_mb, stack, region, seconds, requests))
    planners = [
        _note(name, name, PLANNER_MB, FREE_EPHEMERAL_MB, stack, region, speed.start_seconds, requests)
        for name, requests in requests_of_planners(len(shards), sum(items)).items()
    ]
    cost = cost_of_run(ranks, planners, ())
    assert cost
    longest = max(rank["lambda"]["seconds"] for rank in ranks)
    return Estimate(len(shards), len(ends), longest, max(ends) + len(planners) * speed.start_seconds, cost)


def requests_of_rank(pieces: int, items: int) -> dict[str, int]:
    """What a rank asks of S3: about its run and its partition at the beginning, for a piece of the galaxies at a time,
    and to write each item and its own records."""
    return {"ListObjectsV2": 1, "HeadObject": 1, "GetObject": 5 + pieces, "PutObject": 3 + 2 * items}


def requests_of_planners(ranks: int, items: int) -> dict[str, dict[str, int]]:
    """What the functions that plan and summarize ask of S3; the latter reads every record and every item."""
    return {
        "initialize": {"ListObjectsV2": 4, "HeadObject": 1, "GetObject": 3, "PutObject": 4},
        "summarize": {"ListObjectsV2": 6, "HeadObject": 1, "GetObject": 4 + ranks + items, "PutObject": 6 + ranks},
    }


def _lines(found: Estimate, speed: Speed, stack: Stack) -> Iterator[str]:
    usage, cost, memory_mb = found.cost["usage"], found.cost, stack.memory_mb
    price = f"{cost['dollars']['total']:.6f} dollars" if cost["dollars"] else f"no price, since {cost['unpriced']}"
    yield (
        f"{found.ranks:,} ranks, {found.at_once:,} at a time, each of {memory_mb:,} MB and {processors(memory_mb):.2f} "
        "processors"
    )
    yield (
        f"requests: {usage['invocations']:,.0f} to Lambda, {usage['s3_writes']:,.0f} writes and "
        f"{usage['s3_reads']:,.0f} reads of S3, {usage['transitions']:,.0f} transitions of Step Functions"
    )
    yield f"about {found.longest_seconds:,.1f} s for the longest rank, {timedelta(seconds=round(found.seconds))} in all"
    yield (
        f"about {usage['gb_seconds']:,.1f} GB-seconds, {price} ({cost['region']}, {cost['architecture']}, list prices "
        f"of {cost['prices_as_of']})"
    )
    yield (
        f"an estimate, from a short measurement on this machine ({cpu_model()}), for the processors of so much memory: "
        f"{speed.galaxies_per_second:,.0f} galaxies/s and {speed.start_seconds:.1f} s to start"
    )
    if found.longest_seconds > stack.timeout_seconds:
        yield (
            f"the stack gives an invocation {stack.timeout_seconds} s, so that such a rank is called several times; "
            "smaller partitions (--partition-mb) or more --memory avoid that"
        )


def _note(
    name: str, request: object, memory_mb: int, ephemeral_mb: int, stack: Stack, region: str, seconds: float,
    requests: dict[str, int],
) -> dict[str, Any]:  # fmt: skip
    """An invocation as functions note theirs, so that it is priced like one."""
    place = {
        "request_id": str(request), "function": f"{stack.name}-{name}", "memory_mb": memory_mb,
        "ephemeral_mb": ephemeral_mb, "region": region, "architecture": stack.architecture, "seconds": seconds,
    }  # fmt: skip
    return {"function": name, "lambda": place, "s3_requests": requests}
