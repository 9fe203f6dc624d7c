"""`cosmicai bench lambda`: the function in AWS Lambda's emulator, from its event to its result, on S3."""

from __future__ import annotations

import io
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .. import storage
from ..errors import InputError
from ..measurement.machine import describe_machine
from ..measurement.subprocesses import run_module_json
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..models.weights import DEMO, find_weights
from ..runs.create import create_run
from ..runs.request import RunRequest
from ..storage.s3 import is_s3
from ..surveys.shard import Galaxies
from ..surveys.survey import galaxies_per_partition, open_survey
from .galaxies import generate_noise
from .lambda_emulator import Function, FunctionResult, require_success, run_emulator
from .published_loop import make_published_dataset
from .timing import measure_interleaved, summarize_spread

COLUMNS = (
    MeasurementColumn("name", "what"),
    MeasurementColumn("galaxies", "galaxies", ","),
    MeasurementColumn("seconds", "seconds", ".2f"),
    MeasurementColumn("seconds_min", "min", ".2f"),
    MeasurementColumn("seconds_max", "max", ".2f"),
    MeasurementColumn("peak_rss_mb", "peak MB", ",.0f"),
    MeasurementColumn("s3_reads", "S3 reads", ","),
    MeasurementColumn("gb_seconds_per_million", "GB-s per million", ",.0f"),
    MeasurementColumn("gb_seconds_ratio", "of published", ".2f"),
)
FIRST = 64  # galaxies, one inner batch
HANDLER = "cosmicai.aws_lambda.infer.infer"
FEW, WHOLE = "few", "partition"  # folders on S3


def bench_lambda(
    folder: str,
    weights: str,
    partition_mb: float,
    memory: int,
    repeats: int,
    emulator: str,
    notify: Callable[[str], None],
) -> MeasurementTable:
    """Measure the function in a process that starts for the event (cold) or exists (warm), and the published method.

    Seconds are from the event to the result: for FIRST galaxies, which is the time to the first redshifts, and for a
    partition of noise. The compiled network is in the cache except in `nothing cached`. The published method is a
    process that reads a complete partition from S3 and predicts it with the published loop. GB-seconds are seconds
    times `memory` in MB, which should be what Lambda assigns for this machine's cores (1,769 MB per core). All files
    are in a new folder below `folder` on S3. Raises InputError if input or options are invalid or a function fails.
    """
    if not is_s3(folder):
        raise InputError(f"{folder} is not on S3; expected s3://BUCKET/FOLDER (AWS_ENDPOINT_URL may name a server)")
    here, local = describe_machine(), find_weights(weights).uri
    folder = storage.join(folder, secrets.token_hex(4))
    if weights != DEMO:
        weights = storage.join(folder, "weights.safetensors")
        storage.write_bytes(weights, storage.read_bytes(local))
    sizes = {FEW: FIRST, WHOLE: galaxies_per_partition(partition_mb)}
    for name, galaxies in sizes.items():
        _write_partition(storage.join(folder, name, "1.pt"), galaxies)
    with TemporaryDirectory(prefix="cosmicai-bench-") as own:
        setup = _Setup(folder, weights, memory, Path(emulator), Path(own))
        published = ("cosmicai.bench.published_loop", storage.join(folder, WHOLE, "1.pt"), local)
        with setup.serve("cache") as warm:
            trials: dict[tuple[str, str], Callable[[], _Call]] = {
                ("first redshifts, cold", FEW): partial(setup.call_cold, FEW, "cache"),
                ("first redshifts, nothing cached", FEW): partial(setup.call_cold, FEW, None),
                ("first redshifts, warm", FEW): partial(setup.call, warm, FEW),
                (f"{partition_mb:g} MB, cold", WHOLE): partial(setup.call_cold, WHOLE, "cache"),
                (f"{partition_mb:g} MB, warm", WHOLE): partial(setup.call, warm, WHOLE),
                (f"{partition_mb:g} MB, published method", WHOLE): partial(
                    _time_call, run_module_json, *published, galaxies=sizes[WHOLE]
                ),
            }
            measured = measure_interleaved(list(trials.values()), repeats, notify)
    rows = [
        _make_row(name, sizes[survey], memory, calls) for (name, survey), calls in zip(trials, measured, strict=True)
    ]
    for row in rows:
        row["gb_seconds_ratio"] = row["gb_seconds_per_million"] / rows[-1]["gb_seconds_per_million"]
    facts = {"weights": local, "memory_mb": memory, "repeats": repeats, "s3": os.environ.get("AWS_ENDPOINT_URL", "AWS")}
    return MeasurementTable("Lambda", COLUMNS, rows, here, facts, {name: str(value) for name, value in facts.items()})


@dataclass(frozen=True)
class _Call:
    """Seconds from an event to the result of the function, and the result."""

    seconds: float
    result: FunctionResult


@dataclass(frozen=True)
class _Setup:
    """Where the function runs, and the surveys and runs that it is called for."""

    folder: str
    weights: str
    memory: int
    emulator: Path
    local: Path
    numbers: count[int] = field(default_factory=count)

    def serve(self, cache: str) -> AbstractContextManager[Function]:
        """Run the emulator; the function starts at its first event."""
        command = [sys.executable, "-m", "awslambdaric", HANDLER]
        own = {"COSMICAI_CACHE": str(self.local / cache), "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.memory)}
        return run_emulator(self.emulator, command, os.environ | own, self.local / f"log-{next(self.numbers)}")

    def call_cold(self, name: str, cache: str | None) -> _Call:
        """Start the function and call it; without a `cache` it finds nothing compiled."""
        with self.serve(cache or f"cache-{next(self.numbers)}") as function:
            return self.call(function, name)

    def call(self, function: Function, name: str) -> _Call:
        """Call the function for a new run of the survey of this name. Raises InputError if it fails."""
        survey = open_survey(storage.join(self.folder, name))
        out = storage.join(self.folder, "runs", str(next(self.numbers)))
        run = create_run(RunRequest(survey.uri, out, self.weights, device="cpu"), survey)
        return _time_call(function, {"run": run.uri, "rank": 0, "world_size": 1}, galaxies=survey.galaxies)


def _time_call(function: Callable[..., Any], *arguments: Any, galaxies: int) -> _Call:
    begin = time.perf_counter()
    result = function(*arguments)
    return _Call(time.perf_counter() - begin, require_success(result, galaxies))


def _write_partition(uri: str, galaxies: int) -> None:
    """Write a partition of noise in the published format."""
    data = io.BytesIO()
    torch.save(make_published_dataset(Galaxies.concatenate(generate_noise(galaxies))), data)
    storage.write_bytes(uri, data.getbuffer())


def _make_row(name: str, galaxies: int, memory: int, calls: list[_Call]) -> dict[str, Any]:
    seconds = [call.seconds for call in calls]
    return {
        "name": name,
        "galaxies": galaxies,
        **summarize_spread("seconds", seconds),
        "peak_rss_mb": max(call.result.peak_rss_mb for call in calls),
        "s3_reads": calls[-1].result.s3_num_requests,
        "gb_seconds_per_million": median(seconds) * memory / 1024 / galaxies * 1e6,
    }
