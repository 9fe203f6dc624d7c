"""The record of one rank's execution: the published keys with their published meaning, then those of this program.

The published rates count CPU time: `throughput_bps` times `total_cpu_time (seconds)` are the bits of the galaxies. What
a clock on the wall shows is in keys of this program.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from ..processes import process_start_time
from ..ranks.invocation import InvocationRecord
from ..ranks.nvml import GpuUse
from ..surveys.survey import Count
from .plan import PrecisionCheck
from .provenance import process_age

BITS_PER_GALAXY = (5 * 32 * 32 * 4 + 5 * 8) * 8  # as published: cutout float32 and magnitudes float64
WORKING = ("read", "predict", "write")
PHASES = ("start", "load", *WORKING)
PUBLISHED_KEYS = (
    "total_cpu_time (seconds)",
    "total_cpu_memory (MB)",
    "execution_time (seconds/batch)",
    "num_batches",
    "batch_size",
    "device",
    "throughput_bps",
    "sample_persec",
    "result_path",
    "data_path",
)
# Of a rank that read from S3; the published records have them since 2025.
PUBLISHED_S3_KEYS = (
    "s3_num_requests",
    "s3_total_time",
    "s3_avg_time",
    "s3_min_time",
    "s3_max_time",
    "s3_first_request_time",
    "s3_last_response_time",
)

RECENT = 120.0  # seconds within which a rank at work writes its record

Number = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class PhaseSeconds(msgspec.Struct, frozen=True):
    """Seconds that a rank waited for each phase of its work; together they are the time that it took."""

    start: float
    load: float
    read: float
    predict: float
    write: float

    @property
    def working(self) -> float:
        """Seconds of the phases that do the work: read, predict and write."""
        return self.read + self.predict + self.write


def count_batches(galaxies: int, batch_size: int) -> int:
    """Return the number of batches of this size that hold so many galaxies, as all published records count them."""
    return -(-galaxies // batch_size)


class PublishedRates(msgspec.Struct, frozen=True):
    """The published rates of a number of galaxies; all are 0 where there are no galaxies, or no CPU time is known."""

    cpu_seconds_per_batch: float = 0.0
    throughput_bps: float = 0.0
    galaxies_per_cpu_second: float = 0.0

    @staticmethod
    def of(galaxies: int, cpu_seconds: float, batch_size: int) -> PublishedRates:
        """Return the rates of galaxies that took this CPU time, as the published worker computes them.

        Seconds per batch are those of a full batch.
        """
        if not galaxies or not cpu_seconds:
            return PublishedRates()
        per_second = galaxies / cpu_seconds
        return PublishedRates(cpu_seconds * batch_size / galaxies, per_second * BITS_PER_GALAXY, per_second)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt of one rank went; the content of `records/<rank>.json`.

    Times are ISO 8601, memory is in MB (2^20 bytes). `galaxies` and `items` are those whose parts this attempt was the
    first to write, and `batches` hold them; `repeated` galaxies were written by another rank before. Of `galaxies`,
    `checked` ones were compared with checksums of their survey when they were read.
    """

    cpu_seconds: float = field(name="total_cpu_time (seconds)")
    cpu_memory_mb: float = field(name="total_cpu_memory (MB)")
    cpu_seconds_per_batch: float = field(name="execution_time (seconds/batch)")
    batches: Count = field(name="num_batches")
    batch_size: Count
    device: str
    throughput_bps: float
    galaxies_per_cpu_second: float = field(name="sample_persec")
    result_path: str
    data_path: str | list[str]
    rank: Count
    world_size: Number
    attempt: Number
    state: str
    platform: str
    job: str | None = None
    site: str | None = None  # name of the site profile with which the launcher submitted the job
    cluster: str | None = None  # as SLURM names it
    restarts: Count | None = None
    local_rank: Count = 0
    threads: Count
    host: str
    pid: Count = 0
    cpu_model: str
    gpu_model: str | None = None
    cuda_visible_devices: str | None = None
    image_digest: str | None = None
    git_commit: str | None = None
    engine: str
    precision: str
    inner_batch: Count = 0
    precision_check: PrecisionCheck | None = None
    started_at: str
    working_at: str
    updated_at: str
    seconds: PhaseSeconds
    peak_rss_mb: float
    peak_gpu_mb: float
    galaxies: Count
    items: Count
    repeated: Count
    checked: Count | UnsetType = UNSET
    unchecked: Count | UnsetType = UNSET
    wall_galaxies_per_second: float | UnsetType = field(name="galaxies_per_second", default=UNSET)
    wall_seconds_per_batch: float | UnsetType = field(name="seconds_per_batch", default=UNSET)
    s3_requests: dict[str, Count]
    invocation: InvocationRecord | None = field(name="lambda", default=None)
    s3_num_requests: Count | UnsetType = UNSET
    s3_total_time: float | UnsetType = UNSET
    s3_avg_time: float | UnsetType = UNSET
    s3_min_time: float | UnsetType = UNSET
    s3_max_time: float | UnsetType = UNSET
    s3_first_request_time: float | UnsetType = UNSET
    s3_last_response_time: float | UnsetType = UNSET
    fmi: dict[str, Any] | UnsetType = UNSET  # what ranks on Lambda that talked to each other report of it
    gpu: GpuUse | UnsetType = UNSET  # what NVML reports of the GPU while the rank worked
    slurm: dict[str, Any] | UnsetType = UNSET  # what SLURM's accounting reports of the execution

    def __post_init__(self) -> None:
        for name in ("started_at", "working_at", "updated_at"):
            require_time(name, getattr(self, name))

    @property
    def name(self) -> str:
        """Name of the record."""
        return record_name(self.rank, self.attempt)

    @property
    def galaxies_per_second(self) -> float:
        """Galaxies per second of reading, predicting and writing, which older records have in a published key."""
        own = self.wall_galaxies_per_second
        return self.galaxies_per_cpu_second if own is UNSET else own

    @property
    def seconds_per_batch(self) -> float:
        """Seconds of reading, predicting and writing per batch, which older records have in a published key."""
        own = self.wall_seconds_per_batch
        return self.cpu_seconds_per_batch if own is UNSET else own

    def silent_seconds(self) -> float:
        """Return the time since the record was written, negative if the clock of its machine is ahead of this one."""
        return (datetime.now(UTC) - datetime.fromisoformat(self.updated_at)).total_seconds()

    def is_at_work(self) -> bool:
        """Return whether the attempt is known to go on: it wrote within RECENT seconds.

        On this machine it must also have a process, and on another one it must have written since this process started.
        An attempt that needs longer for an item is not recognized.
        """
        if self.state != "running" or abs(silent := self.silent_seconds()) > RECENT:
            return False
        if self.host == platform.node():
            return process_start_time(self.pid) is not None
        return silent < process_age()

    @property
    def machine(self) -> str:
        """Processor and GPU of the rank; how many threads and which engine used them is no part of a machine."""
        return f"{self.cpu_model}, {self.gpu_model}" if self.gpu_model else self.cpu_model

    @property
    def measured_on(self) -> str:
        """Machine of the rank, its threads, engine and precision."""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''} per rank"
        return f"{self.machine}, {threads}, {self.engine} {self.precision}"


class FunctionNote(msgspec.Struct, frozen=True, kw_only=True):
    """What a call of the function that planned or summarized a run on Lambda used; a file in `functions/`."""

    function: Literal["initialize", "infer", "summarize"]
    started_at: str
    invocation: InvocationRecord = field(name="lambda")
    s3_requests: dict[str, Count]

    def __post_init__(self) -> None:
        require_time("started_at", self.started_at)


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a work item could not be done, which rank tried last, and how often it was tried; a file in `failures/`.

    `submission` is that of the rank, if it shares a plan without communicating: ranks of another one try again.
    """

    item: str
    reason: str
    rank: Count
    count: Number
    submission: str | None = None


def record_name(rank: int, attempt: int) -> str:
    """Return the name of a record: `3`, or `3-2` for the second attempt of rank 3."""
    return str(rank) if attempt == 1 else f"{rank}-{attempt}"


def require_time(name: str, text: str) -> None:
    """Raise ValueError naming the field if a text is not an ISO 8601 time with an offset."""
    try:
        if datetime.fromisoformat(text).tzinfo is not None:
            return
    except ValueError:
        pass
    raise ValueError(f"field {name}: expected an ISO 8601 time with an offset, got {text!r}")
