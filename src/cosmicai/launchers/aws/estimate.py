"""Estimate the time and cost of a run on AWS before it starts."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from tempfile import TemporaryDirectory

from ... import storage
from ...console import notify
from ...engines.base import choose_concurrency
from ...measurement.subprocesses import run_module_json
from ...ranks.cores import available_cores
from ...ranks.invocation import InvocationRecord
from ...runs.cost import InvocationNote, RunCost, cost_of_run
from ...runs.create import create_run
from ...runs.plan import Plan
from ...runs.prices import FREE_EPHEMERAL_MB
from ...runs.provenance import cpu_model
from ...runs.schedule import split_work
from ...runs.store import RunFolder
from ...surveys.check_sample import select_rows
from ...surveys.survey import PUBLISHED_BYTES_PER_GALAXY, ShardEntry, Survey, galaxies_per_partition
from ...worker.prefetch import rows_per_fetch
from ..base import CloudRequest, LaunchRequest
from ..estimate import Estimate, measure_rate
from .stack import Stack
from .stage import open_survey, prepare, require_local
from .transfer import list_missing

MB_PER_PROCESSOR = 1769  # memory of a function with one processor, according to AWS
PLANNER_MB = 3008  # memory of the functions that plan and summarize


@dataclass(frozen=True)
class Speed:
    """The speed of one rank: seconds from the start of its process to its first redshifts, then galaxies per second."""

    start_seconds: float
    galaxies_per_second: float


@dataclass(frozen=True)
class CloudEstimate(Estimate):
    """What a run on AWS would take: at most `at_once` of its ranks run at a time, each with `memory_mb`.

    `longest_seconds` is the time of the longest rank, `cost` that of all invocations.
    """

    at_once: int = 0
    longest_seconds: float = 0.0
    cost: RunCost | None = None


def describe_estimate(request: LaunchRequest, region: str, stack: Stack, run: RunFolder) -> Iterator[str]:
    """Yield lines on a run: galaxies, what would be uploaded, ranks, requests, time and price.

    Nothing is written to S3. Raises InputError if survey, weights or options cannot be used.
    """
    cloud = request.cloud or CloudRequest()
    stack = Stack(stack.name, stack.outputs | {"MemoryMB": str(cloud.memory or stack.memory_mb)})
    with TemporaryDirectory(prefix="cosmicai-dry-run-") as temporary:
        local = replace(request, run=replace(request.run, out=temporary))
        if cloud.partition_mb is None:
            survey = open_survey(local, temporary)
            shards, uploads = survey.shards, prepare(stack, run, survey, request).uploads
            left = sum(file.bytes for file in list_missing(uploads))
        else:
            whole = replace(local.run, limit_files=None)
            survey = open_survey(replace(local, run=whole, cloud=replace(cloud, partition_mb=None)), temporary)
            require_local(survey, cloud.partition_mb)
            shards, uploads = plan_partitions(survey, cloud.partition_mb)[: request.run.limit_files], []
            left = sum(shard.bytes for shard in shards)
        total = max(left, sum(file.bytes for file in uploads))
        planned = replace(
            request.run, out=storage.join(temporary, "run"), engine="openvino", device=None, limit_files=None,
            resume=False,
        )  # fmt: skip
        local_run = create_run(planned, survey, notify=notify)
        speed = measure_speed(local_run, stack.memory_mb)
        concurrency = cloud.concurrency or stack.max_concurrency
        estimate = estimate_run(shards, local_run.plan(), speed, stack, region, concurrency)
    yield f"{sum(shard.galaxies for shard in shards):,} galaxies of {survey.uri} in {len(shards):,} partitions"
    yield f"{left / 2**20:,.1f} of {total / 2**20:,.1f} MB to upload to s3://{stack.bucket}"
    yield from _describe(estimate, speed, stack)


def plan_partitions(survey: Survey, partition_mb: float) -> tuple[ShardEntry, ...]:
    """Return the partitions into which a survey would be cut, with their approximate sizes in bytes."""
    size = galaxies_per_partition(partition_mb)
    counts = [min(size, survey.galaxies - start) for start in range(0, survey.galaxies, size)]
    return tuple(ShardEntry("", count, count * PUBLISHED_BYTES_PER_GALAXY) for count in counts)


def processors_for_memory(memory_mb: int) -> float:
    """Return the number of processors that Lambda gives a function with this memory."""
    return memory_mb / MB_PER_PROCESSOR


def measure_speed(run: RunFolder, memory_mb: int) -> Speed:
    """Return the speed of a rank with this memory if it had processors like those of this machine.

    The start is measured by a process without any caches, the rate by the engine with as many threads as the memory
    brings.
    """
    share = processors_for_memory(memory_mb)
    threads = min(math.ceil(share), available_cores())
    with TemporaryDirectory(prefix="cosmicai-dry-run-") as empty:
        times = run_module_json("cosmicai.measurement.first_prediction", run.uri, COSMICAI_CACHE=empty)
    start = times["first_prediction"]
    return Speed(start / min(1.0, share), measure_rate(run, threads) * share / threads)


def estimate_run(
    shards: Sequence[ShardEntry], plan: Plan, speed: Speed, stack: Stack, region: str, concurrency: int
) -> CloudEstimate:
    """Return the estimate of a run with one rank per shard and the batches of the plan.

    Of the ranks that run one after the other in the same runtime only the first has to start. Reading and writing
    overlap with predicting and take no time here.
    """
    items = [0] * len(shards)
    for item in split_work(shards, plan.batch_size, plan.inner_batch):
        items[item.shard] += 1
    threads = math.ceil(processors_for_memory(stack.memory_mb))
    piece = rows_per_fetch(plan, choose_concurrency(plan.choice, threads, plan.batch_size)[0])
    ends = [0.0] * min(concurrency, len(shards))
    ranks = []
    for number, shard in enumerate(shards):
        seconds = shard.galaxies / speed.galaxies_per_second + (number < len(ends)) * speed.start_seconds
        heapq.heapreplace(ends, ends[0] + seconds)
        requests = count_rank_requests(math.ceil(shard.galaxies / piece), items[number])
        ranks.append(_note("infer", number, stack.memory_mb, stack.ephemeral_mb, stack, region, seconds, requests))
    sampled = list(select_rows(shards))
    opened = len({shard.name for shard, _ in sampled})
    planners = [
        _note(name, name, PLANNER_MB, FREE_EPHEMERAL_MB, stack, region, speed.start_seconds, requests)
        for name, requests in count_planner_requests(len(shards), sum(items), opened, len(sampled)).items()
    ]
    cost = cost_of_run(ranks, planners, ())
    assert cost
    longest = max(rank.invocation.seconds for rank in ranks)
    galaxies, seconds = sum(shard.galaxies for shard in shards), max(ends) + len(planners) * speed.start_seconds
    rate = galaxies / seconds
    return CloudEstimate(
        galaxies, len(shards), rate, seconds, stack.memory_mb, at_once=len(ends), longest_seconds=longest, cost=cost
    )


def count_rank_requests(pieces: int, items: int) -> dict[str, int]:
    """Return a rank's requests to S3: for its run and partition at first, for each piece of galaxies and each item."""
    return {"ListObjectsV2": 3, "HeadObject": 1, "GetObject": 5 + pieces, "PutObject": 4 + 2 * items}


