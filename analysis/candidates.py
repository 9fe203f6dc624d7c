"""What a survey could be run on: each choice with its time, its price, and the command line that runs it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from cosmicai.engines.registry import BATCH_SIZE
from cosmicai.errors import InputError
from cosmicai.launchers.aws.estimate import PLANNER_MB, processors, requests_of_planners, requests_of_rank
from cosmicai.launchers.request import Batch, Request
from cosmicai.launchers.slurm.site import load_site
from cosmicai.launchers.slurm.submit import granted
from cosmicai.runs.cost import ARCHITECTURE, FREE_EPHEMERAL_MB, REGION, cost_of_run
from cosmicai.surveys.survey import PUBLISHED_BYTES_PER_GALAXY, galaxies_per_partition

from .model import Model, Work
from .workload import ARRAY, GPU, LAMBDA, LAPTOP, NODE

PARTITIONS = (25.0, 50.0, 75.0, 100.0)  # MB, of the published studies
MEMORIES = (1769, 3008, 5307, 10240)  # MB: one processor, the limit of new accounts, three processors, the largest
CONCURRENCIES = (100, 1000)  # the default of the stack, and of an account
LARGEST_MEMORY_MB, LARGEST_CONCURRENCY, LAMBDA_SECONDS = MEMORIES[-1], CONCURRENCIES[-1], 900
TASKS = (4, 16, 64, 256, 1000)
GPUS = (1, 4)
WEIGHTS = "WEIGHTS"  # in a command line whose weights are still to be named
ARRAY_CORES = 1  # of a task: `--cpus-per-task=1` in the published project's submit_parallel.sh
LEAST_MINUTES, SPARE = 10, 2.0  # of a job's time limit, and how much of it should be left
NOT_MEASURED = "fitted to the published code, while the command runs this project's, which was not measured there"
_THREADS = re.compile(r"([0-9]+) threads a rank")


@dataclass(frozen=True)
class Target:
    """What is to be run, and as whom: `survey` is an address, of `galaxies` in `size` bytes, its largest shard of
    `largest_shard`; `can_be_cut` if it may be cut into other partitions. `memory_mb` and `concurrency` are the most
    that functions on Lambda may have."""

    survey: str
    galaxies: int
    size: int
    largest_shard: int
    can_be_cut: bool = True
    out: str = "RUN"
    weights: str | None = None
    account: str = "ACCOUNT"
    site: str = "rivanna"
    memory_mb: int = LARGEST_MEMORY_MB
    concurrency: int = LARGEST_CONCURRENCY
    region: str = REGION
    architecture: str = ARCHITECTURE


@dataclass(frozen=True)
class Choice:
    """One way to run it. `dollars` only on Lambda, `service_units` only on a cluster; `memory_mb` is what a rank was
    measured to need; `remark` says what of it was not measured."""

    name: str
    place: str
    seconds: float
    dollars: float | None
    service_units: float | None
    memory_mb: float | None
    model: Model
    command: str
    remark: str = ""

    @property
    def low(self) -> float | None:
        """Seconds, if the model were too high by its error; None if that is not known."""
        return None if self.model.error is None else self.seconds / (1 + self.model.error)

    @property
    def high(self) -> float | None:
        """Seconds, if the model were too low by its error; None if that is not known, or all."""
        error = self.model.error
        return None if error is None or error >= 1 else self.seconds / (1 - error)


@dataclass(frozen=True)
class Excluded:
    """One way that does not work, and why."""

    name: str
    reason: str


def choices(model: Model, target: Target) -> Iterator[Choice | Excluded]:
    """All ways to run a survey where the model was fitted. None for one published node: what it asked for is not told.

    Raises InputError if there are no prices for the region.
    """
    if model.place == LAPTOP:
        yield _on_this_machine(model, target)
    elif model.place == GPU:
        yield from (_on_slurm(model, target, count) for count in GPUS)
    elif model.place == LAMBDA:
        yield from _on_lambda(model, target)
    elif model.place == ARRAY or (model.place == NODE and model.origin == "ours"):
        # No task should be without a batch of its own.
        most = max(TASKS[0], target.galaxies // BATCH_SIZE["cpu"])
        yield from (_on_slurm(model, target, count) for count in TASKS if count <= most)


def _on_this_machine(model: Model, target: Target) -> Choice:
    ranks, on_gpus = model.slots[-1], model.device == "cuda"
    noun = ("GPU" if on_gpus else "process") + ("" if ranks == 1 else "s" if on_gpus else "es")
    machine = f" ({model.machine})" if model.machine else ""
    return Choice(
        f"laptop, {ranks} {noun}{machine}", LAPTOP, model.seconds(_work(model, target, ranks)), None, None,
        model.peak_mb(None), model, _command(model, target, "--gpus" if on_gpus else "--procs", str(ranks)),
        _remark(model, "" if model.origin == "ours" else "of that machine, not of yours"),
    )  # fmt: skip


def _on_slurm(model: Model, target: Target, count: int) -> Choice | Excluded:
    """So many tasks of an array, or so many GPUs of a node; the service units are for the whole time, the most that it
    can be, since tasks end one by one and may begin so."""
    seconds = model.seconds(_work(model, target, count))
    minutes = max(LEAST_MINUTES, math.ceil(SPARE * seconds / 60))
    time = f"{minutes // 60}:{minutes % 60:02}:00"
    options = ["--slurm", "--site", target.site, "--account", target.account, "--time", time]
    batch: dict[str, Any] = {"site": target.site, "account": target.account, "time": time}
    try:
        site = load_site(target.site, {"USER": "user"})
    except InputError as error:  # as in the image, in which no sites are
        return Excluded(f"{target.site}, {count:,} {'GPUs' if model.place == GPU else 'tasks'}", str(error))
    remarks = [] if count in model.slots else [f"{count:,} at once were not measured"]
    if model.place == GPU:
        machine = (model.machine or "").lower()
        kind = next((gpu.kind for gpu in site.gpus if gpu.kind in machine), None)
        name = f"{site.name}, {count} GPU{'' if count == 1 else 's'}"
        options += ["--gpus", str(count)] + (["--gpu-kind", kind] if kind else [])
        request, batch_request = Request(gpus=count), Batch(**batch, gpu_kind=kind)
        remarks += [] if kind else ["what kind of GPU was measured is not told"]
    else:
        cores = _cores(model)
        name = f"{site.name}, {count:,} tasks"
        options += ["--array", str(count), "--cores", str(cores)]
        request, batch_request = Request(), Batch(**batch, cores=cores, tasks=count)
    try:
        per_hour = granted(request, batch_request, {"USER": "user"}).service_units_per_hour
    except InputError as error:
        return Excluded(name, str(error))
    return Choice(
        name, model.place, seconds, None, None if per_hour is None else per_hour * seconds / 3600, model.peak_mb(None),
        model, _command(model, target, *options), _remark(model, *remarks),
    )  # fmt: skip


def _on_lambda(model: Model, target: Target) -> Iterator[Choice | Excluded]:
    memories = sorted({memory for memory in MEMORIES if memory < target.memory_mb} | {target.memory_mb})
    limits = sorted({limit for limit in CONCURRENCIES if limit < target.concurrency} | {target.concurrency})
    for partition_mb in PARTITIONS if target.can_be_cut else (None,):
        size = target.largest_shard if partition_mb is None else galaxies_per_partition(partition_mb)
        ranks = math.ceil(target.galaxies / size)
        for memory_mb in memories:
            for limit in limits:
                yield _called(model, target, partition_mb, min(size, target.galaxies), ranks, memory_mb, limit)
                if limit >= ranks:
                    break
        if ranks == 1:  # larger ones would be the same
            return


def _called(
    model: Model, target: Target, partition_mb: float | None, size: int, ranks: int, memory_mb: int, limit: int
) -> Choice | Excluded:
    """Lambda with so many ranks, each of `size` galaxies and `memory_mb`, at most `limit` at once."""
    cut = "partitions as they are" if partition_mb is None else f"partitions of {partition_mb:g} MB"
    name = f"Lambda, {cut}, {memory_mb:,} MB, {limit:,} at once"
    peak = model.peak_mb(size * PUBLISHED_BYTES_PER_GALAXY / 2**20 if partition_mb is None else partition_mb)
    if peak is not None and peak > memory_mb:
        return Excluded(name, f"ranks of such partitions were measured with {peak:,.0f} MB, more than a function has")
    measured_mb = model.memory_mb or memory_mb
    # What computes is the slower the fewer processors a function has; what starts, only with less than one.
    slower = processors(int(measured_mb)) / processors(memory_mb)
    starting = model.terms.get("start", 0.0) * max(1.0, 1 / processors(memory_mb))
    slots = min(ranks, limit)
    rounds = math.ceil(ranks / slots)
    without = replace(model, terms={name: value for name, value in model.terms.items() if name != "start"})
    whole = starting + without.seconds(Work(rounds * size * slower, slots))
    one = starting + without.seconds(Work(size * slower, 0))
    if one > LAMBDA_SECONDS:
        return Excluded(name, f"a rank would take {one:,.0f} s, and Lambda ends it after {LAMBDA_SECONDS} s")
    told = f"{measured_mb:,.0f} MB were measured" if model.memory_mb else "with what memory it was measured is not told"
    remarks = [] if memory_mb == model.memory_mb else [told]
    remarks += [] if peak is not None else ["what memory it needs was not measured"]
    options = ["--cloud"] + ([] if partition_mb is None else ["--partition-mb", f"{partition_mb:g}"])
    options += ["--memory", str(memory_mb), "--concurrency", str(limit)]
    return Choice(
        name, LAMBDA, whole, _dollars(starting, target, ranks, size, one, memory_mb), None, peak, model,
        _command(model, target, *options), _remark(model, *remarks),
    )  # fmt: skip


def _dollars(starting: float, target: Target, ranks: int, size: int, seconds: float, memory_mb: int) -> float:
    """US dollars of so many invocations of so many seconds, and of the functions that plan and summarize, which are
    taken to need no more than a rank does for `starting`, with transitions and the requests that ours sends to S3."""
    place = {"region": target.region, "architecture": target.architecture, "ephemeral_mb": FREE_EPHEMERAL_MB}
    batches = math.ceil(size / BATCH_SIZE["cpu"])

    def note(name: str, memory: int, took: float, requests: dict[str, int]) -> dict[str, object]:
        call = place | {"request_id": name, "function": name, "memory_mb": memory, "seconds": took}
        return {"function": name, "lambda": call, "s3_requests": requests}

    planners = [
        note(name, PLANNER_MB, starting, requests)
        for name, requests in requests_of_planners(ranks, ranks * batches).items()
    ]
    rank = note("infer", memory_mb, seconds, requests_of_rank(batches, batches))
    costs = [cost_of_run(records, planners, ()) for records in ((), (rank,))]
    without, with_one = (float(cost["dollars"]["total"]) for cost in costs if cost)
    return without + ranks * (with_one - without)


def _work(model: Model, target: Target, ranks: int) -> Work:
    """An equal share for each rank, in batches of the size that was measured."""
    share = math.ceil(target.galaxies / ranks)
    return Work(share, ranks, share / (model.batch_size or BATCH_SIZE[model.device]))


def _cores(model: Model) -> int:
    """Cores of a task: the threads that ranks of ours had."""
    found = _THREADS.search(model.machine or "")
    return int(found[1]) if found else ARRAY_CORES


def _command(model: Model, target: Target, *options: str) -> str:
    """The line that runs this project's code so; of ours with what it was measured with, if that is no default."""
    command = ["python", "-m", "launch", *options, target.survey]
    command += ["--weights", target.weights or WEIGHTS]
    if model.origin == "ours":
        if model.batch_size not in (None, BATCH_SIZE[model.device]):
            command += ["--batch-size", str(model.batch_size)]
        if model.engine == "reference":
            command += ["--engine", model.engine]
        if model.precision and model.precision != ("bfloat16" if model.device == "cuda" else "float32"):
            command += ["--precision", model.precision]
    return shlex.join([*command, "--out", target.out])


def _remark(model: Model, *parts: str) -> str:
    """The parts, and of published runs that ours were not measured there."""
    return "; ".join(part for part in (*([NOT_MEASURED] if model.origin == "published" else []), *parts) if part)
