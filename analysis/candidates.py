"""List the ways to run a survey: each with its time, its cost, and the command line that runs it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from cosmicai.engines.registry import BATCH_SIZE
from cosmicai.errors import InputError
from cosmicai.launchers.aws.estimate import (
    PLANNER_MB,
    count_planner_requests,
    count_rank_requests,
    processors_for_memory,
)
from cosmicai.launchers.base import RankRequest, SlurmRequest
from cosmicai.launchers.slurm.allocation import resolve_resources
from cosmicai.launchers.slurm.site_profile import load_site
from cosmicai.ranks.invocation import InvocationRecord
from cosmicai.runs.cost import InvocationNote, cost_of_run
from cosmicai.runs.prices import ARCHITECTURE, FREE_EPHEMERAL_MB, REGION
from cosmicai.surveys.survey import PUBLISHED_BYTES_PER_GALAXY, galaxies_per_partition

from .tables import ONE_MACHINE
from .time_model import RankWork, TimeModel
from .workload import ARRAY, GPU, LAMBDA, NODE

PARTITIONS = (25.0, 50.0, 75.0, 100.0)  # MB, of the published studies
MEMORIES = (1769, 3008, 5307, 10240)  # MB: one processor, limit of new accounts, three processors, maximum
CONCURRENCIES = (100, 1000)  # default of the stack and of an account
LARGEST_MEMORY_MB, LARGEST_CONCURRENCY, LAMBDA_SECONDS = MEMORIES[-1], CONCURRENCIES[-1], 900
TASKS = (4, 16, 64, 256, 1000)
GPUS = (1, 4)
WEIGHTS = "WEIGHTS"  # placeholder in a command line without weights
ARRAY_CORES = 1  # of a task: `--cpus-per-task=1` in the published project's submit_parallel.sh
MIN_MINUTES, SPARE = 10, 2.0  # least time limit of a job, and its ratio to the predicted time
NOT_MEASURED = "fitted to runs of the published code, while the command runs this project's, not measured there"


@dataclass(frozen=True)
class Target:
    """The survey to run, and the limits that apply.

    `survey` is an address, with `galaxies` in `size` bytes and `largest_shard` galaxies in its largest shard;
    `can_be_cut` is true if it may be cut into other partitions. `memory_mb` and `concurrency` are the maximum for
    functions on Lambda.
    """

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
class Candidate:
    """One way to run a survey, called a choice in tables and messages.

    `dollars` are known only on Lambda, `service_units` only on a cluster; `memory_mb` is the measured memory of a rank;
    `remark` states what was not measured.
    """

    name: str
    place: str
    seconds: float
    dollars: float | None
    service_units: float | None
    memory_mb: float | None
    model: TimeModel
    command: str
    remark: str = ""

    @property
    def low(self) -> float | None:
        """Seconds if the model is too high by its error; None if the error is not known."""
        return None if self.model.error is None else self.seconds / (1 + self.model.error)

    @property
    def high(self) -> float | None:
        """Seconds if the model is too low by its error; None if the error is not known, or 100% and more."""
        error = self.model.error
        return None if error is None or error >= 1 else self.seconds / (1 - error)


@dataclass(frozen=True)
class ExcludedCandidate:
    """One way that does not work, and the reason."""

    name: str
    reason: str


def list_candidates(model: TimeModel, target: Target) -> Iterator[Candidate | ExcludedCandidate]:
    """Yield all ways to run a survey at the place of the model.

    A published node has none, since its resources are not known. Raises InputError if there are no prices for the
    region.
    """
    if model.place == ONE_MACHINE:
        yield _make_machine_candidate(model, target)
    elif model.place == GPU:
        yield from (_make_slurm_candidate(model, target, count) for count in GPUS)
    elif model.place == LAMBDA:
        yield from _iterate_lambda_candidates(model, target)
    elif model.place == ARRAY or (model.place == NODE and model.origin == "ours"):
        # Each task should have at least one batch.
        most = max(TASKS[0], target.galaxies // BATCH_SIZE["cpu"])
        yield from (_make_slurm_candidate(model, target, count) for count in TASKS if count <= most)


def free_gpu_command(target: Target) -> tuple[str, str] | None:
    """Return the kind of GPU that the target's site does not charge for, and the command line that runs on such GPUs.

    None if there is no such kind, or no profile of the site, as in the container image.
    """
    try:
        site = load_site(target.site, {"USER": "user"})
    except InputError:
        return None
    for gpu in site.gpus:
        if site.compute_service_units(1, 1, gpu, 1.0, memory_mb=1.0) == 0:
            tasks = str(gpu.max_running_per_user or GPUS[-1])
            options = ["--array", tasks, "--gpus", "1", "--gpu-kind", gpu.kind]
            return gpu.kind, _join_command(
                target, ["--slurm", "--site", target.site, "--account", target.account, *options]
            )
    return None


def _make_machine_candidate(model: TimeModel, target: Target) -> Candidate:
    ranks, on_gpus = model.slots[-1], model.device == "cuda"
    noun = ("GPU" if on_gpus else "process") + ("" if ranks == 1 else "s" if on_gpus else "es")
    published = "published: " if model.origin == "published" else ""
    machine = f" ({published}{model.machine})" if model.machine else ""
    return Candidate(
        f"{ONE_MACHINE}, {ranks} {noun}{machine}", ONE_MACHINE, model.predict(_share_work(model, target, ranks)), None,
        None, model.peak_mb(None), model, _build_command(model, target, "--gpus" if on_gpus else "--procs", str(ranks)),
        _join_remarks(model, "" if model.origin == "ours" else "measured on that machine, not on yours"),
    )  # fmt: skip


def _make_slurm_candidate(model: TimeModel, target: Target, count: int) -> Candidate | ExcludedCandidate:
    """Return an array of `count` tasks, or `count` GPUs of a node.

    Service units are for the whole time of all tasks, which is the maximum, since tasks may start and end one by one.
    """
    seconds = model.predict(_share_work(model, target, count))
    minutes = max(MIN_MINUTES, math.ceil(SPARE * seconds / 60))
    time = f"{minutes // 60}:{minutes % 60:02}:00"
    options = ["--slurm", "--site", target.site, "--account", target.account, "--time", time]
    batch: dict[str, Any] = {"site": target.site, "account": target.account, "time": time}
    try:
        site = load_site(target.site, {"USER": "user"})
    except InputError as error:  # as in the container image, which has no sites
        return ExcludedCandidate(f"{target.site}, {count:,} {'GPUs' if model.place == GPU else 'tasks'}", str(error))
    remarks = [] if count in model.slots else [f"{count:,} at once were not measured"]
    if model.place == GPU:
        machine = (model.machine or "").lower()
        kind = next((gpu.kind for gpu in site.gpus if gpu.kind in machine), None)
        dearest = max(site.gpus, key=lambda gpu: gpu.service_units_per_hour or 0.0, default=None)
        charged = kind or (dearest.kind if dearest else None)
        name = f"{site.name}, {count} GPU{'' if count == 1 else 's'}"
        options += ["--gpus", str(count)] + (["--gpu-kind", kind] if kind else [])
        request, batch_request = RankRequest(gpus=count), SlurmRequest(**batch, gpu_kind=charged)
        remarks += [] if kind else [f"the kind of the measured GPU is not known; charged as {charged}, the dearest"]
    else:
        cores = _count_cores(model)
        name = f"{site.name}, {count:,} tasks"
        options += ["--array", str(count), "--cores", str(cores)]
        request, batch_request = RankRequest(), SlurmRequest(**batch, cores=cores, tasks=count)
    try:
        per_hour = resolve_resources(request, batch_request, {"USER": "user"}).service_units_per_hour
    except InputError as error:
        return ExcludedCandidate(name, str(error))
    return Candidate(
        name, model.place, seconds, None, None if per_hour is None else per_hour * seconds / 3600, model.peak_mb(None),
        model, _build_command(model, target, *options), _join_remarks(model, *remarks),
    )  # fmt: skip


def _iterate_lambda_candidates(model: TimeModel, target: Target) -> Iterator[Candidate | ExcludedCandidate]:
    memories = sorted({memory for memory in MEMORIES if memory < target.memory_mb} | {target.memory_mb})
    limits = sorted({limit for limit in CONCURRENCIES if limit < target.concurrency} | {target.concurrency})
    for partition_mb in PARTITIONS if target.can_be_cut else (None,):
        size = target.largest_shard if partition_mb is None else galaxies_per_partition(partition_mb)
        ranks = math.ceil(target.galaxies / size)
        for memory_mb in memories:
            for limit in limits:
                share = min(size, target.galaxies)
                yield _make_lambda_candidate(model, target, partition_mb, share, ranks, memory_mb, limit)
                if limit >= ranks:
                    break
        if ranks == 1:  # larger ones would be the same
            return


def _make_lambda_candidate(
    model: TimeModel, target: Target, partition_mb: float | None, size: int, ranks: int, memory_mb: int, limit: int
) -> Candidate | ExcludedCandidate:
    """Return Lambda with this number of ranks of `size` galaxies and `memory_mb` each, at most `limit` at once."""
    partitions = "partitions as they are" if partition_mb is None else f"partitions of {partition_mb:g} MB"
    name = f"Lambda, {partitions}, {memory_mb:,} MB, {limit:,} at once"
    peak = model.peak_mb(size * PUBLISHED_BYTES_PER_GALAXY / 2**20 if partition_mb is None else partition_mb)
    if peak is not None and peak > memory_mb:
        reason = f"ranks of such partitions were measured with {peak:,.0f} MB, more than the function has"
        return ExcludedCandidate(name, reason)
    measured_mb = model.memory_mb or memory_mb
    # Computing slows down with fewer processors, starting only with less than one processor.
    slower = processors_for_memory(int(measured_mb)) / processors_for_memory(memory_mb)
    starting = model.terms.get("start", 0.0) * max(1.0, 1 / processors_for_memory(memory_mb))
    slots = min(ranks, limit)
    rounds = math.ceil(ranks / slots)
    working = replace(model, terms={name: value for name, value in model.terms.items() if name != "start"})
    whole = starting + working.predict(RankWork(rounds * size * slower, slots))
    one = starting + working.predict(RankWork(size * slower, 0))
    if one > LAMBDA_SECONDS:
        return ExcludedCandidate(name, f"a rank would take {one:,.0f} s, and Lambda ends it after {LAMBDA_SECONDS} s")
    basis = f"{measured_mb:,.0f} MB were measured" if model.memory_mb else "the memory of the measurement is not known"
    remarks = [] if memory_mb == model.memory_mb else [basis]
    remarks += [] if peak is not None else ["the memory that a rank needs was not measured"]
    options = ["--cloud"] + ([] if partition_mb is None else ["--partition-mb", f"{partition_mb:g}"])
    options += ["--memory", str(memory_mb), "--concurrency", str(limit)]
    return Candidate(
        name, LAMBDA, whole, _estimate_dollars(starting, target, ranks, size, one, memory_mb), None, peak, model,
        _build_command(model, target, *options), _join_remarks(model, *remarks),
    )  # fmt: skip


def _estimate_dollars(starting: float, target: Target, ranks: int, size: int, seconds: float, memory_mb: int) -> float:
    """Return US dollars of `ranks` invocations of `seconds`, with state transitions and requests to S3.

    The functions that plan and summarize are included; each is assumed to take the `starting` seconds of a rank.
    """
    batches = math.ceil(size / BATCH_SIZE["cpu"])

    def make_note(name: str, memory: int, seconds: float, requests: dict[str, int]) -> InvocationNote:
        invocation = InvocationRecord(
            name, name, memory, FREE_EPHEMERAL_MB, target.region, target.architecture, True, seconds
        )
        return InvocationNote(name, invocation, requests)

    planners = [
        make_note(name, PLANNER_MB, starting, requests)
        for name, requests in count_planner_requests(ranks, ranks * batches).items()
    ]
    rank = make_note("infer", memory_mb, seconds, count_rank_requests(batches, batches))
    costs = [cost_of_run(records, planners, ()) for records in ((), (rank,))]
    without, with_one = (cost.dollars["total"] for cost in costs if cost and cost.dollars)
    return without + ranks * (with_one - without)


def _share_work(model: TimeModel, target: Target, ranks: int) -> RankWork:
    """Return an equal share for each rank, in batches of the measured size."""
    share = math.ceil(target.galaxies / ranks)
    return RankWork(share, ranks, share / (model.batch_size or BATCH_SIZE[model.device]))


def _count_cores(model: TimeModel) -> int:
    """Return the cores of a task: the threads of the measured ranks, if those are known."""
    return model.threads or ARRAY_CORES


def _build_command(model: TimeModel, target: Target, *options: str) -> str:
    """Return the command line, with the settings of the measured runs of this project that are not defaults."""
    settings: list[str] = []
    if model.origin == "ours":
        if model.batch_size not in (None, BATCH_SIZE[model.device]):
            settings += ["--batch-size", str(model.batch_size)]
        if model.engine == "reference":
            settings += ["--engine", model.engine]
        if model.precision and model.precision != ("bfloat16" if model.device == "cuda" else "float32"):
            settings += ["--precision", model.precision]
    return _join_command(target, options, settings)


def _join_command(target: Target, options: Iterable[str], settings: Iterable[str] = ()) -> str:
    survey = [target.survey, "--weights", target.weights or WEIGHTS]
    return shlex.join(["python", "-m", "launch", *options, *survey, *settings, "--out", target.out])


def _join_remarks(model: TimeModel, *parts: str) -> str:
    """Return the parts as one text, starting with NOT_MEASURED for a model of published runs."""
    return "; ".join(part for part in (*([NOT_MEASURED] if model.origin == "published" else []), *parts) if part)