def count_planner_requests(ranks: int, items: int, opened: int = 0, ranges: int = 0) -> dict[str, dict[str, int]]:
    """Return the requests to S3 of the functions that plan and summarize; the latter reads all records and items,
    and of each partition its header, ids and redshifts.

    The check of the survey opens `opened` shards for their headers, magnitudes and redshifts, and reads `ranges` ranges
    of cutouts. The two figures of intervals and the magnitudes that these need are not counted.
    """
    return {
        "initialize": {"ListObjectsV2": 6, "HeadObject": 1, "GetObject": 3 + 3 * opened + ranges, "PutObject": 4},
        "summarize": {
            "ListObjectsV2": 6, "HeadObject": 1 + ranks, "GetObject": 3 + 4 * ranks + items, "PutObject": 7 + ranks,
        },
    }  # fmt: skip


def _describe(estimate: CloudEstimate, speed: Speed, stack: Stack) -> Iterator[str]:
    cost, memory_mb = estimate.cost, stack.memory_mb
    assert cost
    usage = cost.usage
    price = f"{cost.dollars['total']:.6f} dollars" if cost.dollars else f"no price, since {cost.unpriced}"
    yield (
        f"{estimate.ranks:,} ranks, {estimate.at_once:,} at a time, each of {memory_mb:,} MB and "
        f"{processors_for_memory(memory_mb):.2f} processors"
    )
    yield (
        f"requests: {usage['invocations']:,.0f} to Lambda, {usage['s3_writes']:,.0f} writes and "
        f"{usage['s3_reads']:,.0f} reads of S3, {usage['transitions']:,.0f} transitions of Step Functions"
    )
    total = timedelta(seconds=round(estimate.seconds))
    yield f"about {estimate.longest_seconds:,.1f} s for the longest rank, {total} in all"
    yield (
        f"about {usage['gb_seconds']:,.1f} GB-seconds, {price} ({cost.region}, {cost.architecture}, list prices "
        f"of {cost.prices_as_of})"
    )
    yield (
        f"an estimate, from a short measurement on this machine ({cpu_model()}), for the processors of this memory: "
        f"{speed.galaxies_per_second:,.0f} galaxies/s and {speed.start_seconds:.1f} s to start"
    )
    if estimate.longest_seconds > stack.timeout_seconds:
        yield (
            f"the stack gives an invocation {stack.timeout_seconds} s, so that such a rank is invoked several times; "
            "smaller partitions (--partition-mb) or more --memory avoid that"
        )


def _note(
    name: str, request: object, memory_mb: int, ephemeral_mb: int, stack: Stack, region: str, seconds: float,
    requests: dict[str, int],
) -> InvocationNote:  # fmt: skip
    """Return an invocation as functions note theirs."""
    invocation = InvocationRecord(
        str(request), f"{stack.name}-{name}", memory_mb, ephemeral_mb, region, stack.architecture, True, seconds
    )
    return InvocationNote(name, invocation, requests)
