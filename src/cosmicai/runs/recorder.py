"""The recorder of a rank: it collects times and counts while the rank works."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from msgspec import UNSET

from ..engines.base import EngineChoice
from ..ranks.container_image import image_digest
from ..ranks.environment import Rank
from ..ranks.gpus import VISIBLE
from ..ranks.invocation import Invocation
from ..ranks.nvml import GpuSampler
from ..storage.s3 import RequestStatistics
from .plan import PrecisionCheck, WorkItem
from .provenance import cpu_model, git_commit, gpu_model, peak_rss_mb, process_age
from .record import PHASES, WORKING, PhaseSeconds, PublishedRates, Record, count_batches


@dataclass
class Recorder:
    """Times and counts of a rank while it works; `record()` returns the state so far.

    Reading, predicting and writing overlap: `seconds` holds how long the rank waited for each, so that the phases add
    up to the time it took.
    """

    rank: Rank
    batch_size: int
    choice: EngineChoice
    precision_check: PrecisionCheck | None
    result_path: str
    data_path: str | list[str]
    attempt: int = 1
    cpu_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    galaxies: int = 0
    checked: int = 0  # galaxies
    items: int = 0
    repeated: int = 0  # galaxies
    peak_gpu_mb: float = 0.0
    state: str = "running"
    working_at: datetime | None = None  # when the first galaxies were read
    invocation: Invocation | None = None  # on AWS Lambda
    gpu: GpuSampler | None = None  # on a GPU, where NVML answers

    def __post_init__(self) -> None:
        self.precision = self.choice.precision  # until the engine is loaded and says which one it has
        self.started_at = datetime.now(UTC)
        self.seconds["start"] = time.perf_counter() - self.invocation.began if self.invocation else process_age()
        self._requests = RequestStatistics()
        self._fixed: dict[str, Any] = {
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
        """Add the time of the block to a phase and, if the phase does work, the CPU time of all threads."""
        begin, cpu = time.perf_counter(), time.process_time()
        if name in WORKING and self.working_at is None:
            self.working_at = datetime.now(UTC)
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin
            if name in WORKING:
                self.cpu_seconds += time.process_time() - cpu

    def add(self, item: WorkItem, peak_gpu_mb: float, is_first: bool, is_checked: bool = False) -> None:
        """Count an item that was written; one that another rank has written before counts as repeated only.

        `is_checked` says whether its bytes were compared with checksums when they were read.
        """
        self.peak_gpu_mb = peak_gpu_mb
        if not is_first:
            self.repeated += item.galaxies
            return
        self.items += 1
        self.galaxies += item.galaxies
        self.checked += item.galaxies * is_checked

    def record(self) -> Record:
        """Return the record so far."""
        working = sum(self.seconds[name] for name in WORKING)
        batches = count_batches(self.galaxies, self.batch_size)
        published = PublishedRates.of(self.galaxies, self.cpu_seconds, self.batch_size)
        now, memory = datetime.now(UTC), peak_rss_mb()
        read_times: dict[str, Any] = dict(self._requests.read_times())
        return Record(
            cpu_seconds=self.cpu_seconds,
            cpu_memory_mb=memory,
            cpu_seconds_per_batch=published.cpu_seconds_per_batch,
            batches=batches,
            batch_size=self.batch_size,
            device=self.choice.device,
            throughput_bps=published.throughput_bps,
            galaxies_per_cpu_second=published.galaxies_per_cpu_second,
            result_path=self.result_path,
            data_path=self.data_path,
            rank=self.rank.rank,
            world_size=self.rank.world_size,
            attempt=self.attempt,
            state=self.state,
            platform=self.rank.platform,
            job=self.rank.job,
            site=self.rank.site,
            cluster=self.rank.cluster,
            restarts=self.rank.restarts,
            local_rank=self.rank.local_rank,
            threads=self.rank.threads,
            **self._fixed,
            engine=self.choice.engine,
            precision=self.precision,
            inner_batch=self.choice.inner_batch,
            precision_check=self.precision_check,
            started_at=self.started_at.isoformat(),
            working_at=(self.working_at or now).isoformat(),
            updated_at=now.isoformat(),
            seconds=PhaseSeconds(**{name: round(value, 6) for name, value in self.seconds.items()}),
            peak_rss_mb=memory,
            peak_gpu_mb=self.peak_gpu_mb,
            galaxies=self.galaxies,
            items=self.items,
            repeated=self.repeated,
            checked=self.checked,
            unchecked=self.galaxies - self.checked,
            wall_galaxies_per_second=self.galaxies / working if working else 0.0,
            wall_seconds_per_batch=working / batches if batches else 0.0,
            s3_requests=dict(self._requests.counts),
            invocation=self.invocation.record() if self.invocation else None,
            gpu=self.gpu.use() if self.gpu else UNSET,
            **read_times,
        )
