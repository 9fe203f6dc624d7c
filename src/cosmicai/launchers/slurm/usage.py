"""How much of what was requested of SLURM the jobs of a run used, and what to request next time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from msgspec import UNSET

from ...runs.record import Record
from ..base import SlurmRequest
from .allocation import FIRST_MEMORY_MB
from .sacct import JobExecution, split_nodes
from .site import parse_time_limit

# What is requested next time: cores are rounded up to whole ones.
MEMORY_MARGIN, MEMORY_STEP = 1.25, 100.0  # MB: sacct samples memory, and can miss the peak
TIME_MARGIN, TIME_STEP = 1.5, 300.0  # seconds: nodes of one partition differ in speed
SHORT = 300.0  # seconds


@dataclass(frozen=True)
class JobUse:
    """What one execution of a job had and used; None is unknown.

    `cores` are those of the whole job and `tasks` the tasks that share them, on all its `nodes`. Memory is in MB (2^20
    bytes) of the node that used most, times are in seconds.
    """

    cores: int
    tasks: int
    nodes: int
    gpus: int
    elapsed_seconds: float
    cpu_seconds: float | None
    limit_seconds: float | None
    memory_mb: float | None
    requested_mb: float | None


class JobUsage(msgspec.Struct, frozen=True):
    """How much the ended executions of a run's jobs used of what was requested, in sum; None is unknown.

    `source` is "sacct" or "records". Percentages are of the requested cores times the time that the jobs ran, of the
    memory of the node that used most, and of the time limit of the longest job; that of GPUs is how long they were
    busy, as the ranks measured it. `cores_per_task` are those that the busiest task kept busy on average. `request` are
    the options of sbatch that would do next time.
    """

    source: str
    executions: int
    cores_percent: float | None
    cores_per_task: float | None
    requested_cores_per_task: int
    memory_percent: float | None
    memory_mb: float | None
    requested_memory_mb: float | None
    time_percent: float | None
    elapsed_seconds: float
    limit_seconds: float | None
    gpus: int
    gpu_percent: float | None
    request: tuple[str, ...]

    def lines(self) -> tuple[str, ...]:
        """Return what was used and what to request next time, as lines for people."""
        source = "SLURM's accounting" if self.source == "sacct" else "the records of the ranks"
        jobs = "1 execution of a job" if self.executions == 1 else f"{self.executions} executions of jobs"
        lines = [f"used of what was requested, by {source} of {jobs}:"]
        if self.cores_per_task is not None:
            busy = f"the busiest task used {self.cores_per_task:.2f} of {self.requested_cores_per_task}"
            lines.append(f"  cores: {_describe_percent(self.cores_percent)}, {busy}")
        if self.memory_mb is not None:
            of = "" if self.requested_memory_mb is None else f" of {self.requested_memory_mb:,.0f}"
            percent = _describe_percent(self.memory_percent)
            lines.append(f"  memory: {percent}, {self.memory_mb:,.0f}{of} MB on the node that used most")
        of = "" if self.limit_seconds is None else f" of {timedelta(seconds=self.limit_seconds)}"
        ran = timedelta(seconds=round(self.elapsed_seconds))
        lines.append(f"  time: {_describe_percent(self.time_percent)}, the longest job took {ran}{of}")
        if self.gpus:
            busy = f"busy {_describe_percent(self.gpu_percent)} of the time"
            lines.append(f"  GPUs: {busy if self.gpu_percent is not None else 'unknown how long they were busy'}")
        lines.append(f"request next time: {' '.join(self.request)}")
        lines.append("  cores of the busiest task rounded up, a quarter more memory than was used, half more time")
        if self.source == "records":
            lines.append(f"  and {FIRST_MEMORY_MB} MB to make the catalogue, which no record counts")
        if self.is_short:
            lines.append(f"  jobs of less than {SHORT / 60:g} minutes say little of longer ones")
        return tuple(lines)

    @property
    def is_short(self) -> bool:
        """Whether no job ran long enough to tell what the work needs: to start takes most of the time."""
        return self.elapsed_seconds < SHORT


def use_of_executions(executions: Iterable[JobExecution]) -> list[JobUse]:
    """Return what SLURM's accounting says that executions used which have run and ended.

    One that ran out of memory used all that was requested, however little was sampled.
    """
    return [
        JobUse(
            cores=one.cores,
            tasks=one.tasks,
            nodes=len(split_nodes(one.nodes)) or 1,
            gpus=one.gpus,
            elapsed_seconds=float(one.elapsed_seconds),
            cpu_seconds=one.cpu_seconds,
            limit_seconds=one.limit_seconds,
            memory_mb=_largest(one.node_rss_mb, one.requested_mb if one.kind == "out_of_memory" else None),
            requested_mb=one.requested_mb,
        )
        for one in executions
        if one.started_at and one.ended_at and one.elapsed_seconds
    ]


def use_of_records(records: Iterable[Record], request: SlurmRequest | None) -> list[JobUse]:
    """Return what the records of ranks in jobs say that the executions of these jobs used.

    A rank counts CPU time while it reads, predicts and writes, and its time from its start to its last record. Limits
    are those of the `request`, if the jobs were submitted with one.
    """
    jobs: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        if record.job is not None and is_job(record.job):
            jobs.setdefault((record.job, record.restarts or 0), []).append(record)
    return [_use_of_ranks(ranks, request) for ranks in jobs.values()]


def is_job(identifier: str) -> bool:
    """Return whether a record's identifier of a job is one of SLURM's: `12` or `12_3`."""
    return identifier.partition("_")[0].isdecimal()


def sum_usage(
    source: str, uses: Sequence[JobUse], records: Iterable[Record] = (), mem_per_cpu: bool = False
) -> JobUsage | None:
    """Return the usage of executions in sum, None if there are none.

    The `records` of the ranks say how busy the GPUs were, and how much memory ranks had at their peak, which sacct may
    have missed. With `mem_per_cpu` memory is requested per core.
    """
    if not uses:
        return None
    records = list(records)
    known = [use for use in uses if use.cpu_seconds is not None and use.cores and use.elapsed_seconds]
    had = sum(use.cores * use.elapsed_seconds for use in known)
    busiest = max(((use.cpu_seconds or 0.0) / use.elapsed_seconds / use.tasks for use in known), default=None)
    cores = max(use.cores // use.tasks for use in uses) or 1
    peaks = [use.memory_mb for use in use_of_records(records, None)]
    memory = _largest(*(use.memory_mb for use in uses), *peaks)
    requested = _largest(*(use.requested_mb for use in uses))
    elapsed, limit = max(use.elapsed_seconds for use in uses), _largest(*(use.limit_seconds for use in uses))
    wanted_cores = cores if busiest is None else min(cores, max(1, math.ceil(busiest)))
    per_node = max(-(-use.tasks // use.nodes) for use in uses)
    uncounted = FIRST_MEMORY_MB if source == "records" else 0  # of the rank that makes the catalogue at the end
    needed = None if memory is None else memory * MEMORY_MARGIN + uncounted
    return JobUsage(
        source=source,
        executions=len(uses),
        cores_percent=_percent(sum(use.cpu_seconds or 0.0 for use in known), had),
        cores_per_task=None if busiest is None else round(busiest, 3),
        requested_cores_per_task=cores,
        memory_percent=_percent(memory, requested),
        memory_mb=None if memory is None else round(memory, 1),
        requested_memory_mb=requested,
        time_percent=_percent(elapsed, limit),
        elapsed_seconds=elapsed,
        limit_seconds=limit,
        gpus=max(use.gpus for use in uses),
        gpu_percent=_gpu_percent(records),
        request=tuple(_options(wanted_cores, needed, elapsed, wanted_cores * per_node if mem_per_cpu else None)),
    )


def _options(cores: int, memory: float | None, elapsed: float, share: int | None) -> Iterable[str]:
    """Yield options of sbatch; memory is needed by a node, and requested for each of `share` cores if that is given."""
    yield f"--cpus-per-task={cores}"
    if memory is not None:
        node = _round_up(memory, MEMORY_STEP)
        yield f"--mem={node}M" if share is None else f"--mem-per-cpu={_round_up(node / share, MEMORY_STEP)}M"
    minutes = _round_up(elapsed * TIME_MARGIN, TIME_STEP) // 60
    yield f"--time={minutes // 60}:{minutes % 60:02}:00"


def _use_of_ranks(ranks: Sequence[Record], request: SlurmRequest | None) -> JobUse:
    nodes: dict[str, float] = {}
    for record in ranks:
        nodes[record.host] = nodes.get(record.host, 0.0) + record.peak_rss_mb
    cores = sum(record.threads for record in ranks)
    by_core = request.mem_per_cpu * cores / len(nodes) if request and request.mem_per_cpu else None
    return JobUse(
        cores=cores,
        tasks=len(ranks),
        nodes=len(nodes),
        gpus=sum(record.device == "cuda" for record in ranks),
        elapsed_seconds=round(max(map(_seconds, ranks)), 1),
        cpu_seconds=sum(record.cpu_seconds for record in ranks),
        limit_seconds=float(parse_time_limit(request.time)) if request else None,
        memory_mb=max(nodes.values()),
        requested_mb=by_core or (float(request.memory_mb) if request and request.memory_mb else None),
    )


def _seconds(record: Record) -> float:
    """Return the time from the start of a rank's process to its last record."""
    begin, wrote = (datetime.fromisoformat(time) for time in (record.started_at, record.updated_at))
    return max(0.0, (wrote - begin).total_seconds()) + record.seconds.start


def _gpu_percent(records: Sequence[Record]) -> float | None:
    """Return how much of the time the GPUs of ranks were busy on average, None where it was not measured."""
    found = [
        (record.gpu.utilization_percent, record.gpu.seconds)
        for record in records
        if record.gpu is not UNSET and record.gpu.utilization_percent is not UNSET
    ]
    seconds = sum(time for _, time in found)
    return round(sum(percent * time for percent, time in found) / seconds, 1) if seconds else None


def _describe_percent(percent: float | None) -> str:
    return "unknown" if percent is None else f"{percent:.0f}%"


def _percent(part: float | None, whole: float | None) -> float | None:
    return round(100 * part / whole, 1) if part is not None and whole else None


def _largest(*values: float | None) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _round_up(value: float, step: float) -> int:
    return math.ceil(value / step) * int(step)
