"""The record of one rank's execution: the published keys exactly as published, and ours beside them."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from ..engines.base import Choice
from ..ranks.environment import Rank
from ..ranks.gpus import VISIBLE
from ..ranks.image_identity import image_digest
from ..ranks.invocation import Invocation
from ..storage.s3 import Requests
from .plan import WorkItem

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


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB (2^20 bytes).

    Linux's VmHWM, since getrusage's ru_maxrss can hold the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def cpu_model() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def gpu_model(device: str) -> str | None:
    """The GPU's name; None on a CPU."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name()


@cache
def git_commit() -> str | None:
    """The commit of the code that runs (`-dirty` where it was changed), from COSMICAI_GIT_COMMIT or the checkout."""
    if given := os.environ.get("COSMICAI_GIT_COMMIT"):
        return given
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def process_age() -> float:
    """Seconds since this process was started; 0 where the system does not say."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return 0.0
    started = int(stat.read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


@dataclass
class Recorder:
    """Collects a rank's times and counts while it works; `record()` is the state so far.

    Reading, predicting and writing overlap: `seconds` is what the rank waited for, so that its phases add up to the
    time it took.
    """

    rank: Rank
    batch_size: int
    choice: Choice
    precision_check: dict[str, Any] | None
    result_path: str
    data_path: str | list[str]
    attempt: int = 1
    cpu_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    galaxies: int = 0
    batches: int = 0
    items: int = 0
    repeated: int = 0  # galaxies
    peak_gpu_mb: float = 0.0
    state: str = "running"
    working_at: datetime | None = None  # when the first galaxies were read
    invocation: Invocation | None = None  # on AWS Lambda

    def __post_init__(self) -> None:
        self.precision = self.choice.precision  # what the engine then really has
        self.started_at = datetime.now(UTC)
        self.seconds["start"] = time.perf_counter() - self.invocation.began if self.invocation else process_age()
        self._requests = Requests()
        self._fixed = {
            "host": platform.node(),
            "pid": os.getpid(),
            "cpu_model": cpu_model(),
            "gpu_model": gpu_model(self.choice.device),
            "cuda_visible_devices": os.environ.get(VISIBLE),
            "image_digest": image_digest(),
            "git_commit": git_commit(),
        }

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a phase, and that of all its threads to the CPU time if it is work."""
        begin, cpu = time.perf_counter(), time.process_time()
        if name in WORKING and self.working_at is None:
            self.working_at = datetime.now(UTC)
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin
            if name in WORKING:
                self.cpu_seconds += time.process_time() - cpu

    def add(self, item: WorkItem, peak_gpu_mb: float, is_first: bool) -> None:
        """Counts an item that is written; one that another rank has written before counts as repeated alone."""
        self.peak_gpu_mb = peak_gpu_mb
        if not is_first:
            self.repeated += item.galaxies
            return
        self.items += 1
        self.batches += -(-item.galaxies // self.batch_size)
        self.galaxies += item.galaxies

    def record(self) -> dict[str, Any]:
        """The record as it is written."""
        working = sum(self.seconds[name] for name in WORKING)
        per_second = self.galaxies / working if working else 0.0
        now, memory = datetime.now(UTC), peak_rss_mb()
        return {
            "total_cpu_time (seconds)": self.cpu_seconds,
            "total_cpu_memory (MB)": memory,
            "execution_time (seconds/batch)": working / self.batches if self.batches else 0.0,
            "num_batches": self.batches,
            "batch_size": self.batch_size,
            "device": self.choice.device,
            "throughput_bps": per_second * BITS_PER_GALAXY,
            "sample_persec": per_second,
            "result_path": self.result_path,
            "data_path": self.data_path,
            "rank": self.rank.rank,
            "world_size": self.rank.world_size,
            "attempt": self.attempt,
            "state": self.state,
            "platform": self.rank.platform,
            "job": self.rank.job,
            "restarts": self.rank.restarts,
            "local_rank": self.rank.local_rank,
            "threads": self.rank.threads,
            **self._fixed,
            "engine": self.choice.engine,
            "precision": self.precision,
            "inner_batch": self.choice.inner_batch,
            "precision_check": self.precision_check,
            "started_at": self.started_at.isoformat(),
            "working_at": (self.working_at or now).isoformat(),
            "updated_at": now.isoformat(),
            "seconds": {name: round(value, 6) for name, value in self.seconds.items()},
            "peak_rss_mb": memory,
            "peak_gpu_mb": self.peak_gpu_mb,
            "galaxies": self.galaxies,
            "items": self.items,
            "repeated": self.repeated,
            "s3_requests": dict(self._requests.sent),
            "lambda": self.invocation and self.invocation.record(),
            **self._requests.times(),
        }


def published(record: dict[str, Any]) -> dict[str, Any]:
    """The published keys of a record."""
    return {key: record[key] for key in (*PUBLISHED_KEYS, *PUBLISHED_S3_KEYS) if key in record}
